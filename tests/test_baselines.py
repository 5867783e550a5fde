"""The linear filter, against the closed form for Gaussian data."""

from __future__ import annotations

from functools import partial

import torch
from torch.testing import assert_close

from cryonb.denoisers.baselines import dihedral, linear_filter, over_turns


def test_dihedral_holds_all_eight():
    image = torch.arange(9.0).view(1, 3, 3)
    copies = dihedral(image)
    assert len({tuple(c.flatten().tolist()) for c in copies}) == 8


def test_no_gain_beats_it_and_its_error_is_the_predicted_one():
    """Images a * pattern, a ~ N(1, 1): mean + Wiener gain along the pattern."""
    generator = torch.Generator().manual_seed(0)
    pattern, sigma = torch.ones(8, 8), 4.0
    amplitude = 1 + torch.randn(4000, 1, 1, generator=generator)
    clean = amplitude * pattern
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    out = linear_filter(clean, clean, sigma)(noisy)
    gain = 64 / (64 + sigma**2)
    known = 1 + gain * (noisy.mean((1, 2), keepdim=True) - 1)
    assert_close(out, known.expand_as(out), rtol=0, atol=0.1)  # 4000 images know a to 2 %
    error = (out - clean).square().mean()
    assert_close(error, torch.tensor(1 - gain), rtol=0.1, atol=0.0)  # 4000 samples: 2 %


def test_it_removes_structure_that_it_was_shown():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(3000, 1, 1, generator=generator) * torch.ones(6, 6)
    structure = torch.zeros(6, 6)
    structure[0] = structure[-1] = structure[:, 0] = structure[:, -1] = 3.0  # as symmetric as D4
    out = linear_filter(clean, clean + structure, 0.5)(clean + structure)
    assert (out - clean).square().mean() < 0.02


def test_it_is_that_of_all_turned_and_mirrored_copies():
    generator = torch.Generator().manual_seed(0)
    clean, structure = torch.randn(2, 50, 6, 6, generator=generator)
    noisy = torch.randn(3, 6, 6, generator=generator)
    for observed in (clean, clean + structure):
        y, x = (dihedral(stack).flatten(1) for stack in (clean, observed))
        c_xx, c_xy = x.T.cov(correction=0) + torch.eye(36), (x - x.mean(0)).T @ y / len(x)
        known = y.mean(0) + (noisy.flatten(1) - x.mean(0)) @ torch.linalg.solve(c_xx, c_xy)
        assert_close(linear_filter(clean, observed, 1.0)(noisy).flatten(1), known)


def test_over_turns_commutes_with_turning_and_keeps_what_does_already():
    generator = torch.Generator().manual_seed(0)
    images, weights = (torch.randn(3, 6, 6, generator=generator) for _ in range(2))
    one = partial(over_turns, lambda x: x * weights)  # depends on the position, so it does not
    for copy in (torch.rot90(images, 1, (1, 2)), images.flip(2), images.flip(1)):
        back = next(
            turn
            for mirror in (False, True)
            for k in range(4)
            for turn in [lambda t, k=k, m=mirror: torch.rot90(t.flip(2) if m else t, k, (1, 2))]
            if torch.equal(turn(images), copy)
        )
        assert_close(one(copy), back(one(images)))
    assert_close(over_turns(lambda x: 2 * x, images), 2 * images)


def test_over_turns_is_never_worse_than_the_mean_of_its_parts():
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(5, 6, 6, generator=generator)
    weights = torch.rand(6, 6, generator=generator)
    parts = [
        (torch.rot90(weights.flip(1) if m else weights, k) * clean - clean).square().mean()
        for m in (False, True)
        for k in range(4)
    ]
    whole = (over_turns(lambda x: x * weights, clean) - clean).square().mean()
    assert whole < torch.stack(parts).mean()
