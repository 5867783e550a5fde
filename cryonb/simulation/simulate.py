"""Simulated particles: clean projections, structural noise, white noise.

An image is ``noisy = CTF * (clean + structure) + sigma * white``. `clean` is the projection of the
molecule alone, the target of every denoiser; `structure` is whatever else scatters: the detergent
micelle, neighbouring particles, the ice gradient, a carbon edge. The unit of intensity is the
pooled standard deviation of the clean training images, so ``sigma = 1 / sqrt(snr)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cryonb.base.draws import draw_options
from cryonb.data.volumes import Volume
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import filter_radially, low_pass, radial_mean
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.simulation.masks import micelle


@dataclass(frozen=True)
class StructuralNoise:
    """How much of each kind of structural noise there is.

    Attributes
    ----------
    micelle : float
        Factor on the density of the detergent belt (1: head groups about as dense as protein).
    neighbours : float
        Mean number of other particles that reach into a box.
    ice : float
        Root mean square slope of the ice gradient: its value at the box edge in units of the
        clean standard deviation.
    carbon : float
        Share of the images that a carbon edge crosses.
    """

    micelle: float = 1.0
    neighbours: float = 0.7
    ice: float = 0.5
    carbon: float = 0.15


SETTINGS = {"white": StructuralNoise(0.0, 0.0, 0.0, 0.0), "structural": StructuralNoise()}


@dataclass(frozen=True)
class Images:
    """Simulated images before the white noise.

    Attributes
    ----------
    clean : Tensor (n, y, x)
        Projections of the molecule alone, unit pooled standard deviation at the given `scale`.
    structure : Tensor (n, y, x)
        Projections of everything else, in the same unit.
    rotations : Tensor (n, 3, 3)
    defocus_um : Tensor (n,) or None
        None: no CTF anywhere.
    """

    clean: torch.Tensor
    structure: torch.Tensor
    rotations: torch.Tensor
    defocus_um: torch.Tensor | None = None

    def observed(self, pixel_size_A: float) -> torch.Tensor:
        """What reaches the detector without the white noise: CTF * (clean + structure)."""
        images = self.clean + self.structure
        if self.defocus_um is None:
            return images
        return apply_ctf(images, ctf(images.shape[-1], pixel_size_A, self.defocus_um))


def setting(name: str) -> StructuralNoise:
    """Return the named setting, "white" or "structural"; ValueError for any other name."""
    if name not in SETTINGS:
        raise ValueError(f"Unknown setting {name!r}: choose one of {', '.join(SETTINGS)}.")
    return SETTINGS[name]


def neighbours(images: torch.Tensor, mean: float, generator: torch.Generator) -> torch.Tensor:
    """Other particles at the rim (n, y, x): random images of the stack, moved by 0.6 to 0.85 boxes.

    The number of neighbours of an image is a Poisson number of this mean.
    """
    n, box = len(images), images.shape[-1]
    out = torch.zeros_like(images)
    rate = torch.full((n,), mean, device=generator.device)
    rows = torch.arange(n).repeat_interleave(torch.poisson(rate, generator=generator).cpu().long())
    u = torch.rand(len(rows), 3, **draw_options(generator)).cpu()
    radius, angle = (0.6 + 0.25 * u[:, 0]) * box, 2 * math.pi * u[:, 1]
    moves = torch.stack([radius * torch.sin(angle), radius * torch.cos(angle)], 1).int()
    others = (u[:, 2] * n).long().clamp_max(n - 1)  # float32 may round up to n

    def inside(move: int) -> slice:
        """What of the box is still in it when the box has been moved."""
        return slice(max(move, 0), box + min(move, 0))

    for i, (dy, dx), k in zip(*(x.tolist() for x in (rows, moves, others)), strict=True):
        out[i, inside(dy), inside(dx)] += images[k, inside(-dy), inside(-dx)]
    return out


def _directions(n: int, box: int, generator: torch.Generator) -> torch.Tensor:
    """Position along a random direction, -1 ... 1 across the box: (n, y, x)."""
    angle = 2 * math.pi * torch.rand(n, 1, 1, **draw_options(generator))
    x = (torch.arange(box, device=angle.device) - box // 2) / (box / 2)
    return torch.cos(angle) * x + torch.sin(angle) * x[:, None]


def ice_gradient(n: int, box: int, slope: float, generator: torch.Generator) -> torch.Tensor:
    """Linear ramps (n, y, x) in random directions; the value at the box edge is N(0, slope)."""
    amount = slope * torch.randn(n, 1, 1, **draw_options(generator))
    return amount * _directions(n, box, generator)


def carbon_edge(
    n: int, box: int, pixel_size_A: float, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Edge of a carbon film on a `share` of the images, the rest zero: (n, y, x).

    The film is brighter than ice by one clean standard deviation and grainy (white noise to 12 Å),
    and its soft edge passes at 0.4 to 0.9 of the way from the centre to the rim.
    """
    hit = torch.rand(n, 1, 1, **draw_options(generator)) < share
    at = 0.4 + 0.5 * torch.rand(n, 1, 1, **draw_options(generator))
    film = torch.sigmoid((_directions(n, box, generator) - at) * box / 4)
    grain = low_pass(
        torch.randn(n, box, box, **draw_options(generator)), 12.0, pixel_size_A, dims=2
    )
    return hit * film * (1.0 + grain / grain.std())


def simulate_images(
    volume: Volume,
    n: int,
    noise: StructuralNoise,
    generator: torch.Generator,
    *,
    scale: float | None,
    defocus_um: tuple[float, float] | None = None,
) -> Images:
    """Simulate `n` images in uniformly random orientations, without white noise.

    Parameters
    ----------
    volume : Volume
    noise : StructuralNoise
        Amounts; all zero is the setting "white".
    generator : torch.Generator
        The images are made on its device.
    scale : float
        Standard deviation of the raw clean projections, see `clean_scale`; all is divided by it.
        None takes that of these very images.
    defocus_um : (float, float), optional
        Range of underfocus in µm, drawn uniformly; None for no CTF.

    Returns
    -------
    Images
    """
    rotations = random_rotations(n, generator)
    maps = [volume.map]
    if noise.micelle:
        maps.append(noise.micelle * micelle(volume))
    maps, at_a_time = torch.stack(maps).to(generator.device), 256 if rotations.is_cuda else 32
    projections = project(maps, rotations, batch_size=at_a_time)  # (1 or 2, n, y, x)
    projections /= projections[0].std() if scale is None else scale
    clean, structure = projections[0], projections[1:].sum(0)
    box = clean.shape[-1]
    if noise.neighbours:
        structure = structure + neighbours(clean + structure, noise.neighbours, generator)
    if noise.ice:
        structure = structure + ice_gradient(n, box, noise.ice, generator)
    if noise.carbon:
        structure = structure + carbon_edge(n, box, volume.pixel_size_A, noise.carbon, generator)
    defocus = None
    if defocus_um is not None:
        low, high = defocus_um
        defocus = low + (high - low) * torch.rand(n, **draw_options(generator))
    return Images(clean, structure, rotations, defocus)


def clean_scale(volume: Volume) -> float:
    """Pooled standard deviation of 512 clean projections at fixed random poses."""
    return float(project(volume.map, random_rotations(512, torch.Generator().manual_seed(0))).std())


def noise_sigma(snr: float) -> float:
    """Standard deviation of the white noise for clean images of unit variance: 1 / sqrt(snr)."""
    if not 0 < snr < math.inf:
        raise ValueError(f"snr is {snr}: give a positive number, such as 0.1.")
    return 1 / math.sqrt(snr)


def projected_mask(mask: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Particle masks (n, y, x), bool: where the projected 3D mask is thicker than one pixel."""
    return project(mask, rotations) > 1.0


def map_noise(
    molecule: torch.Tensor,
    resolution_A: float,
    pixel_size_A: float,
    generator: torch.Generator,
    *,
    power: float = 1.0,
) -> torch.Tensor:
    """Noise (z, y, x) with which a map's FSC with `molecule` is 0.5 at `resolution_A`.

    There its power is three times the signal's: ``FSC = sqrt(S / (S + N))``. It goes with
    frequency as ``f^power``; 1 is what a reconstruction from white images has, whose slices grow
    sparse as 1 / f.
    """
    box = molecule.shape[-1]
    spectrum = radial_mean(torch.fft.rfftn(molecule).abs().square(), box, dims=3)
    at = pixel_size_A / resolution_A
    signal = float(spectrum[min(max(round(at * box), 1), box // 2)]) / box**3
    noise = torch.randn(molecule.shape, **draw_options(generator)).to(molecule)
    strength = (3 * signal) ** 0.5
    return filter_radially(noise, lambda f: strength * (f / at) ** (power / 2))
