"""What a known structure is worth as a denoiser, and its evidence as a picker's judge.

    python benchmarks/known_structure.py my_model.pdb

Particles have CTF, shifts and coloured noise; the noise is measured, and all methods see the same
whitened images. Each box of the judge's is a particle, noise alone, an ice gradient, carbon, or
neighbours that reach into it. The evidence is compared with a plain normalised cross-correlation,
the highest over the same poses and shifts. The wrong references are scaled like the right one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cryonb.data.particles import Particles, particles_from_arrays
from cryonb.data.volumes import Volume, load_volume
from cryonb.data.whitening import NoiseModel, measure_noise, to_network, transfer_to_network
from cryonb.denoisers.cwf import cwf
from cryonb.evaluation.metrics import correlation, psnr
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.weights import MANY, load_model
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import filter_radially
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.poses.posterior import on_grid
from cryonb.poses.reference import fit_amplitude, recogniser
from cryonb.poses.steerable import moved, products_over_turns
from cryonb.poses.templates import volume_templates
from cryonb.simulation.simulate import (
    carbon_edge,
    clean_scale,
    ice_gradient,
    neighbours,
    noise_sigma,
)

MOST_SHIFT_PX = 2.0


def boxes(kind: str, volume: Volume, n: int, snr: float, generator) -> tuple[Particles, Particles]:
    """Boxes of a micrograph with something in them, noisy and without noise and CTF."""
    box, pixel = volume.map.shape[-1], volume.pixel_size_A
    rotations = random_rotations(n, generator)
    shifts = MOST_SHIFT_PX * (2 * torch.rand(n, 2, generator=generator) - 1)
    clean = project(volume.map / clean_scale(volume), rotations, shifts)
    scene = {
        "particles": lambda: clean,
        "noise": lambda: 0 * clean,
        "ice": lambda: ice_gradient(n, box, 2.0, generator),
        "carbon": lambda: carbon_edge(n, box, pixel, 1.0, generator),
        "neighbours": lambda: neighbours(clean, 2.0, generator),
    }[kind]()
    white = torch.randn(clean.shape, generator=generator)
    noise = filter_radially(white, lambda f: (1 + 3 * torch.exp(-((f / 0.06) ** 2))).sqrt(), dims=2)
    defocus = 1 + torch.rand(n, generator=generator)
    noisy = apply_ctf(scene, ctf(box, pixel, defocus)) + noise * (noise_sigma(snr) / noise.std())
    made = {"shifts_px": shifts, "defocus_um": defocus}
    return tuple(particles_from_arrays(x, rotations, pixel, **made) for x in (noisy, clean))


def cross_correlation(volume, symmetry: str, white, transfer) -> torch.Tensor:
    """Highest normalised cross-correlation over poses and shifts: (n,)."""
    templates = volume_templates(volume, 8.0, symmetry)
    steps = torch.arange(-MOST_SHIFT_PX, MOST_SHIFT_PX + 1)
    phases = templates.grid.shift_phases(torch.cartesian_prod(steps, steps))
    samples, weight = on_grid(white, transfer, templates.grid, white.device)
    norms = (weight @ templates.observed_norms.T).sqrt()  # (n, m)
    best = []
    for sample, norm, image in zip(samples, norms, white, strict=True):
        x = templates.project(moved(sample[None], phases.conj()))
        products = products_over_turns(x, templates.observed, templates.turns)
        best.append((products.amax((0, 2)) / norm).amax() / image.norm())
    return torch.stack(best)


def images(volume: Volume, recognise, seen: Particles, clean: Particles, noise: NoiseModel) -> None:
    """Print PSNR and correlation of each denoiser, of whitened images with CTF."""
    white, transfer = to_network(seen, noise)[0], transfer_to_network(seen, noise)
    truth = apply_ctf(clean.images, transfer)
    truth = truth * ((white * truth).sum() / truth.square().sum())  # in their unit
    rows = {
        "noisy": white,
        "CWF": cwf(white, noise.sigma),
        "network for any molecule": denoise(load_model(MANY, SR3)[0], white, sigma=noise.sigma),
        "known structure": apply_ctf(recognise(white, transfer).mean, transfer),
    }
    print("  denoised                   PSNR, dB  correlation")
    for name, found in rows.items():
        alike = correlation(found, truth).mean()
        print(f"    {name:24} {psnr(found, truth).mean():8.2f} {alike:12.3f}")


def judge(volume: Volume, recognise, noise: NoiseModel, args, generator) -> None:
    """Print how often a particle has more evidence, and more correlation, than another box."""
    found = {}
    for kind in ("particles", "noise", "ice", "carbon", "neighbours"):
        seen = boxes(kind, volume, args.images, args.snr, generator)[0]
        white, transfer = to_network(seen, noise)[0], transfer_to_network(seen, noise)
        alike = cross_correlation(volume.map, volume.symmetry, white, transfer)
        found[kind] = recognise(white, transfer).log_evidence, alike
    print("  ROC area against           evidence  cross-correlation")
    particles = found.pop("particles")
    for kind, scores in found.items():
        areas = [
            float((a[:, None] > b).float().mean()) for a, b in zip(particles, scores, strict=True)
        ]
        print(f"    {kind:24} {areas[0]:8.3f} {areas[1]:12.3f}")


def wrong(volume: Volume, seen: Particles, noise: NoiseModel, args) -> None:
    """Print the evidence of the same particles under other references."""
    map, pixel = volume.map, volume.pixel_size_A
    box, quarter = map.shape[-1], map.clone()
    quarter[:, box // 2 :, box // 2 :] = 0
    other = "prestin" if args.source != "prestin" else "channel"
    references = {
        "itself": (map, volume.symmetry),
        "mirrored": (map.flip(0), volume.symmetry),
        "without a quarter": (quarter, "C1"),
        "4 % smaller": (load_volume(args.source, box, 1.04 * pixel).map, volume.symmetry),
        other: (load_volume(other, box, pixel).map, load_volume(other, box, pixel).symmetry),
    }
    white, transfer = to_network(seen, noise)[0], transfer_to_network(seen, noise)
    print("  reference                  median log evidence, nats")
    for name, (reference, symmetry) in references.items():
        recognise = fitted(reference, symmetry, white, transfer, noise.sigma)
        print(f"    {name:24} {recognise(white, transfer).log_evidence.median():8.1f}")


def fitted(map: torch.Tensor, symmetry: str, white, transfer, sigma: float):
    """A reference in the unit of the particles."""
    shift = {"ctf": transfer, "most_shift_px": MOST_SHIFT_PX}
    alpha = fit_amplitude(map, white, sigma, symmetry, **shift)
    return recogniser(alpha * map, sigma, symmetry, widened=1.0, **shift)


def main() -> None:
    """Print the three tables of each molecule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="channel", help="name, model or map")
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--pixel-size", dest="pixel_size_A", type=float, default=3.0, help="Å")
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=96, help="of each kind")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    volume = load_volume(args.source, args.box_size, args.pixel_size_A)
    seen, clean = boxes("particles", volume, args.images, args.snr, generator)
    noise = measure_noise(seen, sign=1)
    white, transfer = to_network(seen, noise)[0], transfer_to_network(seen, noise)
    recognise = fitted(volume.map, volume.symmetry, white, transfer, noise.sigma)
    print(f"{Path(args.source).name}, {volume.symmetry}, {args.images} boxes, SNR {args.snr:g}")
    images(volume, recognise, seen, clean, noise)
    judge(volume, recognise, noise, args, generator)
    wrong(volume, seen, noise, args)


if __name__ == "__main__":
    main()
