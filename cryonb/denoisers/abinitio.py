r"""A map from the particles alone: expectation maximisation (EM) from random poses.

No reference is given. Each pass asks how probable every pose of every particle is, if the map of
the pass before were the molecule (E-step: `cryonb.poses.posterior`), and puts every particle into
the next map at all of its poses, by those weights (M-step: a Wiener estimate in Fourier space).
Coarse grids, low frequencies and small batches come first: so the map that chance began with is
forgotten.

The particles are those of *one* molecule, in white noise of known deviation
(`cryonb.data.whitening`). The hand of the map is chance, since a molecule and its mirror image have
the same projections; so is how it is turned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.ndimage import center_of_mass

from cryonb.physics.fourier import radial_mean, shell_index
from cryonb.physics.geometry import euler_to_matrix, symmetry_rotations
from cryonb.physics.projection import shift_images
from cryonb.physics.reconstruct import Views, reconstruct_batches
from cryonb.poses.posterior import SCORES, check_particles, on_grid, posterior, scores
from cryonb.poses.search import check_shift, first_shifts
from cryonb.poses.steerable import evaluate, expand, synthesise
from cryonb.poses.symmetry import to_axes
from cryonb.poses.templates import Templates, view_directions, volume_templates


class Stage(NamedTuple):
    """Some passes of EM.

    Attributes
    ----------
    spacing_deg : float
        Of the directions of view.
    shells : int
        Of the map's transform, the first that are used: periods across the box.
    passes : int
    temper : float
        Power that the likelihood is raised to; below 1 poses stay undecided for longer.
    batch : int or None
        Particles of a pass, drawn anew for each; None for all.
    """

    spacing_deg: float
    shells: int
    passes: int
    temper: float = 1.0
    batch: int | None = None


STAGES = (
    Stage(15, 6, 24, 0.5, 128),
    Stage(15, 8, 14, 0.8, 128),
    Stage(10, 10, 5),
    Stage(8, 13, 2),
)


LEAST = 1e-9  # power of a map that has vanished, in units of an image's noise


class Pass(NamedTuple):
    """The map (z, y, x) after a pass and the evidence of its particles.

    `log_evidence` is the mean over the pass's particles of the logarithm of their probability under
    the map before, against noise alone, in nats (tempered as the stage says).
    """

    volume: torch.Tensor
    log_evidence: float
    stage: Stage


class Sums(NamedTuple):
    """Particles turned back onto the directions they may be seen from, by weight.

    `images` (m, y, x): sums of the CTF times the particles; `weights` (m, n // 2 + 1): sums of the
    squared CTF, shell by shell.
    """

    images: torch.Tensor
    weights: torch.Tensor

    def blend(self, new: Sums, share: float) -> Sums:
        """Moving average: `share` of the new."""
        return Sums(*(torch.lerp(a, b, share) for a, b in zip(self, new, strict=True)))


@torch.no_grad()
def ab_initio(
    noisy: torch.Tensor,
    sigma: float,
    symmetry: str = "C1",
    *,
    ctf: torch.Tensor | None = None,
    most_shift_px: float = 0.0,
    stages: tuple[Stage, ...] = STAGES,
    seed: int = 0,
) -> Iterator[Pass]:
    """A map of the molecule from particles without poses, one pass of EM after another.

    Parameters
    ----------
    noisy : Tensor (n, y, x)
        Particles in white noise.
    sigma : float
        Its standard deviation.
    symmetry : str
        Only if it is known. Imposed on the passes over all particles, when the map has been turned
        to where its axes are; a map that has to be symmetric from the start stays in a wrong one.
    ctf : Tensor (n, y, x // 2 + 1), optional
        CTF that the particles carry, real.
    most_shift_px : float
        How far along y and x a particle may lie from the centre of its box. Shifts are found anew
        before each stage but the first, with the map set on the centre of its mass.
    stages : tuple of Stage
    seed : int
        Of the random poses of the start and of the batches.

    Yields
    ------
    Pass

    Raises
    ------
    ValueError
        No particles, NaN, a sigma that is not positive, too large a shift; or the map has
        vanished: no map explains the particles better than noise alone.
    """
    check_particles(noisy, sigma, noisy.shape[-1])
    check_shift(most_shift_px, noisy.shape[-1])
    generator = torch.Generator().manual_seed(seed)
    symmetry_rotations(symmetry)  # an unknown one is an error now
    volume = _random_start(noisy, sigma, stages[0], generator)
    given, imposed = noisy, "C1"
    for stage in stages:
        sums, n = None, min(stage.batch or len(noisy), len(noisy))
        if imposed != symmetry and stage.batch is None:
            volume, imposed = to_axes(_centred(volume), symmetry), symmetry
        if most_shift_px and stage is not stages[0]:
            volume = _centred(volume)
            coarse = volume_templates(volume, stages[0].spacing_deg, imposed)
            shifts = first_shifts(volume, coarse, given, sigma, ctf, most_shift_px)
            noisy = shift_images(given, -shifts)
        for i in range(stage.passes):
            rows = torch.randperm(len(noisy), generator=generator)[:n]
            signal = 2 * power(volume)  # twice: a map of noise must be able to grow
            if not signal.max() > LEAST * (sigma * noisy.shape[-1]) ** 2:
                raise ValueError("no map explains these particles better than noise alone")
            templates = volume_templates(volume, stage.spacing_deg, imposed)
            part = None if ctf is None else ctf.expand(len(noisy), -1, -1)[rows]
            new, evidence = expect(templates, noisy[rows], sigma, part, stage.temper)
            new = Sums(*(len(noisy) / n * part for part in new))
            share = 1.0 if sums is None or n == len(noisy) else max(0.2, 1 / (i + 1))
            sums = new if sums is None else sums.blend(new, share)
            volume = maximise(sums, templates.directions_deg, sigma, signal, imposed, stage)
            yield Pass(volume, float(evidence.mean()), stage)


def posterior_mean(
    last: Pass, noisy: torch.Tensor, sigma: float, symmetry="C1", *, ctf=None, most_shift_px=0.0
) -> torch.Tensor:
    """Particles (n, y, x) denoised by the map of a pass, which knows what they have in common.

    Parameters as in `ab_initio`.
    """
    templates = volume_templates(last.volume, last.stage.spacing_deg, symmetry)
    if not most_shift_px:
        return posterior(templates, noisy, sigma, ctf=ctf).mean
    shifts = first_shifts(last.volume, templates, noisy, sigma, ctf, most_shift_px)
    centred = shift_images(noisy, -shifts)
    return shift_images(posterior(templates, centred, sigma, ctf=ctf).mean, shifts)


def _centred(volume: torch.Tensor) -> torch.Tensor:
    """A map moved by whole voxels, until its density lies about the centre of its box."""
    dense = (volume - 0.2 * volume.max()).clamp_min(0)
    if not dense.any():  # a map that has vanished
        return volume
    middle = center_of_mass(dense.numpy())
    off = [round(n // 2 - at) for n, at in zip(volume.shape, middle, strict=True)]
    return volume.roll(off, dims=(0, 1, 2))


def _random_start(noisy, sigma, stage: Stage, generator) -> torch.Tensor:
    """The map of particles that each have one random pose."""
    directions = view_directions(stage.spacing_deg)
    m, n, box = len(directions), len(noisy), noisy.shape[-1]
    angles = torch.rand(n, generator=generator) * 2 * math.pi
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros(n)
    turns = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(n, 2, 3)
    grid = F.affine_grid(turns, [n, 1, box, box], align_corners=False)
    turned = F.grid_sample(noisy[:, None], grid, align_corners=False)[:, 0]
    at = torch.randint(m, (n,), generator=generator)
    images = torch.zeros(m, box, box).index_add_(0, at, turned)
    weights = torch.bincount(at, minlength=m)[:, None].float().expand(-1, box // 2 + 1)
    signal = torch.full((box // 2 + 1,), (sigma * box) ** 2 / 3)
    return maximise(Sums(images, weights), directions, sigma, signal, "C1", stage)


def expect(
    templates: Templates,
    noisy: torch.Tensor,
    sigma: float,
    ctf: torch.Tensor | None,
    temper: float = 1.0,
    *,
    put: tuple[torch.Tensor, torch.Tensor | None] | None = None,
) -> tuple[Sums, torch.Tensor]:
    """E-step: sums over particles and turns for each template; log evidence (n,).

    With `put`, images and their CTF are summed in the place of the particles, at their poses.
    """
    grid, n, m = templates.grid, len(noisy), templates.target.shape[1]
    samples, rings = on_grid(noisy, ctf, grid, noisy.device)
    summed = samples
    if put is not None:
        images, ctf = put
        summed = on_grid(images, ctf, grid, noisy.device)[0]
    squared = torch.ones(n, noisy.shape[-1] // 2 + 1)
    if ctf is not None:
        squared = radial_mean(ctf.square(), noisy.shape[-1], dims=2).float().expand(n, -1)
    phases, evidence = grid.shift_phases(torch.zeros(1, 2)), torch.empty(n)
    turned_back = torch.zeros(grid.orders, m, len(grid.radii), dtype=torch.complex64)
    by_shell = torch.zeros(m, squared.shape[1])
    for b in torch.arange(n).split(max(1, SCORES // (m * templates.turns))):
        score = scores(samples[b], rings[b], templates, phases)[:, 0].mul_(temper / sigma**2)
        highest = score.flatten(1).amax(1)
        weights = score.sub_(highest[:, None, None]).clamp_(min=-80).exp_()
        total = weights.sum((1, 2))
        evidence[b] = highest + (total / weights[0].numel()).log()
        weights.div_(total[:, None, None])
        orders = torch.fft.rfft(weights)[..., : grid.orders].permute(2, 1, 0)  # (k, m, b)
        real, imaginary = expand(summed[b], grid.orders).unbind(2)
        turned_back += orders @ torch.complex(real, imaginary)
        by_shell += weights.sum(2).T @ squared[b]
    parts = torch.view_as_real(turned_back).movedim(-1, 2)
    images = synthesise(evaluate(parts, grid.angles), grid)
    return Sums(images, by_shell), evidence


def maximise(sums: Sums, directions_deg, sigma, signal, symmetry, stage: Stage) -> torch.Tensor:
    """M-step: the map (z, y, x) of least expected error, up to the last shell of the stage.

    `signal` is the power of the map's transform that is expected, shell by shell (n // 2 + 1,).
    """
    box = sums.images.shape[-1]
    signal = signal.clamp_min(1e-3 * float(signal.max()))
    ridge = (sigma * box) ** 2 / signal
    ridge[stage.shells + 1 :] = math.inf
    rotations = euler_to_matrix(F.pad(directions_deg, (0, 1)))  # psi = 0
    weights = sums.weights[:, shell_index((box, box)).clamp(max=box // 2)]
    views = Views(sums.images, rotations, None, weights, torch.ones_like(weights[:1]))
    volume = reconstruct_batches([views], symmetry, weight_floor=0.0, ridge=ridge)
    return volume - volume[0, 0, 0]


def power(volume: torch.Tensor) -> torch.Tensor:
    """Mean power of the transform of a volume in each shell 0 ... n // 2."""
    transform = torch.fft.rfftn(torch.fft.ifftshift(volume))
    return radial_mean(transform.abs().square(), volume.shape[-1], dims=3).float()
