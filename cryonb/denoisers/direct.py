"""The controls: one U-Net that denoises in one step, trained on clean images or on noisy ones.

The same network as the diffusion model's, of the same size, that sees the noisy particle alone and
is trained directly. Under squared error it tends to the posterior mean E[y_0 | x], whether its
target is the clean image or a second noisy image of it (Noise2Noise, Lehtinen et al. 2018).

Introduced in: 04_compare_methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cryonb.base.draws import draw_options
from cryonb.base.precision import autocast
from cryonb.learning.train import LossRecipe, curriculum_sigma
from cryonb.learning.unet import UNet


class Denoiser(nn.Module):
    """U-Net from the noisy image to the clean one; its defaults are those of `SR3`.

    It sees ``x / sqrt(1 + sigma^2)``, which has unit variance, and is told log sigma. The keywords
    are the size of the network, see `cryonb.learning.unet.UNet`.
    """

    def __init__(self, **unet):
        super().__init__()
        self.config = dict(unet)
        self.unet = UNet(1, levels=1, **unet)

    def forward(self, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
        """Denoise `noisy` (b, y, x) of white noise `sigma`; ValueError if the box does not fit."""
        level = torch.full((len(noisy), 1), float(sigma), device=noisy.device).log()
        return self.unet(noisy[:, None] / (1 + sigma**2) ** 0.5, level)[:, 0].float()


@dataclass(frozen=True)
class Direct(LossRecipe):
    """Mean squared error from the clean image, or from a second noisy one.

    Noise2Noise never looks at the clean image: what both noisy images share is signal, in the
    setting "structural" micelle, neighbours and carbon, too. Its loss stays near sigma^2, which is
    no fault. The curriculum, and fresh noise in each step, are gifts of simulation: a microscope
    gives two halves of one exposure at one noise level.
    """

    sigma: float  # white noise at the end, see `cryonb.learning.train.curriculum_sigma`
    noise2noise: bool = False
    snr_start: float = 3.0  # SNR at the beginning; the run's own SNR for no curriculum
    settings = "SR3's network on the noisy image, SNR 3 down to the data's"

    def networks(self) -> list[nn.Module]:
        return [Denoiser()]

    def loss(self, network, batch, fraction: float, generator) -> torch.Tensor:
        """Loss on a batch (clean, observed), the latter without white noise, each (b, y, x)."""
        clean, observed = batch
        level = curriculum_sigma(fraction, self.sigma, self.snr_start)

        def noisy():
            return observed + level * torch.randn(observed.shape, **draw_options(generator)).to(
                observed
            )

        given = noisy()
        target = noisy() if self.noise2noise else clean
        return (network(given, level) - target).square().mean()

    def apply(self, network: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
        return denoise_direct(network, noisy, self.sigma)


@torch.no_grad()
def denoise_direct(
    model: nn.Module, noisy: torch.Tensor, sigma: float, batch_size: int = 64
) -> torch.Tensor:
    """Denoise a stack (n, y, x) of white noise `sigma`, batch by batch, on the model's device."""
    device = next(model.parameters()).device
    with autocast(device):
        return torch.cat([model(x.to(device), sigma).cpu() for x in noisy.split(batch_size)])
