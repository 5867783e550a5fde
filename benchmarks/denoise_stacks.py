"""Cost of `cryonb denoise` beside the network itself, and its memory against the stack's length.

    python benchmarks/denoise_stacks.py

Reading, measuring and preparing images (Fourier crop, levels, phase flips, whitening, and back) is
timed apart from the network on the same images, in turn; then whole runs on stacks of two lengths,
and of 64 and 256 px, say what a user waits for and what memory it takes.

Measured twice on a CPU: 50,000 images of 64 px take 1.1 to 1.2 times the memory of 1,000, pages of
the mapped stack not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import torch
from timing import in_turn, measure, report

from cryonb.base.options import DenoiseOptions
from cryonb.commands.denoise import denoise_file, measured_noise
from cryonb.data.particle_file import open_particles
from cryonb.data.whitening import from_network, to_network
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.weights import MANY, load_model


def write_stack(path: Path, n: int, box: int) -> Path:
    """Write a stack of noisy discs, a thousand images at a time."""
    rng, at = np.random.default_rng(0), np.arange(box) - box // 2
    disc = (at[:, None] ** 2 + at**2 < (0.25 * box) ** 2).astype(np.float32)
    with mrcfile.new_mmap(path, (n, box, box), mrc_mode=2, overwrite=True) as mrc:
        for first in range(0, n, 1000):
            part = mrc.data[first : first + 1000]
            part[:] = disc + 2 * rng.standard_normal(part.shape, dtype=np.float32)
        mrc.set_image_stack()
        mrc.voxel_size = 192 / box
    return path


def parts(folder: Path, n: int, box: int, repeats: int) -> None:
    """Time everything but the network, and the network, on the same images."""
    model, _ = load_model(MANY, SR3)
    source = open_particles(write_stack(folder / "parts.mrcs", n, box))
    noise = measured_noise(source, 64, DenoiseOptions(contrast="bright"))
    given = source.read().resampled(64)
    white, background = to_network(given, noise)

    def around() -> None:
        for first in range(0, n, 64):
            part = source.read(range(first, min(first + 64, n))).resampled(64)
            images, backgrounds = to_network(part, noise)
            back = from_network(images, backgrounds, part, noise)
            type(part)(back, part.optics, part.table).resampled(box)

    def network() -> None:
        denoise(model, white, noise.sigma)

    print(f"\n{n} images of {box} px")
    report(
        in_turn({"the network": network, "all else (reading, whitening, back)": around}, repeats)
    )


def whole(folder: Path, counts: list[int], box: int) -> None:
    """Run the command on stacks of several lengths: time, and rise of the memory; and its ratio."""
    print(f"\ncryonb denoise, {box} px")
    first_MB = None
    for n in counts:
        stack = write_stack(folder / f"{n}.mrcs", n, box)
        out = folder / "out.mrcs"

        def run(stack=stack, out=out) -> None:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                denoise_file(stack, out)

        seconds, rise_MB = measure(run)
        first_MB = first_MB or rise_MB
        ratio = f"   ratio {rise_MB / first_MB:.2f}" if n != counts[0] else ""
        print(f"  {n:7,} images: {n / seconds:6.0f} images/s, +{rise_MB:.0f} MB{ratio}")
        stack.unlink()


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="in the comparison of parts")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 50_000])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for box in (64, 256):
            parts(Path(folder), args.images, box, args.repeats)
        whole(Path(folder), args.counts, 64)
        whole(Path(folder), args.counts[:1], 256)


if __name__ == "__main__":
    main()
