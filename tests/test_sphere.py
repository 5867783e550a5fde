"""The posterior over directions of view, drawn on the sphere."""

from __future__ import annotations

import math
import re

import matplotlib.pyplot as plt
import numpy as np
import torch
from test_projection import phantom
from test_widgets import pixels

from cryonb.physics.geometry import random_rotations, symmetry_rotations
from cryonb.physics.projection import project
from cryonb.poses.posterior import effective_number
from cryonb.poses.templates import view_axes, view_directions, volume_templates
from cryonb.showing.sphere import DECADES, posterior_viewer, show_sphere

BOX, SPACING_DEG = 24, 12.0


def test_effective_number_counts_equal_shares():
    share = torch.tensor([[0.25] * 4 + [0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    assert effective_number(share.log()).tolist() == [4.0, 1.0]


def test_the_posterior_narrows_onto_the_truth():
    generator = torch.Generator().manual_seed(3)
    rotation, volume = random_rotations(1, generator), phantom(BOX, width=1.6).float()
    volume = volume / project(volume, rotation).std()
    clean, noise = project(volume, rotation)[0], torch.randn(BOX, BOX, generator=generator)
    templates = volume_templates(volume, SPACING_DEG)
    snrs = [0.001, 0.01, 0.1, 1.0]
    viewer = posterior_viewer(templates, clean, noise, rotation[0], snrs, title="Narrowing")
    assert viewer.labels == ["SNR 0.001", "SNR 0.01", "SNR 0.1", "SNR 1"]
    words = [re.findall(r"[\d.,]*\d", text) for text in viewer.alt]
    number = [float(w[1].replace(",", "")) for w in words]
    total, off_deg = float(words[-1][2]), float(words[-1][3])
    assert number[0] > 0.7 * total and number == sorted(number, reverse=True) and number[-1] < 2
    assert off_deg < SPACING_DEG
    assert len({pixels(frame).shape for frame in viewer.frames}) == 1  # nothing jumps


def test_every_mate_of_the_truth_is_circled_and_lies_on_its_weight():
    directions = view_directions(SPACING_DEG, "C4")
    axes = view_axes(directions)
    close = axes @ axes[7]  # cosine of the angle to one of the grid
    images = dict.fromkeys(("one", "two"), (torch.eye(4), (0, 1)))
    figure = show_sphere(directions, 20 * close, axes[7], images, symmetry="C4")
    points, circles = (np.asarray(c.get_offsets()) for c in figure.axes[0].collections[:2])
    drawn = (20 * (close - close.max()) > -DECADES * math.log(10)).sum()
    assert len(points) == 4 * drawn < 4 * len(directions) and len(circles) == 4
    mates = axes[7] @ symmetry_rotations("C4").mT
    for (longitude, latitude), mate in zip(circles, mates, strict=True):
        radius = math.cos(latitude)
        at = [radius * math.cos(longitude), radius * math.sin(longitude), math.sin(latitude)]
        assert np.allclose(at, mate, atol=1e-5)
        assert np.abs(points - [longitude, latitude]).sum(1).min() < 1e-5
    plt.close(figure)
