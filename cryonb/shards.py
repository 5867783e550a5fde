"""``cryonb denoise --shards``: a stack in parts, each denoised by another process or dask worker.

Parts begin where batches do, and each draws the noise of its own batches, so the result is that of
a single process, but for the order of float32 sums. Parts lie beside the output under hidden names
until all are whole; a run that was cut off goes on with what is missing of each.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from cryonb.files import beside, check_room
from cryonb.inference import best_device, default_batch, denoise_rows
from cryonb.runner import count_cores
from cryonb.stacks import HEADER, open_source, stack_paths, write_header, write_star
from cryonb.sweep import INSTALL


def denoise_shards(
    particles: str | os.PathLike,
    out: str | os.PathLike,
    *,
    shards: int,
    scheduler: str | None = None,
    **options,
) -> Path:
    """Denoise a file in parts, at the same time; other options are those of `denoise_file`.

    Parameters
    ----------
    shards : int
        Parts, as many as are denoised at a time if there is no scheduler.
    scheduler : str, optional
        Address of a dask scheduler, ``tcp://host:8786``, whose workers see the same files.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        One line that says what is wrong with the input, the options, the disk or the cluster.
    """
    if shards < 1:
        raise ValueError(f"shards is {shards}: ask for one or more")
    source, out = open_source(particles), Path(out)
    paths = stack_paths(source, out, options["samples"])
    size = options.get("batch_size") or default_batch(options.get("device") or best_device())
    options |= {"batch_size": size}
    room = 2 * len(paths) * 4 * source.stacks.box[0] ** 2 * len(source.table)
    check_room(out.resolve().parent, room, "or choose another folder")
    parts = split(len(source.table), size, shards)
    work = partial(_denoise_part, os.fspath(Path(particles).resolve()), options)
    places = [[_part_of(path.resolve(), k) for path in paths] for k in range(len(parts))]
    with pool(len(parts), scheduler) as executor:
        futures = [executor.submit(work, *job) for job in zip(places, parts, strict=True)]
        bar = tqdm(as_completed(futures), total=len(parts), desc="denoise", unit=" shards")
        for future in bar:
            future.result()
    for path, pieces in zip(paths, zip(*places, strict=True), strict=True):
        _join(path, source, pieces)
    write_star(out, source, paths)
    return out


def split(count: int, size: int, shards: int) -> list[range]:
    """Rows of each part: about as many in each, and each but the last in whole batches."""
    batches = -(-count // size)
    shards = min(shards, batches)
    edges = [k * batches // shards * size for k in range(shards)] + [count]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


@contextmanager
def pool(shards: int, scheduler: str | None) -> Iterator[Executor]:
    """Give an executor: that of a dask cluster, or processes that share the cores."""
    if scheduler is None:
        threads = max(1, count_cores() // shards)
        spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
        with ProcessPoolExecutor(shards, spawn, torch.set_num_threads, (threads,)) as executor:
            try:
                yield executor
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
        return
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(f"--scheduler needs dask: {INSTALL}") from None
    with Client(scheduler, timeout=20) as client:
        yield client.get_executor(pure=False)


def _denoise_part(particles: str, options: dict, places: list[Path], rows: range) -> None:
    """Denoise some rows, on a worker; the stacks keep their hidden names until all are joined."""
    denoise_rows(open_source(particles), places, rows, quiet=True, **options)


def _part_of(path: Path, k: int) -> Path:
    return path.with_name(f"{path.stem}.shard{k}{path.suffix}")


def _join(path: Path, source, pieces) -> None:
    """Write the whole stack beside its place, rename it, and drop its parts."""
    hidden = [piece.with_name(f".{piece.name}.part") for piece in pieces]
    with beside(path) as whole:
        write_header(whole, len(source.table), source)
        with open(whole, "ab") as file:
            for part in hidden:
                with open(part, "rb") as images:
                    images.seek(HEADER)
                    shutil.copyfileobj(images, file, 1 << 24)
    for piece, part in zip(pieces, hidden, strict=True):
        part.unlink()
        piece.with_name(f".{piece.name}.run.json").unlink()
