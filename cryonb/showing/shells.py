"""FSC curves drawn, with thresholds, and read off at any of them."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from cryonb.evaluation.resolution import resolution_at
from cryonb.physics.conventions import FSC_HALF_MAPS, FSC_TRUTH


def plot_fsc(
    curves: dict[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    thresholds: tuple[float, ...] = (FSC_TRUTH, FSC_HALF_MAPS),
    read_off: dict[str, float] | None = None,
    title: str = "",
    ax=None,
) -> Figure:
    """Draw FSC curves: name to (frequency in 1/Å, value); the top axis is the resolution.

    `read_off` maps a curve to the threshold at which a line drops from it, and its label says the
    resolution.
    """
    ax = ax or plt.subplots(figsize=(5.6, 3.8))[1]
    for name, (frequency, value) in curves.items():
        (line,) = ax.plot(np.asarray(frequency), np.asarray(value), label=name)
        if name in (read_off or {}):
            threshold, at_A = read_off[name], resolution_at(frequency, value, read_off[name])
            line.set_label(f"{name}, {threshold:.3g}: {_in_words(at_A, frequency)}")
            path = [0, 1 / at_A, 1 / at_A], [threshold, threshold, -0.1]
            ax.plot(*path, color=line.get_color(), ls=":")
    for value in thresholds:
        ax.axhline(value, color="0.6", lw=0.8, ls="--")
        ax.annotate(f"{value:g}", (1.0, value), xycoords=("axes fraction", "data"), size=8)
    ax.set(xlabel="spatial frequency (1/Å)", ylabel="Fourier shell correlation", ylim=(-0.1, 1.05))
    ticks, reach = [], float(ax.get_xlim()[1])
    for tick in (2, 3, 4, 5, 6, 7, 9, 12, 20, 40):  # from the right, where there is room
        if 1 / tick <= reach and all(1 / t - 1 / tick > 0.06 * reach for t in ticks):
            ticks.append(tick)
    top = ax.secondary_xaxis("top")
    top.set_xticks([1 / t for t in ticks], [f"{t} Å" for t in ticks], size=8)
    ax.set_title(title)
    ax.legend(fontsize=8)
    return ax.figure


def _in_words(resolution_A: float, frequency_per_A: torch.Tensor) -> str:
    if math.isinf(resolution_A):
        return "below from the start"
    finer = resolution_A <= 1 / float(frequency_per_A[-1])  # it never falls below
    return f"{resolution_A:.1f} Å or finer" if finer else f"{resolution_A:.1f} Å"
