"""``cryonb audit``: a page that says what a denoiser invents, with a verdict for each test."""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from typing import NamedTuple

import torch

from cryonb.base.files import beside
from cryonb.data.volumes import load_volume
from cryonb.evaluation.audit import Denoiser, calibration, noise_only, pull, reappearance
from cryonb.evaluation.resolution import resolution_at
from cryonb.learning.diffusion import SR3, one_step
from cryonb.learning.weights import load_model
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.simulation.dataset import Dataset, read_dataset
from cryonb.simulation.simulate import clean_scale, projected_mask

CUTOFF_A = 20.0  # beyond which phases are made random


class Verdict(NamedTuple):
    """A line of the report: the question, what was found, what a control gives, the outcome."""

    test: str
    found: str
    control: str
    passed: bool


def audit_parser() -> argparse.ArgumentParser:
    """Options of `cryonb audit`."""
    parser = argparse.ArgumentParser(
        prog="cryonb audit",
        description="Test what a denoiser invents: on noise alone, on another molecule, on "
        "particles without detail; and whether a diffusion model's samples spread as they should.",
    )
    add = parser.add_argument
    add("denoiser", help="SR3 weights (.safetensors), or module:function (n, y, x) -> (n, y, x)")
    add("--data", required=True, help="folder of a data set, such as runs/quick/data/white")
    add("--other", default="prestin", help="a molecule that the denoiser does not know")
    add("--images", type=int, default=128, help="particles in each test")
    add("--samples", type=int, default=8, help="posterior samples for each particle")
    add("--steps", type=int, default=8, help="network evaluations of each")
    add("--seed", type=int, default=0)
    add("--out", default="audit.md", help="the report, Markdown")
    return parser


def audit_main(arguments: list[str]) -> int:
    """Audit a denoiser, with these command-line arguments."""
    args = audit_parser().parse_args(arguments)
    data = read_dataset(args.data)
    model = None
    if args.denoiser.endswith(".safetensors"):
        model = load_model(args.denoiser, SR3)[0]
        denoise = partial(one_step, model, sigma=data.sigma)
    else:
        denoise = _function(args.denoiser)
    lines = audit(denoise, data, args.other, args.images, args.seed)
    if model is not None:
        lines.append(_calibrated(model, data, args))
    text = _page(args.denoiser, args.data, lines)
    with beside(args.out) as part:
        part.write_text(text)
    print(text)
    return 0


def _function(name: str) -> Denoiser:
    """The function that `module:function` names; ValueError if there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name!r} is neither a .safetensors file nor module:function ({error})"
        ) from error


def audit(denoise: Denoiser, data: Dataset, other: str, n: int, seed: int = 0) -> list[Verdict]:
    """Run the tests that any denoiser can take, on n particles of `data` and of `other`."""
    volume, sigma, pixel = data.volume, data.sigma, data.pixel_size_A
    symmetry, clean = data.manifest["symmetry"], data.test.clean.images[:n]
    noise = noise_only(denoise, volume, sigma, n, symmetry=symmetry, pixel_size_A=pixel, seed=seed)
    stranger = load_volume(other, data.manifest["box_size"], pixel)
    generator = torch.Generator().manual_seed(seed)
    truth = project(stranger.map / clean_scale(stranger), random_rotations(n, generator))
    noisy = truth + sigma * torch.randn(truth.shape, generator=generator)
    drawn = pull(denoise, noisy, truth, volume, symmetry)
    back = reappearance(denoise, clean, sigma, pixel, CUTOFF_A, seed)
    removed, given = back.beyond
    resolution = [resolution_at(*curve, 0.5) for curve in (noise.fsc, noise.fsc_control)]
    return [
        Verdict(
            "noise alone: like the molecule?",
            f"outputs vary {noise.energy:.2f} times as much as particles, resemblance "
            f"{noise.resemblance:.2f}",
            f"resemblance {noise.control:.2f} with random phases",
            noise.energy < 0.1 and noise.resemblance < noise.control + 0.05,
        ),
        Verdict(
            "noise alone: a map of the molecule?",
            f"FSC with the molecule falls to 0.5 at {resolution[0]:.0f} Å",
            f"{resolution[1]:.0f} Å from the noise itself in the same poses (inf: never above)",
            resolution[0] >= 0.9 * resolution[1],
        ),
        Verdict(
            f"another molecule ({other}): pulled to the known one?",
            f"correlation {drawn.with_truth:.2f} with the truth, {drawn.with_known:.2f} with the "
            "known molecule",
            f"the truth itself: {drawn.control:.2f} with the known molecule",
            drawn.with_known < max(drawn.with_truth, drawn.control + 0.05),
        ),
        Verdict(
            f"detail beyond {CUTOFF_A:g} Å taken away: does it return?",
            f"correlation {removed:.2f} with what was taken away",
            f"{given:.2f} with what was given",
            removed < 0.1 or removed < given,
        ),
    ]


def _calibrated(model: SR3, data: Dataset, args) -> Verdict:
    """Calibration of an SR3's samples, inside the particle's mask."""
    n = min(args.images, len(data.test.noisy))
    noisy, clean = data.test.noisy.images[:n], data.test.clean.images[:n]
    samples = torch.stack(
        [one_step(model, noisy, data.sigma, args.steps, args.seed + s) for s in range(args.samples)]
    )
    found = calibration(samples, clean, projected_mask(data.mask, data.test.clean.rotations[:n]))
    nominal, covered = float(found.nominal[0]), float(found.coverage[0])
    return Verdict(
        "samples: as far apart as from the truth?",
        f"distance between them ÷ to the truth {found.between_to_truth:.2f}; the truth lies among "
        f"{args.samples} samples in {covered:.0%} of the pixels",
        f"exact sampler: 1 and {nominal:.0%}",
        found.between_to_truth > 0.8 and covered > nominal - 0.1,
    )


def _page(denoiser: str, data: str, lines: list[Verdict]) -> str:
    rows = [
        f"| {v.test} | {v.found} | {v.control} | {'passed' if v.passed else '**FAILED**'} |"
        for v in lines
    ]
    failed = sum(not v.passed for v in lines)
    verdict = "All tests passed." if not failed else f"{failed} of {len(lines)} tests failed."
    head = [
        f"# Audit of {denoiser}",
        f"On {data}. {verdict} A failed test says: at this noise level, do not take from the "
        "output what the input cannot show. Use it to look and to pick, and reconstruct from the "
        "raw images.",
        "",
        "| test | found | control | verdict |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"
