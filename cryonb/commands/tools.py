"""``cryonb reconstruct``, ``fsc``, ``clean``: maps, what they are worth, and what cleans them."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from cryonb.base.files import beside, check_writable
from cryonb.data.maps import check_one_cube, read_map, read_placed_map, write_map, write_map_like
from cryonb.data.particle_file import stream_particles
from cryonb.data.particles import Particles
from cryonb.data.volumes import MODEL_SUFFIXES, load_volume, read_atoms
from cryonb.evaluation.resolution import fsc, fsc_mask_corrected, resolution_at
from cryonb.learning.mapclean import MapCleaner, clean_map
from cryonb.learning.weights import MAP_CLEANER, load_model
from cryonb.physics.conventions import FSC_HALF_MAPS, FSC_TRUTH
from cryonb.physics.reconstruct import reconstruct_batches
from cryonb.simulation.masks import model_mask, soft_mask

NOT_FOR_FSC = "not for FSC between half maps: what the network does to both would count as signal"


def reconstruct_file(
    particles: str | os.PathLike,
    out: str | os.PathLike,
    half: int | None = None,
    symmetry: str = "C1",
    ctf: str = "auto",
    *,
    batch_size: int = 256,
) -> Path:
    """Reconstruct from a STAR file, holding one batch of particles at a time; write the map.

    Parameters
    ----------
    ctf : str
        "on", "off" or "auto", see `cryonb.data.particles.Particles.ctf_applied`.

    Raises
    ------
    FileNotFoundError, ValueError
        See `cryonb.data.particles.stream_particles`; "on" without defocus in the file.
    """
    check_writable(out)
    start, seen, first = time.perf_counter(), 0, None
    stream = stream_particles(particles, half=half, batch_size=batch_size)

    def batches():
        nonlocal seen, first
        with tqdm(stream, desc="reconstruct", unit=" batches") as bar:
            for part in bar:
                first, seen = first or part, seen + len(part)
                bar.set_postfix_str(f"{seen:,} particles")
                yield part.images, part.rotations, part.shifts_px, _ctf_of(part, ctf)

    volume = reconstruct_batches(batches(), symmetry)
    write_map(out, volume, first.pixel_size_A)
    corrected = _ctf_of(first, ctf) is not None
    print(
        f"{out}: {seen:,} particles, {symmetry}, {'with' if corrected else 'without'} CTF "
        f"correction, {first.box_size} px at {first.pixel_size_A:g} Å/px, "
        f"{time.perf_counter() - start:.0f} s"
    )
    return Path(out)


def _ctf_of(particles: Particles, ctf: str) -> torch.Tensor | None:
    if ctf == "off":
        return None
    if ctf == "auto":
        return particles.ctf
    if particles.defocus_um is None:
        raise ValueError("--ctf on needs rlnDefocusU and rlnDefocusV in the file: use --ctf off")
    return particles.with_ctf(True).ctf


def fsc_files(
    map: str | os.PathLike,
    half2: str | os.PathLike | None,
    reference: str | None,
    mask: str,
    out: str,
    *,
    seed: int = 0,
) -> None:
    """FSC of two half maps, or of a map with a reference; writes OUT.csv and OUT.png.

    Raises
    ------
    FileNotFoundError, ValueError
        One line that says what is wrong with the maps, the mask or the output.
    """
    if (half2 is None) == (reference is None):
        raise ValueError("give a second half map, or --reference")
    check_writable(out)
    first, pixel = read_map(map)
    if reference:
        loaded = load_volume(reference, first.shape[-1], pixel, centre=False)
        second, goal = loaded.map, FSC_TRUTH
    else:
        second, other_pixel = read_map(half2)
        _check_alike(first, pixel, second, other_pixel, half2)
        goal = FSC_HALF_MAPS
    soft = _mask(mask, (first + second) / 2 if half2 else first, pixel)
    curves = fsc_curves(first, second, soft, pixel, half_maps=goal == FSC_HALF_MAPS, seed=seed)
    _report(curves, out, goal)


def _check_alike(a, pixel_a: float, b, pixel_b: float, name: str) -> None:
    if a.shape != b.shape or not math.isclose(pixel_a, pixel_b, rel_tol=1e-3):
        raise ValueError(
            f"{name} has {tuple(b.shape)} voxels of {pixel_b:g} Å, the first map {tuple(a.shape)} "
            f"of {pixel_a:g} Å: compare maps on one grid"
        )


def _mask(name: str, map: torch.Tensor, pixel_size_A: float) -> torch.Tensor | None:
    """Mask of the name given: a file, "auto" or "none"."""
    if name == "none":
        return None
    if name == "auto":
        return soft_mask(map, pixel_size_A)
    mask, pixel = read_map(name)
    _check_alike(map, pixel_size_A, mask, pixel, name)
    if mask.min() < -1e-3 or mask.max() > 1 + 1e-3 or not (mask > 0.5).any():
        raise ValueError(f"{name} is no mask: values from 0 to 1 are needed, and some above 0.5")
    if ((mask > 0.01) & (mask < 0.99)).float().mean() < 1e-4:
        raise ValueError(
            f"{name} has a hard edge, which correlates with itself: give it a soft one"
        )
    return mask


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
        text = ", ".join(f"{x:.2f} Å at {t:g}" for t, x in at.items())
        print(f"{name:16} {text}")
    best = "corrected" if "corrected" in values else list(values)[-1]
    print(
        f"resolution       {resolution_at(frequency, values[best], goal):.2f} Å ({best}, {goal:g})"
    )
    with beside(f"{out}.csv") as part:
        curves.to_csv(part)
    plt.switch_backend("agg")
    figure = plot_fsc(
        {name: (frequency, value) for name, value in values.items()}, title=Path(out).name
    )
    figure.savefig(f"{out}.png", dpi=150, bbox_inches="tight")
    print(f"wrote {out}.csv and {out}.png")


def clean_file(
    map: str | os.PathLike,
    out: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    mask: str = "none",
    *,
    overwrite: bool = False,
) -> Path:
    """Clean a map file, see `cryonb.learning.mapclean`; write another with the same header.

    Parameters
    ----------
    weights : path, optional
        By default those that come with the package.
    mask : str
        What the cleaned map is multiplied with: the name of a soft mask or of an atomic model in
        the frame of the map, "auto" (from the cleaned map) or "none".

    Raises
    ------
    FileNotFoundError, ValueError
        One line that says what is wrong with the map, the mask, the weights or the output.
    """
    map, out = Path(map), Path(out)
    check_writable(out)
    if out.resolve() == map.resolve():
        raise ValueError(f"{out} would replace the input, which is never touched: choose another")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already: choose another name, or --overwrite")
    given, pixel, first_A = read_placed_map(map)
    check_one_cube(map, given)
    soft = None
    if Path(mask.removesuffix(".gz")).suffix.lower() in MODEL_SUFFIXES:
        atoms = read_atoms(mask, centre=False)
        soft = model_mask(atoms.xyz_A, tuple(given.shape), pixel, first_A)
    elif mask not in ("auto", "none"):
        soft = _mask(mask, given, pixel)
    model, _ = load_model(weights or MAP_CLEANER, MapCleaner)
    cleaned = clean_map(model, given, pixel)
    if mask == "auto":
        soft = soft_mask(cleaned, pixel, largest=True)
    if soft is not None:
        cleaned = cleaned * soft
    write_map_like(out, cleaned, map, label=f"cryonb clean: {NOT_FOR_FSC}"[:80])
    print(
        f"{out}: {len(given)} px at {pixel:g} Å/px, network at {model.pixel_size_A:g} Å/px, "
        f"mask {mask}\n  note: {NOT_FOR_FSC}"
    )
    return out
