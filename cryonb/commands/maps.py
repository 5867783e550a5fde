"""``cryonb fsc`` and ``clean``: what maps are worth, and what cleans them."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from cryonb.base.files import MAPS, beside, check_writable
from cryonb.base.options import Placing
from cryonb.data.maps import (
    PlacedMap,
    onto_grid,
    overlap,
    read_placed_map,
    to_cube,
    write_map_like,
)
from cryonb.data.molecules import Atoms
from cryonb.data.volumes import (
    MOLECULES,
    atoms_in_box,
    fit_atoms,
    from_atoms,
    is_model,
    load_volume,
    read_atoms,
    source_path,
)
from cryonb.evaluation.resolution import fsc, fsc_mask_corrected, resolution_at
from cryonb.learning.mapclean import MapCleaner, clean_map
from cryonb.learning.weights import MAP_CLEANER, load_model
from cryonb.physics.conventions import FSC_HALF_MAPS, FSC_TRUTH
from cryonb.simulation.masks import model_mask, soft_mask

NOT_FOR_FSC = "not for FSC between half maps: what the network does to both would count as signal"


def fsc_files(
    map: str | os.PathLike,
    half2: str | os.PathLike | None = None,
    reference: str | os.PathLike | None = None,
    mask: str = "auto",
    out: str | os.PathLike = "fsc",
    *,
    seed: int = 0,
    placing: Placing = Placing(),
) -> pd.DataFrame:
    """What ``cryonb fsc`` does; returns the curves, see `fsc_curves`.

    Maps that are not cubes are padded about their middle. All are laid on the grid of the first by
    what their headers say; half maps must have one pixel size, references and masks are resampled.
    FileNotFoundError or ValueError is one line that says what is wrong.
    """
    if (half2 is None) == (reference is None):
        raise ValueError("give a second half map, or --reference")
    if placing.fit and not (reference or is_model(mask)):
        raise ValueError("--fit moves an atomic model: give one as --reference or --mask")
    check_writable(out)
    first = _read(map, placing)
    grid, pixel_A = to_cube(first)[0], first.pixel_size_A
    if half2:
        second, goal = _lay(half2, first, placing, "half map"), FSC_HALF_MAPS
    else:
        second, goal = _reference(reference, first, placing), FSC_TRUTH
    if (grid.map - second).norm() < 1e-5 * grid.map.norm():
        print("note: the two maps are one and the same, which tells nothing of its resolution")
    if mask == "auto":
        soft = soft_mask((grid.map + second) / 2 if half2 else grid.map, pixel_A)
    else:
        soft = _mask(mask, first, placing)
    curves = fsc_curves(grid.map, second, soft, pixel_A, half_maps=half2 is not None, seed=seed)
    _report(curves, str(out), goal)
    return curves


def _reference(source: str | os.PathLike, first: PlacedMap, placing: Placing) -> torch.Tensor:
    """Map of a reference on the grid of a map, padded to a cube."""
    grid, pixel_A = to_cube(first)[0], first.pixel_size_A
    if str(source) in MOLECULES:
        return load_volume(source, len(grid.map), pixel_A).map
    path = source_path(source)
    if not is_model(path):
        return _lay(path, first, placing, "reference")
    return from_atoms(_model(path, first, placing), len(grid.map), pixel_A, grid.first_A).map


def _mask(name: str, first: PlacedMap, placing: Placing) -> torch.Tensor | None:
    """Mask on the grid of a map, padded to a cube: of a file or an atomic model, or "none"."""
    if name == "none":
        return None
    if is_model(name):
        grid = to_cube(first)[0]
        atoms = _model(name, first, placing)
        return model_mask(atoms.xyz_A, tuple(grid.map.shape), grid.pixel_size_A, grid.first_A)
    mask = _lay(name, first, placing, "mask")
    if mask.min() < -0.02 or mask.max() > 1.02 or not (mask > 0.5).any():
        raise ValueError(f"{name} is no mask: values from 0 to 1 are needed, and some above 0.5")
    if ((mask > 0.01) & (mask < 0.99)).float().mean() < 1e-4:
        raise ValueError(
            f"{name} has a hard edge, which correlates with itself: give it a soft one"
        )
    return mask.clamp(0, 1)


def _read(path: str | os.PathLike, placing: Placing) -> PlacedMap:
    """Read a map; ValueError if it is the same everywhere, or a model."""
    if is_model(path):
        raise ValueError(f"{path} is an atomic model: give it as --reference or --mask")
    given = read_placed_map(path, placing.pixel_size_A)
    if given.map.max() == given.map.min():
        raise ValueError(f"{path} has the same value everywhere: there is nothing to look at")
    return given


def _lay(
    path: str | os.PathLike,
    first: PlacedMap,
    placing: Placing,
    kind: Literal["half map", "reference", "mask"],
) -> torch.Tensor:
    """Read a map onto the grid of another, padded to a cube.

    ValueError if it lies elsewhere. A mask of the other's grid whose header says no place, as
    RELION's, lies where that does.
    """
    given, grid = _read(path, placing), to_cube(first)[0]
    n, pixel_A, fill = len(grid.map), grid.pixel_size_A, 0.0 if kind == "mask" else None
    alike = math.isclose(pixel_A, given.pixel_size_A, rel_tol=1e-3)
    if kind == "half map" and not alike:
        raise ValueError(
            f"{path} has voxels of {given.pixel_size_A:g} Å, the first map of {pixel_A:g} Å: give "
            "half maps of one refinement, or a --reference"
        )
    if kind == "reference" and placing.fit:
        raise ValueError(f"--fit moves atomic models, and {path} is a map: give --centre, or none")
    if placing.centre:
        return onto_grid(given, n, pixel_A, None, fill)
    edges = [np.array(x.map.shape) * x.pixel_size_A for x in (given, first)]
    same = np.ptp(edges, axis=0).max() < pixel_A
    if kind == "mask" and same and not any(given.first_A):
        given = given._replace(first_A=first.first_A)
    off_A = np.subtract(given.first_A, first.first_A)[::-1]
    off = f"({', '.join(f'{x:g}' for x in off_A)}) Å (x, y, z) off the first map"
    unsaid = not same and not any(given.first_A + first.first_A)
    if unsaid or overlap(given, first) < 0.5:
        raise ValueError(
            f"{path} is of another size or place, by its header {off}: correct ORIGIN or NSTART, "
            "or --centre to lay middle on middle"
        )
    if not alike or np.abs(off_A).max() > 0.01 * pixel_A:
        print(f"note: {path} has {given.pixel_size_A:g} Å/px and lies {off}: resampled onto it")
    return onto_grid(given, n, pixel_A, grid.first_A, fill)


def _model(path: str | os.PathLike, grid: PlacedMap, placing: Placing) -> Atoms:
    """Read an atomic model into the frame of a map."""
    atoms = read_atoms(path, centre=placing.centre)
    if placing.centre:
        middle = np.array(grid.first_A) + np.array(grid.map.shape) // 2 * grid.pixel_size_A
        atoms = replace(atoms, xyz_A=atoms.xyz_A + middle[::-1])
    if placing.fit:
        before, atoms = atoms, fit_atoms(atoms, grid)
        far_A = np.linalg.norm(atoms.xyz_A - before.xyz_A, axis=1).mean()
        print(f"note: {path} was fitted, its atoms moved by {far_A:.1f} Å on average")
    _, inside = atoms_in_box(atoms.xyz_A, grid.map.shape, grid.pixel_size_A, grid.first_A)
    if not inside.all():
        print(f"note: {(~inside).sum()} of {len(inside)} atoms of {path} lie outside the map")
    return atoms


def fsc_curves(
    a: torch.Tensor,
    b: torch.Tensor,
    mask: torch.Tensor | None,
    pixel_size_A: float,
    *,
    half_maps: bool,
    seed: int = 0,
) -> pd.DataFrame:
    """Return FSC curves of two maps (z, y, x), one column each, by frequency in 1/Å.

    "unmasked"; with a mask "masked"; of half maps "phase-randomised" and "corrected" besides, see
    `cryonb.evaluation.resolution.fsc_mask_corrected`.
    """
    if mask is not None and half_maps:
        generator = torch.Generator().manual_seed(seed)
        found = fsc_mask_corrected(a, b, mask, pixel_size_A, generator)
        names = "unmasked", "masked", "phase-randomised", "corrected"
        columns = dict(zip(names, found[1:], strict=True))
        frequency = found.frequency_per_A
    else:
        frequency, unmasked = fsc(a, b, pixel_size_A)
        columns = {"unmasked": unmasked}
        if mask is not None:
            columns["masked"] = fsc(a * mask, b * mask, pixel_size_A)[1]
    index = pd.Index(frequency.numpy(), name="frequency (1/Å)")
    return pd.DataFrame({name: value.numpy() for name, value in columns.items()}, index=index)


def _report(curves: pd.DataFrame, out: str, goal: float) -> None:
    """Print resolutions, write the table and the figure."""
    from matplotlib import pyplot as plt

    from cryonb.showing.shells import plot_fsc

    frequency = torch.tensor(curves.index.to_numpy())
    values = {name: torch.tensor(curves[name].to_numpy()) for name in curves}
    for name, value in values.items():
        at = {t: resolution_at(frequency, value, t) for t in (FSC_TRUTH, FSC_HALF_MAPS)}
        print(f"{name:16} " + ", ".join(f"{_say(x)} at {t:g}" for t, x in at.items()))
    best = list(values)[-1]
    at_goal = _say(resolution_at(frequency, values[best], goal))
    print(f"resolution       {at_goal} ({best}, {goal:g})")
    with beside(f"{out}.csv") as part:
        curves.to_csv(part)
    plt.switch_backend("agg")
    pairs = {name: (frequency, value) for name, value in values.items()}
    figure = plot_fsc(pairs, title=Path(out).name)
    figure.savefig(f"{out}.png", dpi=150, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {out}.csv and {out}.png")


def _say(resolution_A: float) -> str:
    return f"{resolution_A:.2f} Å" if math.isfinite(resolution_A) else "none, from shell 1 on below"


def clean_file(
    map: str | os.PathLike,
    out: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    mask: str = "none",
    *,
    overwrite: bool = False,
    placing: Placing = Placing(),
) -> Path:
    """What ``cryonb clean`` does, see `cryonb.learning.mapclean`.

    A map that is no cube is padded about its middle, cleaned, and cut back. FileNotFoundError or
    ValueError is one line that says what is wrong with map, mask, weights or output.
    """
    map, out = Path(map), Path(out)
    if placing.fit and not is_model(mask):
        raise ValueError("--fit moves an atomic model: give one as --mask")
    check_writable(out, MAPS)
    if out.resolve() == map.resolve():
        raise ValueError(f"{out} would replace the input, which is never touched: choose another")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already: choose another name, or --overwrite")
    given = _read(map, placing)
    (cube, pixel_A, _), cut = to_cube(given)
    soft = None if mask == "auto" else _mask(mask, given, placing)
    model, _ = load_model(weights or MAP_CLEANER, MapCleaner)
    cleaned = clean_map(model, cube, pixel_A)
    if mask == "auto":
        soft = soft_mask(cleaned, pixel_A, largest=True)
    cleaned = (cleaned if soft is None else cleaned * soft)[cut]
    write_map_like(out, cleaned, map, pixel_A, f"cryonb clean: {NOT_FOR_FSC}"[:80])
    z, y, x = cleaned.shape
    print(
        f"{out}: {x} × {y} × {z} px at {pixel_A:g} Å/px, network at {model.pixel_size_A:g} Å/px, "
        f"mask {mask}\n  note: {NOT_FOR_FSC}"
    )
    return out
