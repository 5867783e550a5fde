"""FSC curves read off at a threshold, and one that moves."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pytest
import torch
from test_widgets import pixels

from cryonb.evaluation.resolution import figure_of_merit, resolution_at
from cryonb.showing.shells import MOVED, plot_fsc, threshold_viewer

FREQUENCY = torch.arange(33) / (64 * 3.0)
SIGNAL = 40 * torch.exp(-50 * FREQUENCY)  # to noise, in each half map
HALF = SIGNAL / (SIGNAL + 1)


def read(text: str) -> list[tuple[float, float]]:
    """Threshold and resolution in Å of each curve that the text of a frame names."""
    return [(float(t), float(A)) for t, A in re.findall(r", ([\d.]+): ([\d.]+) Å", text)]


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


def test_independent_halves_say_the_same_at_every_threshold_and_shared_errors_do_not():
    shared = (HALF + 0.5) / 1.5  # of errors that repeat
    pairs = {"noisy": (HALF, figure_of_merit(HALF)), "shared": (shared, figure_of_merit(HALF))}
    viewer = threshold_viewer(pairs, FREQUENCY, "Moving")
    assert len(viewer.frames) == len(MOVED)
    assert viewer.labels[viewer.index] == "half maps 0.143, truth 0.50"
    assert len({pixels(f).shape for f in viewer.frames}) == 1  # nothing jumps
    assert len(set(viewer.frames)) == len(MOVED)
    for half, text in zip(MOVED, viewer.alt, strict=True):
        noisy, other = text.split(". shared: ")
        (level, half_A), (_, truth_A) = read(noisy)
        assert level == half and half_A == pytest.approx(truth_A, rel=0.02)  # between shells
        (_, claimed_A), (_, granted_A) = read(other)
        assert claimed_A < 0.9 * granted_A
    at_A = [read(text)[0][1] for text in viewer.alt]
    assert at_A == sorted(at_A) and at_A[0] < at_A[-1]  # the stricter, the coarser
