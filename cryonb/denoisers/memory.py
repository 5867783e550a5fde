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
   network says: the weighted mean of both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cryonb.denoisers.abinitio import STAGES, ab_initio, expect, maximise, power
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import radial_mean, shell_index, spread_shells
from cryonb.poses.posterior import posterior
from cryonb.poses.templates import Templates, volume_templates

FREE = 100.0  # times the map's power that the network's may have: almost no prior
TRUST = 0.5  # share of what is seen, where the network takes nothing away but white noise
SHARE = 0.7  # of the memory in the denoised image; the rest is the network's


class Memory(NamedTuple):
    """What a stack holds in common.

    Attributes
    ----------
    seen : Tensor (z, y, x)
        Map of what the particles show.
    clean : Tensor (z, y, x)
        Map of what the network leaves of it, and of details that it does not know.
    whitening : Tensor (n // 2 + 1,)
        Filter that makes all that the network takes away white, shell by shell; at most 1.
    """

    seen: torch.Tensor
    clean: torch.Tensor
    whitening: torch.Tensor

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
    denoised: torch.Tensor,
    sigma: float,
    *,
    ctf: torch.Tensor | None = None,
    seed: int = 0,
) -> Memory:
    """Learn a memory from particles of one molecule.

    Parameters
    ----------
    noisy, denoised : Tensor (n, y, x)
        Particles in white noise, and what a network makes of them.
    sigma : float
    ctf : Tensor (n, y, x // 2 + 1), optional
        What both carry.
    seed : int
        Of the random start.

    Raises
    ------
    ValueError
        No map explains the particles better than noise alone.
    """
    whitening = whitening_of(noisy, denoised, sigma)
    white, carried = _whitened(noisy, ctf, whitening)
    *_, last = ab_initio(white, sigma, ctf=carried, seed=seed)
    templates = volume_templates(last.volume, last.stage.spacing_deg)
    sums, _ = expect(templates, white, sigma, carried, put=(denoised, ctf))
    signal = FREE * power(last.volume)
    clean = maximise(sums, templates.directions_deg, sigma, signal, "C1", last.stage)
    trust = (TRUST * whitening**8)[shell_index(clean.shape).clamp(max=len(whitening) - 1)]
    beyond = torch.fft.irfftn(torch.fft.rfftn(last.volume - clean) * trust, clean.shape)
    return Memory(last.volume, clean + beyond, whitening)


def recall(
    templates: Templates,
    whitening: torch.Tensor,
    noisy: torch.Tensor,
    sigma: float,
    ctf: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of the memory's projections (n, y, x) over the poses of particles, without CTF."""
    white, carried = _whitened(noisy, ctf, whitening)
    return posterior(templates, white, sigma, ctf=carried).mean


def _whitened(noisy, ctf, whitening) -> tuple[torch.Tensor, torch.Tensor]:
    """Filtered particles, and what they then carry (n, y, x // 2 + 1)."""
    response = spread_shells(whitening, noisy.shape[-1])
    carried = response[None] if ctf is None else ctf * response
    return apply_ctf(noisy, response), carried
