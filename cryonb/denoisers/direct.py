"""The controls: one U-Net that denoises in one step, trained on clean images or on noisy ones.

The same network as the diffusion model's, of the same size, that sees the noisy particle alone and
is trained directly. Under squared error it tends to the posterior mean E[y_0 | x], whether its
target is the clean image or a second noisy image of it (Noise2Noise, Lehtinen et al. 2018).

Introduced in: 04_compare_methods.
"""

from __future__ import annotations

import torch
from torch import nn

from cryonb.base.draws import by
from cryonb.base.precision import autocast
from cryonb.learning.train import curriculum_sigma
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


def _with_noise(images: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    return images + level * torch.randn(images.shape, **by(generator)).to(images)


def supervised_loss(
    model: nn.Module,
    batch,
    fraction: float,
    generator: torch.Generator,
    *,
    sigma: float,
    snr_start: float = 3.0,
) -> torch.Tensor:
    """Mean squared error from the clean image; a loss for `cryonb.learning.train.train`.

    Parameters
    ----------
    batch : (Tensor, Tensor), each (b, y, x)
        Clean images, and the observed ones without their white noise, which is drawn here. In the
        setting "white" they are equal.
    fraction : float
        Share of the run that is done.
    sigma : float
        White noise at the end of the curriculum, see `cryonb.learning.train.curriculum_sigma`.
    snr_start : float
        SNR at its beginning; the run's own SNR for no curriculum.
    """
    clean, observed = batch
    level = curriculum_sigma(fraction, sigma, snr_start)
    return (model(_with_noise(observed, level, generator), level) - clean).square().mean()


def noise2noise_loss(
    model: nn.Module,
    batch,
    fraction: float,
    generator: torch.Generator,
    *,
    sigma: float,
    snr_start: float = 3.0,
) -> torch.Tensor:
    """Mean squared error from a second noisy image; a loss for `cryonb.learning.train.train`.

    Lehtinen et al. 2018, eq. 6: with noise of zero mean, independent of the first,
    ``E|f(x) - x'|^2 = E|f(x) - observed|^2 + sigma^2``, so the minimum lies where the supervised
    one does, and a loss that stays near sigma^2 is no fault. The clean image is never looked at:
    what both noisy images share is signal. In the setting "structural" that includes micelle,
    neighbours and carbon, so Noise2Noise keeps them. That is its nature, not a fault of training.

    Parameters as in `supervised_loss`. The curriculum, and fresh noise in each step, are gifts of
    simulation: a microscope gives two halves of one exposure at one noise level.
    """
    _, observed = batch
    level = curriculum_sigma(fraction, sigma, snr_start)
    noisy, target = (_with_noise(observed, level, generator) for _ in range(2))
    return (model(noisy, level) - target).square().mean()


@torch.no_grad()
def denoise_direct(
    model: nn.Module, noisy: torch.Tensor, sigma: float, batch_size: int = 64
) -> torch.Tensor:
    """Denoise a stack (n, y, x) of white noise `sigma`, batch by batch, on the model's device.

    `model` is a `Denoiser`, a generator of `cryonb.denoisers.gan`, or another callable of
    (noisy, sigma).
    """
    device = next(model.parameters()).device
    with autocast(device):
        return torch.cat([model(x.to(device), sigma).cpu() for x in noisy.split(batch_size)])
