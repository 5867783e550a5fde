"""``cryonb reconstruct``: a map from particles with poses."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from cryonb.base.files import MAPS, check_writable
from cryonb.data.maps import write_map
from cryonb.data.optics import matched_filter
from cryonb.data.particle_file import open_particles
from cryonb.data.star import ANGLES, ORIGINS
from cryonb.physics.reconstruct import Views, reconstruct_batches


def reconstruct_file(
    particles: str | os.PathLike,
    out: str | os.PathLike,
    half: int | None = None,
    symmetry: str = "C1",
    ctf: str = "auto",
    *,
    batch_size: int = 256,
) -> Path:
    """What ``cryonb reconstruct`` does, holding one batch of particles at a time.

    FileNotFoundError or ValueError: see `cryonb.data.particle_file.open_particles`; no CTF.
    """
    check_writable(out, MAPS)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: ask for one or more")
    start, first, states = time.perf_counter(), None, Counter()
    source = open_particles(particles)
    source.check_apart(out)
    source.columns.numbers(*ANGLES, *ORIGINS)  # all rows, before the work
    source.columns.check_ctf(ctf)
    stream = source.stream(batch_size, half)

    def batches():
        nonlocal first
        with tqdm(stream, desc="reconstruct", unit=" batches") as bar:
            for part in bar:
                part = part.with_ctf(True) if ctf == "on" else part
                first = first or part
                states.update(part.state)
                bar.set_postfix_str(f"{states.total():,} particles")
                transfer = None if ctf == "off" else part.ctf
                matched = None if transfer is None else matched_filter(transfer, part.state)
                yield Views(part.images, part.slices, part.shifts_px, transfer, matched)

    volume = reconstruct_batches(batches(), symmetry)
    write_map(out, volume, first.pixel_size_A)
    kinds = ", ".join(f"{count:,} {state}" for state, count in states.items())
    print(
        f"{out}: {states.total():,} particles "
        f"({kinds}{', taken as they are' if ctf == 'off' else ''}), {symmetry}, "
        f"{first.box_size} px at {first.pixel_size_A:g} Å/px, {time.perf_counter() - start:.0f} s"
    )
    return Path(out)
