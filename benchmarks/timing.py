"""What the benchmarks share: sides timed in turn, their memory, and a training step written out."""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Callable
from statistics import median

import torch

from cryonb.base.draws import generator_on
from cryonb.base.precision import autocast
from cryonb.denoisers.compare import peak_memory
from cryonb.learning.diffusion import SR3
from cryonb.learning.train import sr3_loss, update_average
from cryonb.simulation.simulate import noise_sigma

SIGMA = noise_sigma(0.1)
FULL_RESOLUTION = {"unshuffle": 1, "widths": (32, 64, 112, 208)}  # as many parameters, 64 px wide
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of all threads together


def in_turn(
    calls: dict[str, Callable], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call, all in turn, after one turn to warm up."""
    seconds = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


def synchronised(call: Callable, times: int = 1) -> Callable[[], None]:
    """The call, so many times, until the device has done it."""

    def run() -> None:
        for _ in range(times):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds and rise of the memory in MB of one call."""
    with peak_memory(every=0.003) as rise_MiB:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
    return seconds, rise_MiB[0] * 2**20 / 1e6


def spread(values: list[float], digits: int = 1) -> str:
    """Median (minimum to maximum)."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def against_first(sides: dict[str, list[float]]) -> dict[str, str]:
    """In words, the ratio of each side's values to those of the first; of that itself nothing."""
    first = next(iter(sides))
    words = {}
    for name, values in sides.items():
        ratios = [b / a for a, b in zip(sides[first], values, strict=True)]
        words[name] = "" if name == first else f"   ratio {spread(ratios, 2)}"
    return words


def report(seconds: dict[str, list[float]]) -> None:
    """Print seconds, and the ratio of each side to the first."""
    for name, ratio in against_first(seconds).items():
        print(f"  {name:30} {spread(seconds[name]):>22} s{ratio}")


def compare(title: str, n: dict[str, int], calls: dict[str, Callable], repeats: int) -> None:
    """Run all sides in turn, `repeats` times after a warm-up; print times, memory and ratios.

    Parameters
    ----------
    title : str
    n : dict of str to int
        Images that a call of each side handles.
    calls : dict of str to callable
        The first is ours, the others are what it is compared with.
    """
    ms, rise = {name: [] for name in calls}, dict.fromkeys(calls, 0.0)
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            seconds, memory = measure(call)
            rise[name] = max(rise[name], memory)
            if repeat:
                ms[name].append(1000 * seconds / n[name])
    print(f"\n{title}")
    for name, ratio in against_first(ms).items():
        print(f"  {name:34} {spread(ms[name]):>26} ms/image, +{rise[name]:5.0f} MB{ratio}")


def training_step(
    model: SR3,
    draw: Callable,
    batch_size: int,
    precision: str | None = None,
    *,
    channels_last: bool = True,
    fused: bool = True,
    parts: int = 1,
) -> Callable[[], None]:
    """Return a function that does one step of training, as `cryonb.learning.train` by default.

    Parameters
    ----------
    draw : callable (n, generator) -> (clean, observed)
    precision : str, optional
        "bf16" or "no"; by default what is fast here.
    parts : int
        Of the batch, whose gradients are added up.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)
    else:  # undo the layout that the U-Net asks for at its entrance
        model.unet.entrance.register_forward_pre_hook(lambda _, x: (x[0].contiguous(),))
    average, device = copy.deepcopy(model), next(model.parameters()).device
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    generator = generator_on(device).manual_seed(0)

    def step() -> None:
        for _ in range(parts):
            batch = [images.to(device) for images in draw(batch_size // parts, generator)]
            with autocast(device, precision):
                loss = sr3_loss(model, batch, 1.0, generator, sigma=SIGMA) / parts
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        update_average(average, model, 1000)

    return step


def peak_MB() -> float:
    """Largest resident memory of this process so far (ru_maxrss is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
