"""``cryonb abinitio``: a map from a file's particles alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cryonb.base.files import check_writable, read_json, write_json
from cryonb.base.options import AbInitioOptions, DenoiseOptions
from cryonb.commands.denoise import measured_noise
from cryonb.data.maps import read_map, write_map
from cryonb.data.particle_file import ParticleFile, open_particles
from cryonb.data.whitening import to_network, transfer_to_network
from cryonb.denoisers.abinitio import STAGES, Pass, ab_initio, posterior_mean
from cryonb.evaluation.metrics import correlation
from cryonb.physics.fourier import fourier_crop
from cryonb.physics.projection import shift_images

BOX = 64  # pixels that larger images are cropped to: the map ends at shell 13
ALIKE = 0.9  # correlation of denoised images below which two starts found different maps


def abinitio_file(
    particles: str | os.PathLike,
    out: str | os.PathLike,
    options: AbInitioOptions = AbInitioOptions(),
) -> Path:
    """Make a map from a particle file without poses, from several random starts.

    Beside `out`, each start's map is in `OUT_startK.mrc` and its evidence in `OUT.json`. Run again
    after a break, finished starts are kept.

    Returns
    -------
    Path
        `out`: the map of the start with the highest evidence, in the box of the particles.

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        One line that says what is wrong with the input, the options or the disk; particles that
        speak for no map.
    """
    out = Path(out)
    check_writable(out)
    if out.suffix != ".mrc":
        raise ValueError(f"{out}: end the map's name in .mrc")
    for name in ("most", "starts"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: ask for one or more")
    source = open_particles(particles, root=options.root, pixel_size_A=options.pixel_size_A)
    white, sigma, transfer, pixel_A = _prepared(source, options)
    stat = source.path.stat()
    asked = {"input": [str(source.path.resolve()), stat.st_mtime_ns]} | {
        key: value for key, value in dataclasses.asdict(options).items() if key != "starts"
    }
    asked["root"] = str(options.root)
    record, evidence = out.with_suffix(".json"), {}
    if record.is_file() and (old := read_json(record)).get("asked") == asked:
        evidence = old["evidence"]
    maps = {}
    for seed in range(options.seed, options.seed + options.starts):
        path, key = out.with_name(f"{out.stem}_start{seed}.mrc"), str(seed)
        if key not in evidence or not path.is_file():
            last = _one_start(white, sigma, transfer, seed, options.symmetry)
            write_map(path, fourier_crop(last.volume, source.stacks.box), pixel_A)
            evidence[key] = last.log_evidence
            write_json(record, {"asked": asked, "evidence": evidence})
        maps[key] = read_map(path)[0]
    best = max(maps, key=evidence.get)
    _compare(maps, best, evidence, white[:128], sigma, transfer[:128], options.symmetry)
    write_map(out, maps[best], pixel_A)
    print(
        f"wrote {out}, {source.stacks.box} px at {pixel_A:g} Å/px; hand and place are chance.\n"
        f"Next: cryonb denoise {source.path} --reference {out} --out ..."
    )
    return out


def _prepared(source: ParticleFile, options: AbInitioOptions):
    """Some particles in white noise, its deviation, what filters them, the file's Å per pixel."""
    rows = np.unique(np.linspace(0, len(source) - 1, options.most).round().astype(int))
    box = min(BOX, source.stacks.box // 8 * 8)
    how = DenoiseOptions(diameter_A=options.diameter_A, contrast=options.contrast)
    noise = measured_noise(source, box, how)
    given = source.read(rows)
    if not given.pixel_size_A > 0:
        raise ValueError(f"{source.path} states no pixel size: --pixel-size gives one")
    small = given.resampled(box)
    white = shift_images(to_network(small, noise)[0], -small.shifts_px)
    print(
        f"{source.path}: {len(rows):,} of {len(source):,} particles, {box} px at "
        f"{small.pixel_size_A:.2f} Å/px; SNR {noise.snr:.3g}"
    )
    transfer = transfer_to_network(small, noise).expand(len(white), -1, -1)
    return white, noise.sigma, transfer, given.pixel_size_A


def _one_start(white, sigma, transfer, seed: int, symmetry: str) -> Pass:
    """The last pass of one start, with a bar that shows the evidence of each."""
    passes = ab_initio(white, sigma, symmetry, ctf=transfer, stages=STAGES, seed=seed)
    total = sum(stage.passes for stage in STAGES)
    with tqdm(passes, total=total, desc=f"start {seed}", unit=" passes") as bar:
        for last in bar:
            bar.set_postfix_str(f"log evidence {last.log_evidence:.1f}")
    return last


def _compare(maps, best: str, evidence, noisy, sigma, transfer, symmetry: str) -> None:
    """Say what each start is worth, and whether its images are those of the best."""
    images = {}
    for key, volume in maps.items():
        small = fourier_crop(volume, noisy.shape[-1])
        last = Pass(small, evidence[key], STAGES[-1])
        images[key] = posterior_mean(last, noisy, sigma, symmetry, ctf=transfer)
    alike = {key: float(correlation(x, images[best]).mean()) for key, x in images.items()}
    for key, r in alike.items():
        ending = (
            "the best"
            if key == best
            else f"its denoised images correlate by {r:.3f} with the best's"
        )
        print(f"start {key}: log evidence {evidence[key]:.1f} a particle, {ending}")
    if min(alike.values()) < ALIKE:
        print(
            "  note: the starts do not agree: there may be several molecules, or too few particles"
        )
