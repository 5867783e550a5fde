r"""SR3, a conditional diffusion model, for particle images (Saharia et al. 2021).

Forward process: ``y_t = sqrt(gamma) y_0 + sqrt(1 - gamma) eps``, from the clean image (gamma = 1)
to noise alone (gamma = 0). The network learns to undo it while it looks at the noisy particle
``x = y_0 + structure + sigma n``. Clean images have unit pooled variance
(`cryonb.simulation.simulate`).

Two noisy views of one image, ``x`` and ``z = y_t / sqrt(gamma)``, are worth exactly as much as
their weighted mean ``c``, with noise ``1 / sigma_c**2 = 1 / sigma**2 + gamma / (1 - gamma)``. The
network sees c and x and corrects c, scaled as in Karras et al. 2022 (EDM): its first step, from
pure noise, is the posterior mean E[y_0 | x]. For white noise the diffusion model *is* a denoiser
for all noise levels below sigma. `02_train_sr3` asks for the noise instead, as published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from cryonb.base.draws import draw_options
from cryonb.base.precision import autocast
from cryonb.learning.unet import UNet

GAMMA_START = 4.5e-5  # of the published schedule: T = 2000, beta from 1e-6 to 1e-2, linear
SIGMA_END = 0.05  # noise, in clean standard deviations, that the last step removes


def _column(value, like: torch.Tensor) -> torch.Tensor:
    """One value per image, shape (b, 1, 1, 1)."""
    value = torch.as_tensor(value, dtype=torch.float32, device=like.device)
    return value.expand(len(like)).reshape(-1, 1, 1, 1)


def gamma_of(sigma_c, sigma) -> torch.Tensor:
    """Gamma at which x (noise sigma) and y_t together are worth one image of noise sigma_c."""
    precision = torch.as_tensor(sigma_c) ** -2.0 - torch.as_tensor(sigma) ** -2.0
    return (precision / (1 + precision)).clamp(GAMMA_START, 1.0)


def draw_gamma(n: int, sigma, generator: torch.Generator, start: float = 0.5) -> torch.Tensor:
    """Draw gammas log-uniform in the joint noise level; a share `start` at the first step."""
    u = torch.rand(n, **draw_options(generator))
    log_sigma = math.log(SIGMA_END) + u * (torch.as_tensor(sigma).log() - math.log(SIGMA_END))
    gamma = gamma_of(log_sigma.exp(), sigma)
    first = torch.arange(n, device=u.device) < start * n
    return torch.where(first, GAMMA_START, gamma)


def fuse(y_t: torch.Tensor, gamma, noisy: torch.Tensor, sigma) -> tuple[torch.Tensor, torch.Tensor]:
    """Fuse the diffusion's state and the particle into one image with less noise than either.

    `gamma` and `sigma` broadcast against `y_t` and `noisy` (b, ...). Returns the mean c of
    ``y_t / sqrt(gamma)`` and `noisy`, weighted by their precisions (inverse noise variances), and
    the deviation sigma_c of its noise.
    """
    left = (1 - gamma).clamp_min(1e-6)
    total = gamma / left + sigma**-2.0
    return (y_t * gamma.sqrt() / left + noisy * sigma**-2.0) / total, total.rsqrt()


class SR3(nn.Module):
    """Conditional diffusion model: a U-Net, and how its output becomes a clean image.

    The keywords are the size of the network, see `cryonb.learning.unet.UNet`. ValueError for
    weights of another parameterisation, which older files name.
    """

    def __init__(self, *, parameterisation: str = "fused", **unet):
        super().__init__()
        if parameterisation != "fused":
            raise ValueError(f"weights of the parameterisation {parameterisation!r}: train anew")
        self.config = unet
        self.unet = UNet(2, levels=2, **unet)

    def _network(self, y_t, gamma, noisy, sigma) -> torch.Tensor:
        """Raw output of the network, all images (b, 1, y, x), all levels (b, 1, 1, 1)."""
        view, level = fuse(y_t, gamma, noisy, sigma)
        channels = [view / (1 + level**2).sqrt(), noisy / (1 + sigma**2).sqrt()]
        levels = torch.cat([level, sigma], dim=1).flatten(1).log()
        return self.unet(torch.cat(channels, dim=1), levels).float()

    def base_and_scale(self, y_t, gamma, noisy, sigma) -> tuple[torch.Tensor, torch.Tensor]:
        """Return base and scale of the clean image, ``base + scale * output`` of the network.

        Whatever the two are, the output that the loss asks for is ``(clean - base) / scale``.
        """
        view, level = fuse(y_t, gamma, noisy, sigma)
        return view / (1 + level**2), level / (1 + level**2).sqrt()

    def forward(self, y_t: torch.Tensor, gamma, noisy: torch.Tensor, sigma) -> torch.Tensor:
        """Estimate the clean images E[y_0 | y_t, x], shape (b, y, x).

        `y_t` (b, y, x) is the diffusion's state at the level `gamma`, `noisy` (b, y, x) the
        particles, whose white noise has the deviation `sigma`; the levels are floats or (b,).
        """
        gamma, sigma = _column(gamma, y_t), _column(sigma, y_t)
        inputs = y_t[:, None], gamma, noisy[:, None], sigma
        base, scale = self.base_and_scale(*inputs)
        return (base + scale * self._network(*inputs))[:, 0]

    def loss(
        self, clean: torch.Tensor, observed: torch.Tensor, gamma, sigma, generator: torch.Generator
    ) -> torch.Tensor:
        """Training loss, eq. 3 of arXiv 2401.01097: squared error of the network's output.

        `clean` and `observed` (b, y, x) are the targets, and the particles without their white
        noise, which is drawn here; `gamma` and `sigma` floats or (b,).
        """
        gamma, sigma = _column(gamma, clean), _column(sigma, clean)
        clean, observed = clean[:, None], observed[:, None]
        eps = torch.randn(clean.shape, **draw_options(generator)).to(clean.device)
        white = torch.randn(clean.shape, **draw_options(generator)).to(clean.device)
        y_t = gamma.sqrt() * clean + (1 - gamma).sqrt() * eps
        inputs = y_t, gamma, observed + sigma * white, sigma
        base, scale = self.base_and_scale(*inputs)
        return (self._network(*inputs) - (clean - base) / scale).square().mean()


@dataclass(frozen=True)
class Step:
    """One step of the sampler: its number, the state y_t it left, and its clean estimate."""

    index: int
    gamma: float
    y_t: torch.Tensor
    clean: torch.Tensor


def step_gammas(steps: int, sigma: float) -> torch.Tensor:
    """Gammas of a sampler with `steps` network evaluations, particles of noise `sigma`.

    The first is that of pure noise; the others go in equal steps of log noise from four times
    sigma, where the state begins to matter beside the particle, to the last. ValueError for
    fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: ask for at least one.")
    first = torch.tensor([GAMMA_START], dtype=torch.float64)
    ends = math.log10(4 * sigma), math.log10(SIGMA_END)
    return torch.cat([first, 1 / (1 + torch.logspace(*ends, steps - 1, dtype=torch.float64) ** 2)])


def _half_log_snr(gamma: float) -> float:
    return 0.5 * math.log(gamma / (1 - gamma))


@torch.no_grad()
def sample(
    model,
    noisy: torch.Tensor,
    sigma: float,
    steps: int = 8,
    *,
    eta: float = 0.0,
    second_order: bool = True,
    generator=None,
) -> Iterator[Step]:
    """Draw one sample of the clean image given each noisy one; yields every step.

    Parameters
    ----------
    model : callable (y_t, gamma, noisy, sigma) -> clean estimate
        An `SR3`, or any denoiser of that form.
    noisy : Tensor (b, y, x)
        Particles, whose white noise has the deviation `sigma`.
    steps : int
        Network evaluations.
    eta : float
        0: deterministic after the first draw (DDIM, Song et al. 2021). 1: fresh noise in every
        step, the reverse process of the paper's eqs. 1-2.
    second_order : bool
        Extrapolate the clean estimate from the last two steps (DPM-Solver++ 2M, Lu et al. 2022):
        the same cost, and an error that falls with the square of the step.

    The `clean` of the last `Step` is the sample.
    """
    gammas = torch.cat([step_gammas(steps, sigma), torch.ones(1, dtype=torch.float64)]).tolist()
    y_t = math.sqrt(1 - gammas[0]) * torch.randn(noisy.shape, **draw_options(generator)).to(noisy)
    previous = length = None
    for i, (gamma, after) in enumerate(zip(gammas, gammas[1:], strict=False)):
        clean = guess = model(y_t, gamma, noisy, sigma)
        if after < 1 and second_order:
            step = _half_log_snr(after) - _half_log_snr(gamma)
            if previous is not None:
                guess = clean + (clean - previous) * step / (2 * length)
            previous, length = clean, step
        eps = (y_t - math.sqrt(gamma) * guess) / math.sqrt(1 - gamma)
        fresh = eta * math.sqrt((1 - after) / (1 - gamma) * (1 - gamma / after))
        y_t = math.sqrt(after) * guess + math.sqrt(max(1 - after - fresh**2, 0.0)) * eps
        if fresh > 0:
            y_t = y_t + fresh * torch.randn(noisy.shape, **draw_options(generator)).to(noisy)
        yield Step(i, gamma, y_t, clean)


@torch.no_grad()
def posterior_mean(model, noisy: torch.Tensor, sigma: float, generator=None) -> torch.Tensor:
    """Estimate E[y_0 | x] by the first step, from pure noise; shape of `noisy`."""
    state = torch.randn(noisy.shape, **draw_options(generator)).to(noisy)
    return model(state, GAMMA_START, noisy, sigma)


def denoise_batches(
    model: nn.Module,
    noisy: torch.Tensor,
    sigma: float,
    steps: int = 1,
    *,
    batch_size: int = 64,
    seed: int = 0,
    eta: float = 0.0,
    precision: str | None = None,
) -> Iterator[torch.Tensor]:
    """Denoise a stack batch by batch; yields (b, y, x) in the stack's order.

    Batches of the particles `noisy` (n, y, x), of white noise `sigma`, travel to the model's device
    and back. Batch k depends on `seed` and k alone. One step gives the posterior mean, more give
    one sample, see `sample`. `precision` is "bf16" or "no", by default what is fast here.
    """
    device = next(model.parameters()).device
    for k, batch in enumerate(noisy.split(batch_size)):
        given = batch.to(device), sigma
        generator = torch.Generator().manual_seed(seed * 1_000_003 + k)
        with autocast(device, precision):
            if steps == 1:
                last = posterior_mean(model, *given, generator)
            else:
                for step in sample(model, *given, steps, eta=eta, generator=generator):
                    last = step.clean
        yield last.cpu()


def denoise(model, noisy, sigma: float, steps: int = 1, *, title="", **options) -> torch.Tensor:
    """Denoise a stack (n, y, x), as `denoise_batches`; with a progress bar if it has a title."""
    batches = denoise_batches(model, noisy, sigma, steps, **options)
    size = options.get("batch_size", 64)
    total = -(-len(noisy) // size)
    return torch.cat(list(tqdm(batches, desc=title, total=total) if title else batches))
