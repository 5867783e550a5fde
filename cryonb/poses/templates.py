"""Templates for the posterior: what a particle may be, up to a turn in its plane.

Either projections of a known molecule along a grid of directions, or training images. Introduced
in: 04_compare_methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from cryonb.physics.geometry import euler_to_matrix, symmetry_rotations
from cryonb.physics.projection import WIDTH, Transform
from cryonb.poses.slices import Slices
from cryonb.poses.steerable import PolarGrid, energy, expand, pairs, sample

LOST = 3e-6  # share of the templates' energy that rings and components left out hold
LOST_ORDERS = 1e-5  # share of it that angular orders left out hold
FEW_DEG = 18.0  # 128 directions, from which rings, orders and components are chosen
PIECE = 16  # templates at a time


@dataclass(frozen=True)
class Templates:
    """What a particle may be, up to a turn in its plane.

    Of each angular order's values on the rings only the principal components are kept that hold the
    templates: products need few, and products of components are products of images.

    Attributes
    ----------
    grid : PolarGrid
        Rings and angular orders that the templates reach.
    basis : Tensor (orders, rings, r)
        Principal components of each angular order.
    target, observed : Tensor (orders, m, 2, 2 r)
        Coefficients on them, as `pairs`, of the clean images, and of what reaches the detector
        before CTF and noise; the same tensor where the two are equal.
    target_norms : Tensor (m,)
        Squared norms of the clean images.
    observed_norms : Tensor (m, rings)
        Of what reaches the detector, ring by ring.
    directions_deg : Tensor (m, 2) or None
        rot and tilt; None for templates that are images.
    turns : int
        Turns in the plane that are told apart, evenly from 0 to 360 degrees.
    """

    grid: PolarGrid
    basis: torch.Tensor
    target: torch.Tensor
    observed: torch.Tensor
    target_norms: torch.Tensor
    observed_norms: torch.Tensor
    directions_deg: torch.Tensor | None
    turns: int

    def project(self, samples: torch.Tensor) -> torch.Tensor:
        """Coefficients (orders, n, 2, r) of samples (n, angles, 2, rings)."""
        return _on(self.basis, expand(samples, self.grid.orders))

    def rows(self, rows: torch.Tensor | slice) -> Templates:
        """Only some of the templates."""
        target = self.target[:, rows]
        return replace(
            self,
            target=target,
            observed=target if self.observed is self.target else self.observed[:, rows],
            target_norms=self.target_norms[rows],
            observed_norms=self.observed_norms[rows],
            directions_deg=None if self.directions_deg is None else self.directions_deg[rows],
        )


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


@dataclass(frozen=True)
class Molecule:
    """A known molecule, ready to be seen along any directions: `Molecule.of`, `templates`.

    Attributes
    ----------
    slices : Slices
    grid, basis
        See `Templates`: the same for every grid of directions, so that grids can be compared.
    """

    slices: Slices
    grid: PolarGrid
    basis: torch.Tensor

    @classmethod
    def of(cls, target: torch.Tensor, structure: torch.Tensor | None = None) -> Molecule:
        """Prepare a volume (z, y, x) and what is fixed to it, see `volume_templates`."""
        maps = target[None] if structure is None else torch.stack([target, target + structure])
        maps_ft = Transform.of(maps.float(), WIDTH)
        few = _planes(view_directions(FEW_DEG).to(target.device))
        whole = PolarGrid.whole(target.shape[-1])
        points = torch.einsum("ard,mcd->marc", whole.points.to(few), few[::8])
        read = maps_ft.at(points) * whole.scale.to(few)
        read = torch.stack([read.real, read.imag], dim=-2).flatten(0, 1)
        grid = _grid_of(expand(read, whole.orders), target.shape[-1])
        slices = Slices.of(maps_ft, grid)
        return cls(slices, grid, _components(expand(slices.at(few).flatten(0, 1), grid.orders)))

    def templates(self, directions_deg: torch.Tensor, spacing_deg: float) -> Templates:
        """Templates along directions (m, 2), rot and tilt, of a grid of so many degrees."""
        planes = _planes(directions_deg.to(self.basis.device))
        found = _templates(self.slices.at, planes, self.grid, self.basis)
        turns = _turns(self.grid.orders, spacing_deg)
        return replace(found, directions_deg=directions_deg, turns=turns)


def _planes(directions_deg: torch.Tensor) -> torch.Tensor:
    """The x and y axes (m, 3, 2) of projections along directions (m, 2), not turned."""
    return euler_to_matrix(F.pad(directions_deg, (0, 1)))[..., :2]


def volume_templates(
    target: torch.Tensor,
    spacing_deg: float = 2.0,
    symmetry: str = "C1",
    structure: torch.Tensor | None = None,
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
    """
    directions_deg = view_directions(spacing_deg, symmetry)
    return Molecule.of(target, structure).templates(directions_deg, spacing_deg)


def _templates(read: Callable, views: torch.Tensor, grid: PolarGrid, basis) -> Templates:
    """Templates of `views`, a piece of which `read` turns into samples.

    They are (1 or 2, views, angles, 2, rings): of the targets and, where that is another, of what
    is observed.
    """
    pieces = []
    for piece in views.split(PIECE):
        samples = read(piece)
        found = expand(samples.flatten(0, 1), grid.orders)
        kept = pairs(_on(basis, found)).unflatten(1, samples.shape[:2])
        pieces.append((kept, energy(found).unflatten(0, samples.shape[:2])))
    both = zip(*pieces, strict=True)
    kept, norms = (torch.cat(part, dim=d) for part, d in zip(both, (2, 1), strict=True))
    target = kept[:, 0]
    return Templates(
        grid,
        basis,
        target,
        target if len(norms) == 1 else kept[:, 1],
        norms[0].sum(1),
        norms[-1],
        None,
        _turns(grid.orders, 2.0),
    )


def _grid_of(coefficients: torch.Tensor, box: int) -> PolarGrid:
    """Rings and orders that hold what coefficients (orders, n, 2, rings) of the whole grid hold."""
    power = coefficients.square().sum((1, 2))
    radii = PolarGrid.whole(box).radii[: _needed(power.sum(0), LOST)]
    return PolarGrid(box, min(0.5, 1.05 * float(radii[-1])), _needed(power.sum(1), LOST_ORDERS))


def _needed(power: torch.Tensor, lost: float) -> int:
    """How many of the first entries hold all but a lost share of the power."""
    beyond = power.flip(0).cumsum(0).flip(0)
    return int((beyond > lost * power.sum()).sum())


def _on(basis: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients (orders, n, 2, rings) on a basis (orders, rings, r): (orders, n, 2, r)."""
    return (coefficients.flatten(1, 2) @ basis).unflatten(1, (-1, 2))


def _components(coefficients: torch.Tensor) -> torch.Tensor:
    """Principal components (orders, rings, r) of coefficients (orders, n, 2, rings).

    They are real, as those of images together with their mirror images.
    """
    parts = coefficients.flatten(1, 2)
    power, vectors = torch.linalg.eigh(parts.mT @ parts)  # ascending
    lost = power.clamp_min(0).cumsum(1).sum(0)  # of all orders, by the number left out
    r = max(1, int((lost > LOST * lost[-1]).sum()))
    return vectors[..., -r:]


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
    box, m = clean.shape[-1], stacks.shape[1]
    few = stacks[:, torch.linspace(0, m - 1, min(m, 128)).long()]
    whole = PolarGrid.whole(box)
    grid = _grid_of(expand(sample(few[:, ::4].flatten(0, 1), whole), whole.orders), box)

    def read(rows: torch.Tensor) -> torch.Tensor:
        return sample(stacks[:, rows].flatten(0, 1), grid).unflatten(0, (len(stacks), -1))

    basis = _components(expand(sample(few.flatten(0, 1), grid), grid.orders))
    return _templates(read, torch.arange(m), grid, basis)


def _turns(orders: int, spacing_deg: float) -> int:
    """Least power of two that resolves the box and is as fine as the directions."""
    return 2 ** math.ceil(math.log2(max(2 * orders, 360 / spacing_deg)))


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
