"""From how many training images does SR3 work as published: eps, ancestral, many steps?

    python benchmarks/published_form.py

The same network is trained on projections of the channel, anew for each number of images: as
published, and asked for the clean image with a curriculum, as cryonb does. It "works" once its
sample beats the best Gaussian blur. (An exact sample has twice the least error.)
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


def trained(recipe, stacks, n_images: int) -> torch.nn.Module:
    """Train a recipe; its moving average."""
    torch.manual_seed(0)
    network = recipe.networks()[0]
    average = copy.deepcopy(network)
    for _ in recipe.begin(stacks, network, average, n_images=n_images, batch_size=16):
        pass
    return average.eval()


def main() -> None:
    """Print a line for each number of images and each way to ask."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--snr", type=float, default=0.1)
    lengths = {"type": int, "nargs": "+", "default": [1000, 4000, 16_000, 64_000]}
    parser.add_argument("--images", **lengths, help="that a network sees")
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
    published, ours = Published(sigma), Diffusion(sigma)
    ways = {
        "as published, ancestral": (
            published,
            lambda m, k: replace(published, steps=k).apply(m, noisy),
            args.steps,
        ),
        "fused, curriculum": (ours, lambda m, k: denoise(m, noisy, sigma, k), [1, 8]),
    }
    for name, (recipe, sample, counts) in ways.items():
        print(f"\n{name}: images, then dB of {', '.join(map(str, counts))} steps")
        since = f"more than {args.images[-1]}"
        for n_images in args.images:
            network = trained(recipe, (clean, clean), n_images)
            found = [dB(sample(network, k)) for k in counts]
            print(f"   {n_images}", *(f"{value:8.2f}" for value in found), flush=True)
            if found[-1] > best and " " in str(since):
                since = n_images
        print(f"   its sample beats the blur from {since} images")


if __name__ == "__main__":
    main()
