"""What a denoiser needs real particles to be: white noise of known level, bright, in one sign.

Real images come with an offset and a ramp, a noise spectrum of their own, phases that the CTF has
flipped, and sometimes dark particles. All of it is measured on the images themselves and undone
before a network sees them, and done again to what the network returns, so that a denoised stack
means the same as the stack it was made from. Introduced in: 05_real_data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.ndimage import uniform_filter1d

from cryonb.data.particles import Particles
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import radial_mean, spread_shells

FLIPPED = "rlnCtfDataArePhaseFlipped"
MULTIPLIED = "rlnCtfDataAreCtfPremultiplied"


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
    flat, _ = level(particles.images, radius_px)
    soft = ((_radius(box) - radius_px) / 3).clamp(0, 1)
    power_ft = torch.fft.rfft2(flat * soft).abs().square().mean(0) / soft.square().sum()
    spectrum = radial_mean(power_ft, box, dims=2)
    spectrum[:2] = spectrum[2]  # the ramp is gone, and so is its shell
    spectrum = torch.from_numpy(uniform_filter1d(spectrum.numpy(), 3, mode="nearest")).float()
    found = NoiseModel(spectrum, 1.0, 1, radius_px)
    white, _ = to_network(particles, found)
    left = white[:, _radius(box) > radius_px].var()  # near one; make it one
    white = white / left.sqrt()
    if not sign:
        middle = white[:, _radius(box) < radius_px / 2].mean(1)
        sign = -1 if middle.mean() < -4 * middle.std() / len(middle) ** 0.5 else 1
    excess = float(white.var()) - 1.0
    return NoiseModel(spectrum * left, max(excess, 1e-3), sign, radius_px)


def level(images: torch.Tensor, radius_px: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Subtract each image's background plane and divide by its background deviation.

    Returns
    -------
    images (n, y, x), deviation (n, 1, 1)
    """
    box = images.shape[-1]
    outside = (_radius(box) > radius_px).flatten()
    at = torch.arange(box, dtype=torch.float32) / box - 0.5
    plane = torch.stack([torch.ones(box, box), at[:, None].expand(box, box), at.expand(box, box)])
    plane = plane.flatten(1).T  # (pixels, 3)
    fit = torch.linalg.lstsq(plane[outside], images.flatten(1).T[outside]).solution
    flat = images.flatten(1) - (plane @ fit).T
    deviation = flat[:, outside].std(1, keepdim=True)
    empty = deviation[:, 0] <= 1e-6 * images.flatten(1).abs().amax(1).clamp_min(1e-30)
    if empty.any():
        raise ValueError(
            f"{int(empty.sum())} of {len(images)} images have no noise in their background, the "
            f"first is number {int(empty.nonzero()[0]) + 1}: remove masked or constant images"
        )
    return (flat / deviation).view_as(images), deviation[:, :, None]


def to_network(particles: Particles, noise: NoiseModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Level, flip the phases back, whiten, and scale the signal to unit variance.

    Returns
    -------
    images : Tensor (n, y, x)
        Bright particles in white noise of deviation ``noise.sigma``.
    deviation : Tensor (n, 1, 1)
        Of each background, for `from_network`.
    """
    flat, deviation = level(particles.images, noise.radius_px)
    factor = noise.sign * noise.sigma * _phase_signs(particles) / amplitude(noise)
    return apply_ctf(flat, factor), deviation


def from_network(
    denoised: torch.Tensor, deviation: torch.Tensor, particles: Particles, noise: NoiseModel
) -> torch.Tensor:
    """Undo `to_network`, but for the background plane: images in the unit of the particles."""
    factor = noise.sign / noise.sigma * _phase_signs(particles) * amplitude(noise)
    return apply_ctf(denoised, factor) * deviation


def _radius(box: int) -> torch.Tensor:
    at = torch.arange(box) - box // 2
    return (at[:, None] ** 2 + at**2).float().sqrt()


def amplitude(noise: NoiseModel) -> torch.Tensor:
    """Root of the noise power, rfft layout (n, n // 2 + 1); corners as the last shell."""
    return spread_shells(noise.spectrum.sqrt(), 2 * (len(noise.spectrum) - 1))


def _phase_signs(particles: Particles) -> torch.Tensor:
    """Sign of each CTF, rfft layout; 1 where there is none, or where phases are flipped already."""
    optics = particles.optics
    if MULTIPLIED in optics and optics[MULTIPLIED].astype(int).any():
        raise ValueError(f"images are multiplied by their CTF ({MULTIPLIED}): extract them without")
    if FLIPPED in optics and optics[FLIPPED].astype(int).any():
        return torch.ones(())
    transfer = particles.ctf
    return torch.ones(()) if transfer is None else torch.where(transfer < 0, -1.0, 1.0)
