"""A known structure as a denoiser: the mean of its projections, each by how well it fits.

With the structure at hand this is the best denoiser there is, and it says what no other can: how
likely an image holds a particle at all. What it cannot do is doubt the structure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cryonb.physics.ctf import apply_ctf
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project, shift_images
from cryonb.poses.posterior import posterior
from cryonb.poses.search import ABOUT, first_shifts
from cryonb.poses.templates import Templates, pose_of, volume_templates

COARSE_DEG = 8.0  # grid of directions on which amplitude and shifts are found
FACTORS = (1.0, 1.2, 1.4, 1.7, 2.0, 2.4)  # of sigma, tried by `widening`
VIEWS = 64  # simulated for it


@dataclass(frozen=True)
class Recognised:
    """What a structure makes of n particles.

    Attributes
    ----------
    mean : Tensor (n, y, x)
        E[y | x], without CTF, where the particle lies.
    samples : Tensor (draws, n, y, x)
        Posterior samples, of the same kind.
    rotations, shifts_px : Tensor (n, 3, 3) and (n, 2)
        The most probable pose.
    best_share : Tensor (n,)
        Its posterior weight.
    log_evidence : Tensor (n,)
        Of a particle against noise alone, in nats.
    """

    mean: torch.Tensor
    samples: torch.Tensor
    rotations: torch.Tensor
    shifts_px: torch.Tensor
    best_share: torch.Tensor
    log_evidence: torch.Tensor


def fit_amplitude(
    volume: torch.Tensor,
    noisy: torch.Tensor,
    sigma: float,
    symmetry: str = "C1",
    *,
    ctf: torch.Tensor | None = None,
    most_shift_px: float = 0.0,
    rounds: int = 3,
) -> float:
    """Factor on a structure of any unit that makes it fit particles (n, y, x), by EM.

    It begins where projections have the variance that the particles have beyond their noise. Then
    ``alpha = sum <x, C E[y]> / sum E ||C y||^2``, the expectations at the alpha before. Parameters
    as in `recognise`; ValueError for a structure that is empty.
    """
    views = project(volume, random_rotations(VIEWS, torch.Generator().manual_seed(0)))
    views = views if ctf is None else apply_ctf(views, ctf[torch.arange(VIEWS) % len(ctf)])
    if not views.var() > 0:
        raise ValueError("the structure is empty: its projections are constant")
    excess = (noisy.var() - sigma**2).clamp_min(1e-3 * sigma**2)
    alpha = float((excess / views.var()).sqrt())
    templates = volume_templates(volume, COARSE_DEG, symmetry)
    if most_shift_px:
        scaled = templates, noisy / alpha, sigma / alpha
        noisy = shift_images(noisy, -first_shifts(volume, *scaled, ctf, most_shift_px))
    for _ in range(rounds):
        found = posterior(templates, noisy / alpha, sigma / alpha, ctf=ctf)
        seen = found.mean if ctf is None else apply_ctf(found.mean, ctf)
        power = found.mean.square().mean((1, 2))
        second = seen.square().sum((1, 2)) * (1 + found.mmse / power.clamp_min(1e-12))
        alpha = max(float((noisy * seen).sum() / second.sum()), 1e-2 * alpha)
    return alpha


def widening(
    volume: torch.Tensor,
    templates: Templates,
    sigma: float,
    ctf: torch.Tensor | None = None,
) -> float:
    """Factor on sigma for a coarse grid: that of least error on simulated particles.

    A view between directions of the grid differs from its neighbours there. The energy E of the
    difference lies in the two directions in which a view can turn, not in all pixels, so that
    ``sigma^2 + E / pixels`` changes nothing, and ``sigma^2 + E / 2`` puts noise where there is
    none. The best factor lies between, and falls to 1 where sigma alone spans the grid: it is
    measured, on particles of the structure with the noise and CTF given.
    """
    generator = torch.Generator().manual_seed(0)
    clean = project(volume, random_rotations(VIEWS, generator))
    noisy = clean
    if ctf is not None:
        ctf = ctf[torch.arange(VIEWS) % len(ctf)]
        noisy = apply_ctf(clean, ctf)
    noisy = noisy + sigma * torch.randn(clean.shape, generator=generator)
    errors = [
        float((posterior(templates, noisy, k * sigma, ctf=ctf).mean - clean).square().mean())
        for k in FACTORS
    ]
    return FACTORS[errors.index(min(errors))]


def recogniser(
    volume: torch.Tensor,
    sigma: float,
    symmetry: str = "C1",
    *,
    ctf: torch.Tensor | None = None,
    spacing_deg: float = 4.0,
    most_shift_px: float = 0.0,
    widened: float | None = None,
) -> Callable[..., Recognised]:
    """A function ``(noisy, ctf=None, draws=0, generator=None)`` that recognises particles.

    Parameters
    ----------
    volume : Tensor (z, y, x)
        The structure in the particles' unit, see `fit_amplitude`, within the inscribed sphere.
    sigma : float
        Standard deviation of the white noise.
    symmetry : str
    ctf : Tensor (k, y, x // 2 + 1), optional
        CTFs like those of the particles, for `widening`.
    spacing_deg : float
        Of the directions of view.
    most_shift_px : float
        How far along y and x a particle may lie from the centre of its box.
    widened : float, optional
        Factor on sigma; by default it is measured by `widening`.
    """
    templates = volume_templates(volume, spacing_deg, symmetry)
    coarse = volume_templates(volume, COARSE_DEG, symmetry) if most_shift_px else None
    wide = sigma * (widened or widening(volume, templates, sigma, ctf))

    def recognise(noisy, ctf=None, draws=0, generator=None) -> Recognised:
        shifts, near, places = torch.zeros(len(noisy), 2), None, 1
        if most_shift_px:
            shifts = first_shifts(volume, coarse, noisy, wide, ctf, most_shift_px)
            near, places = ABOUT, (2 * most_shift_px + 1) ** 2 / len(ABOUT)
            noisy = shift_images(noisy, -shifts)
        options = {"ctf": ctf, "shifts_px": near, "draws": draws, "generator": generator}
        found = posterior(templates, noisy, wide, **options)
        directions = templates.directions_deg
        samples = [
            project(volume, pose_of(directions, index, psi_deg), shift_px + shifts)
            for index, psi_deg, shift_px in zip(
                found.drawn_index, found.drawn_psi_deg, found.drawn_shift_px, strict=True
            )
        ]
        return Recognised(
            shift_images(found.mean, shifts) if most_shift_px else found.mean,
            torch.stack(samples) if draws else found.mean.new_zeros(0, *found.mean.shape),
            pose_of(directions, found.index, found.psi_deg),
            found.shift_px + shifts,
            found.best_share,
            found.log_evidence - torch.tensor(float(places)).log(),
        )

    return recognise
