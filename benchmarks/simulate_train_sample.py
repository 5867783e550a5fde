"""Time projection, a training step and sampling against the naive form that each replaced.

    python benchmarks/simulate_train_sample.py

Both sides run in one process, in turn, so that whatever else the machine does meets both alike.
Printed are milliseconds per image and the ratio naive / ours, each as the median (minimum to
maximum) over the repeats, and how far the resident memory rose while either side ran.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from scipy import ndimage

from cryonb.base.draws import generator_on
from cryonb.base.precision import autocast, fast_precision
from cryonb.data.volumes import load_volume
from cryonb.denoisers.compare import peak_memory
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.train import sr3_loss, update_average
from cryonb.physics.fourier import low_pass
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.simulation.simulate import noise_sigma

SIGMA = noise_sigma(0.1)
FULL_RESOLUTION = {"unshuffle": 1, "widths": (32, 64, 112, 208)}  # as many parameters, 64 px wide


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


def compare(title: str, n: dict[str, int], calls: dict[str, Callable], repeats: int) -> None:
    """Run all sides in turn, `repeats` times after a warm-up; print times and ratios.

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
    first = next(iter(calls))
    print(f"\n{title}")
    for name in calls:
        ratios = [b / a for a, b in zip(ms[first], ms[name], strict=True)]
        versus = "" if name == first else f"   ratio {spread(ratios, 2)}"
        print(f"  {name:34} {spread(ms[name]):>26} ms/image, +{rise[name]:5.0f} MB{versus}")


def rotate_and_sum(volume: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Naive projection: turn the volume in real space (trilinear), sum along z: (n, y, x)."""
    centre = np.full(3, volume.shape[0] // 2)
    images = []
    for rotation in rotations:
        matrix = rotation[::-1, ::-1]  # acts on (z, y, x)
        turned = ndimage.affine_transform(volume, matrix, centre - matrix @ centre, order=1)
        images.append(turned.sum(0))
    return np.stack(images)


def projection(volume: torch.Tensor, n: int, repeats: int) -> None:
    """Central slices against rotating the volume."""
    rotations = random_rotations(n, torch.Generator().manual_seed(0))
    array, few = volume.numpy(), rotations[: max(n // 8, 1)].numpy()
    naive, ours = rotate_and_sum(array, few), project(volume, rotations[: len(few)]).numpy()
    compare(
        f"Projection of {volume.shape[0]} px, {n} images",
        {"central slices": n, "rotate and sum, scipy": len(few)},
        {
            "central slices": lambda: project(volume, rotations),
            "rotate and sum, scipy": lambda: rotate_and_sum(array, few),
        },
        repeats,
    )
    a, b = (low_pass(torch.as_tensor(x), 3.0, 1.0, dims=2) for x in (naive, ours))
    difference = float((a - b).norm() / b.norm())
    print(f"  up to two thirds of Nyquist the images differ by {100 * difference:.1f} %")


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


def training(images: torch.Tensor, repeats: int) -> None:
    """Folded, bf16 where it is fast, channels last against full resolution, float32."""
    ours, naive = SR3(), SR3(**FULL_RESOLUTION)
    million = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (ours, naive)]
    precision, draw = fast_precision(), lambda n, generator: (images[:n], images[:n])
    names = f"folded by 4, {precision.replace('no', 'float32')}, channels last", "full, float32"
    names = f"{names[0]}, {million[0]:.1f} M", f"{names[1]}, {million[1]:.1f} M"
    compare(
        f"Training step, batch of {len(images)}",
        dict.fromkeys(names, len(images)),
        {
            names[0]: training_step(ours, draw, len(images), precision),
            names[1]: training_step(
                naive, draw, len(images), "no", channels_last=False, fused=False
            ),
        },
        repeats,
    )


def sampling(images: torch.Tensor, many: int, repeats: int) -> None:
    """Few deterministic steps, and one, against many ancestral ones."""
    model = SR3().to(memory_format=torch.channels_last).eval()

    def draw(stack: torch.Tensor, steps: int, eta: float) -> Callable:
        return lambda: list(denoise(model, stack, SIGMA, steps, eta=eta))

    names = "8 steps, deterministic", "1 step, posterior mean", f"{many} steps, ancestral"
    compare(
        "Sampling",
        dict.fromkeys(names, len(images)),
        dict(
            zip(names, (draw(images, 8, 0), draw(images, 1, 0), draw(images, many, 1)), strict=True)
        ),
        repeats,
    )
    print("  (time grows with the number of steps; the published schedule has 2000)")


def main() -> None:
    """Run the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box-size", type=int, default=64, help="pixels, a multiple of 8")
    parser.add_argument("--images", type=int, default=32, help="batch")
    parser.add_argument("--many", type=int, default=32, help="steps of the ancestral sampler")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    volume = load_volume("channel", args.box_size, 192 / args.box_size).map
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.box_size} px")
    projection(volume, args.images, args.repeats)
    images = project(volume, random_rotations(args.images, torch.Generator().manual_seed(1)))
    images = images / images.std()
    training(images, args.repeats)
    sampling(images, args.many, args.repeats)
    print(f"\npeak resident memory of the process {peak_MB():.0f} MB")


def peak_MB() -> float:
    """Largest resident memory of this process so far (ru_maxrss is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
