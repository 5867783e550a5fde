"""SR3 as published: asked for the noise, and sampled with fresh noise in many small steps.

Introduced in: 04_compare_methods. `benchmarks/published_form.py` measures from how many images it
works.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from cryonb.base.draws import draw_options
from cryonb.base.precision import autocast
from cryonb.learning.diffusion import SR3
from cryonb.learning.train import LossRecipe

T = 2000  # of the schedule, beta linear from 1e-6 to 1e-2


@cache
def gammas() -> torch.Tensor:
    """Gamma after 0, 1, ... T steps of the published schedule (Saharia et al. 2021)."""
    betas = torch.linspace(1e-6, 1e-2, T, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])


class PublishedSR3(SR3):
    """The network of `SR3`, shown state and particle side by side and asked for eps."""

    def _network(self, y_t, gamma, noisy, sigma) -> torch.Tensor:
        channels = torch.cat([y_t, noisy / (1 + sigma**2).sqrt()], dim=1)
        levels = torch.cat([(1 / gamma - 1).sqrt(), sigma], dim=1).flatten(1).log()
        return self.unet(channels, levels).float()

    def base_and_scale(self, y_t, gamma, noisy, sigma) -> tuple[torch.Tensor, torch.Tensor]:
        return y_t / gamma.sqrt(), -((1 - gamma) / gamma).sqrt()


@dataclass(frozen=True)
class Published(LossRecipe):
    """Loss of eq. 3 at a level drawn from the whole schedule, at the noise `sigma` of the data.

    `steps` of the ancestral sampler (eqs. 1-2) go evenly through the schedule; published: T.
    """

    sigma: float
    steps: int = T
    judged = 4

    @property
    def settings(self) -> str:
        return f"eps, no curriculum; ancestral, {self.steps} of {T} steps"

    def networks(self) -> list[nn.Module]:
        return [PublishedSR3()]

    def loss(self, network, batch, fraction: float, generator) -> torch.Tensor:
        """Loss on a batch (clean, observed), the latter without white noise, each (b, y, x)."""
        clean, observed = batch
        draw = draw_options(generator)
        t = torch.randint(1, T + 1, (len(clean),), **draw).cpu()
        left, right = (gammas()[k].sqrt().float() for k in (t, t - 1))
        root = left + (right - left) * torch.rand(len(clean), **draw).cpu()
        gamma = root.square().clamp_max(1 - 1e-6).to(clean.device)
        return network.loss(clean, observed, gamma, self.sigma, generator)

    @torch.no_grad()
    def apply(self, network: nn.Module, noisy: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Draw one sample for each particle (n, y, x), the whole stack at once."""
        device = next(network.parameters()).device
        generator, x = torch.Generator().manual_seed(seed), noisy.to(device)
        levels = gammas()[torch.linspace(T, 0, self.steps + 1).round().long()].tolist()
        y_t = torch.randn(noisy.shape, generator=generator).to(device)
        for gamma, after in zip(levels, levels[1:], strict=False):
            with autocast(device):
                clean = network(y_t, gamma, x, self.sigma)
            eps = (y_t - math.sqrt(gamma) * clean) / math.sqrt(1 - gamma)
            alpha, ratio = gamma / after, (1 - after) / (1 - gamma)
            y_t = (y_t - (1 - alpha) / math.sqrt(1 - gamma) * eps) / math.sqrt(alpha)
            fresh = torch.randn(noisy.shape, generator=generator).to(device)
            y_t = y_t + math.sqrt(ratio * (1 - alpha)) * fresh  # none in the last step
        return y_t.cpu()
