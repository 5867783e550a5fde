r"""Images in polar Fourier space, where turning a particle in its plane is a change of phase.

The transform of an image on rings of radius ``rho`` is a Fourier series in the angle,
``X(rho, theta) = sum_k a_k(rho) exp(i k theta)``. Turning the image by ``psi``
(``y_psi(p) = y(Rz(psi) p)``, as in `cryonb.physics.conventions`) multiplies ``a_k`` by
``exp(i k psi)``, so the products of one image with all turns of another are one short FFT. A shift
multiplies the samples on the rings by a phase. Images must be empty beyond the inscribed circle, as
projections are. Introduced in: 04_compare_methods.

Complex numbers are pairs of real ones, so that all that costs time is a product of real matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len

from cryonb.physics.projection import FINER, envelope, kernel, pad_centred

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
        """Root of each ring's share of the plane, ``2 pi rho drho``: (rings,).

        Samples carry it, so that products of images are plain sums of products.
        """
        radii, share = self._quadrature
        return (2 * torch.pi * radii * share).sqrt().float()

    @property
    def angles(self) -> int:
        """Samples on half a ring (the rest is conjugate), so that no kept order is aliased."""
        return next_fast_len(math.ceil((_orders(self.box, self.limit) + self.orders) / 2))

    @cached_property
    def points(self) -> torch.Tensor:
        """Where the samples lie, x and y in cycles per pixel: (angles, rings, 2)."""
        return self.radii[:, None] * circle(self.angles)[:, None]

    def shift_phases(self, shifts_px: torch.Tensor) -> torch.Tensor:
        """Factors of samples that move images by shifts (s, 2), (y, x): (s, angles, rings)."""
        turns = self.points.to(shifts_px) @ shifts_px.flip(1).T
        return torch.exp(-2j * torch.pi * turns).movedim(-1, 0)


def moved(samples: torch.Tensor, phases: torch.Tensor) -> torch.Tensor:
    """Samples (..., angles, 2, rings) times complex factors, see `PolarGrid.shift_phases`."""
    found = torch.complex(*samples.unbind(-2)) * phases
    return torch.stack([found.real, found.imag], dim=-2)


def circle(angles: int) -> torch.Tensor:
    """Unit vectors, x and y, at even angles on half a circle: (angles, 2)."""
    theta = torch.arange(angles) * torch.pi / angles
    return torch.stack([theta.cos(), theta.sin()], dim=1)


def _orders(box: int, limit: float) -> int:
    """Angular orders that an image inside the inscribed circle has within the band limit."""
    return math.ceil(np.pi * box * limit) + 9


def sample(images: torch.Tensor, grid: PolarGrid) -> torch.Tensor:
    """Samples of images (n, y, x) on the rings, what is beyond the inscribed circle left out.

    Returns
    -------
    Tensor (n, angles, 2, rings)
        Real and imaginary parts.
    """
    index, weights = (x.to(images.device) for x in _taps(grid)[0])
    size, within = FINER * grid.box, _within(grid.box).to(images.device)
    found = []
    for piece in images.float().split(PIECE):
        padded = torch.fft.ifftshift(pad_centred(piece * within, size, dims=2), dim=(1, 2))
        x_ft = torch.view_as_real(torch.fft.rfftn(padded, dim=(2, 1)))
        rows = x_ft.permute(1, 2, 3, 0).reshape(-1, len(piece))
        found.append(F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights).T)
    return torch.cat(found).view(len(images), grid.angles, 2, -1)


def synthesise(samples: torch.Tensor, grid: PolarGrid) -> torch.Tensor:
    """Images (n, y, x) of samples (n, angles, 2, rings): the inverse of `sample` for particles.

    As the rings' quadrature is exact, it is the adjoint.
    """
    index, weights, starts = (x.to(samples.device) for x in _taps(grid)[1])
    size, within = FINER * grid.box, _within(grid.box).to(samples.device)
    once = torch.ones(size // 2 + 1, 1).to(weights)  # entries of the half transform stand for two
    once[1:-1] = 0.5
    images = []
    for piece in samples.split(PIECE):
        rows = piece.flatten(1).T.contiguous()
        rows = F.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weights)
        x_ft = torch.view_as_complex(rows.view(len(once), size, 2, -1).movedim(-1, 0).contiguous())
        found = torch.fft.irfftn(x_ft * once, s=(size, size), dim=(2, 1), norm="forward")
        found = torch.fft.fftshift(found, dim=(1, 2))
        images.append(pad_centred(found, grid.box, dims=2) * within / grid.angles)
    return torch.cat(images)


def _within(box: int) -> torch.Tensor:
    """The inscribed disc, divided by what the kernel does to an image: (y, x)."""
    at = torch.arange(box) - box // 2
    disc = at[:, None].square() + at.square() <= (box // 2) ** 2
    return disc / (envelope(box, WIDTH)[:, None] * envelope(box, WIDTH))


@lru_cache(maxsize=4)
def _taps(grid: PolarGrid) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Indices and weights by which samples are sums over a half transform, and back.

    Rows are real and imaginary parts at (y, x) of the transform, y >= 0, and those of samples
    (angles, 2, rings). Of each direction: indices, weights and, back, where each row's begin.
    """
    size = FINER * grid.box
    at = grid.points.double() * size
    taps = torch.ceil(at - WIDTH / 2)[..., None] + torch.arange(WIDTH)  # (angles, rings, 2, w)
    weights = kernel(taps - at[..., None], WIDTH)
    weights = weights[..., 1, :, None] * weights[..., 0, None, :] * grid.scale[:, None, None]
    x, y = taps[..., 0, None, :].long(), taps[..., 1, :, None].long()
    other = (y < 0) | (y > size // 2)  # x(-k) = x(k)*
    x, y = torch.where(other, -x, x) % size, torch.where(other, -y, y) % size
    sign = torch.where(other, -1.0, 1.0).expand_as(weights)
    index = torch.stack([2 * (y * size + x), 2 * (y * size + x) + 1], dim=1)
    weights = torch.stack([weights, weights * sign], dim=1)  # (angles, 2, rings, w, w)
    index, weights = index.view(-1, WIDTH**2), weights.view(-1, WIDTH**2).float()
    order = index.flatten().argsort(stable=True)
    counts = torch.bincount(index.flatten(), minlength=2 * size * (size // 2 + 1))
    back = order // WIDTH**2, weights.flatten()[order], counts.cumsum(0) - counts
    return (index, weights), back


def _waves(angles: int, orders: int) -> torch.Tensor:
    """Real matrices between samples and coefficients: (2, orders, angles).

    As ``X(rho, theta + pi)`` is the conjugate of ``X(rho, theta)``, even orders are those of the
    real part, ``a_k = sum X exp(-i k theta)``, and odd ones those of i times the imaginary part.
    """
    theta = torch.arange(angles, dtype=torch.float64) * torch.pi / angles
    k = torch.arange(orders)[:, None]
    cos, sin = (k * theta).cos(), (k * theta).sin()
    even = k % 2 == 0
    return torch.stack([torch.where(even, cos, sin), torch.where(even, -sin, cos)]).float()


def expand(samples: torch.Tensor, orders: int) -> torch.Tensor:
    """Coefficients (orders, n, 2, rings), real and imaginary, of samples (n, angles, 2, rings)."""
    n, angles, _, rings = samples.shape
    waves = _waves(angles, orders).to(samples.device) / angles
    found = samples.new_empty(n, 2, orders, rings)
    for part in (0, 1):
        these = waves[:, part::2].flatten(0, 1) @ samples[:, :, part]
        found[:, :, part::2] = these.view(n, 2, -1, rings)
    return found.permute(2, 0, 1, 3)


def evaluate(coefficients: torch.Tensor, angles: int) -> torch.Tensor:
    """Samples (n, angles, 2, rings) of coefficients (orders, n, 2, rings): inverse of `expand`."""
    orders, n, _, rings = coefficients.shape
    waves = 2 * _waves(angles, orders).to(coefficients.device)
    waves[:, 0] /= 2
    found = coefficients.new_empty(n, angles, 2, rings)
    for part in (0, 1):
        these = coefficients[part::2].permute(1, 2, 0, 3).reshape(n, -1, rings)
        found[:, :, part] = waves[:, part::2].flatten(0, 1).T @ these
    return found


def energy(coefficients: torch.Tensor) -> torch.Tensor:
    """Squared norm of each image, ring by ring: (orders, n, 2, rings) -> (n, rings)."""
    squared = coefficients.square()
    return (2 * squared.sum(0) - squared[0]).sum(1)


def pairs(coefficients: torch.Tensor) -> torch.Tensor:
    """Real matrices (orders, m, 2, 2 r) for products with coefficients y, (orders, m, 2, r).

    Rows are y and -i y, since ``conj(x) y = <x, y> + i <x, -i y>`` with products of real vectors.
    """
    real, imaginary = coefficients.unbind(-2)
    turned = torch.stack([imaginary, -real], dim=-2)
    return torch.stack([coefficients, turned], dim=2).flatten(-2)


def products_over_turns(left: torch.Tensor, right: torch.Tensor, turns: int) -> torch.Tensor:
    """Products <x, y_psi> of every image with every image in `turns` equal turns.

    Parameters
    ----------
    left : Tensor (orders, b, 2, r)
        Coefficients of x.
    right : Tensor (orders, m, 2, 2 r)
        `pairs` of those of y.

    Returns
    -------
    Tensor (b, m, turns)
        For psi = 0, 360 / turns, ... degrees.
    """
    cross = left.flatten(2) @ right.flatten(1, 2).mT  # (orders, b, 2 m)
    cross = torch.view_as_complex(cross.unflatten(2, (-1, 2)))
    return torch.fft.irfft(cross.permute(1, 2, 0), n=turns, norm="forward")
