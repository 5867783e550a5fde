"""``cryonb abinitio``: a map from a file's particles alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cryonb.base.files import MAPS, check_writable, read_json, sole, write_json
from cryonb.base.options import AbInitioOptions
from cryonb.commands.denoise import measured_noise, network_box, open_input, read_input
from cryonb.data.maps import read_map, write_map
from cryonb.data.particle_file import ParticleFile
from cryonb.data.whitening import to_network, transfer_to_network
from cryonb.denoisers.abinitio import STAGES, Pass, ab_initio, posterior_mean
from cryonb.evaluation.metrics import correlation
from cryonb.physics.fourier import fourier_crop
from cryonb.physics.projection import shift_images
from cryonb.poses.symmetry import offered

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
    check_writable(out, MAPS)
    for name in ("most", "starts"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: ask for one or more")
    seeds = range(options.seed, options.seed + options.starts)
    paths = {str(seed): out.with_name(f"{out.stem}_start{seed}.mrc") for seed in seeds}
    source = open_input(particles, options)
    source.check_apart(out, *paths.values())
    with sole(out):
        return _from_starts(source, out, paths, options)


def _from_starts(source: ParticleFile, out: Path, paths: dict[str, Path], options) -> Path:
    """Make the starts that are missing, and write the best as the map."""
    record, asked = out.with_suffix(".json"), _asked(source, options)
    evidence = _finished(record, asked)
    white, sigma, how, pixel_A = _prepared(source, options)
    maps = {}
    for key, path in paths.items():
        if key not in evidence or not path.is_file():
            last = _one_start(white, sigma, int(key), how)
            write_map(path, fourier_crop(last.volume, source.stacks.box), pixel_A)
            evidence[key] = last.log_evidence
            write_json(record, {"asked": asked, "evidence": evidence})
        maps[key] = read_map(path)[0]
    best = max(maps, key=evidence.get)
    _compare(maps, best, evidence, white[:128], sigma, how | {"ctf": how["ctf"][:128]})
    write_map(out, maps[best], pixel_A)
    if options.symmetry == "C1" and (found := offered(maps[best])):
        group, agrees, usual = found
        print(
            f"  note: the map agrees with itself by {agrees:.2f} about an axis of {group} (by "
            f"{usual:.2f} about others): --symmetry {group} is worth a try"
        )
    shift = f" --most-shift {options.most_shift_A:g}" if options.most_shift_A else ""
    print(
        f"wrote {out}, {source.stacks.box} px at {pixel_A:g} Å/px; its hand and turn are chance.\n"
        f"Next: cryonb denoise {source.path} --reference {out}{shift} --out ..."
    )
    return out


def _asked(source: ParticleFile, options: AbInitioOptions) -> dict:
    """Input and options that finished starts must share, as JSON has them."""
    shared = dataclasses.asdict(dataclasses.replace(options, starts=1, seed=0))
    values = {key: str(value) for key, value in shared.items()}
    return values | {"input": [str(source.path.resolve()), source.path.stat().st_mtime_ns]}


def _finished(record: Path, asked: dict) -> dict[str, float]:
    """Evidence of the starts that are finished; ValueError for the record of anything else."""
    if not record.exists():
        return {}
    found = read_json(record)
    if not isinstance(found, dict) or found.get("asked") != asked:
        raise ValueError(f"{record} is of another input or other options: choose another output")
    return found["evidence"]


def _prepared(source: ParticleFile, options: AbInitioOptions):
    """Some particles in white noise, its deviation, options of `ab_initio`, the file's Å/px."""
    rows = np.unique(np.linspace(0, len(source) - 1, options.most).round().astype(int))
    box = network_box(source.stacks.box, {"box_size": BOX})
    source.columns.check_ctf(options.ctf)
    noise = measured_noise(source, box, options)
    given = read_input(source, rows, options)
    small = given.resampled(box)
    white, background = to_network(small, noise)
    noisy = background.deviation.flatten() > 0
    white = shift_images(white, -small.shifts_px)[noisy]
    print(
        f"{source.path}: {len(white):,} of {len(source):,} particles, {box} px at "
        f"{small.pixel_size_A:.2f} Å/px; SNR {noise.snr:.3g}"
    )
    if not noisy.all():
        print(f"  note: {int((~noisy).sum())} images have no noise in their background: left out")
    transfer = transfer_to_network(small, noise).expand(len(noisy), -1, -1)[noisy]
    shift_px = options.most_shift_A / small.pixel_size_A
    how = {"symmetry": options.symmetry, "ctf": transfer, "most_shift_px": shift_px}
    return white, noise.sigma, how, given.pixel_size_A


def _one_start(white, sigma, seed: int, how: dict) -> Pass:
    """The last pass of one start, with a bar that shows the evidence of each."""
    passes = ab_initio(white, sigma, stages=STAGES, seed=seed, **how)
    total = sum(stage.passes for stage in STAGES)
    with tqdm(passes, total=total, desc=f"start {seed}", unit=" passes") as bar:
        for last in bar:
            bar.set_postfix_str(f"log evidence {last.log_evidence:.1f}")
    return last


def _compare(maps, best: str, evidence, noisy, sigma, how: dict) -> None:
    """Say what each start is worth, and whether its images are those of the best."""
    images = {}
    for key, volume in maps.items():
        small = fourier_crop(volume, noisy.shape[-1])
        last = Pass(small, evidence[key], STAGES[-1])
        images[key] = posterior_mean(last, noisy, sigma, **how)
    alike = {key: float(correlation(x, images[best]).mean()) for key, x in images.items()}
    for key, r in alike.items():
        said = "the best" if key == best else f"images correlate by {r:.3f} with the best's"
        print(f"start {key}: log evidence {evidence[key]:.1f} a particle, {said}")
    if min(alike.values()) < ALIKE:
        print("  note: the starts disagree: several molecules, or too few particles?")
