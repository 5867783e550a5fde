r"""The Bayes limit: the exact posterior over poses, and the best denoised image there can be.

A particle is ``x = C (y_j + s_j) + sigma n``: j runs over all poses, ``y_j`` is the projection of
the molecule, ``s_j`` that of whatever is fixed to it (a micelle; usually nothing). Given x, pose j
has the weight ``w_j ~ exp(-||x - C (y_j + s_j)||^2 / 2 sigma^2)``. Then ``sum_j w_j y_j`` is
E[y | x], which no denoiser can beat in mean squared error; the spread of the y_j about it is the
error that is left; and a y_j drawn by its weight is an exact posterior sample.

Directions of view are a grid on the sphere; all turns in the plane come from one FFT for each
(`cryonb.poses.steerable`), so a million poses cost a few thousand projections. With training images
in the place of the molecule's projections the same code is the *template posterior*, a denoiser
with perfect memory and no network. Introduced in: 04_compare_methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import radial_mean
from cryonb.poses.steerable import (
    PolarGrid,
    evaluate,
    moved,
    products_over_turns,
    sample,
    synthesise,
)
from cryonb.poses.templates import Molecule, Templates, neighbours, view_directions

SCORES = 2**20  # poses of all particles of a batch; the memory of a batch is some 16 bytes for each


@dataclass(frozen=True)
class Posterior:
    """Posterior of a stack of particles.

    Attributes
    ----------
    mean : Tensor (n, y, x)
        E[y | x], the Bayes-optimal denoised images.
    mmse : Tensor (n,)
        Expected mean squared error of `mean` (mean over pixels), given each particle.
    index, psi_deg, shift_px : Tensor (n,), (n,) and (n, 2)
        The most probable template, turn and shift.
    drawn_index, drawn_psi_deg, drawn_shift_px : Tensor (draws, n), the last with (..., 2)
        Templates, turns and shifts drawn from the posterior.
    log_evidence : Tensor (n,)
        Of a particle against noise alone, ``log mean_j p(x | C y_j) - log p(x | 0)``, in nats.
    log_weight : Tensor (n, m)
        Logarithm of the weight of each template, all its turns together.
    best_share : Tensor (n,)
        Weight of the most probable pose: template, turn and shift.
    """

    mean: torch.Tensor
    mmse: torch.Tensor
    index: torch.Tensor
    psi_deg: torch.Tensor
    shift_px: torch.Tensor
    drawn_index: torch.Tensor
    drawn_psi_deg: torch.Tensor
    drawn_shift_px: torch.Tensor
    log_evidence: torch.Tensor
    log_weight: torch.Tensor
    best_share: torch.Tensor


@torch.no_grad()
def posterior(
    templates: Templates,
    noisy: torch.Tensor,
    sigma: float,
    *,
    ctf: torch.Tensor | None = None,
    shifts_px: torch.Tensor | None = None,
    candidates: torch.Tensor | None = None,
    draws: int = 0,
    generator: torch.Generator | None = None,
) -> Posterior:
    """Posterior over templates, turns and shifts of every particle.

    Parameters
    ----------
    templates : Templates
    noisy : Tensor (n, y, x)
    sigma : float
        Standard deviation of the white noise.
    ctf : Tensor (n, y, x // 2 + 1) or (1, ...), optional
        CTF that the particles carry. It is exact in the products; in the norm of the templates its
        square is averaged over rings, which is exact without astigmatism.
    shifts_px : Tensor (s, 2), optional
        Where the particles may lie, (y, x) from the box centre, each as likely; without, they are
        centred. Images are those of the particle where it lies.
    candidates : Tensor (n, m) of bool, optional
        The templates that come into question for each particle; the others get no weight.
    draws : int
        Posterior samples to draw for each particle.
    generator : torch.Generator, optional
        Of the draws.

    Returns
    -------
    Posterior

    Raises
    ------
    ValueError
        Another box, NaN, or a sigma that is not positive.
    """
    grid, device = templates.grid, templates.observed.device
    check_particles(noisy, sigma, grid.box)
    shifts_px = torch.zeros(1, 2) if shifts_px is None else shifts_px.float().cpu()
    phases = grid.shift_phases(shifts_px.to(device))
    samples, weight = on_grid(noisy, ctf, grid, device)
    n, m = len(noisy), templates.observed.shape[1]
    poses = m * templates.turns * len(shifts_px)
    # Made beforehand: small results of each batch, left between its large ones, would break up the
    # heap, which then grows with every particle.
    log_weight = torch.full((n, m), -math.inf, device=device)
    second, highest, total = torch.empty(3, n, device=device)
    drawn = torch.empty(1 + draws, n, 3, dtype=torch.long, device=device)  # the best, then draws
    for b in torch.arange(n).split(1 if candidates is not None else max(1, SCORES // poses)):
        rows, part = torch.arange(m, device=device), templates
        if candidates is not None:
            rows = rows[candidates[b[0]].to(device)]
            part = templates.rows(rows)
        score = scores(samples[b], weight[b], part, phases).div_(sigma**2)
        coefficients, second[b], index, by_template, highest[b] = _summarise(
            score, part, draws, generator
        )
        means = evaluate(coefficients @ part.basis.mT[:, None], grid.angles)
        samples[b] = moved(means.unflatten(0, (len(b), -1)), phases).sum(1)
        total[b] = by_template.sum(1)
        log_weight[b[:, None].to(device), rows] = (by_template / total[b, None].to(device)).log()
        drawn[:, b] = torch.stack([index[0], rows[index[1]], index[2]], dim=-1)
    spread = second - samples.square().sum((1, 2, 3)) / grid.angles
    shift, index, turn = drawn.unbind(-1)
    shift, psi_deg = shifts_px[shift.cpu()], turn * (360 / templates.turns)
    return Posterior(
        mean=synthesise(samples, grid),
        mmse=spread.clamp_min(0) / grid.box**2,
        index=index[0],
        psi_deg=psi_deg[0],
        shift_px=shift[0],
        drawn_index=index[1:],
        drawn_psi_deg=psi_deg[1:],
        drawn_shift_px=shift[1:],
        log_evidence=highest + (total / poses).log(),
        log_weight=log_weight,
        best_share=1 / total,
    )


def on_grid(noisy, ctf, grid: PolarGrid, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of particles times their CTF, and its square on the rings: <x, C y> = <C x, y>."""
    if ctf is None:
        return sample(noisy.to(device), grid), torch.ones(len(noisy), len(grid.radii)).to(device)
    weight = _on_rings(radial_mean(ctf.double().square(), grid.box, dims=2), grid)
    samples = sample(apply_ctf(noisy, ctf).to(device), grid)
    return samples, weight.expand(len(noisy), -1).to(device)


def scores(samples, weight, templates: Templates, phases: torch.Tensor) -> torch.Tensor:
    """``<x, C y> - ||C y||^2 / 2`` of samples (b, angles, 2, rings): (b, s, m, turns)."""
    x = templates.project(moved(samples[:, None], phases.conj()).flatten(0, 1))
    score = products_over_turns(x, templates.observed, templates.turns)
    score = score.unflatten(0, (len(samples), -1))
    return score.sub_(0.5 * (weight @ templates.observed_norms.T)[:, None, :, None])


def check_particles(noisy: torch.Tensor, sigma: float, box: int) -> None:
    if noisy.ndim != 3 or noisy.shape[-2:] != (box, box):
        raise ValueError(f"particles of shape {tuple(noisy.shape)}: the templates have {box} px")
    if not len(noisy):
        raise ValueError("there are no particles: give at least one")
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}: give the positive deviation of the white noise")
    if not noisy.isfinite().all():
        raise ValueError("the particles hold NaN or infinite pixels: leave such images out")


def _on_rings(shells: torch.Tensor, grid: PolarGrid) -> torch.Tensor:
    """Values at shells 0 ... n // 2, interpolated linearly to the rings: (n, s) -> (n, rings)."""
    at = grid.radii.to(shells.device).double() * grid.box
    low = at.long().clamp(max=shells.shape[-1] - 2)
    part = at - low
    return ((1 - part) * shells[..., low] + part * shells[..., low + 1]).float()


def _summarise(score: torch.Tensor, templates: Templates, draws: int, generator):
    """Coefficients of the mean at each shift, E||y||^2, poses, weights; of log weights.

    The log weights (b, s, m, turns) are overwritten. Poses are shift, template and turn, each
    (1 + draws, b), the most probable first. The weights of the templates (b, m) are in units of
    exp(highest log weight), which is last.
    """
    b, s, m, turns = score.shape
    highest, best = score.flatten(1).max(dim=1)
    # Numbers below the least normal one would make the exponential slow.
    weights = score.sub_(highest[:, None, None, None]).clamp_(min=-80).exp_()
    by_pose = weights.sum(3)  # (b, s, m)
    by_template = by_pose.sum(1)
    total = by_template.sum(1)
    second = by_template @ templates.target_norms / total
    # E[exp(-i k psi)] of each template, then conj(E) times it: (k, b * s, 2 m) @ (k, 2 m, 2 r).
    turned = torch.fft.rfft(weights)[..., : templates.grid.orders]
    turned = torch.view_as_real(turned.flatten(0, 1).permute(2, 0, 1).contiguous()).flatten(2)
    mean = turned @ templates.target.flatten(1, 2) / total.repeat_interleave(s)[:, None]
    mean = mean.unflatten(2, (2, -1))
    poses = best[None]
    if draws:
        index = _draw(by_pose.flatten(1), draws, generator)  # (b, draws)
        rows = torch.gather(weights.flatten(1, 2), 1, index[..., None].expand(-1, -1, turns))
        turn = _draw(rows.flatten(0, 1), 1, generator).view(b, draws)
        poses = torch.cat([poses, (index * turns + turn).T])
    poses = poses // (m * turns), poses // turns % m, poses % turns
    return mean, second, poses, by_template, highest


def _draw(weights: torch.Tensor, n: int, generator) -> torch.Tensor:
    """Draw n columns of each row by weight, on the CPU for the sake of the generator."""
    drawn = torch.multinomial(weights.cpu(), n, replacement=True, generator=generator)
    return drawn.to(weights.device)


def effective_number(log_weight: torch.Tensor) -> torch.Tensor:
    """How many templates share the weight: the exponential of its entropy, (n, m) -> (n,)."""
    return torch.special.entr(log_weight.exp()).sum(-1).exp()


def refined(
    molecule: Molecule,
    noisy: torch.Tensor,
    sigma: float,
    symmetry: str = "C1",
    *,
    spacings_deg: tuple[float, ...],
    **options,
) -> Iterator[tuple[float, torch.Tensor, Posterior]]:
    """Posterior over one grid of directions after another, each finer than the last.

    Each particle's grid is refined only near the directions that the grid before left in question:
    the likeliest 32, and all within a factor exp(-10) of the best.

    Parameters
    ----------
    molecule : Molecule
    noisy, sigma, symmetry, **options
        As in `posterior`.
    spacings_deg : tuple of float
        Grids, from coarse to fine.

    Yields
    ------
    spacing_deg, directions_deg (m, 2), Posterior
    """
    before = directions = None
    for i, spacing in enumerate(spacings_deg):
        coarse, directions = directions, view_directions(spacing, symmetry)
        if before is None:
            templates = molecule.templates(directions, spacing)
            before = posterior(templates, noisy, sigma, **options)
        else:
            weight = before.log_weight.cpu()
            last = weight.topk(min(32, weight.shape[1])).values[:, -1:].clamp(max=-10)
            radius = 1.2 * spacings_deg[i - 1]
            near = neighbours(coarse, weight >= last, directions, radius, symmetry)
            rows = near.any(0).nonzero()[:, 0]  # the only ones that are worth a projection
            templates = molecule.templates(directions[rows], spacing)
            found = posterior(templates, noisy, sigma, candidates=near[:, rows], **options)
            before = _in_grid(found, rows, len(directions))
        del templates  # before the next, larger ones are made
        yield spacing, directions, before


def _in_grid(found: Posterior, rows: torch.Tensor, m: int) -> Posterior:
    """Posterior over some rows of a grid of m directions, as one over the whole grid."""
    rows = rows.to(found.log_weight.device)
    log_weight = found.log_weight.new_full((len(found.log_weight), m), -math.inf)
    log_weight[:, rows] = found.log_weight
    return replace(
        found,
        index=rows[found.index],
        drawn_index=rows[found.drawn_index],
        log_evidence=found.log_evidence + math.log(len(rows) / m),
        log_weight=log_weight,
    )


def bayes_limit(
    volume: torch.Tensor,
    noisy: torch.Tensor,
    sigma: float,
    symmetry: str = "C1",
    *,
    structure: torch.Tensor | None = None,
    spacings_deg: tuple[float, ...] = (4.0, 2.0, 1.4, 1.0, 0.7, 0.5),
    **options,
) -> Iterator[tuple[float, Posterior]]:
    """Refine the grid of directions until the denoised images stay where they are.

    The predicted error alone is no guide: a grid coarser than the posterior is sure of itself and
    wrong. So the grid is fine enough when the means of two grids in turn differ, in mean square,
    by less than 2 % of the predicted error. Parameters as in `refined`, the volumes
    as in `volume_templates`.

    Yields
    ------
    spacing_deg, Posterior
        From coarse to fine; the last one is the limit.

    Raises
    ------
    RuntimeError
        The finest grid has not converged.
    """
    molecule = Molecule.of(volume, structure)
    grids = refined(molecule, noisy, sigma, symmetry, spacings_deg=spacings_deg, **options)
    before = None
    for spacing, _, found in grids:
        yield spacing, found
        if before is not None:
            moved = float((found.mean - before.mean).square().mean())
            if moved < 0.02 * float(found.mmse.mean()):
                return
        before = found
    raise RuntimeError(
        f"The denoised images still moved at {spacings_deg[-1]} degrees: give finer spacings_deg."
    )
