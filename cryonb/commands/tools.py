"""``cryonb reconstruct``: a map from particles with poses."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from cryonb.base.files import check_writable
from cryonb.data.maps import write_map
from cryonb.data.particle_file import stream_particles
from cryonb.data.particles import Particles
from cryonb.physics.reconstruct import reconstruct_batches


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
