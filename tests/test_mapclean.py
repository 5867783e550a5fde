"""Masks around models and maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cryonb.masks import model_mask, soft_mask
from cryonb.molecules import Atoms
from cryonb.volumes import from_atoms

# Masks


def test_a_model_mask_is_a_function_of_the_distance_to_the_nearest_atom():
    """Against brute force, on a grid of unequal sides that does not begin at the origin."""
    rng = np.random.default_rng(0)
    shape, pixel, first = (14, 17, 12), 2.5, (-7.0, 3.0, 11.0)
    xyz = rng.uniform((13, 5, -5), (38, 43, 26), (40, 3))
    mask = model_mask(xyz, shape, pixel, first, extend_A=4, soft_edge_A=6).numpy()
    places = np.stack(np.mgrid[tuple(map(slice, shape))], -1) * pixel + first  # z, y, x in Å
    away = np.linalg.norm(places[..., None, ::-1] - xyz, axis=-1).min(-1)
    np.testing.assert_allclose(mask[away <= 4], 1)
    np.testing.assert_allclose(mask[away >= 10], 0, atol=1e-6)
    assert (away >= 10).any() and (away <= 4).any()
    order = np.argsort(away.ravel())
    assert (np.diff(mask.ravel()[order]) <= 1e-6).all()
    between = (away > 4) & (away < 10)
    expected = 0.5 + 0.5 * np.cos(np.pi * (away[between] - 4) / 6)
    np.testing.assert_allclose(mask[between], expected, atol=1e-5)


def test_a_model_mask_lies_where_its_density_does():
    """The frame is that of `from_atoms`: a box, atoms off its middle, one mask for both."""
    rng = np.random.default_rng(1)
    xyz = rng.normal(size=(60, 3)) * 5 + (20, 30, 40)
    atoms = Atoms(xyz, np.full(60, "C"), np.full(60, 60.0), "blob")
    volume = from_atoms(atoms, 32, 2.0, centre=False).map
    mask = model_mask(atoms.xyz_A, (32, 32, 32), 2.0)
    assert float((volume * mask).sum() / volume.sum()) == pytest.approx(1, abs=0.05)
    flipped = volume.permute(2, 1, 0)
    assert float((flipped * mask).sum() / volume.sum()) < 0.6


def test_a_model_elsewhere_is_refused():
    with pytest.raises(ValueError, match="Only 0% of the model's 5 atoms"):
        model_mask(np.full((5, 3), 500.0), (16, 16, 16), 2.0)


def test_a_map_mask_keeps_the_largest_piece():
    map = torch.zeros(40, 40, 40)
    map[8:20, 8:20, 8:20], map[30:34, 30:34, 30:34] = 1.0, 1.5
    options = {"low_pass_A": 4.0, "threshold": 0.5, "extend_A": 0.0, "soft_edge_A": 4.0}
    whole = soft_mask(map, 1.0, **options)
    largest = soft_mask(map, 1.0, largest=True, **options)
    assert whole[31, 31, 31] == largest[14, 14, 14] == 1 and largest[31, 31, 31] == 0
    assert_close(whole[:24, :24, :24], largest[:24, :24, :24])
