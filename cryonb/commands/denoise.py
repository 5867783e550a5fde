"""``cryonb denoise``: particle stacks of any length through a diffusion model, all or nothing.

Images are read from memory-mapped stacks, Fourier-cropped to the box that the network knows,
measured and whitened (`cryonb.data.whitening`), denoised, and brought back to the box, the
intensities and the CTF that they had. Finished images are appended to a file beside the output; a
run that was cut off finds it and goes on, and only a whole stack gets the final name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cryonb.base.files import check_room
from cryonb.commands.shards import denoise_shards
from cryonb.commands.writer import StackWriter, stack_paths, write_star
from cryonb.data.particle_file import ParticleFile, open_particles
from cryonb.data.particles import Particles
from cryonb.data.whitening import NoiseModel, from_network, measure_noise, to_network
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.weights import MANY, load_model

MEASURED = 1000  # images, spread over the file, that the noise is measured on


def denoise_file(
    particles: str | os.PathLike,
    out: str | os.PathLike,
    *,
    checkpoint: str | os.PathLike | None = None,
    samples: int = 0,
    steps: int = 8,
    diameter_A: float | None = None,
    contrast: str = "auto",
    device: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    shards: int | None = None,
    scheduler: str | None = None,
) -> Path:
    """Denoise a STAR file or stack and write the like.

    Memory does not grow with the number of images. Run again after a break, it goes on.

    Parameters
    ----------
    checkpoint : path, optional
        SR3 weights; by default those of the model for any molecule.
    samples : int
        0: the posterior mean, in one step. 1: one sample. K > 1: the mean of K samples, and their
        pixel-wise deviation in a second stack.
    steps : int
        Of the sampler, for samples.
    diameter_A : float, optional
        Of the particle; noise is measured outside.
    contrast : str
        "bright" or "dark" particles; "auto" finds out. The output has the contrast of the input.
    shards, scheduler : int, str, optional
        Denoise in parts, at the same time, see `cryonb.commands.shards.denoise_shards`.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        One line that says what is wrong with the input, the options or the disk.
    """
    source, out = open_particles(particles), Path(out)
    paths = stack_paths(source, out, samples)
    batch_size = batch_size or (64 if (device or best_device()) == "cpu" else 512)
    options = {"checkpoint": checkpoint, "samples": samples, "steps": steps, "contrast": contrast}
    options |= {"diameter_A": diameter_A, "device": device, "batch_size": batch_size, "seed": seed}
    if shards is None and scheduler is None:
        for writer in denoise_rows(source, paths, range(len(source.table)), **options):
            writer.finish()
    else:
        work = partial(_denoise_part, source.path.resolve(), options)
        denoise_shards(work, source, paths, batch_size, 8 if shards is None else shards, scheduler)
    write_star(out, source, paths)
    return out


def _denoise_part(particles: Path, options: dict, places: list[Path], rows: range) -> None:
    """Denoise some rows on a worker; the stacks keep their hidden names until all are joined."""
    denoise_rows(open_particles(particles), places, rows, quiet=True, **options)


def denoise_rows(
    source: ParticleFile,
    paths: list[Path],
    rows: range,
    *,
    checkpoint: str | os.PathLike | None,
    samples: int,
    steps: int,
    diameter_A: float | None,
    contrast: str,
    device: str | None,
    batch_size: int,
    seed: int,
    quiet: bool = False,
) -> list[StackWriter]:
    """Denoise some rows of a file into stacks that are whole, but have not their names yet.

    Parameters
    ----------
    paths : list of Path
        Of the stack, and of that of deviations where there are samples to have one.
    rows : range
        The first is a multiple of the batch size, or else samples differ from those of one piece.
    quiet : bool
        Print nothing.

    Other parameters are those of `denoise_file`.
    """
    model, manifest = load_model(checkpoint or MANY, SR3)
    model = model.to(device or best_device())
    box = _network_box(source.stacks.box, manifest)
    noise = measured_noise(source, box, diameter_A, {"auto": 0, "bright": 1, "dark": -1}[contrast])
    if not quiet:
        _say(source, box, noise, manifest)
    options = {"steps": steps, "seed": seed, "samples": samples, "batch_size": batch_size}
    asked = options | {
        "input": [str(source.path.resolve()), source.path.stat().st_mtime_ns, len(source.table)],
        "rows": [rows.start, rows.stop],
        "weights": [str(checkpoint or MANY), Path(checkpoint or MANY).stat().st_mtime_ns],
        "measured": [round(noise.snr, 6), noise.sign, noise.radius_px],
    }
    writers = [StackWriter(path, source, len(rows), asked) for path in paths]
    needed = sum(writer.missing_bytes for writer in writers)
    check_room(paths[0].resolve().parent, needed, "or choose another folder")
    done = min(writer.done for writer in writers)
    done = done if done == len(rows) else done // batch_size * batch_size
    batches = _batches(source, model, noise, box, rows[done:], options)
    bar = tqdm(total=len(rows), initial=done, desc="denoise", unit=" images", disable=quiet)
    with bar:
        for images in batches:
            for writer, stack_images in zip(writers, images, strict=True):
                writer.write(done, stack_images)
            done += len(images[0])
            bar.update(len(images[0]))
    return writers


def _batches(
    source: ParticleFile, model, noise: NoiseModel, box: int, rows: range, options
) -> Iterator:
    """Denoised images (and deviations of samples) of each batch of rows, full size."""
    size, sigma = options["batch_size"], noise.sigma
    count = max(1, options["samples"])
    for first in rows[::size]:
        given = source.read(range(first, min(first + size, rows.stop))).resampled(box)
        noisy, deviation = to_network(given, noise)
        drawn = []
        for k in range(count):
            seed = options["seed"] + 7919 * (first // size * count + k)
            steps = options["steps"] if options["samples"] else 1
            batch = denoise(model, noisy, sigma, steps, batch_size=size, seed=seed)
            drawn.append(from_network(torch.cat(list(batch)), deviation, given, noise))
        drawn = torch.stack(drawn)
        images = [drawn.mean(0), *([drawn.std(0)] if count > 1 else [])]
        full = source.stacks.box
        yield [Particles(i, given.optics, given.table).resampled(full).images for i in images]


def _network_box(box: int, manifest: dict) -> int:
    """Box that images are cropped to: the network's own, or what it can take below that."""
    known = int(manifest["options"].get("box_size", 64))
    if box < 16:
        raise ValueError(f"images of {box} px are too small to denoise: 16 px are the least")
    return min(known, box // 8 * 8)


def measured_noise(
    source: ParticleFile, box: int, diameter_A: float | None, sign: int
) -> NoiseModel:
    """Noise of a file, from rows spread over all of it, in a box of the network."""
    rows = np.unique(np.linspace(0, len(source.table) - 1, MEASURED).round().astype(int))
    given = source.read(rows).resampled(box)
    radius_px = None if diameter_A is None else diameter_A / 2 / given.pixel_size_A
    return measure_noise(given, radius_px, sign=sign)


def _say(source: ParticleFile, box: int, noise: NoiseModel, manifest: dict) -> None:
    """Print what was found, and where it lies outside what the network was trained on."""
    full = source.stacks.box
    pixel_A = float(source.optics["rlnImagePixelSize"].iloc[0])
    contrast = "bright" if noise.sign > 0 else "dark (turned for the network, and back)"
    print(
        f"{source.path}: {len(source.table):,} images of {full} px; network at {box} px, "
        f"{pixel_A * full / box:.2f} Å/px; SNR {noise.snr:.3g}; particles {contrast}"
    )
    options = manifest["options"]
    low, high = options.get("snr_range") or [options.get("snr", noise.snr)] * 2
    if not 0.7 * low <= noise.snr <= 1.4 * high:
        print(f"  note: the network was trained at SNR {low:g} to {high:g}; expect less of it here")


def best_device() -> str:
    """Name of the fastest device that torch finds."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
