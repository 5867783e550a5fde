"""The linear filter, against the closed form for Gaussian data."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from cryonb.baselines import dihedral, linear_filter


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
