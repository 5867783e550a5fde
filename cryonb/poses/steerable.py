r"""Images in polar Fourier space, where turning a particle in its plane is a change of phase.

The transform of an image on rings of radius ``rho`` is a Fourier series in the angle,
``X(rho, theta) = sum_k a_k(rho) exp(i k theta)``. With the Jacobi-Anger expansion its coefficients
are sums over pixels at polar coordinates (r, phi),

``a_k(rho) = (-i)^k sum_p x(p) J_k(2 pi rho r_p) exp(-i k phi_p)``.

Turning the image by ``psi`` (``y_psi(p) = y(Rz(psi) p)``, as in `cryonb.physics.conventions`)
multiplies ``a_k`` by ``exp(i k psi)``, so the products of one image with all turns of another are
one short FFT. Images must be empty beyond the inscribed circle and beyond Nyquist, as projections
are. Introduced in: 04_compare_methods.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import jv


def _orders(box: int) -> int:
    """Highest angular order that an image inside the inscribed circle has below Nyquist."""
    return int(np.ceil(np.pi * box / 2)) + 8


def _rings(box: int) -> tuple[np.ndarray, np.ndarray]:
    """Radii of the rings between 0 and 1/2 cycles per pixel, and their widths: Gauss-Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(int(np.ceil(0.8 * box)) + 8)
    return (nodes + 1) / 4, weights / 4


@lru_cache(maxsize=4)
def _bessel(box: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tables for a box: J (k, rings, radii), radius number and angle of each pixel, pixel index.

    Ring k's row carries the square root of its quadrature weight ``2 pi rho drho``, so that
    products of images are plain sums of products of coefficients.
    """
    rho, drho = _rings(box)
    at = np.arange(box) - box // 2
    squared = (at[:, None] ** 2 + at**2).ravel()
    inside = np.flatnonzero(squared <= (box // 2) ** 2)
    radii, number = np.unique(squared[inside], return_inverse=True)
    argument = 2 * np.pi * rho[:, None] * np.sqrt(radii)
    scale = np.sqrt(2 * np.pi * rho * drho)[:, None]
    table = np.stack([scale * jv(k, argument) for k in range(_orders(box) + 1)])
    table[np.abs(table) < 1e-12] = 0  # denormal numbers would make every product slow
    phi = np.arctan2(at[inside // box], at[inside % box])
    return (
        torch.from_numpy(table.astype(np.float32)),
        torch.from_numpy(number),
        torch.from_numpy(phi.astype(np.float32)),
        torch.from_numpy(inside),
    )


def ring_frequencies(box: int) -> torch.Tensor:
    """Radii of the rings, in cycles per pixel: (rings,)."""
    return torch.from_numpy(_rings(box)[0]).float()


def _basis(box: int, k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and imaginary part of the basis of order k: (pixels inside, rings) each."""
    table, number, phi, _ = (t.to(device) for t in _bessel(box))
    radial = table[k].T[number]  # (pixels, rings)
    turn = k * (phi + torch.pi / 2)  # (-i)^k exp(-i k phi) = exp(-i k (phi + pi / 2))
    return radial * torch.cos(turn)[:, None], radial * -torch.sin(turn)[:, None]


def analyse(images: torch.Tensor, orders: int | None = None) -> torch.Tensor:
    """Coefficients of images (n, y, x): complex (k, n, rings), k = 0 ... about pi box / 2.

    What lies outside the inscribed circle is ignored. `orders` keeps that many, from k = 0 on.
    """
    box = images.shape[-1]
    pixels = images.float().flatten(1)[:, _bessel(box)[3].to(images.device)]
    out = []
    for k in range(orders or _orders(box) + 1):
        real, imaginary = _basis(box, k, images.device)
        out.append(torch.complex(pixels @ real, pixels @ imaginary))
    return torch.stack(out)


def synthesise(coefficients: torch.Tensor, box: int) -> torch.Tensor:
    """Images (n, y, x) of coefficients (k, n, rings); the inverse of `analyse` for particles."""
    inside = _bessel(box)[3].to(coefficients.device)
    pixels = torch.zeros(coefficients.shape[1], len(inside), device=coefficients.device)
    for k, a in enumerate(coefficients):
        real, imaginary = _basis(box, k, coefficients.device)
        part = a.real @ real.T + a.imag @ imaginary.T  # Re(a conj(basis)^*) of both signs of k
        pixels += part if k == 0 else 2 * part
    images = pixels.new_zeros(len(pixels), box * box)
    images[:, inside] = pixels
    return images.view(-1, box, box)


def energy(coefficients: torch.Tensor) -> torch.Tensor:
    """Squared norm of each image, ring by ring: (k, n, rings) -> (n, rings)."""
    squared = coefficients.abs().square()
    return 2 * squared.sum(0) - squared[0]


def products_over_turns(left: torch.Tensor, right: torch.Tensor, turns: int) -> torch.Tensor:
    """Products <x, y_psi> of every image with every image in `turns` equal turns.

    Parameters
    ----------
    left, right : Tensor (k, b, rings) and (k, m, rings)
        Coefficients of x and y.

    Returns
    -------
    Tensor (b, m, turns)
        For psi = 0, 360 / turns, ... degrees.
    """
    cross = left.conj() @ right.transpose(1, 2)  # (k, b, m)
    return torch.fft.irfft(cross.permute(1, 2, 0), n=turns, norm="forward")
