"""The post-processing U-Net that refines what the diffusion model found."""

from __future__ import annotations

import torch
from torch import nn

from cryonb.base.precision import autocast
from cryonb.learning.unet import UNet

INPUTS = ("sample", "sample+noisy")


class Refiner(nn.Module):
    """U-Net that adds a correction to a diffusion sample; under MSE it tends to E[y_0 | input].

    With the inputs "sample" it sees the diffusion output alone, as in arXiv 2401.01097; with
    "sample+noisy" the noisy particle as well, so that what the sampler lost can be found again;
    others are a ValueError. The keywords are the size of the network, see
    `cryonb.learning.unet.UNet`.
    """

    def __init__(self, inputs: str = "sample+noisy", **unet):
        super().__init__()
        if inputs not in INPUTS:
            raise ValueError(f"Unknown inputs {inputs!r}: choose one of {INPUTS}.")
        self.config = {"inputs": inputs, **unet}
        self.inputs = inputs
        self.unet = UNet(1 + (inputs == "sample+noisy"), levels=1, **unet)

    def forward(self, sample: torch.Tensor, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
        """Refine `sample` (b, y, x), the diffusion output for `noisy` of white noise `sigma`."""
        channels = [sample]
        if self.inputs == "sample+noisy":
            channels.append(noisy / (1 + sigma**2) ** 0.5)
        level = torch.full((len(sample), 1), float(sigma), device=sample.device).log()
        return sample + self.unet(torch.stack(channels, dim=1), level)[:, 0].float()


def refine_loss(model: Refiner, batch, fraction: float, generator, *, sigma: float) -> torch.Tensor:
    """Mean squared error on a batch (clean, sample, noisy), each (b, y, x); a loss for `train`."""
    clean, sample, noisy = batch
    return (model(sample, noisy, sigma) - clean).square().mean()


@torch.no_grad()
def refine(
    model: Refiner, sample: torch.Tensor, noisy: torch.Tensor, sigma: float, batch_size: int = 64
) -> torch.Tensor:
    """Refine a stack of diffusion samples (n, y, x), drawn for the particles `noisy` (n, y, x)."""
    device = next(model.parameters()).device
    batches = zip(sample.split(batch_size), noisy.split(batch_size), strict=True)
    with autocast(device):
        return torch.cat([model(s.to(device), x.to(device), sigma).cpu() for s, x in batches])
