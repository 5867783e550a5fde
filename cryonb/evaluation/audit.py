"""What a denoiser invents, measured: tests that need no trust in the denoiser.

A denoiser is any function from noisy particles (n, y, x) to clean ones. Every test has a control
beside its number. `cryonb audit` runs them all on weights or on anybody's function. Introduced in:
07_trust.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cryonb.evaluation.metrics import correlation, mse
from cryonb.evaluation.resolution import frc, fsc
from cryonb.physics.fourier import radial_mean, randomise_phases
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.physics.reconstruct import reconstruct
from cryonb.poses.steerable import analyse, energy, products_over_turns
from cryonb.poses.templates import Templates, pose_of, volume_templates

Denoiser = Callable[[torch.Tensor], torch.Tensor]


def best_match(
    images: torch.Tensor, volume: torch.Tensor, templates: Templates
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the projection of a molecule that each image (n, y, x) resembles most, over all poses.

    `templates` are those of `volume`, see `cryonb.poses.templates.volume_templates`.

    Returns
    -------
    correlation : Tensor (n,)
        Of the image with that projection, both less their mean.
    rotations : Tensor (n, 3, 3)
        Its pose.
    """
    x = analyse(images - images.mean((1, 2), keepdim=True), len(templates.target))
    total = float(volume.sum())  # of every projection: its mean is taken off, too
    norms = energy(templates.target).sum(1) - total**2 / images[0].numel()
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


@dataclass(frozen=True)
class NoiseOnly:
    """What came out of pure noise, see `noise_only`."""

    images: torch.Tensor
    energy: float
    resemblance: float
    control: float
    fsc: tuple[torch.Tensor, torch.Tensor]
    fsc_control: tuple[torch.Tensor, torch.Tensor]


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
    """Denoise white noise with no particle in it, and look for the molecule in the result.

    Poses are those at which the outputs resemble the molecule most. The outputs are reconstructed
    with them, and so is the noise itself: that control shows what choosing poses alone makes of
    noise (Henderson 2013, "Einstein from noise").

    Parameters
    ----------
    denoise : callable (n, y, x) -> (n, y, x)
    volume : Tensor (z, y, x)
        What the denoiser was trained on, clean projections of unit variance.
    sigma : float
    n : int
        Images of noise.

    Returns
    -------
    NoiseOnly
        `energy`: variance of the outputs about their mean image, divided by that of as many
        projections. `resemblance`: mean correlation with the most similar projection; `control`:
        the same if what differs between the outputs gets random phases. `fsc`, `fsc_control`: of
        the reconstructions from outputs, and from the noise in the same poses, with the molecule.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = sigma * torch.randn(n, *volume.shape[1:], generator=generator)
    images = denoise(noise)
    templates = volume_templates(volume, spacing_deg, symmetry)
    resemblance, poses = best_match(images, volume, templates)
    mean, views = images.mean(0), project(volume, random_rotations(n, generator))
    control, _ = best_match(mean + shuffled(images - mean, generator), volume, templates)
    maps = [reconstruct(x, poses, symmetry=symmetry) for x in (images, noise)]
    return NoiseOnly(
        images,
        float(images.var(0).mean() / views.var(0).mean()),
        float(resemblance.mean()),
        float(control.mean()),
        *(fsc(map, volume, pixel_size_A) for map in maps),
    )


@dataclass(frozen=True)
class Pull:
    """How far outputs are pulled to what the denoiser knows: mean correlations, see `pull`."""

    images: torch.Tensor
    with_truth: float
    with_known: float
    control: float


def pull(
    denoise: Denoiser,
    noisy: torch.Tensor,
    clean: torch.Tensor,
    volume: torch.Tensor,
    symmetry: str = "C1",
    spacing_deg: float = 6.0,
) -> Pull:
    """Denoise particles of a molecule that the denoiser does not know.

    Parameters
    ----------
    noisy, clean : Tensor (n, y, x)
        Particles of another molecule.
    volume : Tensor (z, y, x)
        The molecule that it was trained on.

    Returns
    -------
    Pull
        Of the outputs, `with_truth` and `with_known`, the most similar projection of the known
        molecule; `control`: of the truth itself with its most similar projection of the known.
    """
    templates, images = volume_templates(volume, spacing_deg, symmetry), denoise(noisy)
    return Pull(
        images,
        float(correlation(images, clean).mean()),
        float(best_match(images, volume, templates)[0].mean()),
        float(best_match(clean, volume, templates)[0].mean()),
    )


def restored(
    denoise: Denoiser,
    whole: torch.Tensor,
    part: torch.Tensor,
    rotations: torch.Tensor,
    sigma: float,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Denoise particles of a molecule with something missing; see how much of it is put back.

    Parameters
    ----------
    whole, part : Tensor (z, y, x)
        The molecule that the denoiser knows, and what is left of it.
    rotations : Tensor (n, 3, 3)
    sigma : float
        White noise that is added.

    Returns
    -------
    images, clean : Tensor (n, y, x)
        Outputs, and the true projections of `part`.
    share : float
        ``sum <output - clean, missing> / sum |missing|^2`` over all particles, `missing` being the
        projections of what was taken away: 0 for an honest denoiser, 1 if all of it is drawn.
    """
    clean, missing = project(torch.stack([part, whole - part]), rotations)
    generator = torch.Generator().manual_seed(seed)
    images = denoise(clean + sigma * torch.randn(clean.shape, generator=generator))
    share = ((images - clean) * missing).sum() / missing.square().sum()
    return images, clean, float(share)


@dataclass(frozen=True)
class Reappearance:
    """Signal that was taken away and came back, by frequency, see `reappearance`."""

    frequency_per_A: torch.Tensor
    with_removed: torch.Tensor
    with_given: torch.Tensor
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
    """Give particles whose phases are random beyond a resolution; see whether the detail is back.

    Beyond `cutoff_A` nothing of the molecule is left in the input. What correlates there with the
    particle as it was comes from memory (after Chen et al. 2013).

    Parameters
    ----------
    clean : Tensor (n, y, x)
    sigma : float
        White noise that is added.
    cutoff_A : float
        In Å; coarser detail stays.

    Returns
    -------
    Reappearance
        Ring correlations of the outputs, mean over particles, `with_removed`: the particles as
        they were, `with_given`: those with random phases.
    """
    generator = torch.Generator().manual_seed(seed)
    shell = math.ceil(clean.shape[-1] * pixel_size_A / cutoff_A)
    given = shuffled(clean, generator, shell)
    images = denoise(given + sigma * torch.randn(clean.shape, generator=generator))
    frequency, removed = frc(images, clean, pixel_size_A)
    return Reappearance(
        frequency,
        removed.mean(0),
        frc(images, given, pixel_size_A)[1].mean(0),
        shell / (clean.shape[-1] * pixel_size_A),
    )


@dataclass(frozen=True)
class Calibration:
    """Whether posterior samples spread as the truth does, see `calibration`.

    Attributes
    ----------
    between_to_truth : float
        ``E|s1 - s2|^2 / E|s - y|^2``: 1 for an exact sampler, below for one that is too sure.
    nominal, coverage : Tensor (k // 2,)
        Share of truths that should lie between the i-th lowest and the i-th highest sample, and
        the share that does.
    ranks : Tensor (k + 1,)
        Share of pixels whose truth has i samples below it; all alike for an exact sampler.
    """

    between_to_truth: float
    nominal: torch.Tensor
    coverage: torch.Tensor
    ranks: torch.Tensor


def calibration(samples: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor) -> Calibration:
    """Compare K samples (k, n, y, x) of each particle with the truth (n, y, x), inside a mask.

    An exact sample and the truth are two draws from one distribution, given the particle; so the
    truth's rank among the samples is uniform (Talagrand et al. 1997).
    """
    k = len(samples)
    if k < 2:
        raise ValueError(f"{k} samples: give two at least, to see how far they spread.")
    inside = mask.bool().expand_as(clean)
    below = (samples < clean).sum(0)[inside]
    ranks = torch.bincount(below, minlength=k + 1) / len(below)
    lowest = torch.arange(k // 2)
    covered = torch.stack([ranks[i + 1 : k - i].sum() for i in lowest.tolist()])
    pairs = mse(samples[:-1], samples[1:]).mean()
    to_truth = mse(samples, clean.expand_as(samples)).mean()
    nominal = (k - 1 - 2 * lowest) / (k + 1)
    return Calibration(float(pairs / to_truth), nominal, covered, ranks)


def power_to_truth(images: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Mean power of images (n, y, x) by ring, divided by that of the truth: (y // 2 + 1,)."""
    box = images.shape[-1]
    power = [
        radial_mean(torch.fft.rfft2(x.double()).abs().square(), box, dims=2).mean(0)
        for x in (images, clean)
    ]
    return power[0] / power[1]
