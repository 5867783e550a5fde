"""``cryonb denoise``: particle stacks of any length through a diffusion model, all or nothing.

Images are read from memory-mapped stacks, Fourier-cropped to the box that the network knows,
measured and whitened (`cryonb.data.whitening`), denoised, and brought back to the box, the
intensities and the CTF that they had. How a run is shared and goes on after a break is in
`cryonb.commands.shards`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cryonb.base.files import check_writable, sole
from cryonb.base.options import DenoiseOptions, Reading
from cryonb.base.workers import count_cores, process_pool
from cryonb.commands.recognise import NUMBERS, fit_references, recognisers
from cryonb.commands.remember import learn_memories, memory_paths, with_memories
from cryonb.commands.shards import Unfinished, begin, split
from cryonb.data.particle_file import ParticleFile, open_particles
from cryonb.data.particles import Particles
from cryonb.data.whitening import NoiseModel, from_network, measure_noise, to_network
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.weights import MANY, load_model

MEASURED = 1000  # images, spread over the file, that the noise is measured on


def denoise_file(
    particles: str | os.PathLike,
    out: str | os.PathLike,
    options: DenoiseOptions = DenoiseOptions(),
) -> Path:
    """What ``cryonb denoise`` does; returns `out`, which is there when all shards are done.

    Memory does not grow with the number of images. Run again after a break, it goes on.
    FileNotFoundError, ValueError or OSError is one line that says what is wrong with the input, the
    options or the disk.
    """
    out, options = Path(out), _settled(options)
    source = open_input(particles, options)
    paths = _stack_paths(source, out, options)
    with sole(paths[0]) if options.shard is None else nullcontext():
        run = _filled(source, paths, options)
        _finish(source, run, out, options)
    return out


def _filled(source: ParticleFile, paths: list[Path], options: DenoiseOptions) -> Unfinished:
    """Do what is missing of a run, or of one shard of it."""
    noise = _look(source, options)
    run = _begin(source, paths, noise, options)
    if options.shards and options.shard is None:
        _in_processes(source, run, noise, options)
    else:
        of, shard = options.shards or 1, options.shard or 1
        batches = split(-(-len(source) // run.batch_size), of)[shard - 1]
        _fill(source, run, batches, noise, options)
    return run


def _finish(source: ParticleFile, run: Unfinished, out: Path, options: DenoiseOptions) -> None:
    """Name the stacks and write the table, if the run is whole."""
    paths = run.paths
    others = [path for path in paths if path != out]
    columns = NUMBERS if _known(options) else ()

    def write_table() -> None:
        numbers = run.numbers.T if columns else ()
        source.write_like(out, paths[0].name, dict(zip(columns, numbers, strict=True)))

    if run.finish(write_table):
        print(f"wrote {out}" + "".join(f" and {path}" for path in others))
    else:
        print(f"shard {options.shard} is done; {len(run.missing)} batches are left to others")


def _known(options: DenoiseOptions) -> tuple[str, ...]:
    """References, if there are any: one for each half set, or one for all."""
    return options.half_maps or ((options.reference,) if options.reference else ())


def _remembers(options: DenoiseOptions) -> bool:
    return options.memory != "none"


def _check_method(options: DenoiseOptions) -> None:
    """ValueError for two denoisers at once, or for options of the one that is not asked for."""
    given = [name for name in ("checkpoint", "reference", "half_maps") if getattr(options, name)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are different denoisers: give one of them")
    of_reference = ("symmetry", "spacing_deg", "most_shift_A")
    if _remembers(options) and (options.samples or _known(options)):
        raise ValueError("--memory gives the network's mean a memory: not samples or a reference")
    default = DenoiseOptions()
    for name in () if _known(options) else of_reference:
        if getattr(options, name) != getattr(default, name):
            raise ValueError(f"{name} is an option of --reference, which is not given")


def _settled(options: DenoiseOptions) -> DenoiseOptions:
    """Options with a device and a batch size; ValueError for impossible ones."""
    _check_method(options)
    if options.samples < 0:
        raise ValueError(f"samples is {options.samples}: ask for none (the mean), one or more")
    for name in ("steps", "batch_size", "shards"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"{name} is {value}: ask for one or more")
    if options.shard is not None and options.shards is None:
        raise ValueError(f"shard {options.shard} of how many? Give --shards, too")
    if options.shard is not None and not 1 <= options.shard <= options.shards:
        raise ValueError(f"shard is {options.shard}: count from 1 to --shards {options.shards}")
    device = options.device or best_device()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"torch has no device {device!r} here: try --device cpu") from error
    size = options.batch_size or (64 if device == "cpu" else 512)
    return dataclasses.replace(options, device=device, batch_size=size)


def open_input(particles: str | os.PathLike, options: Reading) -> ParticleFile:
    """A particle file, opened as the options say."""
    names = ("root", "pixel_size_A", "passthrough")
    return open_particles(particles, **{name: getattr(options, name) for name in names})


def _stack_paths(source: ParticleFile, out: Path, options: DenoiseOptions) -> list[Path]:
    """Stacks to write, of means and deviations; none of another kind, or in place of the input."""
    check_writable(out, source.writes)
    if out.suffix == ".cs" and _known(options):
        raise ValueError(f"{out}: a .cs file has no place for poses and evidence: end in .star")
    if len(out.name.split()) != 1:
        raise ValueError(f"{out.name!r} has blanks, at which RELION would cut it: choose another")
    stack = out if source.original is None else out.with_suffix(".mrcs")
    paths = [stack]
    if options.samples > 1:
        paths.append(stack.with_name(f"{stack.stem}_std{stack.suffix}"))
    source.check_apart(out, *paths, *sum(memory_paths(stack, source) * _remembers(options), []))
    return paths


def _begin(
    source: ParticleFile, paths: list[Path], noise: NoiseModel, options: DenoiseOptions
) -> Unfinished:
    """Begin or go on with a run of this input and these options."""
    weights = Path(options.checkpoint or MANY)
    said = ["memory", "samples", "steps", "seed", "batch_size", "contrast", "diameter_A", "ctf"]
    said += ["symmetry", "spacing_deg", "most_shift_A"]
    stats = [path.stat() for path in source.stacks.paths]
    asked = {name: getattr(options, name) for name in said} | {
        "input": [str(source.path.resolve()), source.path.stat().st_mtime_ns, len(source)],
        "stacks": [sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)],
        "pixel_size_A": float(source.optics["rlnImagePixelSize"].iloc[0]),
        "references": [
            [name, Path(name).stat().st_mtime_ns if Path(name).is_file() else 0]
            for name in _known(options)
        ],
        "weights": [str(weights), weights.stat().st_mtime_ns],
    }
    shape = (len(source), source.stacks.box)
    how = paths, shape, asked["pixel_size_A"], options.batch_size, asked
    if _remembers(options):
        read = partial(read_input, source, options=options)
        maps, model = memory_paths(paths[0], source), _network(options)
        return begin(*how, measure=partial(learn_memories, source, read, model, noise, maps))
    if not _known(options):
        return begin(*how)
    return begin(*how, len(NUMBERS), partial(fit_references, source, noise, options))


def _in_processes(source, run: Unfinished, noise: NoiseModel, options: DenoiseOptions) -> None:
    """Fill the stacks by so many processes that share the cores."""
    missing = run.missing
    parts = [[missing[k] for k in part] for part in split(len(missing), options.shards) if part]
    if not parts:
        return
    with process_pool(len(parts), max(1, count_cores() // len(parts))) as pool:
        work = [pool.submit(_fill, source.path, run, part, noise, options, True) for part in parts]
        try:
            for done in tqdm(as_completed(work), total=len(work), desc="denoise", unit=" shards"):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fill(
    source: ParticleFile | Path,
    run: Unfinished,
    batches: Iterable[int],
    noise: NoiseModel,
    options: DenoiseOptions,
    quiet: bool = False,
) -> None:
    """Denoise those of some batches that are missing, and say which images were left alone."""
    source = open_input(source, options) if isinstance(source, Path) else source
    if _known(options):
        draw = recognisers(source, run.found, noise, options)
    else:
        draw = partial(_drawn, _network(options))
        if _remembers(options):
            maps = memory_paths(run.paths[0], source)
            draw = with_memories(draw, source, run.found, maps, options.memory)
    todo, empty = sorted(set(batches) & set(run.missing)), []
    for batch in tqdm(todo, desc="denoise", unit=" batches", disable=quiet):
        rows = run.rows(batch)
        given = read_input(source, rows, options)
        small = given.resampled(2 * (len(noise.spectrum) - 1))
        white, background = to_network(small, noise)
        blank = background.deviation == 0
        stacks, drawn = [], draw(white, small, noise, batch, options)
        numbers = next(drawn) if _known(options) else None
        for images in drawn:
            back = from_network(images, background, small, noise)
            full = dataclasses.replace(small, images=back).resampled(given.box_size).images
            stacks.append(torch.where(blank, given.images, full))
        stacks = torch.stack(stacks)
        mean, samples = stacks.mean(0), stacks
        if _known(options):
            mean, samples = stacks[0], stacks[1:]
        deviations = [samples.std(0)] if options.samples > 1 else []
        run.write(batch, [mean, *deviations], numbers)
        empty += [rows[k] + 1 for k in np.flatnonzero(blank.numpy())]
    if empty:
        print(
            f"  note: {len(empty)} images have no noise in their background and stay as they are, "
            f"the first is number {empty[0]}"
        )


def _network(options: DenoiseOptions) -> SR3:
    return load_model(options.checkpoint or MANY, SR3)[0].to(options.device)


def _drawn(model, white, _, noise: NoiseModel, batch: int, options: DenoiseOptions) -> Iterator:
    """The posterior mean of a batch, or its samples; each batch has noise of its own."""
    count = max(1, options.samples)
    for k in range(count):
        seed = options.seed + 7919 * (batch * count + k)
        how = {"batch_size": len(white), "seed": seed}
        steps = options.steps if options.samples else 1
        yield denoise(model, white, noise.sigma, steps, **how)


def read_input(source: ParticleFile, rows, options: Reading) -> Particles:
    """Particles of some rows, with or without a CTF as the options say."""
    given = source.read(rows)
    return given if options.ctf == "auto" else given.with_ctf(options.ctf == "on")


def _look(source: ParticleFile, options: DenoiseOptions) -> NoiseModel:
    """Measure a file's noise; print what was found, and where the network has not been trained."""
    manifest = load_model(options.checkpoint or MANY, SR3)[1]["options"]
    full, box = source.stacks.box, network_box(source.stacks.box, manifest)
    source.columns.check_ctf(options.ctf)
    noise = measured_noise(source, box, options)
    pixel_A = float(source.optics["rlnImagePixelSize"].iloc[0]) * full / box
    contrast = "bright" if noise.sign > 0 else "dark (turned for the network, and back)"
    print(
        f"{source.path}: {len(source):,} images of {full} px; network at {box} px, "
        f"{f'{pixel_A:.2f}' if pixel_A else 'unknown'} Å/px; SNR {noise.snr:.3g}; "
        f"particles {contrast}"
    )
    if not pixel_A:
        print("  note: no pixel size is stated, so none is written: --pixel-size gives one")
    low, high = manifest.get("snr_range") or [manifest.get("snr", noise.snr)] * 2
    if not _known(options) and not 0.7 * low <= noise.snr <= 1.4 * high:
        print(f"  note: the network was trained at SNR {low:g} to {high:g}; expect less of it here")
    return noise


def network_box(box: int, trained: dict) -> int:
    """Box that images are cropped to: the network's own, or what it can take below that."""
    if box < 16:
        raise ValueError(f"images of {box} px are too small to denoise: 16 px are the least")
    return min(int(trained.get("box_size", 64)), box // 8 * 8)


def measured_noise(source: ParticleFile, box: int, options: Reading = Reading()) -> NoiseModel:
    """Noise of a file, from rows spread over all of it, in a box of the network."""
    rows = np.unique(np.linspace(0, len(source) - 1, MEASURED).round().astype(int))
    given = read_input(source, rows, options).resampled(box)
    diameter_A = options.diameter_A
    radius_px = None if diameter_A is None else diameter_A / 2 / given.pixel_size_A
    sign = {"auto": 0, "bright": 1, "dark": -1}[options.contrast]
    return measure_noise(given, radius_px, sign=sign)


def best_device() -> str:
    """Name of the fastest device that torch finds."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
