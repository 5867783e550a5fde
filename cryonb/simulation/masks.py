"""What surrounds a molecule: soft masks from a map or a model, and a detergent micelle."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.filters import threshold_otsu

from cryonb.data.volumes import Volume, atoms_in_box


def soft_mask(
    density: torch.Tensor,
    pixel_size_A: float,
    *,
    low_pass_A: float = 15.0,
    extend_A: float = 3.0,
    soft_edge_A: float = 9.0,
    largest: bool = False,
) -> torch.Tensor:
    """Mask of the molecule, 1 inside and 0 outside, with a cosine edge.

    The map is blurred (a Gaussian of sigma `low_pass_A` / 4), separated into two classes of voxels
    (Otsu 1979), and the denser one is grown by `extend_A`; at distance d from there the mask is
    (1 + cos(π d / soft_edge_A)) / 2.

    Parameters
    ----------
    density : Tensor (z, y, x)
    pixel_size_A, low_pass_A, extend_A, soft_edge_A : float
        Å.
    largest : bool
        Keep only the largest piece, pieces that touch at faces being one.

    Returns
    -------
    Tensor (z, y, x), float32

    Raises
    ------
    ValueError
        The map is constant.
    """
    smooth = ndimage.gaussian_filter(density.detach().cpu().numpy(), low_pass_A / pixel_size_A / 4)
    solid = smooth > threshold_otsu(smooth)
    if not solid.any():
        raise ValueError(f"the map is {smooth.max():.3g} everywhere: there is nothing to mask")
    if largest:
        pieces, _ = ndimage.label(solid)
        solid = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    away_A = ndimage.distance_transform_edt(~solid) * pixel_size_A
    return _soft_edge(away_A, extend_A, soft_edge_A)


def model_mask(
    xyz_A: np.ndarray,
    shape: tuple[int, int, int],
    pixel_size_A: float,
    first_A: tuple[float, float, float] = (0.0, 0.0, 0.0),
    *,
    extend_A: float = 4.0,
    soft_edge_A: float = 6.0,
) -> torch.Tensor:
    """Mask around an atomic model: 1 near its atoms, with a cosine edge.

    At distance d from the nearest atom's centre the mask is 1 up to `extend_A`, then
    (1 + cos(π (d - extend_A) / soft_edge_A)) / 2, and 0 from there on.

    Parameters
    ----------
    xyz_A : ndarray (n, 3)
        Atoms (x, y, z) in the frame of the map's file, such as `cryonb.data.volumes.read_atoms`
        gives with ``centre=False``.
    shape : (int, int, int)
        Voxels (z, y, x) of the map.
    pixel_size_A : float
        Å.
    first_A : (float, float, float)
        Where the map's first voxel lies: (z, y, x) in Å, see `cryonb.data.maps.read_placed_map`.
    extend_A, soft_edge_A : float
        Å.

    Returns
    -------
    Tensor (z, y, x), float32

    Raises
    ------
    ValueError
        More than half of the atoms lie outside the map.
    """
    atoms, _ = atoms_in_box(xyz_A, shape, pixel_size_A, first_A)
    reach = (extend_A + soft_edge_A) / pixel_size_A
    low = np.clip(np.floor(atoms.min(0) - reach), 0, shape).astype(int)
    high = np.clip(np.ceil(atoms.max(0) + reach) + 1, 0, shape).astype(int)
    box = tuple(map(slice, low, high))  # beyond it the mask is 0
    voxels = np.stack(np.mgrid[box], axis=-1)  # (..., zyx)
    away, _ = KDTree(atoms).query(voxels, distance_upper_bound=reach, workers=-1)
    mask = torch.zeros(shape)
    mask[box] = _soft_edge(away * pixel_size_A, extend_A, soft_edge_A)
    return mask


def _soft_edge(away_A: np.ndarray, extend_A: float, soft_edge_A: float) -> torch.Tensor:
    """From 1 within `extend_A` down to 0 by half a cosine; distances may be infinite."""
    edge = np.clip((away_A - extend_A) / max(soft_edge_A, 1e-6), 0, 1)
    return torch.from_numpy((0.5 + 0.5 * np.cos(np.pi * edge)).astype(np.float32))


def micelle(
    volume: Volume,
    *,
    membrane_z_A: tuple[float, float] | None = None,
    width_A: float = 25.0,
    shell_A: float = 9.0,
    head_level: float = 0.8,
    core_level: float = -0.1,
) -> torch.Tensor:
    """Detergent belt around the transmembrane region, the molecule itself left out.

    At lateral distance s from the outline of the transmembrane region and height z from the
    membrane's middle, the belt fills (s / width)² + (z / height)² < 1, with height = half the
    hydrophobic core + shell. Its outer `shell_A` are head groups, the inside alkyl chains. The
    molecule, its pore and its faces outside the membrane stay free of detergent.

    Parameters
    ----------
    volume : Volume
        Membrane normal along z.
    membrane_z_A : (float, float) or None
        Faces of the hydrophobic core in Å from the box centre. None takes the volume's own; where
        it has none, the 30 Å slab with the widest cross-section is a guess.
    width_A : float
        Reach of the belt from the protein, Å.
    shell_A : float
        Thickness of the head-group shell, Å.
    head_level, core_level : float
        Density relative to the molecule's mean density: head groups are near the protein's,
        alkyl chains near the solvent's or below.

    Returns
    -------
    Tensor (z, y, x), float32
        To be added to the map.
    """
    pixel = volume.pixel_size_A
    body = soft_mask(volume.map, pixel, low_pass_A=10, extend_A=0, soft_edge_A=6).numpy() > 0.5
    solid = np.stack([ndimage.binary_fill_holes(layer) for layer in body])  # the pore closed
    z_A = (np.arange(len(solid)) - len(solid) // 2) * pixel
    low, high = membrane_z_A or volume.membrane_z_A or _widest_slab(solid, z_A)
    outline = solid[(z_A >= low) & (z_A <= high)].mean(0) > 0.4
    if not outline.any():
        raise ValueError(
            f"Nothing of the molecule lies between {low:.0f} and {high:.0f} Å along z: give "
            "membrane_z_A of its transmembrane region."
        )
    away_A = ndimage.distance_transform_edt(~ndimage.binary_fill_holes(outline)) * pixel  # (y, x)
    s = ndimage.gaussian_filter(away_A, 5.0 / pixel)
    x, z = s / width_A, (z_A - (low + high) / 2)[:, None, None] / ((high - low) / 2 + shell_A)
    rho = np.hypot(x, z)
    slope = np.hypot(x / width_A, z / ((high - low) / 2 + shell_A)) / np.maximum(rho, 1e-6)
    depth_A = (1 - rho) / np.maximum(slope, 1e-6)  # distance under the belt's surface
    filled, inside = _step(depth_A), _step(depth_A - shell_A)
    belt = head_level * (filled - inside) + core_level * inside
    belt = belt * _step(away_A - 2)  # none above and below the protein, none in the pore
    belt = belt * (1 - ndimage.gaussian_filter(solid.astype(np.float32), 3.0 / pixel))
    return torch.from_numpy((float(volume.map.numpy()[body].mean()) * belt).astype(np.float32))


def _step(distance_A: np.ndarray) -> np.ndarray:
    """Step from 0 to 1 with a cosine edge of 4 Å."""
    return 0.5 + 0.5 * np.sin(np.pi * np.clip(distance_A / 4, -0.5, 0.5))


def _widest_slab(solid: np.ndarray, z_A: np.ndarray) -> tuple[float, float]:
    """The 30 Å along z in which the molecule is widest."""
    area = [solid[np.abs(z_A - z) <= 15].mean() for z in z_A]
    z = float(z_A[int(np.argmax(area))])
    return z - 15.0, z + 15.0
