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
from cryonb.physics.projection import shift_images
from cryonb.poses.steerable import (
    analyse,
    energy,
    products_over_turns,
    ring_frequencies,
    synthesise,
)
from cryonb.poses.templates import Templates, neighbours, view_directions, volume_templates


@dataclass(frozen=True)
class Posterior:
    """Posterior of a stack of particles.

    Attributes
    ----------
    mean : Tensor (n, y, x)
        E[y | x], the Bayes-optimal denoised images.
    mmse : Tensor (n,)
        Expected mean squared error of `mean` (mean over pixels), given each particle.
    index, psi_deg : Tensor (n,)
        The most probable template and turn.
    drawn_index, drawn_psi_deg : Tensor (draws, n)
        Templates and turns drawn from the posterior.
    log_evidence : Tensor (n,)
        ``log mean_j exp(-||x - C y_j||^2 / 2 sigma^2)`` plus a constant of x.
    log_weight : Tensor (n, m)
        Logarithm of the weight of each template, all its turns together.
    """

    mean: torch.Tensor
    mmse: torch.Tensor
    index: torch.Tensor
    psi_deg: torch.Tensor
    drawn_index: torch.Tensor
    drawn_psi_deg: torch.Tensor
    log_evidence: torch.Tensor
    log_weight: torch.Tensor


@torch.no_grad()
def posterior(
    templates: Templates,
    noisy: torch.Tensor,
    sigma: float,
    *,
    ctf: torch.Tensor | None = None,
    candidates: torch.Tensor | None = None,
    draws: int = 0,
    batch_size: int = 4,
    generator: torch.Generator | None = None,
) -> Posterior:
    """Posterior over templates and turns of every particle.

    Parameters
    ----------
    templates : Templates
    noisy : Tensor (n, y, x)
        Centred particles; use `over_shifts` for others.
    sigma : float
        Standard deviation of the white noise.
    ctf : Tensor (n, y, x // 2 + 1) or (1, ...), optional
        CTF that the particles carry. It is exact in the products; in the norm of the templates its
        square is averaged over rings, which is exact without astigmatism.
    candidates : Tensor (n, m) of bool, optional
        The templates that come into question for each particle; the others get no weight.
    draws : int
        Posterior samples to draw for each particle.
    batch_size : int
        Particles at a time; memory grows as batch_size x templates x turns.
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
    box, turns, device = templates.box_size, templates.turns, templates.observed.device
    _check_particles(noisy, sigma, box)
    kept, m, _ = templates.observed.shape
    n, number = len(noisy), torch.arange(m, device=device)
    norms = energy(templates.observed)  # (m, rings)
    weight = torch.ones(n, norms.shape[1], device=device)
    if ctf is not None:
        noisy = apply_ctf(noisy, ctf)  # <x, C y> = <C x, y>
        weight = _on_rings(radial_mean(ctf.double().square(), box, dims=2), box).expand(n, -1)
    x, weight = analyse(noisy.to(device), kept), weight.to(norms)
    target_norm = energy(templates.target).sum(1)
    log_weight = torch.full((n, m), -math.inf, device=device)
    # Made beforehand: small results of each batch, left between its large ones, would break up the
    # heap, which then grows with every particle.
    coefficients = torch.empty_like(x)  # (k, n, rings) of the means
    second, evidence = torch.empty(2, n, device=device)
    best = torch.empty(n, dtype=torch.long, device=device)
    drawn = torch.empty(draws, n, dtype=torch.long, device=device)
    for b in torch.arange(n).split(1 if candidates is not None else batch_size):
        rows = number if candidates is None else number[candidates[b[0]].to(device)]
        its = slice(None) if candidates is None else rows  # a slice copies nothing
        score = products_over_turns(x[:, b], templates.observed[:, its], turns)  # (b, m, turns)
        score = (score - 0.5 * (weight[b] @ norms[its].T)[..., None]) / sigma**2
        part = _summarise(score, templates.target[:, its], target_norm[its], draws, generator)
        coefficients[:, b], second[b], likeliest, some, by_template, highest = part
        evidence[b] = highest + torch.log(by_template.sum(1) / (m * turns))
        log_weight[b[:, None].to(device), rows] = by_template.log() + highest[:, None]
        best[b] = rows[likeliest // turns] * turns + likeliest % turns
        drawn[:, b] = rows[some // turns] * turns + some % turns
    spread = second - energy(coefficients).sum(1)
    step = 360 / turns
    return Posterior(
        mean=synthesise(coefficients, box),
        mmse=spread.clamp_min(0) / box**2,
        index=best // turns,
        psi_deg=best % turns * step,
        drawn_index=drawn // turns,
        drawn_psi_deg=drawn % turns * step,
        log_evidence=evidence,
        log_weight=log_weight - log_weight.logsumexp(1, keepdim=True),
    )


def _check_particles(noisy: torch.Tensor, sigma: float, box: int) -> None:
    if noisy.ndim != 3 or noisy.shape[-2:] != (box, box):
        raise ValueError(f"particles of shape {tuple(noisy.shape)}: the templates have {box} px")
    if not len(noisy):
        raise ValueError("there are no particles: give at least one")
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}: give the positive deviation of the white noise")
    if not noisy.isfinite().all():
        raise ValueError("the particles hold NaN or infinite pixels: leave such images out")


def _on_rings(shells: torch.Tensor, box: int) -> torch.Tensor:
    """Values at shells 0 ... n // 2, interpolated linearly to the rings: (n, s) -> (n, rings)."""
    at = ring_frequencies(box).to(shells.device).double() * box
    low = at.long().clamp(max=shells.shape[-1] - 2)
    part = at - low
    return ((1 - part) * shells[..., low] + part * shells[..., low + 1]).float()


def _summarise(score, target, target_norm, draws, generator):
    """Mean's coefficients, E||y||^2, best and drawn poses, weights; of log weights (b, m, t).

    The weights of the templates (b, m) are in units of exp(highest log weight), which is last.
    """
    b, m, turns = score.shape
    flat = score.flatten(1)
    highest, best = flat.max(dim=1)
    weights = torch.exp_(flat - highest[:, None]).view(b, m, turns)
    by_template = weights.sum(2)
    total = by_template.sum(1)
    second = by_template @ target_norm / total
    # E[exp(i k psi)] of each template, then its coefficients: (k, b, m) @ (k, m, rings).
    turned = torch.fft.rfft(weights)[..., : len(target)].conj() / total[:, None, None]
    mean = turned.permute(2, 0, 1) @ target
    drawn = torch.zeros(draws, b, dtype=torch.long, device=score.device)
    if draws:
        index = _draw(by_template, draws, generator)  # (b, draws)
        rows = torch.gather(weights, 1, index[..., None].expand(-1, -1, turns))
        turn = _draw(rows.flatten(0, 1), 1, generator).view(b, draws)
        drawn = (index * turns + turn).T
    return mean, second, best, drawn, by_template, highest


def _draw(weights: torch.Tensor, n: int, generator) -> torch.Tensor:
    """Draw n columns of each row by weight, on the CPU for the sake of the generator."""
    drawn = torch.multinomial(weights.cpu(), n, replacement=True, generator=generator)
    return drawn.to(weights.device)


def effective_number(log_weight: torch.Tensor) -> torch.Tensor:
    """How many templates share the weight: the exponential of its entropy, (n, m) -> (n,)."""
    return torch.special.entr(log_weight.exp()).sum(-1).exp()


def over_shifts(
    templates: Templates, noisy: torch.Tensor, sigma: float, shifts_px: torch.Tensor, **options
) -> tuple[Posterior, torch.Tensor]:
    """Posterior of particles that may be off centre by any of a list of shifts, each as likely.

    Parameters
    ----------
    shifts_px : Tensor (s, 2)
        Candidates (y, x) in pixels, as `shift_images` applies them.
    **options
        `ctf` and `batch_size` of `posterior`.

    Returns
    -------
    Posterior, Tensor (n, 2)
        Of every particle as it lies in its box, pose by its most probable shift; and that shift.
    """
    found = []
    for shift in shifts_px.float():
        there = shift.expand(len(noisy), 2)
        at = posterior(templates, shift_images(noisy, -there), sigma, **options)
        found.append(replace(at, mean=shift_images(at.mean, there)))

    def stack(field: str) -> torch.Tensor:  # (s, n, ...)
        return torch.stack([getattr(at, field) for at in found])

    evidence, means, n = stack("log_evidence"), stack("mean"), torch.arange(len(noisy))
    weight, best = evidence.softmax(0), evidence.argmax(0)
    mean = (weight[..., None, None] * means).sum(0)
    between = (means - mean).square().mean((-2, -1))
    together = replace(
        found[0],  # whose draws are none
        mean=mean,
        mmse=(weight * (stack("mmse") + between)).sum(0),
        index=stack("index")[best, n],
        psi_deg=stack("psi_deg")[best, n],
        log_evidence=evidence.logsumexp(0) - math.log(len(shifts_px)),
        log_weight=(weight.log()[..., None] + stack("log_weight")).logsumexp(0),
    )
    return together, shifts_px[best]


def refined(
    volume: torch.Tensor,
    noisy: torch.Tensor,
    sigma: float,
    symmetry: str = "C1",
    *,
    spacings_deg: tuple[float, ...],
    structure: torch.Tensor | None = None,
    **options,
) -> Iterator[tuple[float, torch.Tensor, Posterior]]:
    """Posterior over one grid of directions after another, each finer than the last.

    Each particle's grid is refined only near the directions that the grid before left in question:
    the likeliest 32, and all within a factor exp(-10) of the best.

    Parameters
    ----------
    volume, noisy, sigma, symmetry, structure, **options
        As in `volume_templates` and `posterior`.
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
            templates = volume_templates(volume, spacing, symmetry, structure)
            before = posterior(templates, noisy, sigma, **options)
        else:
            weight = before.log_weight.cpu()
            last = weight.topk(min(32, weight.shape[1])).values[:, -1:].clamp(max=-10)
            radius = 1.2 * spacings_deg[i - 1]
            near = neighbours(coarse, weight >= last, directions, radius, symmetry)
            rows = near.any(0).nonzero()[:, 0]  # the only ones that are worth a projection
            templates = volume_templates(volume, spacing, symmetry, structure, directions[rows])
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
    spacings_deg: tuple[float, ...] = (4.0, 2.0, 1.4, 1.0, 0.7, 0.5),
    **options,
) -> Iterator[tuple[float, Posterior]]:
    """Refine the grid of directions until the denoised images stay where they are.

    The predicted error alone is no guide: a grid coarser than the posterior is sure of itself and
    wrong. So the grid is fine enough when the means of two grids in turn differ, in mean square,
    by less than 2 % of the predicted error. Parameters as in `refined`.

    Yields
    ------
    spacing_deg, Posterior
        From coarse to fine; the last one is the limit.

    Raises
    ------
    RuntimeError
        The finest grid has not converged.
    """
    grids = refined(volume, noisy, sigma, symmetry, spacings_deg=spacings_deg, **options)
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
