"""What the network for any molecule is worth on molecules that it has never seen.

    python benchmarks/unseen_molecules.py channel prestin my_model.pdb

White noise, no CTF, known level: the setting in which the network for one protein (the channel) was
trained. The controls are a Gaussian blur of the best width and the best linear filter, which knows
the molecule's covariance; no network but the channel's own is told as much.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cryonb.baselines import linear_filter, over_turns
from cryonb.diffusion import SR3
from cryonb.methods import blur, one_step
from cryonb.metrics import psnr
from cryonb.simulate import clean_scale, noise_sigma, setting, simulate_images
from cryonb.volumes import load_volume
from cryonb.weights import KEPT, MANY, load_model


def scores(source: str, args, one: SR3, many: SR3) -> dict[str, float]:
    """Mean PSNR in dB of each denoiser on particles of one molecule."""
    volume = load_volume(source, args.box_size, args.pixel_size_A)
    generator, sigma = torch.Generator().manual_seed(args.seed), noise_sigma(args.snr)
    simulate = partial(
        simulate_images,
        volume,
        noise=setting("white"),
        generator=generator,
        scale=clean_scale(volume),
    )
    clean, learn = simulate(n=args.images).clean, simulate(n=1000).clean
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    once = partial(one_step, many, sigma=sigma)

    def dB(images: torch.Tensor) -> float:
        return float(psnr(images, clean).mean())

    return {
        "noisy": dB(noisy),
        "blur": max(dB(blur(noisy, width)) for width in np.arange(1, 5, 0.5)),
        "linear filter": dB(linear_filter(learn, learn, sigma)(noisy)),
        "one protein": dB(one_step(one, noisy, sigma)),
        "any molecule": dB(once(noisy)),
        "over turns": dB(over_turns(once, noisy)),
    }


def main() -> None:
    """Print the table, one row a molecule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", default=["channel", "prestin"])
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--pixel-size", dest="pixel_size_A", type=float, default=3.0, help="Å")
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    one = load_model(KEPT / "channel-white-sr3.safetensors", SR3)[0]
    many = load_model(MANY, SR3)[0]
    print(f"PSNR in dB, {args.images} images, SNR {args.snr:g}")
    for i, source in enumerate(args.sources):
        row = scores(source, args, one, many)
        if not i:
            print(f"{'':16}" + "".join(f"{name:>15}" for name in row))
        print(f"{Path(source).name:16}" + "".join(f"{value:15.2f}" for value in row.values()))


if __name__ == "__main__":
    main()
