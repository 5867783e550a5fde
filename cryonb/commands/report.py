"""``cryonb audit``: a page that says what a denoiser invents, with a verdict for each test."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial

import torch

from cryonb.base.files import beside, check_writable
from cryonb.base.options import AuditOptions
from cryonb.data.volumes import load_volume
from cryonb.evaluation.audit import Denoiser, Row, audit, audit_samples
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.weights import load_model
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.simulation.dataset import read_dataset
from cryonb.simulation.simulate import clean_scale, projected_mask


def write_audit(
    denoiser: str, data: str | os.PathLike, out: str | os.PathLike, options: AuditOptions
) -> str:
    """Audit a denoiser on a folder of data, see `cryonb audit`; returns the page that it wrote."""
    check_writable(out)
    given = read_dataset(data)
    model = load_model(denoiser, SR3)[0] if denoiser.endswith(".safetensors") else None
    apply = partial(denoise, model, sigma=given.sigma) if model else _function(denoiser)
    noisy, clean = (x.images[: options.images] for x in (given.test.noisy, given.test.clean))
    unknown = load_volume(options.other, clean.shape[-1], given.pixel_size_A)
    generator = torch.Generator().manual_seed(options.seed)
    truth = project(unknown.map / clean_scale(unknown), random_rotations(options.images, generator))
    unseen = truth + given.sigma * torch.randn(truth.shape, generator=generator), truth
    about = given.sigma, given.pixel_size_A, given.manifest["symmetry"], options.seed
    rows = audit(apply, given.volume, clean, unseen, *about)
    if model:
        seeds = range(options.seed, options.seed + options.samples)
        draws = torch.stack(
            [denoise(model, noisy, given.sigma, options.steps, seed=s) for s in seeds]
        )
        inside = projected_mask(given.mask, given.test.clean.rotations[: options.images])
        rows.append(audit_samples(draws, clean, inside))
    text = _page(denoiser, data, rows)
    with beside(out) as part:
        part.write_text(text)
    return text


def _function(name: str) -> Denoiser:
    """The function that `module:function` names; ValueError if there is none."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:  # the script cryonb is not run from here, python -m is
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name!r} is neither a .safetensors file nor module:function ({error})"
        ) from error


def _page(denoiser: str, data: str | os.PathLike, rows: list[Row]) -> str:
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
