"""FSC curves read off at a threshold."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch

from cryonb.evaluation.resolution import resolution_at
from cryonb.showing.shells import plot_fsc

FREQUENCY = torch.arange(33) / (64 * 3.0)
SIGNAL = 40 * torch.exp(-50 * FREQUENCY)  # to noise, in each half map
HALF = SIGNAL / (SIGNAL + 1)


def test_a_curve_is_read_off_where_it_crosses():
    curves = {"half maps": (FREQUENCY, HALF), "other": (FREQUENCY, HALF**2)}
    figure = plot_fsc(curves, thresholds=(), read_off={"half maps": 0.3})
    ax = figure.axes[0]
    first, second = ax.get_legend_handles_labels()[1]
    at_A = resolution_at(FREQUENCY, HALF, 0.3)
    assert first == f"half maps, 0.3: {at_A:.1f} Å" and second == "other"
    assert [line.get_xdata()[-1] for line in ax.lines if line.get_ls() == ":"] == [1 / at_A]
    plt.close(figure)


@pytest.mark.parametrize(("curve", "words"), [(0.9, "6.0 Å or finer"), (0.1, "below from the")])
def test_a_curve_that_crosses_nowhere_says_so(curve, words):
    flat = {"flat": (FREQUENCY, torch.full_like(FREQUENCY, curve))}
    figure = plot_fsc(flat, read_off={"flat": 0.5})
    assert words in figure.axes[0].get_legend_handles_labels()[1][0]
    plt.close(figure)
