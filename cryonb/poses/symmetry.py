"""Symmetry of a map that stands anyhow in its box: where its axes are, and how well they hold."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from cryonb.physics.fourier import fourier_crop
from cryonb.poses.templates import view_axes, view_directions

SMALL = 32  # voxels that maps are cropped to
SPACING_DEG = 8.0  # of the axes that are tried first
CLEAR = 0.25  # of the disagreement about a usual axis that one of symmetry leaves at most


def turned(volume: torch.Tensor, turn: Rotation) -> torch.Tensor:
    """What a map (n, n, n) has at R x, for each x about n // 2."""
    n = volume.shape[-1]
    middle = 0.0 if n % 2 else 1 / n  # of the box, in units in which it reaches from -1 to 1
    points = F.affine_grid(torch.eye(3, 4)[None], [1, 1, n, n, n], align_corners=False) - middle
    points = points @ torch.from_numpy(turn.as_matrix().T).float() + middle
    return F.grid_sample(volume[None, None], points, align_corners=False)[0, 0]


def agreement(volume: torch.Tensor, axis: np.ndarray, n_fold: int) -> float:
    """Correlation of a map with itself, turned by 1 / n_fold about an axis (x, y, z)."""
    turn = Rotation.from_rotvec(2 * np.pi / n_fold * axis / np.linalg.norm(axis))
    pair = torch.stack([volume.flatten(), turned(volume, turn).flatten()])
    return float(torch.corrcoef(pair)[0, 1])


def find_axis(volume: torch.Tensor, n_fold: int) -> tuple[np.ndarray, float, float]:
    """Axis (x, y, z) about which a map agrees best, how well, and how well about a usual one."""
    volume = _small(volume)
    axes = view_axes(view_directions(SPACING_DEG)).double().numpy()
    axes = axes[axes[:, 2] >= 0]
    found = [agreement(volume, axis, n_fold) for axis in axes]
    best = _refined(lambda axis: agreement(volume, axis, n_fold), axes[int(np.argmax(found))])
    return best, agreement(volume, best, n_fold), float(np.median(found))


def to_axes(volume: torch.Tensor, symmetry: str) -> torch.Tensor:
    """Turn a map so that its axes are those of `cryonb.physics.geometry.symmetry_rotations`."""
    n_fold = int(symmetry[1:])
    if n_fold > 1:
        main = find_axis(volume, n_fold)[0]
        volume = turned(volume, Rotation.align_vectors(main[None], [[0.0, 0.0, 1.0]])[0])
    if symmetry[0] in "Dd":  # a twofold axis at right angles, along x
        small, angles = _small(volume), np.radians(np.arange(0, 180, 2))
        across = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
        best = int(np.argmax([agreement(small, axis, 2) for axis in across]))
        volume = turned(volume, Rotation.from_rotvec([0, 0, angles[best]]))
    return volume


def offered(volume: torch.Tensor, most: int = 8) -> tuple[str, float, float] | None:
    """Cyclic group that a map clearly has, if any, its agreement, and the usual one.

    Of the disagreement about a usual axis a quarter or less is left, and half as much as with any
    order that does not divide the group's: a rod or a disc has none.
    """
    found = {n_fold: find_axis(volume, n_fold)[1:] for n_fold in range(2, most + 1)}
    left = {n_fold: (1 - best) / (1 - usual) for n_fold, (best, usual) in found.items()}
    least = min(left.values())
    order = max(n_fold for n_fold, part in left.items() if part <= 1.3 * least)
    others = [part for n_fold, part in left.items() if order % n_fold]
    if left[order] > CLEAR or min(others) < 2 * left[order]:
        return None
    return f"C{order}", *found[order]


def _small(volume: torch.Tensor) -> torch.Tensor:
    return fourier_crop(volume, min(SMALL, volume.shape[-1]))


def _refined(score, axis: np.ndarray) -> np.ndarray:
    """The axis of the highest score near another."""
    frame = np.linalg.svd(axis[None])[2][1:]  # two directions at right angles to it
    found = minimize(
        lambda tilt: -score(axis + tilt @ frame),
        np.zeros(2),
        method="Nelder-Mead",
        options={"initial_simplex": np.radians([[0, 0], [4, 0], [0, 4]]), "xatol": 2e-3},
    )
    return (axis + found.x @ frame) / np.linalg.norm(axis + found.x @ frame)
