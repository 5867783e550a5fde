"""The contrast transfer function and its aberrations, with RELION's signs and Zernike order."""

from __future__ import annotations

import math

import torch

from cryonb.physics.fourier import check_cubic, frequency_grid

Values = torch.Tensor | float  # one number for all images, or shape (n,)


def ctf(box_size: int, pixel_size_A: float, defocus_um: Values, **microscope) -> torch.Tensor:
    """Contrast transfer function of a weak phase object, the sine of `phase_aberration`.

    It is positive at low frequency for underfocus; without a phase plate its value at k = 0 is the
    amplitude contrast.

    Parameters
    ----------
    box_size : int
        Pixels a side.
    pixel_size_A : float
        Å per pixel.
    defocus_um, **microscope
        As in `phase_aberration`.

    Returns
    -------
    torch.Tensor of float32, shape (n, box_size, box_size // 2 + 1)
        rfft layout.

    Raises
    ------
    ValueError
        If a value that must be positive is not, or the CTF is not finite.
    """
    return phase_aberration(frequencies_A(box_size, pixel_size_A), defocus_um, **microscope).sin()


def frequencies_A(
    box_size: int, pixel_size_A: float, magnification: torch.Tensor | None = None
) -> torch.Tensor:
    """Frequencies (x, y) in 1/Å, shape (1 or n, y, x // 2 + 1, 2), rfft layout.

    `magnification` (n, 2, 2) acts on each of them: it is RELION's matrix, for images whose scale
    differs between directions.
    """
    if min(box_size, pixel_size_A) <= 0:
        raise ValueError("box_size and pixel_size_A must be positive: check the optics")
    k = frequency_grid(box_size, 2).flip(-1)[None] / pixel_size_A
    return k if magnification is None else k @ magnification.to(k).mT[:, None]


def phase_aberration(
    frequencies_A: torch.Tensor,
    defocus_um: Values,
    *,
    astigmatism_um: Values = 0.0,
    astigmatism_angle_deg: Values = 0.0,
    voltage_kv: Values = 300.0,
    spherical_aberration_mm: Values = 2.7,
    amplitude_contrast: Values = 0.1,
    phase_shift_deg: Values = 0.0,
) -> torch.Tensor:
    """Phase whose sine is the CTF, in radians, shape (n, y, x // 2 + 1).

    ``chi(k) = pi lambda dz k^2 - pi / 2 Cs lambda^3 k^4 + asin(Q) + phase shift`` with
    ``dz = defocus + astigmatism cos(2 (angle(k) - astigmatism_angle))``. Rohou and Grigorieff
    2015, J. Struct. Biol. 192, 216-221, eqs. 2-3.

    Parameters
    ----------
    frequencies_A : torch.Tensor, shape (1 or n, y, x // 2 + 1, 2)
        See the function of that name.
    defocus_um : torch.Tensor, shape (n,), or float
        Mean of the two defocus values in µm, positive for underfocus.
    astigmatism_um : torch.Tensor or float
        Half the difference of the two defocus values in µm, ``(U - V) / 2``; of either sign.
    astigmatism_angle_deg : torch.Tensor or float
        Angle between the x axis and the direction of defocus U.
    voltage_kv, spherical_aberration_mm, amplitude_contrast : torch.Tensor or float
        Microscope: kV, mm, fraction.
    phase_shift_deg : torch.Tensor or float
        Of a phase plate, in degrees.

    Raises
    ------
    ValueError
        If the voltage is not positive, or a phase is not finite.
    """
    defocus, astigmatism, angle, cs, contrast, plate = (
        _column(value)
        for value in (
            defocus_um,
            astigmatism_um,
            astigmatism_angle_deg,
            spherical_aberration_mm,
            amplitude_contrast,
            phase_shift_deg,
        )
    )
    wave_A = wavelength_A(_column(voltage_kv))
    kx, ky = frequencies_A.unbind(-1)
    k2, twice = kx.square() + ky.square(), 2 * torch.deg2rad(angle)
    # k^2 cos(2 (angle(k) - angle)), without the angle of k, which k = 0 has not
    along_U = (kx.square() - ky.square()) * twice.cos() + 2 * kx * ky * twice.sin()
    chi = math.pi * wave_A * 1e4 * (defocus * k2 + astigmatism * along_U)
    chi = chi - math.pi / 2 * 1e7 * cs * wave_A**3 * k2.square()
    chi = chi + contrast.asin() + torch.deg2rad(plate)
    if not torch.isfinite(chi).all():
        raise ValueError(
            "the CTF is not finite: check defocus, angle, Cs and amplitude contrast of each image"
        )
    return chi


def _column(values: Values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def wavelength_A(voltage_kv: Values) -> torch.Tensor:
    """Relativistic wavelength of electrons in Å; ValueError for no voltage, or one in volts."""
    volts = torch.as_tensor(voltage_kv) * 1e3
    if not ((volts > 0) & (volts < 1e7)).all():
        raise ValueError("the voltage must be positive, in kV such as 300: check the optics")
    return 12.2643247 / (volts * (1 + volts * 0.978466e-6)).sqrt()


def zernike_phase(
    frequencies_A: torch.Tensor, coefficients: torch.Tensor, parity: int
) -> torch.Tensor:
    """Phase of higher aberrations in radians, (n, y, x // 2 + 1): the sum of c_i Z_i(k).

    Zernike polynomials of the frequency in 1/Å, in RELION's order: n = parity, parity + 2, ... and
    for each m = -n, -n + 2, ..., n, sine for negative m. Even ones (parity 0) are subtracted from
    the phase of the CTF, whose sign is the other one; odd ones (parity 1) multiply the image's
    transform by exp(i phase). Zivanov and others 2020, IUCrJ 7, 253-267.

    Parameters
    ----------
    frequencies_A : torch.Tensor, shape (1 or n, y, x // 2 + 1, 2)
    coefficients : torch.Tensor, shape (n, number of polynomials)
    parity : int
        0 or 1.
    """
    kx, ky = frequencies_A.unbind(-1)
    rho2, angle = kx.square() + ky.square(), torch.atan2(ky, kx)
    orders = (
        (n, m) for n in range(parity, 2 * coefficients.shape[1] + 2, 2) for m in range(-n, n + 1, 2)
    )
    phase = torch.zeros_like(rho2)
    for coefficient, (n, m) in zip(coefficients.to(rho2).T, orders, strict=False):
        if not coefficient.any():
            continue
        steps = (n - abs(m)) // 2
        radial = sum(
            (-1) ** k * math.comb(n - k, k) * math.comb(n - 2 * k, steps - k) * rho2 ** (n / 2 - k)
            for k in range(steps + 1)
        )
        wave = (m * angle).cos() if m >= 0 else (-m * angle).sin()
        phase = phase + coefficient[:, None, None] * radial * wave
    return phase


def beam_tilt_phase(
    frequencies_A: torch.Tensor,
    tilt_mrad: torch.Tensor,
    voltage_kv: Values,
    spherical_aberration_mm: Values,
) -> torch.Tensor:
    """Phase -2 pi Cs lambda^2 k^2 (k . tilt) of a tilted beam, (n, y, x // 2 + 1).

    An odd aberration, axial coma: see `zernike_phase`. `tilt_mrad` is (n, 2), x and y.
    """
    wave_A, cs_A = wavelength_A(_column(voltage_kv)), 1e7 * _column(spherical_aberration_mm)
    along = (frequencies_A * 1e-3 * tilt_mrad.to(frequencies_A)[:, None, None]).sum(-1)
    return -2 * math.pi * cs_A * wave_A**2 * frequencies_A.square().sum(-1) * along


def apply_ctf(images: torch.Tensor, ctf: torch.Tensor) -> torch.Tensor:
    """Multiply the transforms of images by their CTFs, or by any other transfer function.

    Images are (..., n, y, x), CTFs (n, y, x // 2 + 1) in rfft layout, one per image or one for all.
    """
    size = check_cubic(images, 2)
    return torch.fft.irfft2(torch.fft.rfft2(images) * ctf, s=(size, size))
