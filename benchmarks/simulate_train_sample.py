"""Time projection, a training step and sampling against the naive form that each replaced.

    python benchmarks/simulate_train_sample.py

Both sides run in one process, in turn, so that whatever else the machine does meets both alike.
Printed are milliseconds per image and the ratio naive / ours, each as the median (minimum to
maximum) over the repeats, and how far the resident memory rose while either side ran.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from timing import FULL_RESOLUTION, SIGMA, compare, peak_MB, training_step

from cryonb.base.precision import fast_precision
from cryonb.data.volumes import load_volume
from cryonb.learning.diffusion import SR3, denoise
from cryonb.physics.fourier import low_pass
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project


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
        return lambda: denoise(model, stack, SIGMA, steps, eta=eta)

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


if __name__ == "__main__":
    main()
