"""The contrast transfer function, computed by torch-ctf under this package's names and units."""

from __future__ import annotations

import torch
from torch_ctf import calculate_ctf_2d

from cryonb.physics.fourier import check_cubic


def ctf(
    box_size: int,
    pixel_size_A: float,
    defocus_um: torch.Tensor | float,
    *,
    astigmatism_um: torch.Tensor | float = 0.0,
    astigmatism_angle_deg: torch.Tensor | float = 0.0,
    voltage_kv: torch.Tensor | float = 300.0,
    spherical_aberration_mm: torch.Tensor | float = 2.7,
    amplitude_contrast: torch.Tensor | float = 0.1,
    phase_shift_deg: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Contrast transfer function of a weak phase object, RELION's sign.

    ``CTF(k) = sin(pi lambda dz k^2 - pi / 2 Cs lambda^3 k^4 + asin(Q) + phase shift)``, positive
    at low frequency for underfocus; without a phase plate its value at k = 0 is the amplitude
    contrast Q. With astigmatism
    ``dz = defocus + astigmatism cos(2 (angle(k) - astigmatism_angle))``. Rohou and Grigorieff
    2015, J. Struct. Biol. 192, 216-221, eqs. 2-3.

    Parameters
    ----------
    box_size : int
        Pixels a side.
    pixel_size_A : float
        Å per pixel.
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

    Returns
    -------
    torch.Tensor of float32, shape (n, box_size, box_size // 2 + 1)
        rfft layout.

    Raises
    ------
    ValueError
        If a value that must be positive is not, or the CTF is not finite.
    """
    defocus_um = torch.atleast_1d(torch.as_tensor(defocus_um, dtype=torch.float32))
    if min(box_size, pixel_size_A) <= 0 or not torch.as_tensor(voltage_kv > 0).all():
        raise ValueError("box_size, pixel_size_A and voltage_kv must be positive: check the optics")
    astigmatism_um = torch.as_tensor(astigmatism_um, dtype=torch.float32)
    # torch-ctf takes the root of the astigmatism: where U < V, the same ellipse turned by 90°.
    turn_deg = torch.where(astigmatism_um < 0, 90.0, 0.0)
    result = calculate_ctf_2d(
        defocus=defocus_um,
        astigmatism=astigmatism_um.abs(),
        astigmatism_angle=torch.as_tensor(astigmatism_angle_deg) + turn_deg,
        voltage=voltage_kv,
        spherical_aberration=spherical_aberration_mm,
        amplitude_contrast=amplitude_contrast,
        phase_shift=phase_shift_deg,
        pixel_size=pixel_size_A,
        image_shape=(box_size, box_size),
        rfft=True,
        fftshift=False,
    ).expand(len(defocus_um), -1, -1)
    if not torch.isfinite(result).all():
        raise ValueError(
            "the CTF is not finite: check defocus, angle, voltage and Cs of each image"
        )
    return result


def apply_ctf(images: torch.Tensor, ctf: torch.Tensor) -> torch.Tensor:
    """Multiply the transforms of images by their CTFs, or by any other transfer function.

    Images are (..., n, y, x), CTFs (n, y, x // 2 + 1) in rfft layout, one per image or one for all.
    """
    size = check_cubic(images, 2)
    return torch.fft.irfft2(torch.fft.rfft2(images) * ctf, s=(size, size))
