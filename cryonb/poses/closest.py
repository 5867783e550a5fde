"""The projection of a known structure closest to a real particle, which stands in for the truth.

The pose is chosen by the noisy particle, so this truth has errors of its own: the weaker the
signal, the less it is worth. Introduced in: 05_real_data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import check_cubic
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.poses.search import Poses, estimate_poses


@dataclass(frozen=True)
class Closest:
    """Closest projections of a stack of particles, in their places and their unit of intensity.

    Attributes
    ----------
    clean, observed : Tensor (n, y, x)
        Without and with the CTF of the particle.
    mean : Tensor (n, y, x)
        With the CTF: the mean over all poses by their weight, where the particle lies. It is what
        the best denoiser makes of the particle that knows the structure.
    poses : Poses
    """

    clean: torch.Tensor
    observed: torch.Tensor
    mean: torch.Tensor
    poses: Poses


def closest_projections(
    volume: torch.Tensor,
    noisy: torch.Tensor,
    sigma: float,
    symmetry: str = "C1",
    *,
    ctf: torch.Tensor | None = None,
    spacings_deg: tuple[float, ...] | None = None,
    **options,
) -> Closest:
    """Find the projection of a structure that is closest to each particle.

    The search needs the structure in the particles' unit: it is scaled until the variance of its
    projections is what the particles have beyond their noise. Afterwards all projections are
    scaled together, by least squares, to the particles.

    Parameters
    ----------
    volume : Tensor (z, y, x)
        The structure, bright, in the particles' box and in any unit.
    noisy, sigma, symmetry, ctf, **options
        As in `cryonb.poses.search.estimate_poses`.
    spacings_deg : tuple of float, optional
        Grids of directions, from coarse to fine; by default the finest moves the rim of a particle
        by about a pixel.

    Raises
    ------
    ValueError
        A structure in another box, or one that is empty; see `estimate_poses`.
    """
    box = check_cubic(noisy, 2)
    if volume.shape != (box,) * 3:
        raise ValueError(
            f"the structure has {tuple(volume.shape)} voxels and the particles {box} px: load it "
            "in the box and pixel size of the particles"
        )
    n_views = 64
    views = project(volume, random_rotations(n_views, torch.Generator().manual_seed(0)))
    if ctf is not None:
        views = apply_ctf(views, ctf[torch.arange(n_views) % len(ctf)])
    if not views.var() > 0:
        raise ValueError("the structure is empty: its projections are constant")
    excess = (noisy.var() - sigma**2).clamp_min(1e-3 * sigma**2)
    volume = volume * (excess / views.var()).sqrt()
    options |= {"ctf": ctf, "spacings_deg": spacings_deg or (256 / box, 128 / box)}
    poses = estimate_poses(volume, noisy, sigma, symmetry, **options)
    clean = project(volume, poses.rotations, poses.shifts_px)
    observed, mean = (x if ctf is None else apply_ctf(x, ctf) for x in (clean, poses.mean))
    scale = (noisy * observed).sum() / observed.square().sum()
    return Closest(scale * clean, scale * observed, mean, poses)
