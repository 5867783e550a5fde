"""Projection matching: the most probable pose and shift of each particle, given the molecule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import fourier_crop
from cryonb.physics.projection import project, shift_images
from cryonb.poses.posterior import Posterior, posterior, refined
from cryonb.poses.templates import Molecule, Templates, pose_of, view_directions

FINER = 4  # places to a pixel at which a shift is looked for
ABOUT = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2)  # shifts of a pixel


@dataclass(frozen=True)
class Poses:
    """Poses of a stack of particles.

    Attributes
    ----------
    rotations : Tensor (n, 3, 3)
    shifts_px : Tensor (n, 2)
        Where each particle sits relative to the box centre, (y, x).
    log_weight : Tensor (n,)
        Logarithm of the share of the posterior that the best direction of view has: near 0 where
        the pose is sure, far below where it is not.
    mean : Tensor (n, y, x)
        Posterior mean over all poses, without CTF, where the particle sits: what the best denoiser
        makes of it that knows the molecule.
    """

    rotations: torch.Tensor
    shifts_px: torch.Tensor
    log_weight: torch.Tensor
    mean: torch.Tensor


def estimate_poses(
    volume: torch.Tensor,
    noisy: torch.Tensor,
    sigma: float,
    symmetry: str = "C1",
    *,
    ctf: torch.Tensor | None = None,
    most_shift_px: float = 0.0,
    spacings_deg: tuple[float, ...] = (4.0, 2.0, 1.0),
    box_size: int | None = None,
) -> Poses:
    """Search all poses on a coarse grid, then refine near the best of it, for each particle.

    With shifts, those 2 px apart are all tried on the coarsest grid of directions; then the poses
    are refined with the shifts about the best one, a pixel to each side, still in question, the
    shift is set to where the particle correlates best with the projection in its pose, and the
    poses are refined at that shift.

    Parameters
    ----------
    volume : Tensor (z, y, x)
        The molecule, in the particles' unit of intensity.
    noisy : Tensor (n, y, x)
    sigma : float
        Standard deviation of the white noise.
    symmetry : str
        The pose found is one of as many as there are symmetry mates.
    ctf : Tensor (n, y, x // 2 + 1) or (1, ...), optional
        CTF that the particles carry.
    most_shift_px : float
        Largest shift along y and x that is looked for; 0: the particles are centred.
    spacings_deg : tuple of float
        Grids of directions, from coarse to fine.
    box_size : int, optional
        Search on images Fourier-cropped to so many pixels, which is faster and loses nothing if
        the volume holds no finer detail.

    Returns
    -------
    Poses
        Shifts in pixels of the particles as given.

    Raises
    ------
    ValueError
        See `cryonb.poses.posterior.posterior`; a negative shift; a CTF together with a `box_size`.
    """
    check_shift(most_shift_px, noisy.shape[-1])
    options = {"spacings_deg": spacings_deg, "ctf": ctf}
    if box_size is not None:
        return _in_smaller_box(volume, noisy, sigma, symmetry, box_size, most_shift_px, **options)
    molecule = Molecule.of(volume)
    if not most_shift_px:
        rotations, found = _refine(molecule, noisy, sigma, symmetry, **options)
        shifts = torch.zeros(len(noisy), 2)
        return Poses(rotations, shifts, found.log_weight.amax(1), found.mean)
    coarse = molecule.templates(view_directions(spacings_deg[0], symmetry), spacings_deg[0])
    shifts = first_shifts(volume, coarse, noisy, sigma, ctf, most_shift_px)
    for near in (ABOUT, None):
        centred = shift_images(noisy, -shifts)
        rotations, found = _refine(molecule, centred, sigma, symmetry, shifts_px=near, **options)
        mean = shift_images(found.mean, shifts)
        shifts = _best_shifts(volume, noisy, rotations, ctf, most_shift_px)
    return Poses(rotations, shifts, found.log_weight.amax(1), mean)


def _refine(molecule, noisy, sigma, symmetry, **options) -> tuple[torch.Tensor, Posterior]:
    *_, (_, directions, found) = refined(molecule, noisy, sigma, symmetry, **options)
    return pose_of(directions, found.index, found.psi_deg), found


def _in_smaller_box(
    volume, noisy, sigma, symmetry, box_size: int, most_shift_px: float, *, spacings_deg, ctf
) -> Poses:
    """Poses found on Fourier-cropped images, in pixels of the images as given."""
    if ctf is not None:
        raise ValueError("a CTF is sampled for one box: crop the particles first, and give its")
    factor = box_size / noisy.shape[-1]
    small = fourier_crop(noisy, box_size, dims=2)  # with `factor` times the noise
    volume = fourier_crop(volume, box_size) / factor  # so many fewer voxels along the beam
    options = {"spacings_deg": spacings_deg, "most_shift_px": most_shift_px * factor}
    found = estimate_poses(volume, small, sigma * factor, symmetry, **options)
    mean = fourier_crop(found.mean, noisy.shape[-1], dims=2)
    return replace(found, shifts_px=found.shifts_px / factor, mean=mean)


def check_shift(most_px: float, box: int) -> None:
    """ValueError unless the largest shift is 0 or more, and less than a quarter of the box."""
    if not 0 <= most_px < box / 4:
        raise ValueError(
            f"shifts of up to {most_px:g} px in a box of {box}: give 0, or up to a quarter of it"
        )


def first_shifts(volume, coarse: Templates, noisy, sigma: float, ctf, most_px: float):
    """Shifts (n, 2): those 2 px apart are all tried, with all templates of a coarse grid.

    That of the best pose is then set to where the particle correlates best with its projection.
    """
    check_shift(most_px, noisy.shape[-1])
    steps = int(most_px / 2 + 0.5)
    along = 2.0 * torch.arange(-steps, steps + 1)
    grid = torch.cartesian_prod(along, along)
    found = posterior(coarse, noisy, sigma, ctf=ctf, shifts_px=grid)
    rotations = pose_of(coarse.directions_deg, found.index, found.psi_deg)
    return _best_shifts(volume, noisy, rotations, ctf, most_px)


def _best_shifts(volume, noisy, rotations, ctf, most_px: float) -> torch.Tensor:
    """Shifts (n, 2) of the highest cross-correlation with the projections, to parts of a pixel."""
    views = project(volume, rotations)
    if ctf is not None:
        views = apply_ctf(views, ctf)
    product = torch.fft.rfft2(noisy) * torch.fft.rfft2(views).conj()
    box = noisy.shape[-1]
    correlation = torch.fft.fftshift(torch.fft.irfft2(product, s=(box, box)), dim=(-2, -1))
    # A parabola through whole pixels would be drawn towards them: the peak is narrower than that.
    correlation = fourier_crop(correlation, FINER * box, dims=2)
    box, reach = FINER * box, int(FINER * most_px + 0.5)
    middle, rows = box // 2, torch.arange(len(noisy))
    inner = slice(middle - reach, middle + reach + 1)
    near = correlation[:, inner, inner].flatten(1).argmax(1)
    y, x = near // (2 * reach + 1) + middle - reach, near % (2 * reach + 1) + middle - reach

    def vertex(before, at, after):
        """Maximum of the parabola through three values, from the middle one."""
        curvature = (before - 2 * at + after).clamp(max=-1e-12)
        return (0.5 * (before - after) / curvature).clamp(-0.5, 0.5)

    at = correlation[rows, y, x]
    dy = vertex(correlation[rows, y - 1, x], at, correlation[rows, (y + 1) % box, x])
    dx = vertex(correlation[rows, y, x - 1], at, correlation[rows, y, (x + 1) % box])
    return torch.stack([y - middle + dy, x - middle + dx], dim=1) / FINER
