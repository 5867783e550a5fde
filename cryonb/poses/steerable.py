r"""Images in polar Fourier space, where turning a particle in its plane is a change of phase.

The transform of an image on rings of radius ``rho`` is a Fourier series in the angle,
``X(rho, theta) = sum_k a_k(rho) exp(i k theta)``. Turning the image by ``psi``
(``y_psi(p) = y(Rz(psi) p)``, as in `cryonb.physics.conventions`) multiplies ``a_k`` by
``exp(i k psi)``, so the products of one image with all turns of another are one short FFT. A shift
multiplies the samples on the rings by a phase. Images must be empty beyond the inscribed circle, as
projections are. Introduced in: 04_compare_methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.fft import next_fast_len

from cryonb.physics.projection import Transform

WIDTH = 4  # grid points under the kernel: products of images are right to 1e-3
PIECE = 64  # images at a time


@dataclass(frozen=True)
class PolarGrid:
    """Rings between 0 and a band limit, and angles on them.

    Attributes
    ----------
    box : int
    limit : float
        Largest radius, in cycles per pixel.
    orders : int
        Angular orders to keep, k = 0 ... orders - 1.
    """

    box: int
    limit: float
    orders: int

    @classmethod
    def whole(cls, box: int) -> PolarGrid:
        """Grid of everything that an image inside the inscribed circle has below Nyquist."""
        return cls(box, 0.5, _orders(box, 0.5))

    @cached_property
    def _quadrature(self) -> tuple[torch.Tensor, torch.Tensor]:
        nodes = np.polynomial.legendre.leggauss(math.ceil(1.6 * self.box * self.limit) + 8)
        at, share = (torch.from_numpy(a) * self.limit / 2 for a in nodes)
        return at + self.limit / 2, share

    @property
    def radii(self) -> torch.Tensor:
        """Radii of the rings, in cycles per pixel: (rings,)."""
        return self._quadrature[0].float()

    @property
    def scale(self) -> torch.Tensor:
        """Root of each ring's share of the plane, ``2 pi rho drho``: (rings, 1).

        Samples carry it, so that products of images are plain sums of products.
        """
        radii, share = self._quadrature
        return (2 * torch.pi * radii * share).sqrt().float()[:, None]

    @property
    def angles(self) -> int:
        """Samples on half a ring (the rest is conjugate), so that no kept order is aliased."""
        return next_fast_len(math.ceil((_orders(self.box, self.limit) + self.orders) / 2))

    @cached_property
    def points(self) -> torch.Tensor:
        """Where the samples lie, x and y in cycles per pixel: (rings, angles, 2)."""
        theta = torch.arange(self.angles) * torch.pi / self.angles
        return self.radii[:, None, None] * torch.stack([theta.cos(), theta.sin()], dim=1)

    def shift_phases(self, shifts_px: torch.Tensor) -> torch.Tensor:
        """Factors of samples that move images by shifts (s, 2), (y, x): (s, rings, angles)."""
        turns = self.points.to(shifts_px) @ shifts_px.flip(1).T
        return torch.exp(-2j * torch.pi * turns).movedim(-1, 0)


def _orders(box: int, limit: float) -> int:
    """Angular orders that an image inside the inscribed circle has within the band limit."""
    return math.ceil(np.pi * box * limit) + 9


def sample(images: torch.Tensor, grid: PolarGrid) -> torch.Tensor:
    """Samples of images (n, y, x) on the rings, what is beyond the inscribed circle left out.

    Returns
    -------
    Tensor (n, rings, angles), complex
    """
    at = torch.arange(grid.box, device=images.device) - grid.box // 2
    disc = at[:, None].square() + at.square() <= (grid.box // 2) ** 2
    points, scale = grid.points.to(images.device), grid.scale.to(images.device)
    pieces = (images.float() * disc).split(PIECE)
    return torch.cat([Transform.of(piece, 2, WIDTH).at(points) for piece in pieces]) * scale


def expand(samples: torch.Tensor, orders: int) -> torch.Tensor:
    """Coefficients (orders, n, rings) of samples (n, rings, angles)."""
    rings = torch.cat([samples, samples.conj()], dim=-1)  # X(rho, theta + pi) = X(rho, theta)*
    return torch.fft.fft(rings, norm="forward")[..., :orders].permute(2, 0, 1)


def evaluate(coefficients: torch.Tensor, angles: int) -> torch.Tensor:
    """Samples (n, rings, angles) of coefficients (orders, n, rings): the inverse of `expand`."""
    sign = (-1.0) ** torch.arange(1, len(coefficients), device=coefficients.device)
    negative = (coefficients[1:].conj() * sign[:, None, None]).flip(0)
    between = 2 * angles + 1 - 2 * len(coefficients)
    empty = coefficients.new_zeros(between, *coefficients.shape[1:])
    rings = torch.cat([coefficients, empty, negative]).permute(1, 2, 0)
    return torch.fft.ifft(rings, norm="forward")[..., :angles]


def synthesise(samples: torch.Tensor, grid: PolarGrid) -> torch.Tensor:
    """Images (n, y, x) of samples (n, rings, angles): the inverse of `sample` for particles.

    As the rings' quadrature is exact, it is the adjoint.
    """
    images = []
    for piece in samples.split(PIECE):
        with torch.enable_grad():
            empty = piece.real.new_zeros(len(piece), grid.box, grid.box, requires_grad=True)
            images += torch.autograd.grad(sample(empty, grid), empty, piece / grid.angles)
    return torch.cat(images)


def energy(coefficients: torch.Tensor) -> torch.Tensor:
    """Squared norm of each image, ring by ring: (orders, n, rings) -> (n, rings)."""
    squared = coefficients.abs().square()
    return 2 * squared.sum(0) - squared[0]


def products_over_turns(left: torch.Tensor, right: torch.Tensor, turns: int) -> torch.Tensor:
    """Products <x, y_psi> of every image with every image in `turns` equal turns.

    Parameters
    ----------
    left, right : Tensor (orders, b, rings) and (orders, m, rings)
        Coefficients of x and y.

    Returns
    -------
    Tensor (b, m, turns)
        For psi = 0, 360 / turns, ... degrees.
    """
    cross = left.conj() @ right.transpose(1, 2)  # (orders, b, m)
    return torch.fft.irfft(cross.permute(1, 2, 0), n=turns, norm="forward")
