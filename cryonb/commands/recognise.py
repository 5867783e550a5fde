"""``cryonb denoise --reference``: what a known structure makes of a file's particles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
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
from cryonb.poses.reference import fit_amplitude, recogniser, widening
from cryonb.poses.templates import volume_templates

FITTED = 256  # particles, spread over the file, that a reference is scaled to
NUMBERS = (*ANGLES, *ORIGINS, "rlnMaxValueProbDistribution", "cryonbLogEvidence")
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
        A reference that does not fit the box or lacks the symmetry; no half sets.
    """
    halves = options.half_maps is not None
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
    return alpha, widened


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
