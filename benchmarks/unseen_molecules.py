"""What the network for any molecule is worth on molecules that it has never seen.

    python benchmarks/unseen_molecules.py channel prestin my_model.pdb

No CTF, white noise of known level, without and with structural noise (micelle, neighbours, ice,
carbon), as the networks for one protein (the channel) were trained. The controls are a Gaussian
blur of the best width, CWF, which learns from the noisy particles themselves, and the best
linear filter, which is told their clean images; no network but the channel's own knows as much.
"own map" is the posterior mean under a map that `ab_initio` made from the same noisy particles, and
"memory" what `cryonb denoise --memory seen` and `clean` make of them.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from cryonb.data.volumes import load_volume
from cryonb.denoisers import memory as remember
from cryonb.denoisers.abinitio import ab_initio, posterior_mean
from cryonb.denoisers.baselines import linear_filter, over_turns
from cryonb.denoisers.cwf import cwf
from cryonb.denoisers.methods import blur
from cryonb.evaluation.metrics import psnr
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.weights import KEPT, MANY, load_model
from cryonb.simulation.simulate import SETTINGS, clean_scale, noise_sigma, setting, simulate_images


def scores(source: str, noise: str, args, many: SR3) -> dict[str, float]:
    """Mean PSNR in dB of each denoiser on particles of one molecule, in one setting."""
    one = load_model(KEPT / f"channel-{noise}-sr3.safetensors", SR3)[0]
    volume = load_volume(source, args.box_size, args.pixel_size_A)
    generator, sigma = torch.Generator().manual_seed(args.seed), noise_sigma(args.snr)
    simulate = partial(
        simulate_images,
        volume,
        noise=setting(noise),
        generator=generator,
        scale=clean_scale(volume),
    )
    test, learn = simulate(n=args.images), simulate(n=1000)
    truth, observed = test.clean, test.observed(args.pixel_size_A)
    noisy = observed + sigma * torch.randn(truth.shape, generator=generator)
    pairs = learn.clean, learn.observed(args.pixel_size_A)
    once = partial(denoise, many, sigma=sigma)

    def dB(images: torch.Tensor) -> float:
        return float(psnr(images, truth).mean())

    *_, last = ab_initio(noisy, sigma, seed=args.seed)
    own, any_molecule = posterior_mean(last, noisy, sigma), once(noisy)
    memory = remember.learn(noisy, sigma, once, seed=args.seed)
    clean = remember.recall(memory, noisy, sigma)
    seen = remember.recall(memory._replace(clean=memory.seen), noisy, sigma)
    return {
        "noisy": dB(noisy),
        "blur": max(dB(blur(noisy, width)) for width in np.arange(1, 5, 0.5)),
        "CWF": dB(cwf(noisy, sigma)),
        "linear filter": dB(linear_filter(*pairs, sigma)(noisy)),
        "one protein": dB(denoise(one, noisy, sigma)),
        "any molecule": dB(any_molecule),
        "over turns": dB(over_turns(once, noisy)),
        "own map": dB(own),
        "memory seen": dB(torch.lerp(any_molecule, seen, memory.share)),
        "memory clean": dB(torch.lerp(any_molecule, clean, memory.share)),
    }


def main() -> None:
    """Print the table, two rows a molecule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", default=["channel", "prestin"])
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--pixel-size", dest="pixel_size_A", type=float, default=3.0, help="Å")
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    many = load_model(MANY, SR3)[0]
    print(f"PSNR in dB, {args.images} images, SNR {args.snr:g}")
    for i, (source, noise) in enumerate(product(args.sources, SETTINGS)):
        row = scores(source, noise, args, many)
        if not i:
            print(f"{'':22}" + "".join(f"{name:>14}" for name in row))
        name = f"{Path(source).name}, {noise}"
        print(f"{name:22}" + "".join(f"{value:14.2f}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
