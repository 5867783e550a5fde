r"""The covariance Wiener filter (CWF): a linear denoiser that learns from the noisy stack itself.

Particles of one molecule lie in the plane at any angle, so the covariance of their images mixes no
two angular orders k of a steerable basis ``f_kq(r) exp(i k phi)``: it is a small matrix C_k each,
and a few hundred particles are enough to estimate it. With images ``y = H x + n``, where the
transfer H (a CTF's absolute value, a whitening filter) is the same in all directions and n is
white with variance sigma^2, least squares over the groups g of equal transfer says

``sum_g n_g H_g^2 C H_g^2 = sum_g n_g H_g (S_g - sigma^2) H_g``

where S_g is the covariance of the observed coefficients. The eigenvalues that noise alone would
have are shrunk away before it is solved. The estimate is then Wiener's,
``x = mu + C H (H C H + sigma^2)^-1 (y - H mu)``.

Bhamre, Zhang and Singer 2016, J. Struct. Biol. 195, 72-81; shrinkage by the Frobenius norm of
Donoho, Gavish and Johnstone 2018, Ann. Stat. 46, 1742-1778.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from scipy.special import jv

from cryonb.denoisers.baselines import check_stack

KEPT = 0.5  # of a basis function's power inside Nyquist, or it is left out


@lru_cache(maxsize=2)
def _rings(box: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, torch.Tensor]:
    """Radii of pixels in the inscribed circle, their counts; ring frequencies, weights; pixels."""
    at = np.arange(box) - box // 2
    squared = (at[:, None] ** 2 + at**2).ravel()
    inside = np.flatnonzero(squared <= (box // 2) ** 2)
    radii, count = np.unique(squared[inside], return_counts=True)
    nodes, weights = np.polynomial.legendre.leggauss(int(0.8 * box) + 8)
    rho = (nodes + 1) / 4  # 0 to 1/2 cycles per pixel
    return np.sqrt(radii), count, rho, 2 * np.pi * rho * weights / 4, torch.from_numpy(inside)


@lru_cache(maxsize=2)
def _radial(box: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each order k, radial functions on the pixels' radii (radii, q) and in Fourier (rings, q).

    They are the eigenfunctions of all Bessel functions of order k up to Nyquist on the pixels of
    the disk: orthonormal there, and as little as possible beyond Nyquist.
    """
    radii, count, rho, weight, _ = _rings(box)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    while True:
        k = len(found)
        table = np.sqrt(weight)[:, None] * jv(k, 2 * np.pi * np.outer(rho, radii))
        power, vectors = np.linalg.eigh((table * count) @ table.T)
        vectors = vectors[:, power > KEPT]
        if not vectors.size:
            return found
        functions = table.T @ vectors / np.sqrt(power[power > KEPT])
        found.append((torch.from_numpy(functions).float(), torch.from_numpy(vectors).float()))


def _orders(box: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield of each order k its functions' real and imaginary part (pixels, q), and (rings, q)."""
    inside = _rings(box)[4]
    y, x = inside // box - box // 2, inside % box - box // 2
    phi = torch.atan2(y.double(), x.double())
    number = torch.unique(x.square() + y.square(), return_inverse=True)[1]
    for k, (functions, rings) in enumerate(_radial(box)):
        values = functions[number]
        turn = (k * phi).float()[:, None]
        yield values * torch.cos(turn), values * -torch.sin(turn), rings


def shrink(eigenvalues: torch.Tensor, ratio: float) -> torch.Tensor:
    """Signal's part of a sample covariance's eigenvalues, noise having variance one.

    `ratio` is dimension ÷ number of real samples; all up to ``(1 + sqrt(ratio))^2`` become zero.
    """
    b = eigenvalues + 1 - ratio
    spike = (b + (b.square() - 4 * eigenvalues).clamp_min(0).sqrt()) / 2 - 1
    cosine2 = (1 - ratio / spike.square()) / (1 + ratio / spike)
    signal = eigenvalues > (1 + ratio**0.5) ** 2
    return torch.where(signal, spike * cosine2, torch.zeros_like(spike)).clamp_min(0)


def _solve(apply, right: torch.Tensor, steps: int = 60) -> torch.Tensor:
    """Solve ``apply(C) = right`` for a symmetric C by conjugate gradients."""
    found = torch.zeros_like(right)
    rest = right.clone()
    direction, power = rest.clone(), rest.square().sum()
    goal = 1e-10 * power
    for _ in range(steps):
        if power <= goal:
            break
        image = apply(direction)
        step = power / (direction * image).sum()
        found = found + step * direction
        rest = rest - step * image
        before, power = power, rest.square().sum()
        direction = rest + power / before * direction
    return found


def _covariance(samples: list[torch.Tensor], filters: list[torch.Tensor]) -> torch.Tensor:
    """Covariance (q, q) of the clean coefficients, from observed ones (n_g, q) of each group.

    Noise has variance one.
    """
    n, pairs = sum(map(len, samples)), list(zip(samples, filters, strict=True))
    weight = sum(len(a) / n * h @ h for a, h in pairs)
    seen = sum((a @ h).T @ (a @ h) / n for a, h in pairs)
    power, axes = torch.linalg.eigh(weight)
    power = power.clamp_min(1e-6 * power.max()).sqrt()
    white = axes / power @ axes.T  # noise in `seen` has the covariance `weight`
    values, vectors = torch.linalg.eigh(white @ seen @ white)
    half = axes * power @ axes.T @ vectors
    right = half * shrink(values, len(weight) / n) @ half.T
    squares = [(len(a) / n, h @ h) for a, h in pairs]
    found = _solve(lambda c: sum(share * h2 @ c @ h2 for share, h2 in squares), right)
    values, vectors = torch.linalg.eigh(found)
    return vectors * values.clamp_min(0) @ vectors.T


def cwf(
    noisy: torch.Tensor,
    sigma: float,
    *,
    transfer: torch.Tensor | None = None,
    group: torch.Tensor | None = None,
    learn_from: torch.Tensor | None = None,
) -> torch.Tensor:
    """Denoise particles by the covariance Wiener filter, estimated from this very stack.

    The mean level of the corners, outside the inscribed circle, is taken away before and is what
    comes out there.

    Parameters
    ----------
    noisy : Tensor (n, y, x)
        Bright or dark, white noise; a few hundred images of one molecule or more.
    transfer : Tensor (g, shells), optional
        What the images of each group were multiplied with in Fourier space, at 0, 1, ... n // 2
        cycles per box: ``|CTF|`` of phase-flipped images, ÷ the noise's amplitude of whitened ones.
        What is returned has been divided by it.
    group : Tensor (n,) of int64, optional
        Group of each image; one for all by default.
    learn_from : Tensor (n,) of bool, optional
        Images to estimate from; all by default.

    ValueError for a sigma that is not positive, and images that are no finite stack of squares.
    """
    check_stack(noisy, sigma, square=True)
    box = noisy.shape[-1]
    inside = _rings(box)[4]
    group = torch.zeros(len(noisy), dtype=torch.int64) if group is None else group
    at_rings = _at_rings(torch.ones(1, box // 2 + 1) if transfer is None else transfer, box)
    learn_from = torch.ones(len(noisy), dtype=torch.bool) if learn_from is None else learn_from
    members = [(group == g).nonzero()[:, 0] for g in range(len(at_rings))]
    teachers = [m[learn_from[m]] for m in members]

    flat = noisy.float().flatten(1)
    outside = torch.ones(box * box, dtype=torch.bool)
    outside[inside] = False
    ground = flat[:, outside].mean()
    pixels = (flat[:, inside] - ground) / sigma
    clean = torch.zeros_like(pixels)
    for k, (cosine, sine, rings) in enumerate(_orders(box)):
        # Real numbers of noise variance one: one set of order 0, two of k and -k together.
        parts = [cosine] if k == 0 else [2**0.5 * cosine, 2**0.5 * sine]
        observed = torch.stack([pixels @ part for part in parts])  # (1 or 2, n, q)
        filters = [rings.T * h @ rings for h in at_rings]
        estimate = _denoise_order(observed, members, teachers, filters, centred=k > 0)
        clean += sum(e @ part.T for e, part in zip(estimate, parts, strict=True))
    images = torch.zeros_like(flat)
    images[:, inside] = sigma * clean
    return (images + ground).view_as(noisy).to(noisy.dtype)


def _at_rings(transfer: torch.Tensor, box: int) -> torch.Tensor:
    """Transfer functions (g, shells) at the basis' frequencies: (g, rings), float32."""
    rho, shells = _rings(box)[2], np.arange(transfer.shape[1])
    rows = [np.interp(rho * box, shells, h) for h in transfer.numpy()]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def _denoise_order(
    observed: torch.Tensor,
    members: list[torch.Tensor],
    teachers: list[torch.Tensor],
    filters: list[torch.Tensor],
    *,
    centred: bool,
) -> torch.Tensor:
    """Clean coefficients, shaped as `observed`, of one angular order; noise has variance one.

    `centred` says that their mean over all angles in the plane is zero.
    """
    q = observed.shape[-1]
    samples = [observed[:, t].reshape(-1, q) for t in teachers]
    mean = torch.zeros(q)
    if not centred:
        pairs = list(zip(samples, filters, strict=True))
        weight = sum(len(a) * h @ h for a, h in pairs)
        mean = torch.linalg.lstsq(weight, sum(h @ a.sum(0) for a, h in pairs)[:, None]).solution[
            :, 0
        ]
    means = [h @ mean for h in filters]
    c = _covariance([a - m for a, m in zip(samples, means, strict=True)], filters)
    clean = torch.empty_like(observed)
    for rows, h, m in zip(members, filters, means, strict=True):
        gain = torch.linalg.solve(h @ c @ h + torch.eye(q), h @ c)  # (H C H + 1)^-1 H C
        clean[:, rows] = mean + (observed[:, rows] - m) @ gain
    return clean
