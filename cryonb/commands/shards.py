"""``cryonb denoise --shards``: a stack in parts, each denoised by another process or dask worker.

Parts begin where batches do, and each draws the noise of its own batches, so the result is that of
a single process, but for the order of float32 sums. Parts lie beside the output under hidden names
until all are whole; a run that was cut off goes on with what is missing of each.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from cryonb.base.files import beside, check_room
from cryonb.base.workers import connect, count_cores, process_pool
from cryonb.commands.writer import hidden, write_header
from cryonb.data.mrc import HEADER
from cryonb.data.particle_file import ParticleFile


def denoise_shards(
    work: Callable[[list[Path], range], None],
    source: ParticleFile,
    paths: list[Path],
    batch_size: int,
    shards: int,
    scheduler: str | None,
) -> None:
    """Write stacks in parts, at the same time, and join them.

    Parameters
    ----------
    work : callable
        Writes some rows to stacks of these paths, under their `hidden` names; can be pickled.
    source : ParticleFile
    paths : list of Path
        Stacks to write.
    batch_size : int
        Parts begin at multiples of it.
    shards : int
        Parts, as many as are worked on at a time if there is no scheduler.
    scheduler : str, optional
        Address of a dask scheduler, ``tcp://host:8786``, whose workers see the same files.

    Raises
    ------
    ValueError, OSError
        One line that says what is wrong with the number of shards, the disk or the cluster.
    """
    if shards < 1:
        raise ValueError(f"shards is {shards}: ask for one or more")
    room = 2 * len(paths) * 4 * source.stacks.box**2 * len(source.table)
    check_room(paths[0].resolve().parent, room, "or choose another folder")
    parts = split(len(source.table), batch_size, shards)
    places = [[_part_of(path.resolve(), k) for path in paths] for k in range(len(parts))]
    with pool(len(parts), scheduler) as executor:
        futures = [executor.submit(work, *job) for job in zip(places, parts, strict=True)]
        bar = tqdm(as_completed(futures), total=len(parts), desc="denoise", unit=" shards")
        for future in bar:
            future.result()
    for path, pieces in zip(paths, zip(*places, strict=True), strict=True):
        _join(path, source, pieces)


def split(count: int, size: int, shards: int) -> list[range]:
    """Rows of each part: about as many in each, and each but the last in whole batches."""
    batches = -(-count // size)
    shards = min(shards, batches)
    edges = [k * batches // shards * size for k in range(shards)] + [count]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


@contextmanager
def pool(shards: int, scheduler: str | None) -> Iterator[Executor]:
    """Give an executor: that of a dask cluster, or processes that share the cores."""
    if scheduler is not None:
        with connect(scheduler) as client:
            yield client.get_executor(pure=False)
        return
    with process_pool(shards, max(1, count_cores() // shards)) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _part_of(path: Path, k: int) -> Path:
    return path.with_name(f"{path.stem}.shard{k}{path.suffix}")


def _join(path: Path, source: ParticleFile, pieces) -> None:
    """Write the whole stack beside its place, rename it, and drop its parts."""
    with beside(path) as whole:
        write_header(whole, len(source.table), source)
        with open(whole, "ab") as file:
            for piece in pieces:
                with open(hidden(piece)[0], "rb") as images:
                    images.seek(HEADER)
                    shutil.copyfileobj(images, file, 1 << 24)
    for piece in pieces:
        for name in hidden(piece):
            name.unlink()
