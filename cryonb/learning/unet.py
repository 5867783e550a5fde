"""The network: a small conditional U-Net with transformer blocks at its lowest resolution.

Most of a particle image is noise, and what the network must find, the pose, is global. So the
image is folded at once (pixel-unshuffle), the convolutions work where they are cheap, and
attention at the bottom lets every patch see every other. Residual blocks as in Saharia et al.
2021 (SR3); the noise levels modulate each block by scale and shift.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class LevelEmbedding(nn.Module):
    """Embed log noise levels by sines and cosines: (b, levels) -> (b, width)."""

    def __init__(self, levels: int, width: int, frequencies: int = 32):
        super().__init__()
        self.register_buffer("omega", torch.logspace(-0.3, 1.7, frequencies), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies * levels, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        angle = (levels[..., None] * self.omega).flatten(1)  # (b, levels * frequencies)
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice; the embedding scales and shifts in between."""

    def __init__(self, c_in: int, c_out: int, embedding: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * c_out)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class TransformerBlock(nn.Module):
    """Self-attention and an MLP over all positions, both modulated by the embedding."""

    def __init__(self, width: int, embedding: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )
        self.modulate = nn.Linear(embedding, 4 * width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.mlp[-1].weight)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)  # (b, positions, c)
        scale1, shift1, scale2, shift2 = self.modulate(embedding)[:, None].chunk(4, dim=-1)
        qkv = self.qkv(self.norm(t) * (1 + scale1) + shift1)
        q, k, v = qkv.view(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (b, heads, positions, c / heads)
        t = t + self.proj(attended.transpose(1, 2).reshape(b, h * w, c))
        t = t + self.mlp(self.norm(t) * (1 + scale2) + shift2)
        return t.transpose(1, 2).reshape(b, c, h, w)


def position_code(width: int, height: int, across: int, device=None) -> torch.Tensor:
    """Sines and cosines of the position relative to the box centre: (width, height, across).

    Frequencies are per box, so that a network may be used on boxes of another size.
    """
    omega = 2 * math.pi * 2.0 ** torch.linspace(-1, 3, width // 4, device=device)
    y = (torch.arange(height, device=device) - height // 2) / height
    x = (torch.arange(across, device=device) - across // 2) / across
    y, x = omega[:, None] * y, omega[:, None] * x  # (width / 4, height), (width / 4, across)
    rows = torch.cat([y.sin(), y.cos()])[:, :, None].expand(-1, -1, across)
    columns = torch.cat([x.sin(), x.cos()])[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])


class UNet(nn.Module):
    """U-Net from `(b, in_channels, y, x)` and noise levels `(b, levels)` to `(b, 1, y, x)`.

    The noise levels are natural logarithms; `unshuffle` pixels a side are folded into channels at
    the entrance. `widths` are the channels at each resolution, from fine to coarse, multiples of 8;
    `blocks` the residual blocks at each, on the way down and on the way up; `transformers` the
    transformer blocks at the coarsest.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        levels: int = 2,
        unshuffle: int = 4,
        widths: tuple[int, ...] = (96, 256),
        blocks: int = 2,
        transformers: int = 4,
        embedding: int = 256,
    ):
        super().__init__()
        self.unshuffle = unshuffle
        self.embed = LevelEmbedding(levels, embedding)
        self.entrance = nn.Conv2d(in_channels * unshuffle**2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in zip(widths, widths[1:], strict=False):
            self.down.append(_stack(fine, fine, blocks, embedding))
            self.shrink.append(nn.Conv2d(fine, coarse, 2, stride=2))
            self.grow.insert(0, nn.Conv2d(coarse, fine, 1))
            self.up.insert(0, _stack(2 * fine, fine, blocks, embedding))
        self.middle = nn.ModuleList(
            TransformerBlock(widths[-1], embedding) for _ in range(transformers)
        )
        self.norm = nn.GroupNorm(8, widths[0])
        self.exit = nn.Conv2d(widths[0], unshuffle**2, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        self.check_box(images.shape[-2:])
        embedding = self.embed(levels)
        h = F.pixel_unshuffle(images, self.unshuffle)
        h = self.entrance(h.contiguous(memory_format=torch.channels_last))
        skips = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            for block in blocks:
                h = block(h, embedding)
            skips.append(h)
            h = shrink(h)
        h = h + position_code(*h.shape[1:], device=h.device).to(h)
        for block in self.middle:
            h = block(h, embedding)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            h = F.interpolate(grow(h), scale_factor=2, mode="nearest")
            h = torch.cat([h, skips.pop()], dim=1)
            for block in blocks:
                h = block(h, embedding)
        return F.pixel_shuffle(self.exit(F.silu(self.norm(h))), self.unshuffle)

    def check_box(self, shape: tuple[int, int]) -> None:
        """ValueError unless the box can be folded and halved down to the coarsest resolution."""
        step = self.unshuffle * 2 ** len(self.shrink)
        if shape[0] % step or shape[1] % step:
            raise ValueError(
                f"Images of {shape[0]} × {shape[1]} pixels do not fit this network: the box must "
                f"be a multiple of {step}. Crop or pad the images, or resample the volume."
            )


def _stack(c_in: int, c_out: int, blocks: int, embedding: int) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualBlock(c_in if i == 0 else c_out, c_out, embedding) for i in range(blocks)
    )
