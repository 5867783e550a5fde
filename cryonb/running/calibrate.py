"""How long the notebooks take on this machine: measured times, scaled by a short calibration.

``notebooks/times.yml`` holds what each notebook took in a whole run, and how fast the machine of
that run was at the two things that take most of the time: a training step, and projections with a
matrix product. The same two are measured here, and their ratio scales the times.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from cryonb.base.files import read_yaml
from cryonb.learning.diffusion import SR3
from cryonb.learning.train import draw_batch, sr3_loss, train
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.running.check import span
from cryonb.running.plan import find_notebooks
from cryonb.simulation.simulate import noise_sigma

BOX_SIZE, BATCH_SIZE = 64, 16  # of the profile quick
BUSY_PERCENT = 25.0  # a busier machine tells little of what it can do


@dataclass(frozen=True)
class Calibration:
    """Milliseconds that this machine needs for each image, in training and in projection."""

    training_ms: float
    projection_ms: float

    def slower_than(self, other: Calibration) -> float:
        """How many times longer this machine takes: the geometric mean of the two ratios."""
        training = self.training_ms / other.training_ms
        return math.sqrt(training * self.projection_ms / other.projection_ms)


def busy_percent() -> float:
    """Share of the processor that other programs use now, observed for a second."""
    return psutil.cpu_percent(1.0)


def calibrate(seconds: float = 10.0) -> Calibration:
    """Measure this machine, half of the time in training SR3 and half in projection.

    Of all repetitions the shortest counts: what else the machine does can only add to them.
    """
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(BOX_SIZE, BOX_SIZE, BOX_SIZE, generator=generator)
    rotations = random_rotations(BATCH_SIZE, generator)
    images = project(volume, rotations)
    images = images / images.std()
    model, draw = SR3(), partial(draw_batch, (images, images))
    loss = partial(sr3_loss, sigma=noise_sigma(0.1))
    steps = train(model, copy.deepcopy(model), draw, loss, 10**9, batch_size=BATCH_SIZE)

    def projection() -> None:
        flat = project(volume, rotations).flatten(1)
        flat.T @ flat  # as in a covariance

    shortest = [_shortest(call, seconds / 2) for call in (steps.__next__, projection)]
    steps.close()
    return Calibration(*(round(1000 * taken / BATCH_SIZE, 3) for taken in shortest))


def _shortest(call: Callable[[], object], seconds: float) -> float:
    """Shortest duration of a call in seconds, of at least three after one to warm up."""
    call()
    durations, end = [], time.perf_counter() + seconds
    while len(durations) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return min(durations)


def read_times(notebooks: str | Path | None = None) -> dict[str, dict]:
    """Read the measured times, profile to ``machine``, ``calibration`` and ``notebooks``.

    Empty where there are none, as in an installation without the notebooks.
    """
    try:
        return read_yaml(next(iter(find_notebooks(notebooks).values())).with_name("times.yml"))
    except FileNotFoundError:
        return {}


def say_times(times: dict[str, dict], here: Calibration | None = None) -> str:
    """Say in plain words what each profile takes, and each of its notebooks in a table.

    Without a calibration of this machine the times are those of the one they were measured on.
    """
    lines, columns = [], {}
    for profile, measured in times.items():
        factor = here.slower_than(Calibration(**measured["calibration"])) if here else 1.0
        seconds = {k: factor * v["seconds"] for k, v in measured["notebooks"].items()}
        columns[profile] = seconds | {"in all": sum(seconds.values())}
        peak_GB = max(v["peak_MB"] for v in measured["notebooks"].values()) / 1000
        total, where = span(columns[profile]["in all"]), "measured on"
        if here:
            where = f"{factor:.2g} times what was measured on"
        lines.append(f"about {total} for profile {profile}, memory up to {peak_GB:.1f} GB:")
        lines.append(f"    {where} {measured['machine']}")
    lines.append(" " * 26 + "".join(f"{profile:>11}" for profile in columns))
    names = dict.fromkeys(name for column in columns.values() for name in column)
    for name in sorted(names, key="in all".__eq__):  # stable: the sum comes last
        cells = [span(column[name]) if name in column else "-" for column in columns.values()]
        lines.append(f"    {name:22}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)
