"""Training: one loop for every network, as a generator; weights and checkpoints as safetensors.

The loop owns the optimiser, the moving average and the checkpoints; the caller owns the data, the
loss, and what is printed or plotted. What happens in step k is a function of (seed, k) alone, so a
run that was cut off goes on exactly as if it had not been.
"""

from __future__ import annotations

import copy
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cryonb.base.draws import draw_options, generator_on
from cryonb.base.precision import autocast
from cryonb.learning.diffusion import SR3, draw_gamma
from cryonb.learning.weights import Checkpoint

ADAM = {"betas": (0.9, 0.99), "weight_decay": 0.01, "fused": True}


@dataclass(frozen=True)
class Progress:
    """State of a training run after a step: images seen, share of the run done, loss."""

    step: int
    images: int
    fraction: float
    loss: float


class Recipe(ABC):
    """A kind of network: how it is built, trained and used."""

    settings: str = ""  # in words, for a table
    judged: int = 64  # images that are worth denoising to follow its training

    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """Build what is trained; the first is used afterwards."""

    @abstractmethod
    def begin(self, stacks, *networks, n_images: int, **options) -> Iterator[Progress]:
        """Train the networks, whose last is the moving average, on batches of stacks (n, y, x)."""

    @abstractmethod
    def apply(self, network: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
        """Denoise a stack (n, y, x)."""


class LossRecipe(Recipe):
    """A recipe of one network and one loss, for `train`."""

    @abstractmethod
    def loss(self, network, batch, fraction: float, generator) -> torch.Tensor:
        """Loss on a batch of the stacks."""

    def begin(self, stacks, *networks, n_images: int, **options) -> Iterator[Progress]:
        return train(*networks, partial(draw_batch, stacks), self.loss, n_images, **options)


def draw_batch(stacks, n: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Draw `n` rows at random, the same of every stack (rows, y, x), and turn them by 90° steps.

    They may be mirrored: that is a projection of the same molecule, too, seen from behind.
    """
    index = torch.randint(0, len(stacks[0]), (n,), **draw_options(generator)).to(stacks[0].device)
    turn, mirror = torch.randint(0, 4, (2,), **draw_options(generator)).tolist()
    drawn = [torch.rot90(images[index], turn, (1, 2)) for images in stacks]
    return [images.flip(2) for images in drawn] if mirror % 2 else drawn


def curriculum_sigma(fraction: float, sigma: float, snr_start: float = 3.0, share=0.6) -> float:
    """Noise level that grows geometrically from SNR `snr_start` to `sigma` over `share` of a run.

    At SNR 0.1 a fresh network has nothing to hold on to; what it learns at SNR 3 carries over.
    """
    first = min(1 / math.sqrt(snr_start), sigma)
    return first * (sigma / first) ** min(1.0, fraction / share)


def sr3_loss(
    model: SR3,
    batch,
    fraction: float,
    generator,
    *,
    sigma: float,
    snr_start: float = 3.0,
    share: float = 0.6,
    start: float = 0.5,
) -> torch.Tensor:
    """Loss of a diffusion model on a batch (clean, observed), with the curriculum.

    `snr_start` and `share` are those of `curriculum_sigma`. A part `start` of the batch is trained
    on the first step, the posterior mean.
    """
    clean, observed = batch
    level = curriculum_sigma(fraction, sigma, snr_start, share)
    gamma = draw_gamma(len(clean), level, generator, start)
    return model.loss(clean, observed, gamma, level, generator)


def any_level_loss(
    model: SR3, batch, fraction: float, generator, *, snr: tuple[float, float], start: float = 0.5
) -> torch.Tensor:
    """Loss of a diffusion model on a batch (clean, observed), each image at an SNR of its own.

    Drawn log-uniformly between the two of `snr`; `start` as in `sr3_loss`.
    """
    clean, observed = batch
    low, high = (-0.5 * math.log(s) for s in snr)
    sigma = torch.exp(low + (high - low) * torch.rand(len(clean), **draw_options(generator)))
    gamma = draw_gamma(len(clean), sigma, generator, start)
    return model.loss(clean, observed, gamma, sigma, generator)


@dataclass(frozen=True)
class Options:
    """How `train` goes about it."""

    batch_size: int = 32
    learning_rate: float = 1e-3  # the highest
    seed: int = 0
    precision: str | None = None  # "bf16" or "no"; by default what `fast_precision` finds
    checkpoint: str | os.PathLike | None = None  # a run goes on from there; nobody deletes it
    checkpoint_seconds: float = 60.0  # from one writing to the next; also when the loop is left


def train(
    model: nn.Module,
    average: nn.Module,
    draw: Callable[[int, torch.Generator], tuple],
    loss: Callable[[nn.Module, tuple, float, torch.Generator], torch.Tensor],
    n_images: int,
    **options,
) -> Iterator[Progress]:
    """Train `model` on `n_images` images; yields after every step.

    AdamW with a short warm-up and cosine decay, gradient norm clipped at 1, and an exponential
    moving average of the weights kept in `average`. Devices and several processes, each with its
    share of every batch, are left to accelerate.

    Parameters
    ----------
    model, average : nn.Module
        The network, and a copy of it that becomes the moving average: use this one afterwards.
    draw : callable (batch_size, generator) -> batch
        The generator is on the device that trains (`cryonb.base.draws`); so may the data be.
    loss : callable (model, batch, fraction, generator) -> Tensor ()
        `fraction` of the run that is done, 0 ... 1, for a curriculum.
    n_images : int
        Length of the run; rounded up to whole batches.
    **options
        See `Options`.

    ValueError for a checkpoint of another run, or a batch that the processes cannot share;
    FloatingPointError when the loss is not finite.
    """
    asked, accelerator = Options(**options), Accelerator()  # precision is ours: its own is fixed
    share = _share(asked.batch_size, accelerator.num_processes)
    objective = _Objective(_channels_last(model).to(accelerator.device), loss)
    average.to(accelerator.device)
    optimiser = torch.optim.AdamW(model.parameters(), asked.learning_rate, **ADAM)
    steps = math.ceil(n_images / asked.batch_size)
    run = {k: getattr(asked, k) for k in ("batch_size", "learning_rate", "seed")} | {"steps": steps}
    kept = Checkpoint(asked.checkpoint, run, {"model": model, "average": average}, optimiser)
    step = kept.read()
    objective, optimiser = accelerator.prepare(objective, optimiser)
    gradients = partial(_backward, accelerator, objective, partial(draw, share), asked, steps)
    writes = asked.checkpoint and accelerator.is_main_process
    saved = time.perf_counter()
    whole = step > 0  # whether the state is that after a whole step, so that it may be kept
    try:
        while step < steps:
            value = gradients(step)
            whole = False
            _descend(optimiser, asked.learning_rate * learning_rate_share(step, steps))
            step += 1
            update_average(average, model, step)
            torch.set_flush_denormal(False)  # the caller's code may need them
            whole = True
            yield Progress(step, step * asked.batch_size, step / steps, value)
            if writes and time.perf_counter() - saved > asked.checkpoint_seconds:
                kept.write(step)
                saved = time.perf_counter()
    finally:
        torch.set_flush_denormal(False)
        if writes and whole:
            kept.write(step)


def count_flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of a call: those of matrix products and convolutions.

    A multiplication and an addition are two. The count depends on shapes alone, so that methods
    which are compared at equal cost get the same lengths of training on every machine.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()  # attention as matrix products: its fused forms are not all counted
    return counter.get_total_flops()


def flops_per_image(start: Callable[..., Iterator[Progress]], *modules: nn.Module) -> float:
    """Count what one image costs in training, forward and back, see `count_flops`.

    `start` begins a run, an iterator of `Progress`, on copies of `modules`: one step is counted.
    """
    steps, done = start(*map(copy.deepcopy, modules)), []
    return count_flops(lambda: done.append(next(steps))) / done[0].images


def _channels_last(model: nn.Module) -> nn.Module:
    """The model with its convolutions in the layout that is fast, of images or of volumes."""
    volumes = any(p.dim() == 5 for p in model.parameters())
    return model.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)


class _Objective(nn.Module):
    """A network with its loss: what several processes must run forward, to share gradients."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch, fraction: float, generator: torch.Generator) -> torch.Tensor:
        return self.loss(self.model, batch, fraction, generator)


def _backward(accelerator, objective, draw, asked: Options, steps: int, step: int) -> float:
    """Gradients of one step, of this process's share of the batch; returns the batch's loss."""
    torch.set_flush_denormal(True)  # the optimiser's moments decay into slow numbers
    generator = generator_on(accelerator.device)
    generator.manual_seed(asked.seed * 1_000_003 + step + 2**40 * accelerator.process_index)
    batch = draw(generator)
    with autocast(accelerator.device, asked.precision):
        loss = objective([x.to(accelerator.device) for x in batch], step / steps, generator)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(objective.parameters(), 1.0)
    value = float(accelerator.reduce(loss.detach(), "mean"))  # of the whole batch, in every process
    check_finite(value, step)
    return value


def _share(batch_size: int, processes: int) -> int:
    """Images of a batch for each process."""
    if batch_size % processes:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {processes} processes: take a multiple"
        )
    return batch_size // processes


def _descend(optimiser, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad()


def check_finite(loss: float, step: int) -> None:
    """FloatingPointError, with advice, if a loss is not a number to go on from."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"The loss became {loss} in step {step + 1}: lower learning_rate, or look for NaN in "
            "the images."
        )


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the highest learning rate: linear warm-up, then half a cosine down to zero."""
    warm_up = min(1.0, (step + 1) / min(100, steps // 10 + 1))
    return warm_up * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the average towards the model; its memory grows with the step, up to 500 steps."""
    weight = max(1 / (1 + step / 10), 0.002)
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
