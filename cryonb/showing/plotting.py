"""Figures that several notebooks share: strips of images, slices, lines, a live training plot.

Images are grey, one scale to a figure unless said otherwise; every function returns the figure.
"""

from __future__ import annotations

import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from cryonb.learning.train import train

STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 10,
    "legend.frameon": False,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    # Okabe and Ito's colours, told apart by colour-blind readers too
    "axes.prop_cycle": plt.cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    ),
}


def use_style() -> None:
    """Set the book's figure style for this notebook."""
    plt.rcParams.update(STYLE)


def grey_limits(images: torch.Tensor, spread: float = 99.8) -> tuple[float, float]:
    """Display limits that leave out the `100 - spread` percent of extreme pixels."""
    low, high = np.percentile(np.asarray(images), [(100 - spread) / 2, (100 + spread) / 2])
    return float(low), float(high)


def show_rows(
    rows: dict[str, torch.Tensor],
    *,
    columns: list[str] | None = None,
    limits: dict[str, tuple[float, float]] | tuple[float, float] | None = None,
    title: str = "",
    width_in: float = 1.35,
) -> Figure:
    """Draw strips of images under each other, one labelled row for each entry.

    Parameters
    ----------
    rows : dict of str to Tensor (n, y, x)
        The same images in several states, such as noisy, denoised and clean.
    columns : list of str, optional
        Text above each column.
    limits : (low, high), or dict of row to (low, high), optional
        Grey scale; by default each row has its own, see `grey_limits`.
    """
    n = max(len(images) for images in rows.values())
    label_in = 0.085 * max(map(len, rows))
    above_in = (0.3 if title else 0) + (0.25 if columns else 0)
    size = width_in * n + label_in, width_in * len(rows) + above_in
    fig, axes = plt.subplots(len(rows), n, figsize=size, squeeze=False)
    for row_axes, (name, images) in zip(axes, rows.items(), strict=True):
        own = limits.get(name) if isinstance(limits, dict) else limits
        low, high = own or grey_limits(images)
        for ax in row_axes:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, image in zip(row_axes, images, strict=False):
            ax.imshow(np.asarray(image), vmin=low, vmax=high)
        row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, text in zip(axes[0], columns or [], strict=False):
        ax.set_title(text)
    fig.suptitle(title)
    return fig


def show_denoised(images: dict[str, torch.Tensor], *, n: int = 6, title: str = "") -> Figure:
    """Draw n particles denoised in several ways, all on the grey scale of the row "clean".

    The row "noisy" has its own; arguments as in `show_rows`.
    """
    rows = {name: stack[:n] for name, stack in images.items()}
    shared = grey_limits(rows["clean"])
    limits = {name: shared for name in rows if name != "noisy"}
    return show_rows(rows, limits=limits, title=title, width_in=1.0)


def plot_lines(
    lines: dict[str, tuple],
    *,
    x: str,
    y: str,
    title: str = "",
    ax=None,
    ticks=None,
    theory: str = "",
) -> Figure:
    """Draw lines through points: name to (x values, y values).

    `x` and `y` label the axes, with units; `ticks` make the x axis logarithmic; the line named
    `theory` is dashed and black, without points.
    """
    ax = ax or plt.subplots(figsize=(6.4, 4))[1]
    for name, (across, up) in lines.items():
        style = {"color": "k", "ls": "--"} if name == theory else {"marker": "o", "ms": 4}
        ax.plot(np.asarray(across), np.asarray(up), label=name, **style)
    if ticks is not None:
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.set(xlabel=x, ylabel=y, title=title)
    if len(lines) > 1:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(lines) > 5 else {}
        ax.legend(fontsize=8, **beside)  # many would lie upon the lines
    return ax.figure


def plot_pairs(
    values: dict[str, tuple[float, float]], labels: tuple[str, str], *, x: str, title: str = ""
) -> Figure:
    """Draw two values for each name, joined by a line, one name under the other."""
    fig, ax = plt.subplots(figsize=(7, 0.3 * len(values) + 1.2))
    place, pairs = np.arange(len(values)), np.array(list(values.values()))
    ax.hlines(place, *pairs.T, color="0.8")
    for column, label, marker in zip(pairs.T, labels, "os", strict=True):
        ax.plot(column, place, marker, label=label)
    ax.set_yticks(place, list(values))
    ax.invert_yaxis()
    ax.set(xlabel=x, title=title)
    ax.legend(fontsize=8)
    return fig


def _loss_figure(images: list, losses: list, pictures: dict, title: str) -> Figure:
    """Loss over images seen, with its moving average, and pictures (y, x) beside it."""
    ratios, width_in = [2.2] + [1.0] * len(pictures), 4.0 + 1.9 * len(pictures)
    size = (width_in, 2.6)
    fig, axes = plt.subplots(1, len(ratios), figsize=size, width_ratios=ratios, squeeze=False)
    ax = axes[0, 0]
    ax.plot(images, losses, color="0.8", lw=0.5)
    ax.plot(images, pd.Series(losses).ewm(alpha=0.1, adjust=False).mean())
    ax.set(xlabel="images seen", ylabel="loss", yscale="log", title=f"{title}: loss")
    ax.yaxis.set_major_formatter("{x:g}")
    low, high = ax.get_ylim()
    labelled = "2357" if high < 15 * low else "3" if high < 150 * low else ""  # none touch
    ax.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in labelled else "")
    for panel, (name, image) in zip(axes[0, 1:], pictures.items(), strict=True):
        panel.imshow(np.asarray(image))
        panel.set(title=name, xticks=[], yticks=[])
    plt.close(fig)
    return fig


def train_live(
    model: nn.Module, draw, loss, n_images: int, *, title: str, examples=None, every=0.2, **options
) -> nn.Module:
    """Run `cryonb.learning.train` with a progress bar and a growing loss curve; the average.

    ``examples(average)`` gives names and images (y, x) to show beside the curve, which is drawn
    anew after a share `every` of the run. Further options are those of `train`.
    """
    average, handle = copy.deepcopy(model), None
    images, losses, drawn = [], [], 0.0
    with tqdm(total=n_images, desc=title, unit="image") as bar:
        for progress in train(model, average, draw, loss, n_images, **options):
            images.append(progress.images)
            losses.append(progress.loss)
            bar.update(min(progress.images, n_images) - bar.n)
            if progress.fraction < min(1.0, drawn + every):
                continue
            drawn = progress.fraction
            pictures = examples(average.eval()) if examples else {}
            figure = _loss_figure(images, losses, pictures, title)
            if handle is None:
                handle = display(figure, display_id=True)
            else:
                handle.update(figure)
    return average.eval()


def say(text: str) -> None:
    """Show Markdown text, such as a sentence with the numbers of this run."""
    display(Markdown(text))


def say_table(columns: list[str], rows, title: str = "") -> None:
    """Display rows of values, each with as many as there are columns, as a table.

    Numbers are shown with four significant digits.
    """
    cells = [[v if isinstance(v, str) else f"{v:.4g}" for v in row] for row in rows]
    lines = [" | ".join(row) for row in [columns, ["---"] * len(columns), *cells]]
    heading = f"**{title}**\n\n" if title else ""
    say(heading + "\n".join(f"| {line} |" for line in lines))
