"""``cryonb denoise --memory``: a stack's own memory beside the network, one for each half set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cryonb.data.maps import read_map, write_map
from cryonb.data.particle_file import ParticleFile
from cryonb.data.particles import Particles
from cryonb.data.whitening import NoiseModel, to_network, transfer_to_network
from cryonb.denoisers.memory import Memory, learn, recall
from cryonb.learning.diffusion import denoise
from cryonb.physics.projection import shift_images

MOST = 2000  # particles, spread over the file or half set, that a memory is learnt from
LEAST = 100


def memory_paths(stack: Path, source: ParticleFile) -> list[list[Path]]:
    """Maps of what is seen and of what is clean of it, for each half set or for all."""
    halves = [""] if _halves(source) is None else ["_half1", "_half2"]
    return [
        [stack.with_name(f"{stack.stem}_memory{half}_{kind}.mrc") for kind in ("seen", "clean")]
        for half in halves
    ]


def learn_memories(
    source: ParticleFile, read: Callable, model, noise: NoiseModel, paths: list[list[Path]]
) -> list:
    """Learn a memory for each half set, write its maps; share and filter of each, for JSON.

    `read` is a function from rows to particles. None stands for a memory that there is not.
    """
    halves, found = _halves(source), []
    for half, maps in enumerate(paths, 1):
        rows = np.arange(len(source)) if halves is None else np.flatnonzero(halves == half)
        name = "memory" if halves is None else f"memory of half set {half}"
        found.append(_learn_one(name, source, read, model, noise, rows, maps))
    return found


def _halves(source: ParticleFile) -> np.ndarray | None:
    """Half set of each row, where the file has two of some size."""
    if "rlnRandomSubset" not in source.table:
        return None
    halves = source.table["rlnRandomSubset"].to_numpy()
    return halves if set(halves) == {1, 2} else None


def _learn_one(name, source, read, model, noise, rows, maps) -> list[float] | None:
    """Share and whitening filter of a memory."""
    if len(rows) < LEAST:
        print(f"  note: no {name}: {len(rows)} particles are too few, {LEAST} are the least")
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, MOST).astype(int))]
    parts = []
    for some in torch.from_numpy(rows).split(64):
        small = read(some.numpy()).resampled(2 * (len(noise.spectrum) - 1))
        white, background = to_network(small, noise)
        keep = background.deviation.flatten() > 0
        transfer = transfer_to_network(small, noise).expand(len(white), -1, -1)
        parts.append((shift_images(white, -small.shifts_px)[keep], transfer[keep]))
    noisy, transfer = (torch.cat(part) for part in zip(*parts, strict=True))
    print(f"  {name}: a map from {len(noisy):,} particles ...", flush=True)
    network = partial(denoise, model, sigma=noise.sigma)
    try:
        memory = learn(noisy, noise.sigma, network, ctf=transfer)
    except ValueError as error:
        print(f"  note: no {name}: {error}")
        return None
    for path, volume in zip(maps, (memory.seen, memory.clean), strict=True):
        write_map(path, volume, small.pixel_size_A)
    print(f"  {name}: {memory.share:.0%} of a denoised image, the rest is the network's")
    return [memory.share, *memory.whitening.tolist()]


def with_memories(
    network: Callable[..., Iterator],
    source: ParticleFile,
    found: list,
    paths: list[list[Path]],
    kind: str,
) -> Callable[..., Iterator]:
    """A function like `network` that yields the mean of its images and of the memory's.

    `kind` is "seen" or "clean".
    """
    halves, memories = _halves(source), []
    for its, maps in zip(found, paths, strict=True):
        if its:
            seen, clean = (read_map(path)[0] for path in maps)
            shown = seen if kind == "seen" else clean
            memory = Memory(seen, shown, torch.tensor(its[1:]), its[0])
            memories.append((memory, memory.templates))
        else:
            memories.append(None)

    def draw(white, small: Particles, noise: NoiseModel, batch: int, options) -> Iterator:
        transfer = transfer_to_network(small, noise).expand(len(white), -1, -1)
        (images,) = network(white, small, noise, batch, options)
        centred = shift_images(white, -small.shifts_px)
        for half, known in enumerate(memories, 1):
            its_own = torch.ones(len(white)) if halves is None else small.half == half
            rows = its_own.nonzero()[:, 0]
            if known is None or not len(rows):
                continue
            memory, templates = known
            found = recall(memory, centred[rows], noise.sigma, transfer[rows], templates)
            found = shift_images(found, small.shifts_px[rows])
            images[rows] = torch.lerp(images[rows], found, memory.share)
        yield images

    return draw
