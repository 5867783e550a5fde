"""``cryonb denoise``: particle stacks of any length through a diffusion model, all or nothing.

Images are read from memory-mapped stacks, Fourier-cropped to the box that the network knows,
measured and whitened (`cryonb.whitening`), denoised, and brought back to the box, the intensities
and the CTF that they had. Finished images are appended to a file beside the output; a run that was
cut off finds it and goes on, and only a whole stack gets the final name.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
import torch
from tqdm import tqdm

from cryonb.diffusion import SR3, denoise
from cryonb.files import NOT_DETERMINED, beside, check_room, check_writable
from cryonb.particles import CTF_APPLIED, Particles
from cryonb.star import Stacks, modern_tables, open_stack, particle_block, read_blocks
from cryonb.weights import MANY, load_model
from cryonb.whitening import NoiseModel, from_network, measure_noise, to_network

STACKS = (".mrcs", ".mrc", ".st")
MEASURED = 1000  # images, spread over the file, that the noise is measured on
HEADER = 1024  # bytes of an MRC header


def denoise_parser() -> argparse.ArgumentParser:
    """Options of `cryonb denoise`."""
    parser = argparse.ArgumentParser(
        prog="cryonb denoise",
        description="Denoise particles; rows, columns, box and CTF stay those of the input.",
    )
    add = parser.add_argument
    add("particles", help="STAR file of RELION, or a stack (.mrcs, .mrc)")
    add("--out", required=True, help="STAR file, or stack if the input is one; never the input")
    add("--checkpoint", help="SR3 weights (default: the model for any molecule that cryonb has)")
    add("--samples", type=int, default=0, help="draw this many: mean, and deviation in OUT_std")
    add("--steps", type=int, default=8, help="sampler steps for --samples (default 8)")
    add("--diameter", type=float, help="of the particle in Å (default 0.75 of the box)")
    add("--contrast", choices=("auto", "bright", "dark"), default="auto", help="of the particles")
    add("--device", help="cpu, cuda, mps (default: the fastest there is)")
    add("--batch-size", type=int, help="default 64, on a GPU 512")
    add("--seed", type=int, default=0)
    return parser


def denoise_main(arguments: list[str]) -> int:
    """Denoise a particle file with these command-line arguments."""
    args = vars(denoise_parser().parse_args(arguments))
    denoise_file(args.pop("particles"), args.pop("out"), diameter_A=args.pop("diameter"), **args)
    return 0


@dataclass(frozen=True)
class Source:
    """A particle file, opened: its blocks as they stand, tables in modern words, and pixels."""

    path: Path
    blocks: dict[str, pd.DataFrame]
    optics: pd.DataFrame
    table: pd.DataFrame
    stacks: Stacks

    def read(self, rows, box: int) -> Particles:
        """Particles of some rows, Fourier-cropped to a box."""
        table = self.table.iloc[rows].reset_index(drop=True)
        return Particles(self.stacks.read(rows), self.optics, table).resampled(box)


def open_source(path: str | os.PathLike) -> Source:
    """Open a STAR file or a bare stack, and look at all of its stacks.

    Raises
    ------
    FileNotFoundError, ValueError
        Missing or damaged files, mixed boxes, volumes; see `cryonb.star.Stacks`.
    """
    path = Path(path)
    if path.suffix not in STACKS:
        blocks = read_blocks(path)
        optics, table = modern_tables(blocks, path)
        return Source(path, blocks, optics, table, Stacks(table["rlnImageName"], path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: check the path of the stack")
    with open_stack(path.name, path) as mrc:
        count, pixel_A = (len(mrc.data) if mrc.data.ndim == 3 else 1), float(mrc.voxel_size.x)
    names = [f"{i + 1:06d}@{path.name}" for i in range(count)]
    table = pd.DataFrame({"rlnImageName": names, "rlnOpticsGroup": 1})
    optics = pd.DataFrame(
        {"rlnOpticsGroup": [1], "rlnImagePixelSize": [pixel_A or 1.0], CTF_APPLIED: [0]}
    )
    return Source(path, {}, optics, table, Stacks(table["rlnImageName"], path))


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

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        One line that says what is wrong with the input, the options or the disk.
    """
    source, out = open_source(particles), Path(out)
    paths = _stack_paths(source, out, samples)
    model, manifest = load_model(checkpoint or MANY, SR3)
    device = device or _best_device()
    model = model.to(device)
    batch_size = batch_size or (64 if device == "cpu" else 512)
    box = _network_box(source.stacks.box[0], manifest)
    noise = measured_noise(source, box, diameter_A, {"auto": 0, "bright": 1, "dark": -1}[contrast])
    _say(source, box, noise, manifest)
    options = {"steps": steps, "seed": seed, "samples": samples, "batch_size": batch_size}
    asked = options | {
        "input": [str(source.path.resolve()), source.path.stat().st_mtime_ns, len(source.table)],
        "weights": [str(checkpoint or MANY), Path(checkpoint or MANY).stat().st_mtime_ns],
        "measured": [round(noise.snr, 6), noise.sign, noise.radius_px],
    }
    writers = [StackWriter(path, source, asked) for path in paths]
    needed = sum(writer.missing_bytes for writer in writers)
    check_room(out.resolve().parent, needed, "or choose another folder")
    done = min(writer.done for writer in writers) // batch_size * batch_size
    batches = _batches(source, model, noise, box, done, options)
    with tqdm(total=len(source.table), initial=done, desc="denoise", unit=" images") as bar:
        for images in batches:
            for writer, stack_images in zip(writers, images, strict=True):
                writer.write(done, stack_images)
            done += len(images[0])
            bar.update(len(images[0]))
    for writer in writers:
        writer.finish()
    if source.blocks:
        _write_star(out, source, paths[0].name)
    print(f"wrote {out}" + "".join(f" and {path}" for path in paths if path != out))
    return out


def _batches(source: Source, model, noise: NoiseModel, box: int, done: int, options) -> Iterator:
    """Denoised images (and deviations of samples) of each batch from row `done` on, full size."""
    size, sigma = options["batch_size"], noise.sigma
    count = max(1, options["samples"])
    for first in range(done, len(source.table), size):
        given = source.read(range(first, min(first + size, len(source.table))), box)
        noisy, deviation = to_network(given, noise)
        drawn = []
        for k in range(count):
            seed = options["seed"] + 7919 * (first // size * count + k)
            steps = options["steps"] if options["samples"] else 1
            batch = denoise(model, noisy, sigma, steps, batch_size=size, seed=seed)
            drawn.append(from_network(torch.cat(list(batch)), deviation, given, noise))
        drawn = torch.stack(drawn)
        images = [drawn.mean(0), *([drawn.std(0)] if count > 1 else [])]
        full = source.stacks.box[0]
        yield [Particles(i, given.optics, given.table).resampled(full).images for i in images]


class StackWriter:
    """A stack that is appended to and renamed when whole; MRC mode 2.

    Attributes
    ----------
    done : int
        Images that an earlier run with the same parameters has left.
    """

    def __init__(self, path: Path, source: Source, asked: dict):
        self.path, self.count, self.box = path, len(source.table), source.stacks.box[0]
        self.part = path.with_name(f".{path.name}.part")
        self.record = path.with_name(f".{path.name}.run.json")
        self.done = 0
        if self.part.is_file() and self.record.is_file():
            if json.loads(self.record.read_text()) != asked:
                raise ValueError(
                    f"{self.part} is an unfinished run with other options or another input: give "
                    f"those to go on, or delete it to start anew"
                )
            self.done = max(0, self.part.stat().st_size - HEADER) // (4 * self.box**2)
            return
        try:
            _write_header(self.part, self.count, source)
            self.record.write_text(json.dumps(asked))
        except OSError as error:
            raise OSError(
                f"cannot write to {path.parent} ({error.strerror}): choose another folder"
            ) from error

    @property
    def missing_bytes(self) -> int:
        """Room that the rest of the stack needs."""
        return 4 * self.box**2 * (self.count - self.done)

    def write(self, first: int, images: torch.Tensor) -> None:
        """Write images (n, y, x) at row `first`."""
        try:
            with open(self.part, "r+b") as file:
                file.truncate(HEADER + 4 * self.box**2 * first)
                file.seek(0, os.SEEK_END)
                file.write(np.ascontiguousarray(images.numpy(), dtype="<f4").tobytes())
        except OSError as error:
            kept = f"{self.path}: {error.strerror}; {first:,} images are kept"
            raise OSError(error.errno, kept) from error

    def finish(self) -> None:
        """Give the whole stack its name."""
        os.replace(self.part, self.path)
        self.record.unlink()


def _write_header(path: Path, count: int, source: Source) -> None:
    """MRC2014 header of a float32 image stack, its statistics marked as not determined."""
    pixel_A = float(source.optics["rlnImagePixelSize"].iloc[0])
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.zeros((1, *source.stacks.box), dtype=np.float32))
        mrc.set_image_stack()
        mrc.voxel_size = pixel_A
        header = mrc.header.copy()
    for name, value in ({"nz": count} | NOT_DETERMINED).items():
        header[name] = value
    path.write_bytes(header.tobytes())


def _stack_paths(source: Source, out: Path, samples: int) -> list[Path]:
    """Stacks to write, of means and deviations; none of another kind, or in place of the input."""
    if samples < 0:
        raise ValueError(f"samples is {samples}: ask for none (the posterior mean), one or more")
    if source.blocks and out.suffix != ".star":
        raise ValueError(f"{out}: the input is a STAR file, so end the output in .star")
    if not source.blocks and out.suffix not in STACKS:
        raise ValueError(f"{out}: the input is a stack, so end the output in .mrcs")
    if len(out.name.split()) != 1:
        raise ValueError(f"{out.name!r} has blanks, at which RELION would cut it: choose another")
    check_writable(out)
    stack = out.with_suffix(".mrcs") if source.blocks else out
    paths = [stack, *([stack.with_name(f"{stack.stem}_std{stack.suffix}")] if samples > 1 else [])]
    taken = {source.path.resolve(), *(p.resolve() for p in source.stacks.paths)}
    if taken & {p.resolve() for p in (out, *paths)}:
        raise ValueError(f"{out} would replace the input, which is never touched: choose another")
    return paths


def _network_box(box: int, manifest: dict) -> int:
    """Box that images are cropped to: the network's own, or what it can take below that."""
    known = int(manifest["options"].get("box_size", 64))
    if box < 16:
        raise ValueError(f"images of {box} px are too small to denoise: 16 px are the least")
    return min(known, box // 8 * 8)


def measured_noise(source: Source, box: int, diameter_A: float | None, sign: int) -> NoiseModel:
    """Noise of a file, from rows spread over all of it, in a box of the network."""
    rows = np.unique(np.linspace(0, len(source.table) - 1, MEASURED).round().astype(int))
    given = source.read(rows, box)
    pixel_A = given.pixel_size_A  # one for all, or this says so
    radius_px = None if diameter_A is None else diameter_A / 2 / pixel_A
    return measure_noise(given, radius_px, sign=sign)


def _say(source: Source, box: int, noise: NoiseModel, manifest: dict) -> None:
    """Print what was found, and where it lies outside what the network was trained on."""
    full = source.stacks.box[0]
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


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _write_star(out: Path, source: Source, stack: str) -> None:
    """Write the input's blocks with new image names, under another name first."""
    key = particle_block(source.blocks, source.path)
    names = [f"{i + 1:06d}@{stack}" for i in range(len(source.table))]
    blocks = source.blocks | {key: source.blocks[key].assign(rlnImageName=names)}
    with beside(out) as part:
        starfile.write(blocks, part)
