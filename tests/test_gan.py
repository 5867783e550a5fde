"""Adversarial denoisers: proper scores, fitting shapes, repeatable and useful training."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from test_direct import SIGMA, discs
from torch.testing import assert_close

from cryonb.denoisers import gan
from cryonb.denoisers.direct import denoise_direct
from cryonb.denoisers.gan import (
    KINDS,
    LEAST,
    Adversarial,
    Discriminator,
    Generator,
    beta_score,
    contaminate,
    judge_loss,
    pass_loss,
)
from cryonb.learning.train import count_flops, flops_per_image
from cryonb.learning.weights import load_model, save_model


def run(kind, n_images=32, seed=0, images=None, **options):
    images = discs(64) if images is None else images
    torch.manual_seed(0)
    generator, discriminator = Generator(kind, shrink=4, blocks=1), Discriminator(kind, shrink=8)
    average = copy.deepcopy(generator)
    recipe, networks = Adversarial(SIGMA, kind, **options), (generator, discriminator, average)
    steps = recipe.begin((images, images), *networks, n_images=n_images, seed=seed)
    return average.eval(), list(steps), discriminator


def test_beta_scores_have_the_derivatives_of_their_law():
    t = torch.linspace(0.02, 0.98, 49, dtype=torch.float64, requires_grad=True)
    root_odds = ((1 - t) / t).detach().sqrt()
    for label, law in {1: root_odds, 0: -1 / root_odds}.items():
        score = beta_score(t, label)
        (slope,) = torch.autograd.grad(score.sum(), t)
        assert_close(slope, law)
        assert (score < 0).all()
        best = torch.tensor(float(label), dtype=torch.float64)
        assert_close(beta_score(best, label), 0 * best)


def test_beta_scores_are_proper():
    """If a share p of the images is clean, the expected score is greatest for t = p."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for p in (0.2, 0.5, 0.9):
        expected = p * beta_score(t, 1) + (1 - p) * beta_score(t, 0)
        assert float(t[expected.argmax()]) == pytest.approx(p)


@pytest.mark.parametrize("kind", KINDS)
def test_players_are_rewarded_for_what_they_should_do(kind):
    clean, fake = torch.full((4, 9), 2.0), torch.full((4, 9), -2.0, requires_grad=True)
    assert judge_loss(kind, clean, fake) < judge_loss(kind, fake, clean)
    (slope,) = torch.autograd.grad(pass_loss(kind, fake), fake)
    assert (slope < 0).all()  # a better judgement lowers the loss
    if kind == "robust":  # beyond the clamp a judgement counts no more
        far = torch.full((4, 1), 20.0, requires_grad=True)
        assert_close(judge_loss(kind, far, -far), -2 * beta_score(torch.tensor(1 - LEAST), 1))
        (slope,) = torch.autograd.grad(pass_loss(kind, -far), far)
        assert (slope == 0).all()


@pytest.mark.parametrize("box", [32, 64])
@pytest.mark.parametrize(
    "kind, patches", [("denoise", {32: 4, 64: 36}), ("robust", {32: 1, 64: 1})]
)
def test_shapes(kind, patches, box):
    torch.manual_seed(0)
    noisy = torch.randn(2, box, box)
    generator, discriminator = Generator(kind, shrink=8), Discriminator(kind, shrink=8)
    assert generator(noisy, SIGMA).shape == noisy.shape
    logits = discriminator(noisy, noisy, SIGMA)
    assert logits.shape == (2, patches[box])
    moved = discriminator(noisy, noisy + torch.randn(2, box, box), SIGMA)
    assert torch.equal(logits, moved) == (kind == "robust")  # it does not see the condition


def test_boxes_and_kinds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="40 × 40.*multiple of 16"):
        Generator("denoise", shrink=8)(torch.zeros(1, 40, 40), SIGMA)
    assert Generator("robust", shrink=8)(torch.zeros(1, 40, 40), SIGMA).shape == (1, 40, 40)
    with pytest.raises(ValueError, match="33 × 33.*multiple of 8"):
        Generator("robust", shrink=8)(torch.zeros(1, 33, 33), SIGMA)
    with pytest.raises(ValueError, match="24 at least"):  # no patch to judge
        Generator("robust", shrink=8)(torch.zeros(1, 16, 16), SIGMA)
    for build in (Generator, Discriminator):
        with pytest.raises(ValueError, match="choose one of"):
            build("wasserstein")


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_repeats_bit_for_bit_and_another_does_not(kind):
    (a, pa, da), (b, pb, db), (_, pc, _) = run(kind), run(kind), run(kind, seed=1)
    assert [p.loss for p in pa] == [p.loss for p in pb] != [p.loss for p in pc]
    for one, other in ((a, b), (da, db)):
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)
    assert [p.images for p in pa] == list(range(8, 33, 8)) and pa[-1].fraction == 1


@pytest.mark.parametrize("kind", KINDS)
def test_training_beats_the_noisy_and_the_mean_image(kind):
    images = discs()
    average, _, _ = run(kind, 1920, images=images)
    noisy = images + SIGMA * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    error = (denoise_direct(average, noisy, SIGMA) - images).square().mean()
    mean = (images.mean(0) - images).square().mean()
    # gradients in another memory layout than the weights train too, but only to 0.36 of the mean
    assert error < 0.3 * mean < SIGMA**2


def test_each_loss_moves_its_own_player_only(monkeypatch):
    monkeypatch.setattr(gan, "RATES", (0.0, 1e-3))
    still, _, judge = run("denoise", 16, images=discs(32))
    torch.manual_seed(0)
    before = Generator("denoise", shrink=4, blocks=1), Discriminator("denoise", shrink=8)
    pairs = zip(still.parameters(), before[0].parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    pairs = zip(judge.parameters(), before[1].parameters(), strict=True)
    assert not all(torch.equal(p, q) for p, q in pairs)


def test_curriculum_and_nan():
    without = run("robust", 16, snr_start=1 / SIGMA**2)[1][1].loss
    assert run("robust", 16)[1][1].loss < without
    with pytest.raises(FloatingPointError, match="NaN"):
        run("robust", images=torch.full((16, 32, 32), torch.nan))


def test_cost_of_an_image_counts_both_players():
    """A step runs G once and D three times forward: on clean, on made images, and for G's sake."""
    generator, discriminator = Generator("robust", shrink=8), Discriminator("robust", shrink=8)
    players, x = (generator, discriminator, generator), torch.zeros(1, 32, 32)
    steps = partial(Adversarial(SIGMA, "robust").begin, (discs(16), discs(16)), n_images=800)
    each = flops_per_image(steps, *players)
    g, d = (
        count_flops(partial(m, *a))
        for m, a in ((generator, (x, SIGMA)), (discriminator, (x, x, SIGMA)))
    )
    assert g + 3 * d < each < 3 * (g + 3 * d)  # backward costs at most twice forward


def test_generator_round_trips_as_weights(tmp_path):
    generator = Generator("robust", shrink=8, blocks=2)
    path = save_model(tmp_path / "g.safetensors", generator, {})
    x = torch.randn(1, 32, 32)
    assert_close(load_model(path, Generator)[0](x, SIGMA), generator(x, SIGMA))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_contamination_is_of_the_right_share_and_keeps_the_rest(share):
    clean = discs(100)
    kept = clean.clone()
    new = contaminate(clean, share, torch.Generator().manual_seed(0))
    assert torch.equal(clean, kept)
    outlier = (new != clean).flatten(1).any(1)
    assert int(outlier.sum()) == round(100 * share)
    if share:
        from_elsewhere = (new[outlier][:, None] == clean[None]).flatten(2).all(2).any(1)
        assert int(from_elsewhere.sum()) == int(outlier.sum()) // 2
        noise = new[outlier][~from_elsewhere]
        assert float(noise.std()) == pytest.approx(float(clean.std()), rel=0.02)
    again = contaminate(clean, share, torch.Generator().manual_seed(0))
    assert torch.equal(new, again)


def test_contamination_share_is_a_share():
    with pytest.raises(ValueError, match="from 0 to 1"):
        contaminate(discs(4), 1.5, torch.Generator())
