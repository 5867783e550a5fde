r"""A stack as its own memory: what the network says of a particle, and of all others like it.

A network for any molecule looks at one noisy image. The stack holds hundreds of the same molecule:

1. The network denoises every particle: ``d_i``. What it takes away, ``y_i - d_i``, is noise,
   micelle, neighbours and carbon; where it has more power than white noise, particles are filtered,
   so that poses are judged by what is known to be the molecule's.
2. EM finds a map of what the particles have in common (`cryonb.denoisers.abinitio`), a micelle too.
3. The ``d_i`` are put into a second map, at the poses of their particles. The network errs anew in
   each image, and the errors average out; that it leaves micelle and background out stays. Where it
   takes away no more than white noise, the map is half the first one, which has more detail.
4. A particle is denoised as the mean over its poses of the second map's projections, and as the
   network says: the weighted mean of both. The weight is measured, by Stein's formula, on either
   half of the particles with the map of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from cryonb.denoisers.abinitio import STAGES, Sums, ab_initio, expect, maximise, power
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import radial_mean, shell_index, spread_shells
from cryonb.poses.posterior import posterior
from cryonb.poses.templates import Templates, volume_templates

FREE = 100.0  # times the map's power that the network's may have: almost no prior
TRUST = 0.5  # share of what is seen, where the network takes nothing away but white noise
SHARE = 2 / 3  # of the best share that is measured: what is not white makes it too large
JUDGED = 96  # particles of each half that judge the memory of the other
PROBE = 0.3  # noise, in units of the particles' own, by which it is seen how denoisers follow it

Denoiser = Callable[[torch.Tensor], torch.Tensor]


class Memory(NamedTuple):
    """What a stack holds in common.

    What is shown of it is `clean`; ``_replace(clean=memory.seen)`` shows all that the particles
    have in common, for a molecule without a micelle.

    Attributes
    ----------
    seen : Tensor (z, y, x)
        Map of what the particles show.
    clean : Tensor (z, y, x)
        Map of what the network leaves of it, and of details that it does not know.
    whitening : Tensor (n // 2 + 1,)
        Filter that makes all that the network takes away white, shell by shell; at most 1.
    share : float
        Of the memory in a denoised image, from 0 to 1; the rest is the network's.
    """

    seen: torch.Tensor
    clean: torch.Tensor
    whitening: torch.Tensor
    share: float

    @property
    def templates(self) -> Templates:
        spacing_deg = STAGES[-1].spacing_deg
        return volume_templates(self.clean, spacing_deg, structure=self.seen - self.clean)


def whitening_of(noisy: torch.Tensor, denoised: torch.Tensor, sigma: float) -> torch.Tensor:
    """Filter (n // 2 + 1,) after which what a denoiser takes away is white, or below it."""
    box = noisy.shape[-1]
    left = torch.fft.rfft2(noisy - denoised).abs().square().mean(0) / (sigma * box) ** 2
    return radial_mean(left, box, dims=2).float().clamp_min(1).rsqrt()


def learn(
    noisy: torch.Tensor,
    sigma: float,
    network: Denoiser,
    *,
    ctf: torch.Tensor | None = None,
    seed: int = 0,
) -> Memory:
    """Learn a memory from particles of one molecule.

    Parameters
    ----------
    noisy : Tensor (n, y, x)
        Particles in white noise, about their box centres.
    sigma : float
    network : callable (n, y, x) -> (n, y, x)
        Denoiser, which leaves the CTF as it is.
    ctf : Tensor (n, y, x // 2 + 1), optional
        What the particles carry.
    seed : int
        Of the random start.

    Raises
    ------
    ValueError
        No map explains the particles better than noise alone.
    """
    denoised = network(noisy)
    whitening = whitening_of(noisy, denoised, sigma)
    white, carried = _whitened(noisy, ctf, whitening)
    carried = carried.expand(len(noisy), -1, -1)
    *_, last = ab_initio(white, sigma, ctf=carried, seed=seed)
    templates = volume_templates(last.volume, last.stage.spacing_deg)
    halves = torch.arange(len(noisy)).chunk(2)

    def memory(sums: list[Sums], share: float = 1.0) -> Memory:
        signal, at = power(last.volume), (templates.directions_deg, sigma)
        seen, clean = (
            maximise(part, *at, prior * signal, "C1", last.stage)
            for part, prior in zip(sums, (2, FREE), strict=True)
        )
        trust = (TRUST * whitening**8)[shell_index(clean.shape).clamp(max=len(whitening) - 1)]
        beyond = torch.fft.irfftn(torch.fft.rfftn(seen - clean) * trust, clean.shape)
        return Memory(seen, clean + beyond, whitening, share)

    sums = []
    for rows in halves:
        some = templates, white[rows], sigma, carried[rows]
        put = denoised[rows], None if ctf is None else ctf[rows]
        sums.append([expect(*some)[0], expect(*some, put=put)[0]])
    shares = []
    for rows, of_others in zip(halves, reversed(sums), strict=True):
        rows = rows[:JUDGED]
        its = memory(of_others), noisy[rows], denoised[rows], sigma, network
        shares.append(_best_share(*its, None if ctf is None else ctf[rows]))
    both = [Sums(a.images + b.images, a.weights + b.weights) for a, b in zip(*sums, strict=True)]
    return memory(both, SHARE * min(max(sum(shares) / 2, 0.0), 1.0))


def recall(
    memory: Memory,
    noisy: torch.Tensor,
    sigma: float,
    ctf: torch.Tensor | None = None,
    templates: Templates | None = None,
) -> torch.Tensor:
    """Mean of the memory's projections (n, y, x) over the poses of particles, with their CTF.

    `templates` are those of the memory, where they are at hand.
    """
    white, carried = _whitened(noisy, ctf, memory.whitening)
    found = posterior(templates or memory.templates, white, sigma, ctf=carried).mean
    return found if ctf is None else apply_ctf(found, ctf)


def _whitened(noisy, ctf, whitening) -> tuple[torch.Tensor, torch.Tensor]:
    """Filtered particles, and what they then carry (n, y, x // 2 + 1)."""
    response = spread_shells(whitening, noisy.shape[-1])
    carried = response[None] if ctf is None else ctf * response
    return apply_ctf(noisy, response), carried


def _best_share(memory: Memory, noisy, denoised, sigma: float, network: Denoiser, ctf) -> float:
    """Share of a memory that has the least error on particles that it was not made of.

    ``<W d, x - f> / <W d, d>``, where d is the difference between memory and network f, and W the
    squared filter. By Stein's formula ``<W d, x> = <W d, y> - sigma^2 div(W d)`` for noisy y; the
    divergence is what a little more noise does. What else is in y, W makes small.
    """
    templates, weight = memory.templates, spread_shells(memory.whitening.square(), noisy.shape[-1])
    probe = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    other = noisy + PROBE * sigma * probe
    difference = recall(memory, noisy, sigma, ctf, templates) - denoised
    moved = recall(memory, other, sigma, ctf, templates) - network(other) - difference
    weighted = apply_ctf(difference, weight)
    gain = (weighted * (noisy - denoised)).sum()
    gain = gain - sigma / PROBE * (moved * apply_ctf(probe, weight)).sum()
    return float(gain / (weighted * difference).sum().clamp_min(1e-12))
