"""From how many training images does SR3 work as published: eps, ancestral, many steps?

    python benchmarks/published_form.py

The same network is trained twice on projections of the channel: as published, and asked for the
clean image with a curriculum, as cryonb does. A sample is drawn after 1/16, 1/8, ... of the images.
It "works" once its sample beats the best Gaussian blur; an exact sample is 3 dB below the limit.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace

import numpy as np
import torch

from cryonb.data.volumes import load_volume
from cryonb.denoisers.methods import Diffusion, blur
from cryonb.denoisers.published import Published
from cryonb.evaluation.metrics import psnr
from cryonb.learning.diffusion import denoise
from cryonb.simulation.simulate import clean_scale, noise_sigma, setting, simulate_images


def followed(recipe, stacks, n_images: int, score) -> list[tuple[int, list[float]]]:
    """Train a recipe; (images, score of the moving average) at each power of two of the run."""
    torch.manual_seed(0)
    network = recipe.networks()[0]
    average, points, found = copy.deepcopy(network), [2.0**-k for k in range(4, -1, -1)], []
    for progress in recipe.begin(stacks, network, average, n_images=n_images, batch_size=16):
        while points and progress.fraction >= points[0]:
            points.pop(0)
            found.append((progress.images, score(average.eval())))
            print("  ", found[-1][0], *(f"{dB:8.2f}" for dB in found[-1][1]), flush=True)
    return found


def main() -> None:
    """Print a line for each number of images and each way to ask."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=32_000, help="that each network sees")
    parser.add_argument("--particles", type=int, default=2000, help="different ones to train on")
    parser.add_argument("--test", type=int, default=16, help="particles that are denoised")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 50, 200])
    args = parser.parse_args()
    volume, sigma = (
        load_volume("channel", args.box_size, 192 / args.box_size),
        noise_sigma(args.snr),
    )
    generator = torch.Generator().manual_seed(11)
    made = setting("white"), generator
    n = args.particles + args.test
    clean = simulate_images(volume, n, *made, scale=clean_scale(volume)).clean
    clean, truth = clean[args.test :], clean[: args.test]
    noisy = truth + sigma * torch.randn(truth.shape, generator=generator)

    def dB(images):
        return float(psnr(images, truth).mean())

    best = max(dB(blur(noisy, width)) for width in np.arange(1, 6, 0.25))
    print(f"noisy {dB(noisy):.2f} dB, best blur {best:.2f} dB; {args.test} particles")
    published = Published(sigma)
    ways = {
        "as published, ancestral": (
            published,
            lambda m: [dB(replace(published, steps=k).apply(m, noisy)) for k in args.steps],
            [f"{k} steps" for k in args.steps],
        ),
        "fused, curriculum": (
            Diffusion(sigma),
            lambda m: [dB(denoise(m, noisy, sigma, k)) for k in (1, 8)],
            ["1 step", "8 steps"],
        ),
    }
    for name, (recipe, score, columns) in ways.items():
        print(f"\n{name}: images, then dB of {', '.join(columns)}")
        found = followed(recipe, (clean, clean), args.images, score)
        works = [images for images, scores in found if scores[-1] > best]
        since = f"{works[0]} images" if works else f"more than {args.images} images"
        print(f"   its sample beats the blur from {since}")


if __name__ == "__main__":
    main()
