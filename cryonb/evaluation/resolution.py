"""Resolution: Fourier shell and ring correlation, and what a mask adds to them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from cryonb.evaluation.metrics import check_pair
from cryonb.physics.fourier import check_cubic, randomise_phases, shell_sum


def fsc(
    a: torch.Tensor, b: torch.Tensor, pixel_size_A: float = 1.0, *, dims: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fourier shell correlation of two volumes, from shell 0 to Nyquist.

    ``FSC(s) = Re sum_s A B* / sqrt(sum_s |A|^2 sum_s |B|^2)``, sums over the whole shell; a shell
    without power gives 0. Harauz and van Heel 1986, Optik 73, 146-156.

    `a` and `b` are (..., n, n, n), with dims=2 (..., n, n). Returns frequencies in 1/Å,
    (n // 2 + 1,), and values in float64, (..., n // 2 + 1). ValueError if shapes differ or are not
    cubic.
    """
    check_pair(a, b)
    n = check_cubic(a, dims)
    axes = tuple(range(-dims, 0))
    a_ft, b_ft = (torch.fft.rfftn(x.double(), dim=axes) for x in (a, b))
    cross = shell_sum((a_ft * b_ft.conj()).real, dims, n)
    power = [shell_sum(x.abs().square(), dims, n) for x in (a_ft, b_ft)]
    product = (power[0] * power[1]).sqrt()
    value = torch.where(product > 0, cross / product, 0.0)
    return torch.arange(n // 2 + 1, device=a.device) / (n * pixel_size_A), value


def frc(
    a: torch.Tensor, b: torch.Tensor, pixel_size_A: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fourier ring correlation of images (..., n, n), see `fsc`."""
    return fsc(a, b, pixel_size_A, dims=2)


def resolution_at(frequency_per_A: torch.Tensor, value: torch.Tensor, threshold: float) -> float:
    """Resolution in Å at which a correlation first falls below `threshold`.

    The frequency is interpolated linearly between the shell before and the shell of the first
    fall. Shell 0, the mean density, is not looked at. If the curve (s,), as of `fsc`, never falls
    below, it is Nyquist's, ``1 / frequency_per_A[-1]``, to be read as "that or finer"; if it is
    below from the first shell on, infinity. Thresholds are 0.5 against a known truth, 0.143 between
    half maps.
    """
    curve, frequency = value.tolist(), frequency_per_A.tolist()
    fall = next((s for s in range(1, len(curve)) if not curve[s] >= threshold), None)
    if fall is None:
        return 1 / frequency[-1]
    if fall == 1:
        return math.inf
    part = (curve[fall - 1] - threshold) / (curve[fall - 1] - curve[fall])
    return 1 / (frequency[fall - 1] + part * (frequency[fall] - frequency[fall - 1]))


def figure_of_merit(half_map_fsc: torch.Tensor) -> torch.Tensor:
    """FSC of the full map with the truth, C, that the FSC of its half maps, F, predicts.

    ``C = sqrt(2 F / (1 + F))``, if the errors of the two are independent. Rosenthal & Henderson
    2003, J. Mol. Biol. 333, 721-745. Introduced in: 06_reconstruct_fsc.
    """
    return (2 - 2 / (1 + half_map_fsc.clamp(0, 1))).sqrt()


class MaskedFSC(NamedTuple):
    """Curves of `fsc_mask_corrected`, each of shape (n // 2 + 1,)."""

    frequency_per_A: torch.Tensor
    unmasked: torch.Tensor
    masked: torch.Tensor
    randomised: torch.Tensor
    corrected: torch.Tensor


def fsc_mask_corrected(
    half1: torch.Tensor,
    half2: torch.Tensor,
    mask: torch.Tensor,
    pixel_size_A: float = 1.0,
    generator: torch.Generator | None = None,
) -> MaskedFSC:
    """Compute the FSC of masked half maps, corrected for what the mask itself brings.

    As relion_postprocess does: phases are randomised from the first shell whose unmasked FSC is
    below 0.8, the masked FSC of those maps is what the mask alone gives, and
    ``FSC_true = (FSC_mask - FSC_rand) / (1 - FSC_rand)`` from two shells further on. Chen et al.
    2013, Ultramicroscopy 135, 24-35, eq. 4. Half maps are unmasked, the mask is in [0, 1] with a
    soft edge, all (n, n, n).
    """
    frequency, unmasked = fsc(half1, half2, pixel_size_A)
    masked = fsc(half1 * mask, half2 * mask)[1]
    low = torch.nonzero(unmasked[1:] < 0.8).flatten()
    if len(low) == 0:  # the unmasked maps agree to Nyquist: nothing to correct
        return MaskedFSC(frequency, unmasked, masked, masked.clone(), masked.clone())
    cutoff = int(low[0]) + 1
    halves = (randomise_phases(half, cutoff, generator) * mask for half in (half1, half2))
    randomised = fsc(*halves)[1]
    corrected = (masked - randomised) / (1 - randomised)
    corrected[: cutoff + 2] = masked[: cutoff + 2]
    return MaskedFSC(frequency, unmasked, masked, randomised, corrected)
