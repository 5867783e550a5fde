"""Adversarial denoisers: DenoiseGAN (Su et al. 2018) and RobustGAN (Gu et al. 2020).

A generator G turns the noisy particle into an image, a discriminator D tells clean images from
G's, and G is trained both to pass and to lie near the truth in L1. Written from the papers.

``denoise``: DenoiseGAN, in the manner of pix2pix (Isola et al. 2017). D sees the image with the
noisy particle beside it and judges patches; cross-entropy, halved for D; 100 L1.
``robust``: RobustGAN, or beta-GAN (arXiv 2008.07307). D sees the image alone and gives one score;
D raises the beta score, G lowers it; 10 L1.

Where images are scaled to [-1, 1], G ends in a tanh; here it ends in a plain convolution: clean
images have unit standard deviation and peaks of 5 to 9, which a tanh cannot reach. GroupNorm stands
for BatchNorm, so that an image is denoised in the same way whatever else is in its batch.

Introduced in: 04_compare_methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from cryonb.base.precision import autocast
from cryonb.denoisers.direct import denoise_direct
from cryonb.learning.train import (
    Progress,
    Recipe,
    check_finite,
    curriculum_sigma,
    draw_batch,
    learning_rate_share,
    update_average,
)

LEAST = 0.01  # RobustGAN's scores are kept in [LEAST, 1 - LEAST]
RATES = 4e-4, 1.5e-4  # highest learning rates of G and D
KINDS = {  # channels of G from fine to coarse, weight of L1
    "denoise": {"widths": (64, 128, 256, 512), "l1": 100.0},
    "robust": {"widths": (64, 128, 256), "l1": 10.0},
}


def _of_kind(kind: str) -> dict:
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}: choose one of {tuple(KINDS)}.")
    return KINDS[kind]


class _Residual(nn.Sequential):
    def __init__(self, w: int):
        conv1, conv2 = (nn.Conv2d(w, w, 3, padding=1) for _ in range(2))
        super().__init__(conv1, nn.GroupNorm(8, w), nn.ELU(), conv2, nn.GroupNorm(8, w))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.elu(x + super().forward(x))


class Generator(nn.Module):
    """Encoder of stride-2 convolutions, residual blocks, decoder with additive skips.

    `kind` "denoise": four halvings, 64 ... 512 channels; "robust": three, 64 ... 256. `shrink`
    divides all widths: 1 as published, more for a CPU. `blocks`: residual, at the bottom.
    """

    def __init__(self, kind: str = "denoise", shrink: int = 4, blocks: int = 4):
        super().__init__()
        self.config = {"kind": kind, "shrink": shrink, "blocks": blocks}
        widths = [w // shrink for w in _of_kind(kind)["widths"]]
        first, last = nn.Conv2d(1, widths[0], 4, 2, 1), nn.ConvTranspose2d(widths[0], 16, 4, 2, 1)
        self.down = nn.ModuleList([nn.Sequential(first, nn.ELU())])  # no norm: keeps the scale
        self.up = nn.ModuleList([nn.Sequential(last, nn.ELU(), nn.Conv2d(16, 1, 3, padding=1))])
        for fine, coarse in zip(widths, widths[1:], strict=False):
            down, up = nn.Conv2d(fine, coarse, 4, 2, 1), nn.ConvTranspose2d(coarse, fine, 4, 2, 1)
            self.down.append(nn.Sequential(down, nn.GroupNorm(8, coarse), nn.ELU()))
            self.up.insert(0, nn.Sequential(up, nn.GroupNorm(8, fine), nn.ELU()))
        self.middle = nn.Sequential(*(_Residual(widths[-1]) for _ in range(blocks)))

    def forward(self, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
        """Denoise `noisy` (b, y, x) of white noise `sigma`; ValueError if the box does not fit."""
        step, (height, width) = 2 ** len(self.down), noisy.shape[-2:]
        if height % step or width % step or min(height, width) < 24:
            raise ValueError(
                f"Images of {height} × {width} pixels do not fit this network: the box must be a "
                f"multiple of {step} and 24 at least. Crop or pad the images."
            )
        h, skips = noisy[:, None] / (1 + sigma**2) ** 0.5, []
        for layer in self.down:
            h = layer(h.contiguous(memory_format=torch.channels_last))
            skips.append(h)
        h = self.middle(h)
        for layer in self.up:
            h = layer(h + skips.pop())
        return h[:, 0].float()


class Discriminator(nn.Module):
    """Judge of images; "denoise": of patches, with the condition; "robust": of the image alone.

    `kind` and `shrink` as of `Generator`.
    """

    def __init__(self, kind: str = "denoise", shrink: int = 4):
        super().__init__()
        self.conditional = kind == "denoise"
        widths = [w // shrink for w in _of_kind(kind)["widths"]]
        layers = [nn.Conv2d(1 + self.conditional, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for fine, coarse, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
            layers += [nn.Conv2d(fine, coarse, 4, stride, 1), nn.GroupNorm(8, coarse)]
            layers += [nn.LeakyReLU(0.2)]
        if self.conditional:
            layers += [nn.Conv2d(widths[-1], 1, 4, 1, 1)]
        else:  # one score of the features' mean
            layers += [nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], 1, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
        """Logits for `images` (b, y, x): (b, patches), one if D judges the image alone.

        `noisy` (b, y, x), of white noise `sigma`, is the condition.
        """
        channels = [images, noisy / (1 + sigma**2) ** 0.5] if self.conditional else [images]
        h = torch.stack(channels, dim=1).contiguous(memory_format=torch.channels_last)
        return self.body(h).float().flatten(1)


def beta_score(t: torch.Tensor, label: int) -> torch.Tensor:
    """Proper score of a judgement t: S(t, 1) for a clean image, S(t, 0) for a generated one.

    ``dS(t, 1)/dt = t^(alpha - 1) (1 - t)^beta`` with S(1, 1) = 0, and
    ``dS(t, 0)/dt = -t^alpha (1 - t)^(beta - 1)`` with S(0, 0) = 0: the greater the better. Buja et
    al. 2005; Gu et al. 2020, arXiv 2008.07307. Here alpha = beta = 1/2, between the logarithmic
    score of the first GAN (0, Jensen-Shannon) and minus half the Brier score (1).
    """
    right = t if label else 1 - t  # for alpha = beta, S(t, 0) = S(1 - t, 1)
    return (right * (1 - right)).sqrt() + right.sqrt().asin() - math.pi / 2


def _score(logits: torch.Tensor, label: int) -> torch.Tensor:
    """Mean beta score of logits, with their judgements clamped."""
    return beta_score(logits.sigmoid().clamp(LEAST, 1 - LEAST), label).mean()


def judge_loss(kind: str, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Loss of D, from its logits for clean and for generated images."""
    if kind == "denoise":  # half the cross-entropies of both
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    return -_score(real, 1) - _score(fake, 0)


def pass_loss(kind: str, fake: torch.Tensor) -> torch.Tensor:
    """Loss of G for not passing, from D's logits for its images."""
    if kind == "denoise":
        return F.softplus(-fake).mean()  # -log D, which does not fade when D is sure
    return _score(fake, 0)


@dataclass(frozen=True)
class Adversarial(Recipe):
    """A generator and its discriminator, `kind` and `shrink` as theirs, for noise `sigma`.

    Training begins at `snr_start`, see `cryonb.learning.train.curriculum_sigma`: no part of the
    published methods, but no worse in a trial on single seeds.
    """

    sigma: float
    kind: str
    shrink: int = 4
    snr_start: float = 3.0

    @property
    def settings(self) -> str:
        return f"widths 1/{self.shrink} of the published, SNR 3 down to the data's"

    def networks(self) -> list[nn.Module]:
        return [Generator(self.kind, self.shrink), Discriminator(self.kind, self.shrink)]

    def apply(self, network: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
        return denoise_direct(network, noisy, self.sigma)

    def begin(
        self, stacks, generator, discriminator, average, *, n_images: int, batch_size=8, seed=0
    ) -> Iterator[Progress]:
        """Train G and D in turn; yields after every step, as `cryonb.learning.train.train`.

        Adam with beta1 = 0.5; rates warm up and fall along a cosine. Step k depends on (seed, k)
        alone; white noise is fresh in each. The loss in `Progress` is the L1 distance of G's images
        from the clean ones: it means the same all along the run. `average` becomes the moving
        average of G.
        """
        size = min(batch_size, 8)  # published: 1
        networks, device = (generator, discriminator), next(generator.parameters()).device
        adam = partial(torch.optim.Adam, betas=(0.5, 0.999), fused=True)
        optimisers = [
            adam(network.to(memory_format=torch.channels_last).parameters()) for network in networks
        ]
        steps = math.ceil(n_images / size)
        for step in range(steps):
            random = torch.Generator().manual_seed(seed * 1_000_003 + step)
            clean, observed = (x.to(device) for x in draw_batch(stacks, size, random))
            level = curriculum_sigma(step / steps, self.sigma, self.snr_start)
            noisy = observed + level * torch.randn(observed.shape, generator=random).to(device)
            share = learning_rate_share(step, steps)
            for optimiser, rate in zip(optimisers, RATES, strict=True):
                optimiser.param_groups[0]["lr"] = rate * share
            distance = _step(self.kind, networks, optimisers, clean, noisy, level)
            check_finite(distance, step)
            update_average(average, generator, step + 1)
            yield Progress(step + 1, (step + 1) * size, (step + 1) / steps, distance)


def _step(kind: str, networks, optimisers, clean, noisy, level: float) -> float:
    """One step of D, then one of G against the new D; returns the L1 distance."""
    generator, discriminator = networks
    with autocast(clean.device):
        fake = generator(noisy, level)
        judged = (discriminator(images, noisy, level) for images in (clean, fake.detach()))
        loss = judge_loss(kind, *judged)
    _descend(optimisers[1], loss)
    discriminator.requires_grad_(False)
    with autocast(clean.device):
        distance = (fake - clean).abs().mean()
        loss = pass_loss(kind, discriminator(fake, noisy, level)) + KINDS[kind]["l1"] * distance
    _descend(optimisers[0], loss)
    discriminator.requires_grad_(True)
    return float(distance.detach())


def _descend(optimiser, loss: torch.Tensor) -> None:
    """One step of one player."""
    optimiser.zero_grad()
    loss.backward()  # unlike autograd.grad, in the parameters' memory layout, as fused Adam needs
    torch.set_flush_denormal(True)  # the moments decay into slow numbers
    optimiser.step()
    torch.set_flush_denormal(False)


def contaminate(clean: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Replace a share of the training targets (n, y, x) by outliers; returns a copy.

    Huber's contamination, against which RobustGAN is tried (Gu et al. 2020, arXiv 2008.07307): a
    share of the pairs comes from another distribution. Half of the outliers are white noise of the
    clean images' mean and variance, half the clean image of another row: these kinds are ours.
    `share` is 0 ... 1, or ValueError.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}: give a number from 0 to 1.")
    n, result = len(clean), clean.clone()
    rows = torch.randperm(n, generator=generator)[: round(share * n)]
    noise, other = rows[::2], rows[1::2]
    white = torch.randn(len(noise), *clean.shape[1:], generator=generator).to(clean)
    result[noise] = clean.mean() + clean.std() * white
    result[other] = clean[(other + torch.randint(1, n, other.shape, generator=generator)) % n]
    return result
