"""A learned map cleaner: a small 3D U-Net that takes noise and detergent out of a map.

It has the part that DeepTracer-Denoising, which has no public code, plays in Zhang et al. 2024: to
clean maps before they are used. The network sees a map of a fixed pixel size and subtracts what it
takes for noise, micelle and solvent. It knows nothing of positions and normalises nothing over
space, so that it shifts with its input and a large map may be cleaned in tiles. It is trained on
random molecules, see `cryonb.simulation.families.draw_maps`.

**Never before an FSC between half maps**: one network cleans both halves, and what it does to both
alike counts as signal.

Introduced in: 09_clean_a_map.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from cryonb.data.maps import level_and_scale, resample
from cryonb.physics.fourier import check_cubic
from cryonb.simulation.masks import soft_mask


class Block(nn.Module):
    """Two convolutions beside the identity, each voxel's channels scaled to unit power before."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x * (x.square().mean(1, keepdim=True) + 1e-3).rsqrt()
        return x + self.conv2(F.silu(self.conv1(F.silu(h))))


class MapCleaner(nn.Module):
    """U-Net from maps `(b, z, y, x)` of unit scale to the molecule in them, of the same shape.

    The map is folded two to a side, halved once more, and what the network returns is subtracted
    from it. `widths` are its channels at 2 and at 4 voxels, `blocks` its residual blocks at 4,
    where most of the range comes from; there is one on either side at 2. `pixel_size_A` is that of
    the maps that it is trained on and wants to see.
    """

    stride = 4

    def __init__(
        self, widths: tuple[int, int] = (24, 48), blocks: int = 3, pixel_size_A: float = 3.0
    ):
        super().__init__()
        self.config = {"widths": list(widths), "blocks": blocks, "pixel_size_A": pixel_size_A}
        self.pixel_size_A = pixel_size_A
        fine, coarse = widths
        self.entrance = nn.Conv3d(8, fine, 3, padding=1)
        self.down, self.shrink = Block(fine), nn.Conv3d(fine, coarse, 2, stride=2)
        self.middle = nn.Sequential(*(Block(coarse) for _ in range(blocks)))
        self.grow = nn.ConvTranspose3d(coarse, fine, 2, stride=2)
        self.join, self.up = nn.Conv3d(2 * fine, fine, 1), Block(fine)
        self.exit = nn.Conv3d(fine, 8, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    @property
    def reach(self) -> int:
        """Voxels, a multiple of the stride, beyond which a voxel has no say in another."""
        return 16 + 8 * len(self.middle)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if any(n % self.stride for n in maps.shape[-3:]):
            raise ValueError(
                f"Maps of {tuple(maps.shape[-3:])} voxels do not fit this network: each side must "
                f"be a multiple of {self.stride}. Use clean_map, which pads."
            )
        h = self.down(self.entrance(_fold(maps)))  # (b, fine, z / 2, y / 2, x / 2)
        low = self.middle(self.shrink(h))
        h = self.up(self.join(torch.cat([h, self.grow(low)], dim=1)))
        return maps - _unfold(self.exit(F.silu(h)))


def _fold(maps: torch.Tensor) -> torch.Tensor:
    """Blocks of 2³ voxels as channels: (b, z, y, x) -> (b, 8, z / 2, y / 2, x / 2)."""
    b, z, y, x = maps.shape
    parts = maps.reshape(b, z // 2, 2, y // 2, 2, x // 2, 2)
    return parts.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, 8, z // 2, y // 2, x // 2)


def _unfold(parts: torch.Tensor) -> torch.Tensor:
    """Undo `_fold`."""
    b, _, z, y, x = parts.shape
    parts = parts.reshape(b, 2, 2, 2, z, y, x).permute(0, 4, 1, 5, 2, 6, 3)
    return parts.reshape(b, 2 * z, 2 * y, 2 * x)


def cleaning_loss(model: nn.Module, batch, fraction: float, generator) -> torch.Tensor:
    """Mean squared error of maps (b, z, y, x) from the molecules in them; for `train`."""
    target, observed = batch
    return (model(observed).float() - target).square().mean()


@torch.no_grad()
def apply_cleaner(model: MapCleaner, density: torch.Tensor, tile: int = 128) -> torch.Tensor:
    """Clean a map (z, y, x) that has the network's pixel size.

    Maps larger than `tile` voxels are cut into tiles with a margin of the network's reach, which
    gives what the whole map would. A factor on the map is a factor on the result, and a constant
    added to it is taken away. ValueError if `tile` is no multiple of the network's stride.
    """
    step, reach = model.stride, model.reach
    if tile < step or tile % step:
        raise ValueError(f"tile is {tile}: give a multiple of {step}")
    level, scale = level_and_scale(density)
    padding = [p for n in reversed(density.shape) for p in (0, -n % step)]
    given = F.pad((density - level) / scale, padding)
    out, device = torch.empty_like(given), next(model.parameters()).device
    for corner in product(*(range(0, n, tile) for n in given.shape)):
        sides = list(zip(corner, given.shape, strict=True))
        wide = tuple(slice(max(c - reach, 0), min(c + tile + reach, n)) for c, n in sides)
        own = tuple(slice(c, min(c + tile, n)) for c, n in sides)
        inner = tuple(
            slice(o.start - w.start, o.stop - w.start) for o, w in zip(own, wide, strict=True)
        )
        out[own] = model(given[wide][None].to(device))[0][inner].to(out)
    z, y, x = density.shape
    return out[:z, :y, :x] * scale


def clean_map(model: MapCleaner, density: torch.Tensor, pixel_size_A: float) -> torch.Tensor:
    """Clean a map (n, n, n) of any pixel size.

    The map is resampled to the network's pixel size, cleaned, and brought back. Detail finer than
    the network's pixels can hold is not cleaned: it is kept where the cleaned map has density, by
    the soft mask of its largest piece, and dropped elsewhere. The molecule is bright; the result,
    float32, has the input's grid and scale, solvent at zero. ValueError if the map is not a cube,
    or has the same value everywhere.
    """
    n, step = check_cubic(density, 3), model.pixel_size_A / pixel_size_A
    if float(density.max() - density.min()) == 0:
        raise ValueError("The map has the same value everywhere: there is nothing to clean.")
    density = density.float() - level_and_scale(density)[0]
    if abs(step - 1) < 1e-3:
        return apply_cleaner(model, density)
    size = max(int(torch.tensor(n / step).ceil()), model.stride)
    middle = size // 2, n // 2  # the same point of both grids
    coarse = resample(density, size, step, (middle[1] - middle[0] * step,) * 3)
    cleaned = apply_cleaner(model, coarse)
    back = 1 / step, (middle[0] - middle[1] / step,) * 3
    cleaned, seen = (resample(v, n, *back) for v in (cleaned, coarse))
    if step <= 1:  # the network saw all detail there is
        return cleaned
    support = soft_mask(cleaned, pixel_size_A, largest=True)
    return cleaned + support * (density - seen)
