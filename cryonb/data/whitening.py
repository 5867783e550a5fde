"""What a denoiser needs real particles to be: white noise of known level, bright, in one sign.

Real images come with an offset and a ramp, a noise spectrum of their own, phases that the CTF has
flipped, and sometimes dark particles. All of it is measured on the images themselves and undone
before a network sees them, and done again to what the network returns, so that a denoised stack
means the same as the stack it was made from. Introduced in: 05_real_data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.ndimage import uniform_filter1d

from cryonb.data.optics import PREMULTIPLIED
from cryonb.data.particles import Particles
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import radial_mean, spread_shells

LEAST_CTF = 0.1  # premultiplied images are divided by |CTF|, but where it is smaller by this


@dataclass(frozen=True)
class NoiseModel:
    """Noise of a stack, measured outside the particles.

    Attributes
    ----------
    spectrum : Tensor (n // 2 + 1,)
        Power in each shell of images whose background has the deviation 1.
    snr : float
        Variance of the whitened signal, pooled over the box, ÷ that of the noise.
    sign : int
        1 for bright particles, -1 for dark ones.
    radius_px : float
        The background begins there.
    """

    spectrum: torch.Tensor
    snr: float
    sign: int
    radius_px: float

    @property
    def sigma(self) -> float:
        """Deviation of the noise where the signal has unit variance."""
        return self.snr**-0.5


class Background(NamedTuple):
    """Mean and deviation of each image outside the particle, (n, 1, 1); 0 if it has no noise."""

    offset: torch.Tensor
    deviation: torch.Tensor


def measure_noise(
    particles: Particles, radius_px: float | None = None, *, sign: int = 0
) -> NoiseModel:
    """Measure noise spectrum, SNR and contrast of a stack.

    The spectrum is the mean periodogram of the background, ``|FT(mask x)|^2 / sum(mask^2)``. The
    SNR is what the whitened images have in variance beyond their background. Neighbours and
    delocalised signal there count as noise, so crowded images give a low SNR.

    Parameters
    ----------
    particles : Particles
        A few hundred are enough; an even box.
    radius_px : float, optional
        Radius of the particle; by default 0.375 of the box, as RELION normalises.
    sign : int
        1 or -1 to say that particles are bright or dark; 0 to find out.

    Raises
    ------
    ValueError
        An image without noise in its background, or a radius that leaves no background.
    """
    box = particles.box_size
    radius_px = 0.375 * box if radius_px is None else radius_px
    if not 2 <= radius_px <= 0.48 * box:
        raise ValueError(
            f"a particle radius of {radius_px:.0f} px in a box of {box} px leaves no background to "
            "measure the noise in: give the diameter, or extract in a larger box"
        )
    noisy = level(particles.images, radius_px)[1].deviation.flatten() > 0
    if not noisy.any():
        raise ValueError(
            f"{len(particles)} images have no noise in their background: give particles that are "
            "neither masked nor constant"
        )
    particles = particles.select(noisy)
    flat, _ = level(_unmultiplied(particles), radius_px)
    soft = ((_radius(box) - radius_px) / 3).clamp(0, 1)
    power_ft = torch.fft.rfft2(flat * soft).abs().square().mean(0) / soft.square().sum()
    spectrum = radial_mean(power_ft, box, dims=2)
    spectrum[:2] = spectrum[2]  # the ramp is gone, and so is its shell
    spectrum = torch.from_numpy(uniform_filter1d(spectrum.numpy(), 3, mode="nearest")).float()
    spectrum = spectrum.clamp_min(1e-6 * spectrum.max())  # images that were low-passed
    white, _ = to_network(particles, NoiseModel(spectrum, 1.0, 1, radius_px))
    left = white[:, _radius(box) > radius_px].var()  # near one; make it one
    white = white / left.sqrt()
    sign = sign or _contrast(white[:, _radius(box) < radius_px / 2])
    excess = float(white.var()) - 1.0
    return NoiseModel(spectrum * left, max(excess, 1e-3), sign, radius_px)


def _contrast(centres: torch.Tensor) -> int:
    """-1 if the centres of particles (n, pixels), in noise of deviation 1, are dark, else 1.

    The error of their mean is that of the noise, which even one image has, or what the images
    differ by, where there are enough of them to say.
    """
    n, pixels = centres.shape
    means = centres.mean(1)
    scatter = float(means.std()) if n >= 10 else 0.0
    error = max(pixels**-0.5, scatter) / n**0.5
    return -1 if means.mean() < -4 * error else 1


def level(images: torch.Tensor, radius_px: float) -> tuple[torch.Tensor, Background]:
    """Subtract each image's background plane and divide by its background deviation.

    Images without noise in their background, masked or constant ones, become zero.
    """
    box = images.shape[-1]
    outside = (_radius(box) > radius_px).flatten()
    at = torch.arange(box, dtype=torch.float32) / box - 0.5
    plane = torch.stack([torch.ones(box, box), at[:, None].expand(box, box), at.expand(box, box)])
    plane = plane.flatten(1).T  # (pixels, 3)
    fit = torch.linalg.lstsq(plane[outside], images.flatten(1).T[outside]).solution
    fitted = (plane @ fit).T
    flat = images.flatten(1) - fitted
    deviation = flat[:, outside].std(1, keepdim=True)
    noisy = deviation > 1e-6 * images.flatten(1).abs().amax(1, keepdim=True)
    flat = torch.where(noisy, flat / deviation, 0.0)
    background = Background(fitted.mean(1)[:, None, None], (deviation * noisy)[:, :, None])
    return flat.view_as(images), background


def to_network(particles: Particles, noise: NoiseModel) -> tuple[torch.Tensor, Background]:
    """Level, flip the phases back, whiten, and scale the signal to unit variance.

    Images that were multiplied by their CTF are divided by its size first.

    Returns
    -------
    images : Tensor (n, y, x)
        Bright particles in white noise of deviation ``noise.sigma``.
    background : Background
        For `from_network`.
    """
    flat, background = level(_unmultiplied(particles), noise.radius_px)
    factor = noise.sign * noise.sigma * _phases(particles).conj() / amplitude(noise)
    return apply_ctf(flat, factor), background


def transfer_to_network(particles: Particles, noise: NoiseModel) -> torch.Tensor:
    """What clean projections are filtered with in `to_network`'s images, but for their unit.

    Of shape (n, y, x // 2 + 1), n being 1 without CTF: its size, divided by the noise. ValueError
    for images whose magnification differs between directions.
    """
    particles.columns.check_isotropic()
    filtered = noise.sigma / amplitude(noise)[None]
    if particles.ctf is None:
        return filtered
    multiplied = _multiplied_by(particles)
    size = particles.ctf.abs()
    return filtered * (size if multiplied is None else size / multiplied)


def from_network(
    denoised: torch.Tensor, background: Background, particles: Particles, noise: NoiseModel
) -> torch.Tensor:
    """Undo `to_network`, but for the ramp: images with the level, unit and CTF of the particles."""
    factor = noise.sign / noise.sigma * _phases(particles) * amplitude(noise)
    images = apply_ctf(denoised, factor) * background.deviation + background.offset
    multiplied = _multiplied_by(particles)
    return images if multiplied is None else apply_ctf(images, multiplied)


def _radius(box: int) -> torch.Tensor:
    at = torch.arange(box) - box // 2
    return (at[:, None] ** 2 + at**2).float().sqrt()


def amplitude(noise: NoiseModel) -> torch.Tensor:
    """Root of the noise power, rfft layout (n, n // 2 + 1); corners as the last shell."""
    return spread_shells(noise.spectrum.sqrt(), 2 * (len(noise.spectrum) - 1))


def _phases(particles: Particles) -> torch.Tensor:
    """Phase factors that images carry, rfft layout: signs of the CTF, and odd aberrations."""
    transfer = particles.ctf
    if transfer is None:
        return torch.ones(())
    return torch.where(transfer == 0, 1.0, transfer.sgn())


def _multiplied_by(particles: Particles) -> torch.Tensor | None:
    """Size of the CTF of premultiplied images, 1 for others, rfft layout; None without any."""
    multiplied = particles.state == PREMULTIPLIED
    if not multiplied.any():
        return None
    size = particles.ctf.abs().sqrt().clamp_min(LEAST_CTF)
    return torch.where(torch.from_numpy(multiplied)[:, None, None], size, 1.0)


def _unmultiplied(particles: Particles) -> torch.Tensor:
    """Images with white noise: premultiplied ones are divided by the size of their CTF."""
    size = _multiplied_by(particles)
    return particles.images if size is None else apply_ctf(particles.images, 1 / size)
