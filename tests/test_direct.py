"""The direct denoiser: it learns, and its Noise2Noise loss is what theory says."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from cryonb.denoisers.direct import Denoiser, Direct, denoise_direct
from cryonb.learning.train import draw_batch, train

SMALL = dict(widths=(16, 32), blocks=1, transformers=1, embedding=32)
SIGMA = 2.0


def discs(n=256, box=32):
    """Bright discs at random places, unit variance: something to learn in seconds."""
    generator = torch.Generator().manual_seed(0)
    centre = 8 + 16 * torch.rand(n, 2, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(box), torch.arange(box), indexing="ij")
    inside = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 36).float()
    return (inside - inside.mean()) / inside.std()


def awake(seed=0):
    """A small denoiser whose output is not zero."""
    torch.manual_seed(seed)
    model = Denoiser(**SMALL).eval()
    torch.nn.init.normal_(model.unet.exit.weight, std=0.05)
    return model


@pytest.mark.parametrize("noise2noise", [False, True])
def test_both_losses_learn_to_denoise(noise2noise):
    images = discs()
    torch.manual_seed(0)
    model = Denoiser(**SMALL)
    average, draw = copy.deepcopy(model), partial(draw_batch, (images, images))
    options = dict(batch_size=16, learning_rate=1e-2, precision="no")
    for _ in train(model, average, draw, Direct(SIGMA, noise2noise).loss, 1280, **options):
        pass
    fresh = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    error = (denoise_direct(average.eval(), images + SIGMA * fresh, SIGMA) - images).square()
    # the constant zero has error 1, the noisy image 4
    assert error.mean() < (0.7 if noise2noise else 0.4)


def test_noise2noise_expects_the_supervised_loss_and_the_noise():
    """E|f(x) - x'|^2 = E|f(x) - observed|^2 + sigma^2, at one and the same f."""
    model, images = awake(), discs()

    def mean(noise2noise):
        loss = Direct(SIGMA, noise2noise, snr_start=1 / SIGMA**2).loss  # no curriculum
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            values = [loss(model, (images, images), 0.0, generator) for _ in range(8)]
        return torch.stack(values).mean()

    difference = mean(True) - mean(False)
    # 8 * 256 * 1024 pixels of variance 2 sigma^4 and more: 0.3 % of sigma^2 in one deviation
    assert_close(difference, torch.tensor(SIGMA**2), rtol=0.01, atol=0.0)


def test_noise2noise_does_not_look_at_the_clean_image():
    model, images = awake(), discs(8)
    losses = [
        Direct(SIGMA, True).loss(model, (clean, images), 1.0, torch.Generator().manual_seed(0))
        for clean in (images, torch.full_like(images, torch.nan))
    ]
    assert losses[0] == losses[1]
    a, b = (
        Direct(SIGMA).loss(model, (clean, images), 1.0, torch.Generator().manual_seed(0))
        for clean in (images, images + 1)
    )
    assert a != b


def test_noise_follows_the_curriculum_and_the_seed():
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, noisy, sigma):
            seen.append((float(noisy.std()), sigma))
            return noisy

    zeros = torch.zeros(16, 32, 32)
    for fraction in (0.0, 1.0):
        generator = torch.Generator().manual_seed(0)
        loss = Direct(SIGMA, True).loss(Watch(), (zeros, zeros), fraction, generator)
        assert float(loss) == pytest.approx(2 * seen[-1][1] ** 2, rel=0.05)  # two noises
    assert [level for _, level in seen] == pytest.approx([3**-0.5, SIGMA])
    assert all(std == pytest.approx(level, rel=0.03) for std, level in seen)


def test_batches_do_not_matter_and_odd_boxes_are_refused():
    model, noisy = awake(), torch.randn(5, 32, 32)
    assert_close(
        denoise_direct(model, noisy, SIGMA, batch_size=2), denoise_direct(model, noisy, SIGMA)
    )
    with pytest.raises(ValueError, match="33 × 33.*multiple of 8"):
        model(torch.zeros(1, 33, 33), SIGMA)
