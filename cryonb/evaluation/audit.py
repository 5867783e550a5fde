"""What a denoiser invents, measured: tests that need no trust in the denoiser.

A denoiser is any function from noisy particles (n, y, x) to clean ones. Every test has a control
beside its number; `audit` gathers them into rows with a verdict. Introduced in: 07_trust.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from cryonb.evaluation.metrics import correlation, mse
from cryonb.evaluation.resolution import frc, fsc, resolution_at
from cryonb.physics.fourier import randomise_phases
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.physics.reconstruct import reconstruct
from cryonb.poses.steerable import products_over_turns, sample
from cryonb.poses.templates import Templates, pose_of, volume_templates

CUTOFF_A = 20.0  # beyond which `audit` makes phases random
Denoiser = Callable[[torch.Tensor], torch.Tensor]


def best_match(
    images: torch.Tensor, volume: torch.Tensor, templates: Templates
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the projection of `volume` that each image (n, y, x) resembles most, over all poses.

    `templates` are those of the volume, see `cryonb.poses.templates.volume_templates`. Returns
    each image's correlation with that projection, and its pose (n, 3, 3).
    """
    x = templates.project(sample(images - images.mean((1, 2), keepdim=True), templates.grid))
    total = float(volume.sum())  # of every projection: its mean is taken off, too
    norms = templates.target_norms - total**2 / images[0].numel()
    best, turns = [], templates.turns
    for b in torch.arange(len(images)).split(4):
        products = products_over_turns(x[:, b], templates.target, turns)  # (b, m, turns)
        best.append((products / norms.sqrt()[:, None]).flatten(1).argmax(1))
    best = torch.cat(best)
    rotations = pose_of(templates.directions_deg, best // turns, best % turns * (360 / turns))
    return correlation(images, project(volume, rotations)), rotations


def shuffled(
    images: torch.Tensor, generator: torch.Generator, first_shell: int = 1
) -> torch.Tensor:
    """Images of the same power at every frequency, their phases random from a shell on."""
    return torch.stack([randomise_phases(image, first_shell, generator) for image in images])


class NoiseOnly(NamedTuple):
    """What came out of pure noise, see `noise_only`."""

    images: torch.Tensor
    variation: float  # of the outputs, divided by that of as many projections
    resemblance: float  # mean correlation with the most similar projection
    control: float  # the same if what differs between the outputs gets random phases
    fsc: tuple[torch.Tensor, torch.Tensor]  # of the outputs' reconstruction with the molecule
    fsc_control: tuple[torch.Tensor, torch.Tensor]  # of the noise's in the same poses


def noise_only(
    denoise: Denoiser,
    volume: torch.Tensor,
    sigma: float,
    n: int,
    *,
    symmetry: str = "C1",
    pixel_size_A: float = 1.0,
    spacing_deg: float = 6.0,
    seed: int = 0,
) -> NoiseOnly:
    """Denoise n images of white noise with no particle in them, and look for the molecule.

    Poses are those at which the outputs resemble `volume` (z, y, x) most, which the denoiser was
    trained on. The outputs are reconstructed with them, and so is the noise itself: that control
    shows what choosing poses alone makes of noise (Henderson 2013, "Einstein from noise").
    """
    generator = torch.Generator().manual_seed(seed)
    noise = sigma * torch.randn(n, *volume.shape[1:], generator=generator)
    images = denoise(noise)
    templates = volume_templates(volume, spacing_deg, symmetry)
    resemblance, poses = best_match(images, volume, templates)
    mean, views = images.mean(0), project(volume, random_rotations(n, generator))
    control, _ = best_match(mean + shuffled(images - mean, generator), volume, templates)
    curves = [
        fsc(reconstruct(x, poses, symmetry=symmetry), volume, pixel_size_A) for x in (images, noise)
    ]
    variation = images.var(0).mean() / views.var(0).mean()
    numbers = (float(x) for x in (variation, resemblance.mean(), control.mean()))
    return NoiseOnly(images, *numbers, *curves)


class ModelBias(NamedTuple):
    """Mean correlations of outputs with the truth and with what is known, see `model_bias`."""

    images: torch.Tensor
    with_truth: float
    with_known: float  # with the most similar projection of the known molecule
    control: float  # of the truth with its most similar projection of the known molecule


def model_bias(
    denoise: Denoiser,
    noisy: torch.Tensor,
    clean: torch.Tensor,
    volume: torch.Tensor,
    symmetry: str = "C1",
    spacing_deg: float = 6.0,
) -> ModelBias:
    """Denoise particles (n, y, x) of another molecule than `volume`, which the denoiser knows."""
    templates, images = volume_templates(volume, spacing_deg, symmetry), denoise(noisy)
    known, control = (best_match(x, volume, templates)[0] for x in (images, clean))
    means = (float(x.mean()) for x in (correlation(images, clean), known, control))
    return ModelBias(images, *means)


class Reappearance(NamedTuple):
    """Detail that was taken away and came back: mean ring correlations, see `reappearance`."""

    frequency_per_A: torch.Tensor
    with_removed: torch.Tensor  # of the outputs with the particles as they were
    with_given: torch.Tensor  # with those of random phases
    cutoff_per_A: float

    @property
    def beyond(self) -> tuple[float, float]:
        """Mean correlations beyond the cutoff: with what was removed, with what was given."""
        far = self.frequency_per_A >= self.cutoff_per_A
        return float(self.with_removed[far].mean()), float(self.with_given[far].mean())


def reappearance(
    denoise: Denoiser,
    clean: torch.Tensor,
    sigma: float,
    pixel_size_A: float,
    cutoff_A: float,
    seed: int = 0,
) -> Reappearance:
    """Give particles whose phases are random beyond `cutoff_A` (Å); see whether the detail is back.

    Beyond it nothing of the molecule is left in the input. What correlates there with the particle
    as it was, `clean` (n, y, x), is the denoiser's knowledge (after Chen et al. 2013).
    """
    generator = torch.Generator().manual_seed(seed)
    shell = math.ceil(clean.shape[-1] * pixel_size_A / cutoff_A)
    given = shuffled(clean, generator, shell)
    images = denoise(given + sigma * torch.randn(clean.shape, generator=generator))
    (frequency, removed), (_, kept) = (frc(images, x, pixel_size_A) for x in (clean, given))
    cutoff_per_A = shell / (clean.shape[-1] * pixel_size_A)
    return Reappearance(frequency, removed.mean(0), kept.mean(0), cutoff_per_A)


class Calibration(NamedTuple):
    """Whether posterior samples spread as the truth does, see `calibration`."""

    between_to_truth: float  # E|s1 - s2|² / E|s - y|²: below 1 for a sampler that is too sure
    nominal: torch.Tensor  # share of truths due between the i-th lowest and highest sample
    coverage: torch.Tensor  # the share that lies there
    ranks: torch.Tensor  # share of pixels whose truth has i = 0 ... k samples below it


def calibration(samples: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor) -> Calibration:
    """Compare K samples (k, n, y, x) of each particle with the truth (n, y, x), inside a mask.

    An exact sample and the truth are two draws from one distribution, given the particle; so the
    truth's rank among the samples is uniform (Talagrand et al. 1997).
    """
    k = len(samples)
    if k < 2:
        raise ValueError(f"{k} samples: give two at least, to see how far they spread.")
    below = (samples < clean).sum(0)[mask.bool().expand_as(clean)]
    ranks = torch.bincount(below, minlength=k + 1) / len(below)
    coverage = torch.stack([ranks[i + 1 : k - i].sum() for i in range(k // 2)])
    between = mse(samples[:-1], samples[1:]).mean() / mse(samples, clean.expand_as(samples)).mean()
    nominal = (k - 1 - 2 * torch.arange(k // 2)) / (k + 1)
    return Calibration(float(between), nominal, coverage, ranks)


class Row(NamedTuple):
    """A line of the audit: the question, what was found, what a control gives, the outcome."""

    test: str
    found: str
    control: str
    passed: bool


def audit(
    denoise: Denoiser,
    volume: torch.Tensor,
    clean: torch.Tensor,
    unknown: tuple[torch.Tensor, torch.Tensor],
    sigma: float,
    pixel_size_A: float,
    symmetry: str,
    seed: int = 0,
) -> list[Row]:
    """Run the tests that any denoiser can take, on white noise of deviation `sigma`.

    It knows the molecule `volume` (z, y, x), its clean projections of unit variance; `clean`
    (n, y, x) are particles of it, `unknown` noisy and clean ones of another molecule.
    """
    options = {"symmetry": symmetry, "pixel_size_A": pixel_size_A, "seed": seed}
    noise = noise_only(denoise, volume, sigma, len(clean), **options)
    fall_A, fall_control_A = (resolution_at(*c, 0.5) for c in (noise.fsc, noise.fsc_control))
    bias = model_bias(denoise, *unknown, volume, symmetry)
    removed, given = reappearance(denoise, clean, sigma, pixel_size_A, CUTOFF_A, seed).beyond
    return [
        Row(
            "noise alone: like the molecule?",
            f"outputs vary {noise.variation:.2f} times as much as particles, resemblance "
            f"{noise.resemblance:.2f}",
            f"resemblance {noise.control:.2f} with random phases",
            noise.variation < 0.1 and noise.resemblance < noise.control + 0.05,
        ),
        Row(
            "noise alone: a map of the molecule?",
            f"FSC with the molecule falls to 0.5 at {fall_A:.0f} Å",
            f"{fall_control_A:.0f} Å from the noise itself in the same poses (inf: never above)",
            fall_A >= 0.9 * fall_control_A,
        ),
        Row(
            "another molecule: drawn like the known one?",
            f"correlation {bias.with_truth:.2f} with the truth, {bias.with_known:.2f} with the "
            "known molecule",
            f"the truth itself: {bias.control:.2f} with the known molecule",
            bias.with_known < max(bias.with_truth, bias.control + 0.05),
        ),
        Row(
            f"detail beyond {CUTOFF_A:g} Å taken away: does it return?",
            f"correlation {removed:.2f} with what was taken away",
            f"{given:.2f} with what was given",
            removed < 0.1 or removed < given,
        ),
    ]


def audit_samples(samples: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor) -> Row:
    """Calibration as a line of the audit; arguments as in `calibration`."""
    found = calibration(samples, clean, mask)
    nominal, covered = float(found.nominal[0]), float(found.coverage[0])
    return Row(
        "samples: as far apart as from the truth?",
        f"distance between them ÷ to the truth {found.between_to_truth:.2f}; the truth lies among "
        f"{len(samples)} samples in {covered:.0%} of the pixels",
        f"exact sampler: 1 and {nominal:.0%}",
        found.between_to_truth > 0.8 and covered > nominal - 0.1,
    )
