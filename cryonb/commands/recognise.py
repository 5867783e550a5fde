"""``cryonb denoise --reference``: what a known structure makes of a file's particles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import psutil
import torch

from cryonb.base.options import DenoiseOptions
from cryonb.data.particle_file import ParticleFile
from cryonb.data.particles import Particles
from cryonb.data.star import ANGLES, ORIGINS
from cryonb.data.volumes import load_volume
from cryonb.data.whitening import NoiseModel, to_network, transfer_to_network
from cryonb.evaluation.metrics import correlation
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.geometry import matrix_to_euler, random_rotations, symmetry_rotations
from cryonb.physics.projection import project
from cryonb.poses.reference import COARSE_DEG, fit_amplitude, recogniser, widening
from cryonb.poses.templates import volume_templates

TRIED = 32  # particles that scales of a reference are tried on
FITTED = 256  # particles, spread over the file, that a reference is scaled to
NUMBERS = (*ANGLES, *ORIGINS, "rlnMaxValueProbDistribution", "cryonbLogEvidence")
SCALES = (0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06)  # of a reference, tried on some particles
HAND = "images cannot tell the hand of a reference: its mirror image fits them as well"
NOTE = "one reference for both half sets: an FSC between their maps means nothing: see --half-maps"


def fit_references(source: ParticleFile, noise: NoiseModel, options: DenoiseOptions) -> list:
    """Scale each reference to particles that it is for; say what they say of it.

    Returns
    -------
    list of (float, float)
        For each reference its amplitude and the factor on sigma.

    Raises
    ------
    ValueError
        A reference that does not fit the box or lacks the symmetry; no half sets; more memory than
        there is.
    """
    halves = options.half_maps is not None
    _check_memory(2 * (len(noise.spectrum) - 1), options)
    if halves and "rlnRandomSubset" not in source.table:
        raise ValueError(f"{source.path} has no half sets (rlnRandomSubset): give one --reference")
    if halves and set(source.table["rlnRandomSubset"]) != {1, 2}:
        raise ValueError(f"{source.path} has other half sets than 1 and 2: give one --reference")
    names = options.half_maps or (options.reference,)
    fits = [
        _fit(name, source, noise, options, half if halves else None)
        for half, name in enumerate(names, 1)
    ]
    if not halves:
        print(f"  note: {NOTE}")
    print(f"  note: {HAND}")
    return fits


def recognisers(
    source: ParticleFile, fits: list, noise: NoiseModel, options: DenoiseOptions
) -> Callable[..., Iterator]:
    """A function that yields the numbers of a batch, its mean and its samples."""
    halves = options.half_maps is not None
    box = 2 * (len(noise.spectrum) - 1)
    pixel_A = float(source.optics["rlnImagePixelSize"].iloc[0]) * source.stacks.box / box
    made = [
        recogniser(
            alpha * _volume(name, box, pixel_A),
            noise.sigma,
            options.symmetry,
            spacing_deg=options.spacing_deg,
            most_shift_px=options.most_shift_A / pixel_A,
            widened=widened,
        )
        for name, (alpha, widened) in zip(
            options.half_maps or (options.reference,), fits, strict=True
        )
    ]

    def draw(white, small: Particles, noise: NoiseModel, batch: int, options) -> Iterator:
        transfer = transfer_to_network(small, noise)
        images = white.new_zeros(1 + options.samples, *white.shape)
        numbers = torch.zeros(len(white), len(NUMBERS), dtype=torch.float64)
        for half, recognise in enumerate(made, 1):
            rows = torch.arange(len(white)) if not halves else (small.half == half).nonzero()[:, 0]
            if not len(rows):
                continue
            its = transfer if len(transfer) == 1 else transfer[rows]
            generator = torch.Generator().manual_seed(options.seed + 7919 * batch + half)
            found = recognise(white[rows], its, options.samples, generator)
            for k, stack in enumerate([found.mean, *found.samples]):
                images[k, rows] = apply_ctf(stack, its)
            origins_A = -found.shifts_px * small.pixel_size_A
            last = torch.stack([found.best_share, found.log_evidence], dim=1)
            columns = [matrix_to_euler(found.rotations), origins_A, last]
            numbers[rows] = torch.cat([c.double() for c in columns], dim=1)
        yield numbers.numpy()
        yield from images

    return draw


def _volume(name, box: int, pixel_A: float) -> torch.Tensor:
    """A reference in a box of the network, its surroundings at 0."""
    volume = load_volume(name, box, pixel_A).map
    return volume - volume.median()


def _fit(name, source: ParticleFile, noise: NoiseModel, options, half) -> tuple[float, float]:
    """Amplitude of a reference and factor on sigma, from particles of the file or a half set."""
    rows = np.arange(len(source))
    if half is not None:
        rows = rows[source.table["rlnRandomSubset"] == half]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, FITTED).astype(int))]
    given = source.read(rows)
    given = given if options.ctf == "auto" else given.with_ctf(options.ctf == "on")
    some = given.resampled(2 * (len(noise.spectrum) - 1))
    volume = _volume(name, some.box_size, some.pixel_size_A)
    _check_symmetry(name, volume, options.symmetry)
    white, transfer = to_network(some, noise)[0], transfer_to_network(some, noise)
    shift = {"ctf": transfer, "most_shift_px": options.most_shift_A / some.pixel_size_A}
    alpha = fit_amplitude(volume, white, noise.sigma, options.symmetry, **shift)
    templates = volume_templates(alpha * volume, options.spacing_deg, options.symmetry)
    widened = widening(alpha * volume, templates, noise.sigma, transfer)
    asked = {"spacing_deg": options.spacing_deg, "most_shift_px": shift["most_shift_px"]}
    recognise = recogniser(alpha * volume, noise.sigma, options.symmetry, widened=widened, **asked)
    evidence = float(recognise(white[:64], transfer[:64]).log_evidence.median())
    print(f"  reference {name}: times {alpha:.3g}; median log evidence {evidence:.1f}")
    if evidence < 0:
        print(f"  note: the particles speak against {name}, or are too weak to speak for it")
    _note_place(name, volume, some.pixel_size_A)
    shift |= {"ctf": transfer[:TRIED]}
    _note_scale(name, white[:TRIED], noise.sigma, some.pixel_size_A, options.symmetry, **shift)
    return alpha, widened


def _note_place(name, volume: torch.Tensor, pixel_A: float) -> None:
    """Say so if a reference does not stand in the middle of its box."""
    at = torch.arange(len(volume)) - len(volume) // 2
    mass = volume.clamp_min(0)
    mass = mass * (mass > 0.2 * mass.max())
    centre = [mass.movedim(axis, 0).sum((1, 2)) @ at.float() / mass.sum() for axis in (2, 1, 0)]
    away_A = pixel_A * float(torch.stack(centre).norm())
    if away_A > 0.1 * len(volume) * pixel_A:
        print(
            f"  note: {name} stands {away_A:.0f} Å from the middle of its box, and so will every "
            "pose: centre it, or give --most-shift as much more"
        )


def _note_scale(name, white, sigma: float, pixel_A: float, symmetry: str, **shift) -> None:
    """Say so if a reference fits particles better when it is larger or smaller by some per cent."""
    evidence = {}
    for scale in SCALES:
        with suppress(ValueError):  # too large for the box
            volume = _volume(name, white.shape[-1], pixel_A / scale)
            volume = volume * fit_amplitude(volume, white, sigma, symmetry, **shift)
            asked = {"spacing_deg": COARSE_DEG, "most_shift_px": shift["most_shift_px"]}
            recognise = recogniser(volume, sigma, symmetry, widened=1.4, **asked)
            evidence[scale] = float(recognise(white, shift["ctf"]).log_evidence.sum())
    best = max(evidence, key=evidence.__getitem__)
    if evidence[best] > evidence[1.0] + 10:
        print(
            f"  note: the particles fit {name} best at {best:.0%} of its size: compare the pixel "
            "sizes of both"
        )


def _check_memory(box: int, options) -> None:
    """ValueError if templates and the padded transform want more memory than there is."""
    solid_angle = max(math.radians(options.spacing_deg) ** 2, 1e-12)
    m = 4 * math.pi / solid_angle / len(symmetry_rotations(options.symmetry))
    references = 2 if options.half_maps is not None else 1
    need = references * (16 * m * box**2 + 100 * box**3)
    there = psutil.virtual_memory().available
    if need > there:
        raise ValueError(
            f"{m:,.0f} directions of view of {box} px want {need / 1e9:,.0f} GB, and there are "
            f"{there / 1e9:.0f}: give a larger --spacing-deg, or --symmetry"
        )


def _check_symmetry(name: str, volume: torch.Tensor, symmetry: str) -> None:
    """ValueError unless projections in poses that the symmetry makes alike are alike."""
    poses = random_rotations(8, torch.Generator().manual_seed(0))
    views = project(volume, poses)
    for turn in symmetry_rotations(symmetry):
        alike = float(correlation(project(volume, turn @ poses), views).mean())
        if alike < 0.9:
            raise ValueError(
                f"{name} has no symmetry {symmetry} about its box's axes (its copies correlate by "
                f"{alike:.2f}): give --symmetry C1, or a reference that has it"
            )
