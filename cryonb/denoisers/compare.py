"""A table of denoisers: what each makes of the same test particles, and what it costs.

Introduced in: 04_compare_methods.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import torch
from torch import nn
from tqdm.auto import tqdm

from cryonb.base.files import beside
from cryonb.evaluation.metrics import mse
from cryonb.learning.train import Progress, flops_per_image
from cryonb.simulation.dataset import Dataset, score_test

COLUMNS = {  # key of a row: heading, format
    "mse": ("MSE", ".4f"),
    "psnr_dB": ("PSNR (dB)", ".2f"),
    "psnr_spread_dB": ("± seeds", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "mse_mask": ("MSE in mask", ".4f"),
    "micelle_left": ("micelle left", ".2f"),
    "over_limit": ("MSE ÷ limit", ".1f"),
    "train_tflop": ("training (TFLOP)", ".2f"),
    "ms_per_image": ("ms per image", ".1f"),
    "peak_MiB": ("peak memory (MiB)", ".0f"),
    "images": ("images", ".0f"),
}


def _peak_and_now() -> tuple[float, float]:
    """Highest and present resident memory of this process in bytes; NaN if the system is silent."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset, memory.rss
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return tuple(1024 * float(values[key].split()[0]) for key in ("VmHWM", "VmRSS"))
    except (OSError, KeyError):
        return math.nan, memory.rss


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Ask the system for the peak of this process's memory; the list then holds its rise in MiB.

    Linux starts the count anew for each block. Windows knows the peak of the whole process: a block
    that stays below an earlier one rises by less than it takes. Elsewhere it is NaN.
    """
    if platform.system() == "Linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is given back, to be seen again
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now, proc(5)
    start, rise = _peak_and_now()[1], []
    try:
        yield rise
    finally:
        rise.append(max(_peak_and_now()[0] - start, 0.0) / 2**20)


@dataclass(frozen=True)
class Method:
    """A denoiser and what a table says of it."""

    denoise: Callable[[torch.Tensor], torch.Tensor]  # (n, y, x) -> (n, y, x)
    settings: str = ""  # what it was set to, and where that comes from
    train_tflop: float = 0.0  # cost of its training, in 10^12 floating-point operations
    first: int | None = None  # only so many particles are worth the time
    also: torch.Tensor | None = None  # more noisy particles that it learns from, (m, y, x)
    curve: list = field(default_factory=list)  # (TFLOP, validation PSNR) while it was trained
    network: nn.Module | None = None  # what `denoise` runs

    def given(self, noisy: torch.Tensor) -> torch.Tensor:
        """Particles that it is handed: the first of a stack, and those that it learns from."""
        noisy = noisy[: self.first]
        return noisy if self.also is None else torch.cat([noisy, self.also])

    def __call__(self, noisy: torch.Tensor) -> torch.Tensor:
        """Denoise a stack (n, y, x), or as many of its first as are worth the time."""
        return self.denoise(self.given(noisy))[: len(noisy[: self.first])].float()


def run_all(rows: dict[str, Method], noisy: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each method makes of a stack (n, y, x), without those whose package is missing."""
    images = {}
    for name, method in rows.items():
        try:
            images[name] = method(noisy)
        except ImportError as problem:
            print(f"{name} is left out: {problem}")
    return images


class Comparison:
    """Denoisers on the test particles of one data set, row by row.

    `rows` has scores and costs of each method, keys as in `COLUMNS`, or {"note": why it has none};
    `images` what each made, (n, y, x). `limit` (n, y, x) are the Bayes-optimal images of the first
    n test particles, see `cryonb.poses.posterior`. Without them, as where the structural noise has
    no closed form, no ratio is given.
    """

    def __init__(self, data: Dataset, limit: torch.Tensor | None = None):
        self.data, self.limit = data, limit
        self.rows: dict[str, dict] = {}
        self.images: dict[str, torch.Tensor] = {}
        self.settings: dict[str, str] = {}

    def add(self, name: str, method: Method | Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Run a denoiser on the test particles, and enter its scores and costs.

        A row of this name is replaced. An ImportError (a package that is not installed) becomes the
        row's note. ValueError if the result has another shape, or is not finite.
        """
        method = method if isinstance(method, Method) else Method(method)
        noisy = self.data.test.noisy.images[: method.first]
        given = method.given(noisy)
        self.settings[name] = method.settings
        start = time.perf_counter()
        try:
            with peak_memory() as peak:
                images = method.denoise(given)
        except ImportError as problem:
            self.rows[name] = {"note": str(problem)}
            return
        seconds = time.perf_counter() - start
        if images.shape != given.shape or not images.isfinite().all():
            raise ValueError(
                f"{name} returned {tuple(images.shape)}, or NaN, for particles "
                f"{tuple(given.shape)}: a denoiser returns as many finite images of the same box."
            )
        self.score(name, images[: len(noisy)].float())
        cost = {"train_tflop": method.train_tflop, "ms_per_image": 1e3 * seconds / len(given)}
        self.rows[name] |= cost | {"peak_MiB": peak[0], "images": len(noisy)}

    def score(self, name: str, images: torch.Tensor) -> None:
        """Enter the scores of images (n, y, x) that a method made of the first n test particles."""
        self.images[name] = images
        row = score_test(images, self.data)
        if self.limit is not None:
            n, clean = min(len(images), len(self.limit)), self.data.test.clean.images
            best = mse(self.limit[:n], clean[:n]).mean()
            row["over_limit"] = float(mse(images[:n], clean[:n]).mean() / best)
        self.rows[name] = row

    @property
    def psnr_dB(self) -> dict[str, float]:
        """PSNR of each method that has been run."""
        return {name: row["psnr_dB"] for name, row in self.rows.items() if "psnr_dB" in row}

    def results(self, prefix: str) -> dict[str, float | str]:
        """Return all values as a flat dict, keys ``prefix: method key``, for results.json."""
        return {f"{prefix}: {n} {k}": v for n, row in self.rows.items() for k, v in row.items()}

    def frame(self) -> pd.DataFrame:
        """Return the table, one row a method, columns named as in `COLUMNS` where any has them."""
        frame = pd.DataFrame.from_dict(self.rows, orient="index")
        order = [key for key in (*COLUMNS, "note") if key in frame]
        return frame[order].rename_axis("method")

    def markdown(self) -> str:
        """Return the table in Markdown."""
        frame = self.frame()
        shown = [key for key in COLUMNS if key in frame]
        lines = ["| | " + " | ".join(COLUMNS[k][0] for k in shown) + " |"]
        lines.append("|---" + "|---:" * len(shown) + "|")
        for name, row in self.rows.items():
            cells = [format(row[k], COLUMNS[k][1]) if k in row else "" for k in shown]
            if "note" in row:
                cells = [row["note"], ""]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def write(self, folder: str | os.PathLike, stem: str) -> None:
        """Write the table as `folder/stem.csv` and `folder/stem.md`, beside and renamed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        frame = self.frame()
        frame.insert(len(frame.columns), "settings", pd.Series(self.settings))
        for suffix, text in (("csv", frame.to_csv()), ("md", self.markdown() + "\n")):
            with beside(folder / f"{stem}.{suffix}") as part:
                part.write_text(text)


def train_for(
    tflop: float,
    start: Callable[..., Iterator[Progress]],
    *modules: nn.Module,
    evaluate: Callable[[], float] | None = None,
    title: str = "",
) -> list[tuple[float, float]]:
    """Train at a cost, in 10^12 floating-point operations: for methods that are compared.

    ``start(*modules, n_images=...)`` iterates over `Progress`; `evaluate` is called at 1/32, 1/16
    ... 1 of the run. Returns points (TFLOP, quality), with NaN where there is no `evaluate`.
    """
    each = 1e-12 * flops_per_image(lambda *copies: start(*copies, n_images=10**9), *modules)
    n_images = max(1, round(tflop / each))
    points, curve = [2.0**-k for k in range(5, -1, -1)], []
    with tqdm(total=n_images, desc=title, unit="image") as bar:
        for progress in start(*modules, n_images=n_images):
            bar.update(min(progress.images, n_images) - bar.n)
            while points and progress.fraction >= points[0]:
                points = [p for p in points if p > progress.fraction]
                curve.append((each * progress.images, evaluate() if evaluate else math.nan))
    return curve
