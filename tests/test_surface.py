"""Isosurfaces: where they lie, which way they face, and what they enclose."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from cryonb.showing.surface import mesh, show_surfaces, threshold_of_volume

N, PIXEL_A = 24, 2.0


def ball(centre_zyx, radius_px):
    k = torch.arange(N) - N // 2
    z, y, x = (k - c for c in centre_zyx)
    return radius_px - (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt()  # 0 on the sphere


def test_a_sphere_lies_where_it_is_and_faces_outwards():
    corners, normals = mesh(ball((1, 2, -3), 6.0), 0.0, PIXEL_A)
    centre = np.array([-3, 2, 1]) * PIXEL_A  # x, y, z
    distance = np.linalg.norm(corners - centre, axis=-1)
    assert np.abs(distance - 12).max() < 0.35  # chords of voxels of 2 Å on a 12 Å sphere
    outwards = corners.mean(1) - centre
    assert (np.einsum("ti,ti->t", normals, outwards) > 0).all()
    # The divergence theorem: a closed surface encloses (1/3) sum of area x distance.
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
    volume = abs(np.einsum("ti,ti->", area, corners.mean(1)) / 3)
    assert volume == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.04)


def test_a_surface_is_closed_where_the_box_ends():
    corners, _ = mesh(ball((0, 0, 9), 6.0), 0.0, PIXEL_A)
    assert corners[..., 0].max() <= PIXEL_A * N / 2
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.abs(area.sum(0)).max() < 1e-3 * np.abs(area).sum()  # of a closed surface: zero


def test_levels_enclose_the_voxels_asked_for():
    map = torch.randn(N, N, N, generator=torch.Generator().manual_seed(0))
    assert int((map > threshold_of_volume(map, 500)).sum()) == 500
    for none_or_all in (0, map.numel()):
        with pytest.raises(ValueError, match="more than none, less than all"):
            threshold_of_volume(map, none_or_all)
    with pytest.raises(ValueError, match="no surface"):
        mesh(map, 100.0, PIXEL_A)


def test_every_map_gets_a_panel_with_its_surface():
    figure = show_surfaces({"a": ball((0, 0, 0), 6), "b": ball((0, 3, 0), 4)}, PIXEL_A, 300)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    for ax in figure.axes:
        colours = ax.collections[0].get_facecolor()
        assert len(colours) > 100 and np.ptp(colours[:, 0]) > 0.2  # shaded
    plt.close(figure)
