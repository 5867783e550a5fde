"""What a map from the particles alone is worth on random molecules: symmetry, and shifts.

    python benchmarks/ab_initio.py --molecules 6 --images 512

For each molecule, particles in white noise: PSNR of the images denoised by the map, without and
with its true symmetry imposed, beside CWF; then of particles off their box centres, without and
with a search for where they are; the symmetry that the map seems to have; seconds of one start.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from cryonb.denoisers.abinitio import ab_initio, posterior_mean
from cryonb.denoisers.cwf import cwf
from cryonb.evaluation.metrics import psnr
from cryonb.physics.projection import shift_images
from cryonb.poses.symmetry import offered
from cryonb.simulation.families import coarse_volume, random_molecule
from cryonb.simulation.simulate import clean_scale, noise_sigma, setting, simulate_images


def scores(seed: int, args) -> dict[str, str]:
    """A row of the table for one random molecule."""
    rng = np.random.default_rng((args.seed, seed))
    atoms = random_molecule(rng)
    reach_A = np.linalg.norm(atoms.xyz_A, axis=1).max() + 4
    pixel_A = max(1.8, 2 * reach_A / (rng.uniform(0.45, 0.8) * args.box_size))
    volume = coarse_volume(atoms, args.box_size, pixel_A)
    generator, sigma = torch.Generator().manual_seed(seed), noise_sigma(args.snr)
    white = setting("white")
    made = simulate_images(volume, args.images, white, generator, scale=clean_scale(volume))
    noise = sigma * torch.randn(made.clean.shape, generator=generator)
    shifts = (2 * torch.rand(args.images, 2, generator=generator) - 1) * args.shift

    def own(clean: torch.Tensor, symmetry: str = "C1", most_shift_px: float = 0.0):
        options = {"symmetry": symmetry, "most_shift_px": most_shift_px}
        *_, last = ab_initio(clean + noise, sigma, **options)
        found = posterior_mean(last, clean + noise, sigma, **options)
        return last.volume, f"{float(psnr(found, clean).mean()):.2f}"

    began = time.perf_counter()
    volume_found, alone = own(made.clean)
    seconds = time.perf_counter() - began
    off = shift_images(made.clean, shifts)
    return {
        "molecule": f"{seed}, {volume.symmetry}",
        "CWF": f"{float(psnr(cwf(made.clean + noise, sigma), made.clean).mean()):.2f}",
        "own map": alone,
        "symmetry": "" if volume.symmetry == "C1" else own(made.clean, volume.symmetry)[1],
        "seems": (offered(volume_found) or ("",))[0],
        "off centre": own(off)[1],
        "searched": own(off, most_shift_px=args.shift)[1],
        "s": f"{seconds:.0f}",
    }


def main() -> None:
    """Print the table, a row a molecule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=6)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--shift", type=float, default=3.0, help="at most, in pixels")
    parser.add_argument("--seed", type=int, default=4242)
    args = parser.parse_args()
    for seed in range(args.molecules):
        row = scores(seed, args)
        if not seed:
            print("".join(f"{name:>12}" for name in row))
        print("".join(f"{value:>12}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
