"""Templates for the posterior: what a particle may be, up to a turn in its plane.

Either projections of a known molecule along a grid of directions, or training images. Introduced
in: 04_compare_methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cryonb.physics.geometry import euler_to_matrix, symmetry_rotations
from cryonb.physics.projection import project
from cryonb.poses.steerable import analyse


@dataclass(frozen=True)
class Templates:
    """What a particle may be, up to a turn in its plane.

    Attributes
    ----------
    target, observed : Tensor (k, m, rings), complex
        Coefficients (`cryonb.poses.steerable.analyse`) of the clean images, and of what reaches the
        detector before CTF and noise; the same tensor where the two are equal.
    directions_deg : Tensor (m, 2) or None
        rot and tilt; None for templates that are images.
    box_size : int
    turns : int
        Turns in the plane that are told apart, evenly from 0 to 360 degrees.
    """

    target: torch.Tensor
    observed: torch.Tensor
    directions_deg: torch.Tensor | None
    box_size: int
    turns: int


def view_directions(spacing_deg: float, symmetry: str = "C1") -> torch.Tensor:
    """Directions of view (rot, tilt) in degrees, even on the sphere: (m, 2).

    A Fibonacci spiral; of the directions that a point group makes alike one remains.

    Parameters
    ----------
    spacing_deg : float
        Square root of the solid angle of one direction, in degrees.
    symmetry : str
        "C1", "C4", "D2", ...

    Raises
    ------
    ValueError
        Unknown symmetry; a spacing that is not positive.
    """
    if not spacing_deg > 0:
        raise ValueError(f"spacing_deg is {spacing_deg}: give a positive angle, such as 2.")
    order = len(symmetry_rotations(symmetry))
    dihedral = symmetry.upper().startswith("D")
    n = max(order, math.ceil(4 * math.pi / math.radians(spacing_deg) ** 2))
    i = torch.arange(n, dtype=torch.float64) + 0.5
    tilt = torch.rad2deg(torch.acos(1 - 2 * i / n))
    rot = (i * 180 * (3 - 5**0.5)) % 360  # the golden angle
    keep = rot < 360 / (order // 2 if dihedral else order)
    if dihedral:
        keep &= tilt <= 90
    return torch.stack([rot, tilt], dim=1)[keep].float()


def volume_templates(
    target: torch.Tensor,
    spacing_deg: float = 2.0,
    symmetry: str = "C1",
    structure: torch.Tensor | None = None,
    directions_deg: torch.Tensor | None = None,
) -> Templates:
    """Templates of a known molecule: its projections along a grid of directions.

    Parameters
    ----------
    target : Tensor (z, y, x)
        In the particles' unit of intensity, as `Dataset.volume`; within the inscribed sphere.
    spacing_deg : float
        Of the directions; fine enough when half of it changes the result by little.
    symmetry : str
    structure : Tensor (z, y, x), optional
        What is fixed to the molecule in the particle and absent from the target, as a micelle.
    directions_deg : Tensor (m, 2), optional
        Some rows of the grid; default all of it.
    """
    if directions_deg is None:
        directions_deg = view_directions(spacing_deg, symmetry)
    rotations = euler_to_matrix(F.pad(directions_deg, (0, 1))).to(target.device)  # psi = 0
    maps = target[None] if structure is None else torch.stack([target, target + structure])
    found = _coefficients(lambda rows: project(maps, rotations[rows]), len(rotations))
    turns = _turns(found, spacing_deg)
    return Templates(found[0], found[-1], directions_deg, target.shape[-1], turns)


def _coefficients(images, m: int) -> torch.Tensor:
    """Coefficients (c, k, m, rings) of `images(rows) -> (c, len(rows), y, x)`, in pieces.

    Angular orders with less than 1e-5 of the energy, far out for a compact particle, are left out.
    """
    few = images(torch.linspace(0, m - 1, min(m, 128)).long())
    first = analyse(few[0])
    power = first.abs().square().sum((1, 2))
    orders = 1 + int((power.flip(0).cumsum(0).flip(0) > 1e-5 * power.sum()).sum())
    orders = min(orders, len(first))
    out = first.new_empty(len(few), orders, m, first.shape[-1])
    for rows in torch.arange(m).split(1024):
        for i, stack in enumerate(images(rows)):
            out[i, :, rows] = analyse(stack, orders)
    return out


def image_templates(clean: torch.Tensor, observed: torch.Tensor | None = None) -> Templates:
    """Templates from training images (n, y, x) and their mirror images, in all turns.

    Parameters
    ----------
    clean : Tensor (n, y, x)
    observed : Tensor (n, y, x), optional
        The particles without their white noise, where they differ from the clean images. What is
        not fixed to the particle (neighbours, carbon) is then wrongly taken to be known.
    """
    stacks = [clean] if observed is None or observed is clean else [clean, observed]
    stacks = torch.stack([_with_mirrors(stack) for stack in stacks])
    found = _coefficients(lambda rows: stacks[:, rows], stacks.shape[1])
    return Templates(found[0], found[-1], None, clean.shape[-1], _turns(found))


def _turns(coefficients: torch.Tensor, spacing_deg: float = 2.0) -> int:
    """Least power of two that resolves the box and is as fine as the directions."""
    return 2 ** math.ceil(math.log2(max(2 * coefficients.shape[1], 360 / spacing_deg)))


def _with_mirrors(images: torch.Tensor) -> torch.Tensor:
    flipped = images.flip(-1)  # index n // 2 stays: an even box moves by one pixel
    return torch.cat([images, flipped if images.shape[-1] % 2 else flipped.roll(1, -1)])


def pose_of(
    directions_deg: torch.Tensor, index: torch.Tensor, psi_deg: torch.Tensor
) -> torch.Tensor:
    """Rotations (..., 3, 3) of rows of directions (m, 2), rot and tilt, and turns in degrees."""
    directions = directions_deg.to(index.device)[index]
    angles = torch.cat([directions, psi_deg[..., None].float()], dim=-1)
    return euler_to_matrix(angles.reshape(-1, 3)).view(*index.shape, 3, 3)


def every_pose(templates: Templates) -> torch.Tensor:
    """Rotations of all templates of a molecule in all turns: (m * turns, 3, 3)."""
    if templates.directions_deg is None:
        raise ValueError("templates made from images have no poses: use volume_templates")
    m, turns = templates.target.shape[1], templates.turns
    psi_deg = torch.arange(turns).repeat(m) * 360 / turns
    return pose_of(templates.directions_deg, torch.arange(m).repeat_interleave(turns), psi_deg)


def view_axes(directions_deg: torch.Tensor) -> torch.Tensor:
    """Unit vectors (m, 3), x, y, z in the molecule, of directions (m, 2), rot and tilt."""
    return euler_to_matrix(F.pad(directions_deg, (0, 1)))[..., 2]  # psi = 0


def neighbours(
    directions_deg: torch.Tensor,
    chosen: torch.Tensor,
    finer_deg: torch.Tensor,
    radius_deg: float,
    symmetry: str,
) -> torch.Tensor:
    """Directions of a finer grid that lie near chosen ones of a coarse grid.

    Parameters
    ----------
    directions_deg, finer_deg : Tensor (m, 2) and (f, 2)
        rot and tilt of the two grids.
    chosen : Tensor (n, m) of bool
        For each particle, directions of the coarse grid.
    radius_deg : float
    symmetry : str
        Symmetry mates count as near, too.

    Returns
    -------
    Tensor (n, f) of bool
    """
    coarse, finer = view_axes(directions_deg), view_axes(finer_deg)
    some = chosen.any(0)
    coarse, chosen, near = coarse[some], chosen[:, some].float(), []
    for piece in finer.split(1024):
        mates = torch.stack([piece @ (g @ coarse.T) for g in symmetry_rotations(symmetry)])
        close = mates.amax(0) > math.cos(math.radians(radius_deg))  # (f, m)
        near.append(chosen @ close.float().T > 0)
    return torch.cat(near, dim=1)
