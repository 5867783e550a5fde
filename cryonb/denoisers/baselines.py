"""Classical denoisers to hold the networks to, and what all denoisers ask of their input."""

from __future__ import annotations

from collections.abc import Callable

import torch


def check_stack(noisy: torch.Tensor, sigma: float, square: bool = False) -> None:
    """ValueError unless `noisy` is a finite stack (n, y, x) and `sigma` a noise level above 0."""
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma is {sigma}: give the standard deviation of the noise, above 0.")
    fits = noisy.ndim == 3 and (not square or noisy.shape[1] == noisy.shape[2])
    if not fits or not torch.isfinite(noisy).all():
        raise ValueError(
            f"noisy is {tuple(noisy.shape)}: give a finite stack (n, y, x)"
            + (" of square images" if square else "")
            + ", without NaN."
        )


def dihedral(images: torch.Tensor) -> torch.Tensor:
    """All eight turns by 90° and mirror images of (n, y, x), one after another: (8 n, y, x)."""
    turned = [torch.rot90(images, k, (1, 2)) for k in range(4)]
    return torch.cat(turned + [t.flip(2) for t in turned])


def linear_filter(
    clean: torch.Tensor, observed: torch.Tensor, sigma: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Fit the linear filter of least mean squared error (Wiener filter) to training images.

    ``mean_y + C_yx (C_xx + sigma^2 I)^-1 (x - mean_x)``, with the covariances of all pixels of
    the training images and of their turned and mirrored copies. No linear filter is better in
    the mean; the covariance Wiener filter (Bhamre et al. 2016) is its estimate from noisy images.
    `clean` and `observed` (n, y, x) are targets, and particles without their white noise; equal
    where it is all there is. The filter takes and returns (n, y, x).
    """
    shape, same = clean.shape[1:], torch.equal(clean, observed)
    mean_y = dihedral(clean.mean(0, keepdim=True)).flatten(1).mean(0)
    mean_x = dihedral(observed.mean(0, keepdim=True)).flatten(1).mean(0)
    x = observed.flatten(1) - mean_x
    y = x if same else clean.flatten(1) - mean_y
    c_xx = _mean_over_turns(x.T @ x / len(x), shape)
    c_xy = c_xx if same else _mean_over_turns(x.T @ y / len(x), shape)
    weights = torch.linalg.solve(c_xx + sigma**2 * torch.eye(len(c_xx)), c_xy)
    return lambda noisy: (mean_y + (noisy.flatten(1) - mean_x) @ weights).view(-1, *shape)


def _mean_over_turns(covariance: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Covariance (pixels, pixels) of images and of all their turned and mirrored copies."""
    values = covariance.view(*shape, *shape)
    total = torch.zeros_like(values)
    for k in range(4):
        turned = torch.rot90(torch.rot90(values, k, (0, 1)), k, (2, 3))
        total += turned
        total += turned.flip((1, 3))
    return total.view_as(covariance) / 8


def over_turns(
    denoiser: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Denoise `images` (n, y, x) in all eight turns and mirror images, turn back, and average.

    Turned and mirrored projections are as likely as the projections themselves, so the best
    denoiser commutes with turning. The average does so too, and is never worse in mean squared
    error than the mean over the eight that went into it. It costs eight times as much.
    """
    total = torch.zeros_like(images)
    for mirrored in (False, True):
        for k in range(4):
            turned = torch.rot90(images.flip(2) if mirrored else images, k, (1, 2))
            back = torch.rot90(denoiser(turned), -k, (1, 2))
            total += back.flip(2) if mirrored else back
    return total / 8
