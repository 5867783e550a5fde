"""Time the posterior over poses, the refining of its grid, and the whole Bayes limit.

    python benchmarks/bayes_limit.py

Both sides of each comparison run in one process, in turn, on the same particles and the same
poses. The sums over pixels get the projections of all poses for nothing: neither making nor storing
them is counted.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from timing import compare, peak_MB

from cryonb.data.volumes import load_volume
from cryonb.evaluation.metrics import mse
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.poses.posterior import bayes_limit, posterior, refined
from cryonb.poses.templates import Molecule, every_pose, volume_templates
from cryonb.simulation.simulate import clean_scale, noise_sigma


def by_pixels(images: torch.Tensor, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
    """Posterior mean over projections (poses, pixels), one matrix product each way."""
    score = (noisy.flatten(1) @ images.T - 0.5 * images.square().sum(1)) / sigma**2
    return (score.softmax(1) @ images).view_as(noisy)


def one_grid(molecule, noisy, sigma: float, symmetry: str, args) -> None:
    """The engine against sums over pixels, on one coarse grid."""
    templates = volume_templates(molecule, args.spacing, symmetry)
    images = project(molecule, every_pose(templates)).flatten(1)
    names = "polar Fourier, turns by FFT", "pixels, matrix products"
    compare(
        f"Posterior mean over {len(images)} poses, {len(noisy)} particles",
        dict.fromkeys(names, len(noisy)),
        {
            names[0]: lambda: posterior(templates, noisy, sigma),
            names[1]: lambda: by_pixels(images, noisy, sigma),
        },
        args.repeats,
    )
    apart = mse(posterior(templates, noisy, sigma).mean, by_pixels(images, noisy, sigma)).mean()
    print(f"  mean squared difference of the images {apart:.1e}, where the noise has {sigma**2:g}")


def refining(molecule, noisy, sigma: float, symmetry: str, args) -> None:
    """Grid after grid: projecting what comes into question, against projecting every grid."""
    spacings = (4.0, 2.0, 1.4, 1.0)

    def refine() -> list:
        known = Molecule.of(molecule)
        return list(refined(known, noisy, sigma, symmetry, spacings_deg=spacings))

    grids = refine()

    def every_grid():
        for spacing, _, found in grids:
            templates = volume_templates(molecule, spacing, symmetry)
            posterior(templates, noisy, sigma, candidates=found.log_weight > -math.inf)

    names = "directions in question", "all directions"
    compare(
        f"Refining to {spacings[-1]:g} degrees, {len(noisy)} particles",
        dict.fromkeys(names, len(noisy)),
        {
            names[0]: refine,
            names[1]: every_grid,
        },
        args.repeats,
    )


def whole(molecule, clean, noisy, sigma: float, symmetry: str) -> None:
    """The limit to convergence, with its time and memory."""
    print(f"\nThe whole limit of {len(noisy)} particles, noise {sigma:.2f}")
    start, before = time.perf_counter(), peak_MB()
    for spacing, found in bayes_limit(molecule, noisy, sigma, symmetry):
        error, spent = mse(found.mean, clean), time.perf_counter() - start
        spread = float(error.std()) / math.sqrt(len(error))
        print(
            f"  {spacing:4g}°  forecast {found.mmse.mean():.5f}, measured {error.mean():.5f} ± "
            f"{spread:.5f}, {spent:6.1f} s"
        )
    print(f"  peak resident memory of the process {peak_MB():.0f} MB, {before:.0f} MB before")


def main() -> None:
    """Compare on one grid and on finer and finer ones, then run the limit to convergence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--spacing", type=float, default=10.0, help="grid to compare on, degrees")
    parser.add_argument("--images", type=int, default=256, help="particles of the whole limit")
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    volume = load_volume("channel", args.box_size, 192 / args.box_size)
    molecule, sigma = volume.map / clean_scale(volume), noise_sigma(args.snr)
    generator = torch.Generator().manual_seed(0)
    clean = project(molecule, random_rotations(args.images, generator))
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.box_size} px")

    one_grid(molecule, noisy[:32], sigma, volume.symmetry, args)
    refining(molecule, noisy[:8], sigma, volume.symmetry, args)
    whole(molecule, clean, noisy, sigma, volume.symmetry)


if __name__ == "__main__":
    main()
