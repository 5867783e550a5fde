"""Image quality, with and without the truth, and what is left of structural noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from skimage.metrics import structural_similarity


def check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    """ValueError unless two arrays have one shape."""
    if a.shape != b.shape:
        raise ValueError(
            f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ: compare like with like"
        )


def mse(image: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of each image (..., y, x): mean over pixels of (image - clean)^2.

    The mean is taken with the weights of a mask, (y, x) or (..., y, x) in [0, 1], if there is one.
    ValueError if shapes differ or the mask of an image is empty.
    """
    check_pair(image, clean)
    squares = (image - clean).square()
    if mask is None:
        return squares.mean((-2, -1))
    weights = mask.to(squares).expand_as(squares)
    total = weights.sum((-2, -1))
    if not (total > 0).all():
        raise ValueError("the mask is empty for at least one image: pass a mask with pixels in it")
    return (squares * weights).sum((-2, -1)) / total


def psnr(image: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB: 10 log10(range^2 / MSE).

    The range is the clean image's own. The figure of a data set is the mean of these values.
    """
    data_range = clean.amax((-2, -1)) - clean.amin((-2, -1))
    return 10 * torch.log10(data_range.square() / mse(image, clean))


def ssim(image: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image, Gaussian window of sigma 1.5 px, K = 0.01 and 0.03.

    The mean of scikit-image's SSIM map, with the range of the clean image, over the pixels whose
    window lies inside the image, which leaves out five at each border. Wang et al. 2004, IEEE
    Trans. Image Process. 13, 600-612, eq. 13. Images (..., y, x); the values are float64.
    ValueError if shapes differ or a side has fewer than 11 pixels.
    """
    check_pair(image, clean)
    if min(image.shape[-2:]) < 11:
        raise ValueError(f"images of {tuple(image.shape[-2:])} px are too small: SSIM needs 11 px")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = (x.double().cpu().numpy().reshape(-1, *x.shape[-2:]) for x in (image, clean))
    values = [
        structural_similarity(a, b, data_range=np.ptp(b), **options)
        for a, b in zip(*pairs, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64).view(image.shape[:-2])


def score(
    output: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor | None = None
) -> dict[str, float]:
    """Means over images (n, y, x): MSE, PSNR and SSIM, and the MSE in masks (n, y, x) if given.

    Masks of particles are made by `cryonb.simulation.simulate.projected_mask`.
    """
    values = {"mse": mse(output, clean), "psnr_dB": psnr(output, clean)}
    values["ssim"] = ssim(output, clean)
    if mask is not None:
        values["mse_mask"] = mse(output, clean, mask)
    return {name: float(value.mean()) for name, value in values.items()}


def sure(
    denoiser: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    sigma: float,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Estimate the mean squared error without the truth: Stein's unbiased risk estimate.

    ``|x - f(x)|^2 / n - sigma^2 + 2 sigma^2 div f(x) / n`` has the error's expectation for white
    Gaussian noise of known deviation and any (almost everywhere) differentiable denoiser. The
    divergence is measured along one random direction b: ``b . (f(x + h b) - f(x)) / h``. Structure
    that is not noise, a carbon edge, say, counts as signal. Stein 1981, Ann. Statist. 9, 1135;
    Ramani, Blu and Unser 2008, IEEE Trans. Image Process. 17, 1540.

    The denoiser of `noisy` (n, y, x) must be the same function at both calls: its own random
    numbers, if any, are fixed. Returns (n,): single values scatter widely, the mean over a hundred
    does not.
    """
    h = 0.1 * sigma
    direction = torch.randn(noisy.shape, generator=generator).to(noisy)
    denoised = denoiser(noisy)
    moved = denoiser(noisy + h * direction)
    divergence = (direction * (moved - denoised)).mean((-2, -1)) / h
    left = (noisy - denoised).square().mean((-2, -1))
    return left - sigma**2 + 2 * sigma**2 * divergence


def correlation(a: torch.Tensor, b: torch.Tensor, dims: int = 2) -> torch.Tensor:
    """Correlation of images (n, y, x), or maps (..., z, y, x) with dims=3, with others, one by one.

    0 where one is constant.
    """
    axes = tuple(range(-dims, 0))
    a, b = (x - x.mean(axes, keepdim=True) for x in (a, b))
    size = (a.square().sum(axes) * b.square().sum(axes)).sqrt()
    return torch.where(size > 0, (a * b).sum(axes) / size, 0.0)


def fit_parts(volume: torch.Tensor, *parts: torch.Tensor) -> list[float]:
    """Shares of known densities in a map: least squares of ``map = sum_i share_i part_i + offset``.

    Uncorrelated noise in the map changes the shares by chance only, so a grainy map may be asked
    what it holds of a molecule and of its micelle. All, (z, y, x), are to be blurred alike, to
    detail that the map has. Returns one share for each part, and the offset. ValueError if shapes
    differ, or a part is constant or a sum of the others.
    """
    for part in parts:
        check_pair(volume, part)
    columns = torch.stack([*parts, torch.ones_like(volume)]).flatten(1).double()
    gram = columns @ columns.T
    if torch.linalg.matrix_rank(gram) < len(columns):
        raise ValueError("the parts are not independent of each other and of a constant")
    return torch.linalg.solve(gram, columns @ volume.flatten().double()).tolist()
