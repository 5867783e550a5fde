"""Quality against network evaluations, for each solver of the diffusion model.

    python benchmarks/solvers.py

With the network that is kept for the channel, and, as a check, with the exact posterior mean of
Gaussian images that have the channel's power spectrum. A right sample has twice the squared error
of the posterior mean and the power spectrum of clean images; a mean of samples tends to the
posterior mean. One evaluation is that mean already.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from cryonb.data.volumes import load_volume
from cryonb.evaluation.metrics import mse, psnr
from cryonb.learning.diffusion import SR3, fuse, sample
from cryonb.learning.weights import KEPT, load_model
from cryonb.physics.fourier import filter_radially, radial_mean
from cryonb.simulation.simulate import clean_scale, noise_sigma, setting, simulate_images

SOLVERS = {
    "second order": {},
    "first order": {"second_order": False},
    "ancestral": {"second_order": False, "eta": 1.0},
}
BANDS_A = (24, 12)  # edges between coarse, middle and fine detail


def spectrum(images: torch.Tensor) -> torch.Tensor:
    """Mean power of images (n, y, x) in each shell, per pixel: (n // 2 + 1,)."""
    box = images.shape[-1]
    return radial_mean(torch.fft.rfft2(images).abs().square().mean(0), box, dims=2) / box**2


def gaussian(power: torch.Tensor, images: torch.Tensor, sigma: float, seed: int):
    """Gaussian images with a power spectrum in shells, noisy ones, and the exact posterior mean."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(images.shape, generator=generator) for _ in range(2)]

    def at(frequency: torch.Tensor) -> torch.Tensor:
        shells = (frequency * images.shape[-1]).round().long()
        return torch.where(
            shells < len(power), power[shells.clamp_max(len(power) - 1)], 0.0
        ).float()

    def model(y_t, gamma, noisy, sigma):
        view, level = fuse(y_t, torch.tensor(gamma), noisy, torch.tensor(sigma))
        return filter_radially(view, lambda f: at(f) / (at(f) + level**2), dims=2)

    clean = filter_radially(draw[0], lambda f: at(f).sqrt(), dims=2)
    return clean, clean + sigma * draw[1], model


def shares(images: torch.Tensor, clean: torch.Tensor, pixel_size_A: float) -> list[float]:
    """Power of images ÷ that of clean ones, in each of three bands."""
    edges = [round(clean.shape[-1] * pixel_size_A / cut) for cut in BANDS_A]
    count = 2 * torch.pi * torch.arange(clean.shape[-1] // 2 + 1)  # pixels in a shell
    parts = ((count * spectrum(x)).tensor_split(edges) for x in (images, clean))
    return [float(a.sum() / b.sum()) for a, b in zip(*parts, strict=True)]


def table(model: Callable, clean, noisy, sigma: float, best: float, args) -> None:
    """Print a line for each solver and number of evaluations."""
    bands = f"> {BANDS_A[0]} Å", f"{BANDS_A[0]}-{BANDS_A[1]} Å", f"< {BANDS_A[1]} Å"
    print(
        f"  {'solver':14}{'evaluations':>12}{'one, dB':>9}{f'mean of {args.samples}, dB':>14}"
        f"{'error ÷ 2 least':>17}" + "".join(f"{band:>9}" for band in bands)
    )
    for solver, options in SOLVERS.items():
        for steps in args.steps:
            drawn = []
            for seed in range(args.samples):
                generator = torch.Generator().manual_seed(1000 + seed)  # not that of the images
                *_, last = sample(model, noisy, sigma, steps, generator=generator, **options)
                drawn.append(last.clean)
            one, mean = drawn[0], torch.stack(drawn).mean(0)
            dB = [float(psnr(images, clean).mean()) for images in (one, mean)]
            power = "".join(f"{s:9.2f}" for s in shares(one, clean, 192 / args.box_size))
            ratio = float(mse(one, clean).mean()) / (2 * best)
            print(f"  {solver:14}{steps:12}{dB[0]:9.2f}{dB[1]:14.2f}{ratio:17.2f}{power}")


def main() -> None:
    """Print the table of the exact posterior, then that of the network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box-size", type=int, default=64, help="pixels; the network knows 64")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--samples", type=int, default=4, help="that are averaged")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--snr", type=float, default=0.1)
    args = parser.parse_args()
    volume = load_volume("channel", args.box_size, 192 / args.box_size)
    generator, sigma = torch.Generator().manual_seed(11), noise_sigma(args.snr)
    clean = simulate_images(
        volume, args.images, setting("white"), generator, scale=clean_scale(volume)
    ).clean
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    network = load_model(KEPT / "channel-white-sr3.safetensors", SR3)[0]

    def title(name: str, best: float) -> None:
        print(f"\n{name}; least squared error {best:.4f}, {args.images} images")

    fake = gaussian(spectrum(clean), clean, sigma, 1)
    best = float(mse(fake[2](fake[1], 0.0, fake[1], sigma), fake[0]).mean())
    title("Gaussian images, exact posterior mean", best)
    table(fake[2], *fake[:2], sigma, best, args)
    once = next(sample(network, noisy, sigma, 1, generator=generator)).clean
    best = float(mse(once, clean).mean())
    title("Channel, kept network; as least counts what its first step leaves", best)
    table(network, clean, noisy, sigma, best, args)


if __name__ == "__main__":
    main()
