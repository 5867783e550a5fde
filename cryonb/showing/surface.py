"""Rendered isosurfaces of maps, by matplotlib alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from skimage.measure import marching_cubes

COLOUR = "#9db7d5"
ELEVATION_DEG, TURN_DEG = 15.0, 30.0  # of the eye above the plane z = 0, and about z


def threshold_of_volume(volume: torch.Tensor, voxels: float) -> float:
    """Density above which a map (z, y, x) has this many voxels; ValueError for none or all.

    Maps from different images have different scales of density; surfaces that enclose one volume
    compare.
    """
    if not 1 <= voxels < volume.numel():
        raise ValueError(
            f"{voxels} of {volume.numel()} voxels: ask for more than none, less than all"
        )
    return float(volume.flatten().topk(int(voxels) + 1).values[-1])


def mesh(
    volume: torch.Tensor, threshold: float, pixel_size_A: float
) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of an isosurface of a map (z, y, x), closed at the box's rim.

    Returns corners (t, 3, 3), x, y, z in Å from the box centre, and unit vectors (t, 3) that point
    out of the dense side. ValueError if the threshold is not reached, or everywhere exceeded.
    """
    values = np.pad(np.asarray(volume, dtype=np.float32), 1, constant_values=-np.inf)
    values = np.maximum(values, threshold - np.ptp(values[1:-1, 1:-1, 1:-1]))
    if not values.min() < threshold < values.max():
        raise ValueError(f"no surface at {threshold:.3g}: the map reaches {values.max():.3g}")
    points, faces, *_ = marching_cubes(values, threshold)
    corners = ((points - 1 - volume.shape[0] // 2) * pixel_size_A)[:, ::-1][faces]  # zyx -> xyz
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    real = lengths > 1e-6 * pixel_size_A**2  # a corner at the threshold leaves some without area
    return corners[real], normals[real] / lengths[real, None]


def show_surfaces(
    volumes: dict[str, torch.Tensor], pixel_size_A: float, voxels: float, *, title: str = ""
) -> Figure:
    """Draw shaded isosurfaces of maps (z, y, x) side by side, each enclosing so many voxels."""
    fig = plt.figure(figsize=(2.6 * len(volumes), 3.4))
    elevation, turn = np.radians((ELEVATION_DEG, TURN_DEG))
    eye = np.array([np.cos(turn), np.sin(turn), np.tan(elevation)])
    light = eye + np.array([np.sin(turn), -np.cos(turn), 1.0]) * 0.7  # over the left shoulder
    light, base = light / np.linalg.norm(light), np.array(to_rgb(COLOUR))
    for i, (name, volume) in enumerate(volumes.items()):
        ax = fig.add_subplot(1, len(volumes), i + 1, projection="3d")
        corners, normals = mesh(volume, threshold_of_volume(volume, voxels), pixel_size_A)
        shades = base * (0.35 + 0.65 * np.clip(normals @ light, 0, 1))[:, None]
        # Edges in the same colour close the seams between triangles.
        faces = {"facecolors": shades, "edgecolors": shades, "linewidth": 0.4}
        ax.add_collection3d(Poly3DCollection(corners, **faces))
        reach = (-0.72 * np.abs(corners).max(), 0.72 * np.abs(corners).max())
        ax.set(xlim=reach, ylim=reach, zlim=reach)
        ax.set_title(name, y=1.04)
        ax.set_box_aspect((1, 1, 1))
        ax.view_init(ELEVATION_DEG, TURN_DEG)
        ax.set_axis_off()
    fig.suptitle(title)
    return fig
