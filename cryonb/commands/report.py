"""``cryonb audit``: a page that says what a denoiser invents, with a verdict for each test."""

from __future__ import annotations

import argparse
import importlib
from functools import partial

import torch

from cryonb.base.files import beside
from cryonb.data.volumes import load_volume
from cryonb.evaluation.audit import Denoiser, Row, audit, audit_samples
from cryonb.learning.diffusion import SR3, one_step
from cryonb.learning.weights import load_model
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.simulation.dataset import read_dataset
from cryonb.simulation.simulate import clean_scale, projected_mask


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
    noisy, clean = (x.images[: args.images] for x in (data.test.noisy, data.test.clean))
    other = load_volume(args.other, clean.shape[-1], data.pixel_size_A)
    generator = torch.Generator().manual_seed(args.seed)
    rotations = random_rotations(args.images, generator)
    truth = project(other.map / clean_scale(other), rotations)
    unknown = truth + data.sigma * torch.randn(truth.shape, generator=generator), truth
    about = data.sigma, data.pixel_size_A, data.manifest["symmetry"], args.seed
    rows = audit(denoise, data.volume, clean, unknown, *about)
    if model is not None:
        seeds = range(args.seed, args.seed + args.samples)
        draws = torch.stack([one_step(model, noisy, data.sigma, args.steps, s) for s in seeds])
        inside = projected_mask(data.mask, data.test.clean.rotations[: args.images])
        rows.append(audit_samples(draws, clean, inside))
    text = _page(args.denoiser, args.data, rows)
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


def _page(denoiser: str, data: str, rows: list[Row]) -> str:
    """The report in Markdown."""
    lines = [
        f"| {test} | {found} | {control} | {'passed' if passed else '**FAILED**'} |"
        for test, found, control, passed in rows
    ]
    failed = sum(not row.passed for row in rows)
    verdict = f"{failed} of {len(rows)} tests failed." if failed else "All tests passed."
    return f"""# Audit of {denoiser}
On {data}. {verdict} A failed test says: at this noise level, do not take from the output what the \
input cannot show. Use it to look and to pick, and reconstruct from the raw images.

| test | found | control | verdict |
|---|---|---|---|
""" + "".join(f"{line}\n" for line in lines)
