"""A table of denoisers: what each makes of the same test particles, and what it costs.

Introduced in: 04_compare_methods.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import torch
from torch import nn
from tqdm.auto import tqdm

from cryonb.base.files import beside
from cryonb.evaluation.metrics import mse
from cryonb.learning.diffusion import sample
from cryonb.learning.train import Progress, flops_per_image
from cryonb.simulation.dataset import Dataset, score_test

COLUMNS = {  # key of a row: heading, format
    "mse": ("MSE", ".4f"),
    "psnr_dB": ("PSNR (dB)", ".2f"),
    "psnr_spread_dB": ("± seeds", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "mse_mask": ("MSE in mask", ".4f"),
    "residual": ("micelle residual", ".2f"),
    "over_limit": ("MSE ÷ limit", ".1f"),
    "train_tflop": ("training (TFLOP)", ".2f"),
    "ms_per_image": ("ms per image", ".1f"),
    "peak_MiB": ("peak memory (MiB)", ".0f"),
    "images": ("images", ".0f"),
}


@contextmanager
def peak_memory(every: float = 0.01) -> Iterator[list[float]]:
    """Watch this process's own memory; the list then holds its peak above the start, in MiB.

    With glibc, memory that was freed before is given back first, so that its use is seen again.
    On Linux, pages of memory-mapped files do not count: the system takes them back when it likes.
    """
    if platform.system() == "Linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    process, stop = psutil.Process(), threading.Event()

    def own() -> int:
        memory = process.memory_info()
        return memory.rss - getattr(memory, "shared", 0)

    start = highest = own()

    def watch():
        nonlocal highest
        while not stop.wait(every):
            highest = max(highest, own())

    thread, found = threading.Thread(target=watch, daemon=True), []
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found.append((max(highest, own()) - start) / 2**20)


@dataclass(frozen=True)
class Method:
    """A denoiser and what a table says of it.

    Attributes
    ----------
    denoise : callable (n, y, x) -> (n, y, x)
    settings : str
        What it was set to, and where that comes from.
    train_tflop : float
        Cost of its training, in 10^12 floating-point operations.
    first : int or None
        Only so many particles are worth the time.
    also : Tensor (m, y, x) or None
        More noisy particles that it learns from.
    curve : list of (TFLOP, PSNR)
        On validation particles, while it was trained.
    """

    denoise: Callable[[torch.Tensor], torch.Tensor]
    settings: str = ""
    train_tflop: float = 0.0
    first: int | None = None
    also: torch.Tensor | None = None
    curve: list = field(default_factory=list)

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

    Parameters
    ----------
    data : Dataset
    limit : Tensor (n, y, x), optional
        Bayes-optimal images of the first n test particles, see `cryonb.poses.posterior`.
        Without them, as where the structural noise has no closed form, no ratio is given.

    Attributes
    ----------
    rows : dict of str to dict
        Scores and costs of each method, keys as in `COLUMNS`; or {"note": why it has none}.
    images : dict of str to Tensor (n, y, x)
        What each method made.
    settings : dict of str to str
    """

    def __init__(self, data: Dataset, limit: torch.Tensor | None = None):
        self.data, self.limit = data, limit
        self.rows: dict[str, dict] = {}
        self.images: dict[str, torch.Tensor] = {}
        self.settings: dict[str, str] = {}

    def add(self, name: str, method: Method | Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Run a denoiser on the test particles, and enter its scores and costs.

        Parameters
        ----------
        name : str
            Of the row; one that is there already is replaced.
        method : Method, or callable (n, y, x) -> (n, y, x)
            From noisy particles to clean ones, same order, same unit. An ImportError (a package
            that is not installed) becomes the row's note.

        Raises
        ------
        ValueError
            The result has another shape, or is not finite.
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
        self.images[name] = images = images[: len(noisy)].float()
        row = score_test(images, self.data)
        if self.limit is not None:
            n, clean = min(len(images), len(self.limit)), self.data.test.clean.images
            best = mse(self.limit[:n], clean[:n]).mean()
            row["over_limit"] = float(mse(images[:n], clean[:n]).mean() / best)
        row |= {"train_tflop": method.train_tflop, "ms_per_image": 1e3 * seconds / len(given)}
        self.rows[name] = row | {"peak_MiB": peak[0], "images": len(images)}

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
            note = row.get("note")
            cells = [format(row[k], COLUMNS[k][1]) if k in row else "" for k in shown]
            lines.append(f"| {name} | {note or ' | '.join(cells)} |" + " |" * bool(note))
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

    Parameters
    ----------
    start : callable (*modules, n_images) -> iterator of Progress
        Such as ``lambda model, average, n: train(model, average, draw, loss, n)``.
    evaluate : callable () -> float, optional
        Quality of what has been trained so far; called at 1/32, 1/16 ... 1 of the run.

    Returns
    -------
    list of (TFLOP, quality)
        The last one is the end; quality is NaN without `evaluate`.
    """
    each = 1e-12 * flops_per_image(lambda *copies: start(*copies, 10**9), *modules)
    n_images = max(1, round(tflop / each))
    points, curve = [2.0**-k for k in range(5, -1, -1)], []
    with tqdm(total=n_images, desc=title, unit="image") as bar:
        for progress in start(*modules, n_images):
            bar.update(min(progress.images, n_images) - bar.n)
            while points and progress.fraction >= points[0]:
                points = [p for p in points if p > progress.fraction]
                curve.append((each * progress.images, evaluate() if evaluate else math.nan))
    return curve


def _sampled(model, noisy, sigma: float, steps: int, seed: int, **solver) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    *_, last = sample(model, noisy, sigma, steps, generator=generator, **solver)
    return last.clean


def errors_by_steps(model, noisy, clean, sigma: float, steps: list[int], **solver) -> list[float]:
    """Mean squared error of one sample, for each number of steps.

    Parameters
    ----------
    model : callable (y_t, gamma, noisy, sigma) -> clean estimate
        An `SR3`, or `cryonb.denoisers.methods.exact_model`.
    noisy, clean : Tensor (n, y, x)
    **solver
        `second_order` and `eta` of `cryonb.learning.diffusion.sample`.
    """
    made = (_sampled(model, noisy, sigma, k, 0, **solver) for k in tqdm(steps, desc="steps"))
    return [float(mse(images, clean).mean()) for images in made]


def errors_by_samples(model, noisy, clean, sigma: float, steps: int, most: int) -> list[float]:
    """Mean squared error of the mean of 1, 2 ... `most` samples; arguments as above."""
    made = [_sampled(model, noisy, sigma, steps, s) for s in tqdm(range(most), desc="samples")]
    means = torch.stack(made).cumsum(0) / torch.arange(1, most + 1).view(-1, 1, 1, 1)
    return [float(mse(images, clean).mean()) for images in means]
