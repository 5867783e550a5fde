"""Projection of volumes by central slices, and image shifts.

The slices come from torch-fourier-slice (Burt and others, BSD-3). The padding is done here: to an
even box for every box size, because the library's own padding leaves odd boxes odd, for which its
slices are wrong, and to a finer Fourier grid than the slice needs, which is where the remaining
error of the trilinear interpolation comes from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch_fourier_slice import extract_central_slices_rfft_3d_multichannel

from cryonb.physics.fourier import check_cubic

AXES = (-3, -2, -1)
IMAGE_PADDING = 2  # what a turn or shift carries out of the box is cut off and does not wrap around


def pad_centred(x: torch.Tensor, size: int, *, dims: int) -> torch.Tensor:
    """Zero-pad (or crop) the last `dims` axes to `size`, keeping index n // 2 at size // 2."""
    n = x.shape[-1]
    low = size // 2 - n // 2
    return F.pad(x, (low, size - n - low) * dims)


def sinc2_envelope(size: int, device: torch.device) -> torch.Tensor:
    """Real-space envelope of trilinear interpolation in Fourier space, shape (size,) * 3."""
    s = torch.sinc((torch.arange(size, device=device) - size // 2) / size).square()
    return s[:, None, None] * s[:, None] * s


def _padded_ft(volumes: torch.Tensor, padded: int) -> torch.Tensor:
    """Transform of padded volumes `(c, n, n, n)`: (c, padded, padded, padded // 2 + 1), shifted."""
    x = pad_centred(volumes, padded, dims=3) / sinc2_envelope(padded, volumes.device)
    x_ft = torch.fft.rfftn(torch.fft.ifftshift(x, dim=AXES), dim=AXES)
    return torch.fft.fftshift(x_ft, dim=(-3, -2))


def _slices(
    volumes_ft: torch.Tensor, rotations: torch.Tensor, shifts_px: torch.Tensor, box: int
) -> torch.Tensor:
    """Images (c, b, box, box) of central slices, sampled on a padded image grid."""
    padded, size = volumes_ft.shape[-2], IMAGE_PADDING * box
    # A slice of the padded transform read in steps of padded / size: scale the rotation.
    step = padded / size
    slices = extract_central_slices_rfft_3d_multichannel(
        volumes_ft, step * rotations, fftfreq_max=0.5 / step
    )  # (b, c, padded, padded // 2 + 1), empty beyond the image's Nyquist frequency
    low = padded // 2 - size // 2
    slices = torch.fft.ifftshift(slices[..., low : low + size, : size // 2 + 1], dim=-2)
    slices = slices * shift_phases(shifts_px, size)[:, None]
    images = torch.fft.fftshift(torch.fft.irfft2(slices, s=(size, size)), dim=(-2, -1))
    return pad_centred(images, box, dims=2).transpose(0, 1)


def check_poses(
    rotations: torch.Tensor, shifts_px: torch.Tensor | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations (n, 3, 3) and shifts (n, 2) as float32 on `device`."""
    rotations = torch.as_tensor(rotations, dtype=torch.float32, device=device)
    if rotations.ndim != 3 or rotations.shape[1:] != (3, 3):
        raise ValueError(f"rotations have shape {tuple(rotations.shape)}: pass (n, 3, 3)")
    if shifts_px is None:
        shifts_px = torch.zeros(len(rotations), 2)
    shifts_px = torch.as_tensor(shifts_px, dtype=torch.float32, device=device)
    if shifts_px.shape != (len(rotations), 2):
        raise ValueError(
            f"shifts_px has shape {tuple(shifts_px.shape)}: pass ({len(rotations)}, 2), "
            "one (y, x) per rotation"
        )
    return rotations, shifts_px


def project(
    volume: torch.Tensor,
    rotations: torch.Tensor,
    shifts_px: torch.Tensor | None = None,
    *,
    batch_size: int = 32,
    padding: int = 3,
) -> torch.Tensor:
    """Project volumes: I(x, y) = sum over z of V(R (x, y, z)), then shift.

    Fourier slice theorem: the transform of a projection is the central slice, perpendicular to
    the beam, of the volume's transform. Frequencies beyond Nyquist (the corners of the image's
    transform) are empty. The calculation is in float32.

    Parameters
    ----------
    volume : torch.Tensor, shape (z, y, x) or (c, z, y, x)
        One cubic volume, or several that are projected with the same poses.
    rotations : torch.Tensor, shape (n, 3, 3)
        Poses, see `cryonb.physics.conventions`.
    shifts_px : torch.Tensor, optional, shape (n, 2)
        (y, x) in pixels.
    batch_size : int
        Images at a time; memory grows with it, the result does not change.
    padding : int
        Volume padding before the transform. The error, 0.6 % of the image's norm on average for a
        particle that fills 0.7 of the box and 2 % for poses along the axes, falls as it grows.

    Returns
    -------
    torch.Tensor of float32, shape (n, y, x) or (c, n, y, x)

    Raises
    ------
    ValueError
        If the volume is not cubic or the shapes of the poses do not fit.
    """
    box = check_cubic(volume, 3)
    rotations, shifts_px = check_poses(rotations, shifts_px, volume.device)
    padded = padding * box + padding * box % 2  # even
    volumes_ft = _padded_ft(volume.reshape(-1, box, box, box).float(), padded)
    images = volumes_ft.real.new_empty(len(volumes_ft), len(rotations), box, box)
    for i in range(0, len(rotations), batch_size):
        b = slice(i, i + batch_size)
        images[:, b] = _slices(volumes_ft, rotations[b], shifts_px[b], box)
    return images.reshape(*volume.shape[:-3], len(rotations), box, box)


def shift_phases(shifts_px: torch.Tensor, size: int) -> torch.Tensor:
    """Factors exp(-2 pi i k.s) that move images by s = (y, x) pixels: (n, size, size // 2 + 1)."""
    ky = torch.fft.fftfreq(size, device=shifts_px.device)
    kx = torch.fft.rfftfreq(size, device=shifts_px.device)
    y, x = (
        torch.exp(-2j * torch.pi * s[:, None] * k)
        for s, k in zip(shifts_px.T, (ky, kx), strict=True)
    )
    return y[:, :, None] * x[:, None]


def shift_images(images: torch.Tensor, shifts_px: torch.Tensor) -> torch.Tensor:
    """Move square images (n, y, x) by shifts (n, 2), (y, x) in pixels, with Fourier phases.

    Positive shifts move towards larger index, cyclically; fractions are allowed.
    """
    size = check_cubic(images, 2)
    phases = shift_phases(shifts_px.to(images), size)
    return torch.fft.irfft2(torch.fft.rfft2(images) * phases, s=(size, size))
