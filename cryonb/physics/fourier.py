"""Fourier-space tools: resampling, shells, filters and random phases."""

from __future__ import annotations

import math

import numpy as np
import torch


def check_cubic(x: torch.Tensor, dims: int) -> int:
    """Return the length of the last `dims` axes of `x`; ValueError if they differ."""
    if x.ndim < dims or len(set(x.shape[-dims:])) != 1:
        raise ValueError(
            f"the last {dims} axes of shape {tuple(x.shape)} are not equal: "
            "pass a cubic volume, or square images together with dims=2"
        )
    return x.shape[-1]


def _dims(x: torch.Tensor, dims: int | None) -> int:
    return min(x.ndim, 3) if dims is None else dims


def fourier_crop(x: torch.Tensor, size: int, *, dims: int | None = None) -> torch.Tensor:
    """Resample to `size` pixels a side by cropping or padding the Fourier transform.

    Values keep their scale (a constant stays the same constant), the centre moves from `n // 2`
    to `size // 2`, and the new pixel size is `pixel_size_A * n / size`. At an even Nyquist
    frequency the two halves are added when cropping and shared when padding, so padding followed
    by cropping returns the input.

    Parameters
    ----------
    x : torch.Tensor, shape (..., n, n) or (..., n, n, n)
        Images or volumes.
    size : int
        New number of pixels a side.
    dims : int, optional
        2 for images, 3 for volumes. By default 3, or 2 when `x` has two axes only.

    Returns
    -------
    torch.Tensor, shape (..., size, size) or (..., size, size, size)

    Raises
    ------
    ValueError
        If the axes differ in length or `size` is not positive.
    """
    dims = _dims(x, dims)
    n = check_cubic(x, dims)
    if size < 1:
        raise ValueError(f"size is {size}: ask for at least one pixel")
    if size == n:
        return x.clone()
    axes = tuple(range(-dims, 0))
    even = n % 2 == size % 2 == 0  # then moving the centre to 0 and back is (-1)^k twice: nothing
    x = x if even else torch.fft.ifftshift(x, dim=axes)
    for axis in axes:
        x_ft = torch.fft.rfft(x, dim=axis).narrow(axis, 0, min(n, size) // 2 + 1)
        if min(n, size) % 2 == 0:  # +-Nyquist: both when cropping, half each when padding
            x_ft.narrow(axis, min(n, size) // 2, 1).mul_(2.0 if size < n else 0.5)
        x = torch.fft.irfft(x_ft, n=size, dim=axis) * (size / n)
    return x if even else torch.fft.fftshift(x, dim=axes)


def frequency_grid(box_size: int, dims: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Frequencies in cycles per pixel, rfft layout: shape (..., n // 2 + 1, dims), zyx last."""
    full = torch.fft.fftfreq(box_size, device=device)
    half = torch.fft.rfftfreq(box_size, device=device)
    return torch.stack(torch.meshgrid(*[full] * (dims - 1), half, indexing="ij"), dim=-1)


def radial_frequency(box_size: int, dims: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Length of the frequency of every Fourier pixel, in cycles per pixel, rfft layout."""
    return frequency_grid(box_size, dims, device).square().sum(-1).sqrt()


def shell_index(shape: tuple[int, ...], device: torch.device | str = "cpu") -> torch.Tensor:
    """Shell number of every Fourier pixel: the rounded radius in units of 1 / box.

    `shape` is that of real space, (n, n) or (n, n, n); the result has rfft layout, and its corners
    go beyond the Nyquist shell n // 2. ValueError if the sides differ.
    """
    n = check_cubic(torch.empty(shape, device="meta"), len(shape))
    grid = frequency_grid(n, len(shape), device).double() * n
    return grid.round().square().sum(-1).sqrt().round().long()


def shell_sum(values_ft: torch.Tensor, dims: int, box_size: int) -> torch.Tensor:
    """Sum over shells 0 ... n // 2 of a real quantity given in rfft layout.

    Each column of the half transform stands also for its Friedel mate, so interior columns count
    twice and sums are those over the full transform.

    Parameters
    ----------
    values_ft : torch.Tensor, shape (..., n, n // 2 + 1) or (..., n, n, n // 2 + 1)
        Of 2 or 3 `dims`, n being the `box_size` in pixels.

    Returns
    -------
    torch.Tensor of float64, shape (..., n // 2 + 1)
    """
    shells = shell_index((box_size,) * dims, values_ft.device).flatten()
    weight = torch.full((box_size // 2 + 1,), 2.0, dtype=torch.float64, device=values_ft.device)
    weight[0] = 1.0
    if box_size % 2 == 0:
        weight[-1] = 1.0
    weighted = (values_ft * weight).flatten(-dims)  # float64
    keep = shells <= box_size // 2
    sums = weighted.new_zeros(*weighted.shape[:-1], box_size // 2 + 1)
    return sums.index_add_(-1, shells[keep], weighted[..., keep])


def radial_mean(values_ft: torch.Tensor, box_size: int, *, dims: int) -> torch.Tensor:
    """Mean over each shell 0 ... n // 2 of a real quantity in rfft layout, see `shell_sum`."""
    ones = torch.ones(values_ft.shape[-dims:], device=values_ft.device)
    return shell_sum(values_ft, dims, box_size) / shell_sum(ones, dims, box_size)


def spread_shells(shells: torch.Tensor, box_size: int) -> torch.Tensor:
    """Values of the shells 0 ... n // 2, interpolated linearly to the Fourier pixels of an image.

    The way back from `radial_mean`, rfft layout (n, n // 2 + 1); corners are as the last shell.
    """
    radius = radial_frequency(box_size, 2).numpy() * box_size
    values = np.interp(radius, np.arange(len(shells)), shells.numpy())
    return torch.from_numpy(values).float()


def filter_radially(x: torch.Tensor, response, *, dims: int | None = None) -> torch.Tensor:
    """Multiply the transform of `x` by `response(frequency)`, frequency in cycles per pixel."""
    dims = _dims(x, dims)
    axes = tuple(range(-dims, 0))
    n = check_cubic(x, dims)
    factor = response(radial_frequency(n, dims, x.device))
    return torch.fft.irfftn(torch.fft.rfftn(x, dim=axes) * factor, s=(n,) * dims, dim=axes)


def low_pass(
    x: torch.Tensor, resolution_A: float, pixel_size_A: float, *, dims: int | None = None
) -> torch.Tensor:
    """Remove detail finer than `resolution_A` with a raised-cosine edge.

    The filter is 1 below, 0.5 at and 0 above the frequency `1 / resolution_A`; the edge is two
    shells wide.

    Parameters
    ----------
    x : torch.Tensor, shape (..., n, n) or (..., n, n, n)
    resolution_A, pixel_size_A : float
        Å; Å per pixel.
    dims : int, optional
        2 for images, 3 for volumes. By default 3, or 2 when `x` has two axes only.
    """
    cutoff, width = pixel_size_A / resolution_A, 2 / x.shape[-1]
    return filter_radially(
        x,
        lambda f: 0.5 - 0.5 * torch.sin(math.pi * ((f - cutoff) / width).clamp(-0.5, 0.5)),
        dims=dims,
    )


def randomise_phases(
    volume: torch.Tensor, cutoff_shell: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Replace the phases at radius `cutoff_shell` and beyond by those of white noise.

    Amplitudes stay. The inner half of that shell, whose radius is rounded up, keeps its phases, as
    in RELION. Chen et al. 2013, Ultramicroscopy 135, 24-35.

    Parameters
    ----------
    volume : torch.Tensor, shape (n, n) or (n, n, n)
    cutoff_shell : int
        Radius in units of 1 / box.
    generator : torch.Generator, optional
        Source of the random numbers.
    """
    noise = torch.randn(volume.shape, generator=generator, dtype=volume.dtype).to(volume.device)
    noise_ft, volume_ft = torch.fft.rfftn(noise), torch.fft.rfftn(volume)
    random_ft = volume_ft.abs() * torch.sgn(noise_ft)  # sgn of a complex number: its phase factor
    k = (frequency_grid(volume.shape[-1], volume.ndim, volume.device) * volume.shape[-1]).round()
    far = k.square().sum(-1) >= cutoff_shell**2
    return torch.fft.irfftn(torch.where(far, random_ft, volume_ft), s=volume.shape)
