"""The diffusion model, against data whose posterior is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cryonb.denoisers.published import Published, gammas
from cryonb.learning.diffusion import (
    GAMMA_START,
    SR3,
    denoise,
    denoise_batches,
    draw_gamma,
    fuse,
    gamma_of,
    posterior_mean,
    sample,
    step_gammas,
)

SMALL = dict(widths=(16, 32), blocks=1, transformers=1, embedding=32)
SIGMA = 2.0


def gaussian_denoiser(y_t, gamma, noisy, sigma):
    """E[y_0 | y_t, x] for independent pixels of unit variance."""
    c, sigma_c = fuse(y_t, torch.tensor(gamma), noisy, torch.tensor(sigma))
    return c / (1 + sigma_c**2)


def model(seed=0):
    torch.manual_seed(seed)
    sr3 = SR3(**SMALL)
    torch.nn.init.normal_(sr3.unet.exit.weight, std=0.05)  # away from its start at zero
    return sr3.eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(n=64, box=32):
    clean = torch.randn(n, box, box, generator=generator(1))
    return clean, clean + SIGMA * torch.randn(n, box, box, generator=generator(2))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampler_draws_from_a_gaussian_posterior(eta):
    clean, noisy = pairs()
    *_, last = sample(gaussian_denoiser, noisy, SIGMA, 64, eta=eta, generator=generator(3))
    mean, variance = noisy / (1 + SIGMA**2), SIGMA**2 / (1 + SIGMA**2)
    spread = (last.clean - mean).square().mean().item()
    # 65,536 pixels: 0.6 % statistical; what is left is the 64 steps', more of it with fresh noise
    assert spread == pytest.approx(variance, rel=0.02 if eta == 0 else 0.06)
    correlation = ((last.clean - mean) * noisy).mean().item()
    assert abs(correlation) < 0.05  # the sample's own part knows nothing of x


def test_the_published_sampler_draws_from_it_too():
    """The schedule ends where `GAMMA_START` is; its steps draw from the exact posterior."""
    assert gammas()[0] == 1 and float(gammas()[-1]) == pytest.approx(GAMMA_START, rel=0.03)
    clean, noisy = pairs(16)
    exact = torch.nn.Linear(1, 1)  # has a device
    exact.forward = gaussian_denoiser
    drawn = Published(SIGMA).apply(exact, noisy)
    mean, variance = noisy / (1 + SIGMA**2), SIGMA**2 / (1 + SIGMA**2)
    for goal in (mean, clean):  # one variance from the mean, two from the truth
        found, n = (drawn - goal).square().mean().item(), 1 + (goal is clean)
        assert found == pytest.approx(n * variance, rel=0.03)


def test_a_sample_has_twice_the_error_of_the_posterior_mean():
    clean, noisy = pairs()
    *_, last = sample(gaussian_denoiser, noisy, SIGMA, 64, generator=generator(3))
    best = (gaussian_denoiser(0 * noisy, 1e-9, noisy, SIGMA) - clean).square().mean()
    ratio = (last.clean - clean).square().mean() / best
    assert ratio.item() == pytest.approx(2, rel=0.02)  # as in the spread above
    samples = []
    for seed in (3, 4, 5, 6):  # others than those of the data
        *_, last = sample(gaussian_denoiser, noisy, SIGMA, 64, generator=generator(seed))
        samples.append(last.clean)
    mean = (torch.stack(samples).mean(0) - clean).square().mean() / best
    assert mean.item() == pytest.approx(1 + 1 / 4, rel=0.02)


def test_second_order_needs_fewer_steps():
    _, noisy = pairs()
    mean, variance = noisy / (1 + SIGMA**2), SIGMA**2 / (1 + SIGMA**2)

    def missing(steps, second_order):
        run = sample(
            gaussian_denoiser,
            noisy,
            SIGMA,
            steps,
            second_order=second_order,
            generator=generator(3),
        )
        *_, last = run
        return abs((last.clean - mean).square().mean().item() / variance - 1)

    assert missing(4, True) > missing(8, True)
    assert missing(8, True) < 0.06 < 3 * 0.06 < missing(8, False)  # measured: 0.04 and 0.3


def test_fused_view_has_the_noise_it_claims():
    clean, noisy = pairs()
    gamma = torch.tensor(0.3)
    y_t = gamma.sqrt() * clean + (1 - gamma).sqrt() * torch.randn(
        clean.shape, generator=generator()
    )
    c, sigma_c = fuse(y_t, gamma, noisy, torch.tensor(SIGMA))
    assert (c - clean).std().item() == pytest.approx(sigma_c.item(), rel=0.02)
    assert sigma_c.item() < min(SIGMA, ((1 - 0.3) / 0.3) ** 0.5)
    assert gamma_of(sigma_c, SIGMA).item() == pytest.approx(0.3, rel=1e-4)


def test_training_path_equals_sampling_path():
    """The loss is that of the very estimate which the sampler uses, with its known weight."""
    sr3, gamma = model(), 0.4
    clean = torch.randn(3, 32, 32, generator=generator(1))
    loss = sr3.loss(clean, clean, gamma, SIGMA, generator(5))
    g = generator(5)
    eps, white = (torch.randn(3, 1, 32, 32, generator=g)[:, 0] for _ in range(2))
    y_t = math.sqrt(gamma) * clean + math.sqrt(1 - gamma) * eps
    noisy = clean + SIGMA * white
    error = (sr3(y_t, gamma, noisy, SIGMA) - clean).square().mean()
    sigma_c = fuse(y_t, torch.tensor(gamma), noisy, torch.tensor(SIGMA))[1].item()
    assert_close(loss, (1 + sigma_c**2) / sigma_c**2 * error, rtol=1e-4, atol=1e-6)


def test_first_step_forgets_the_state_in_the_fused_form():
    sr3 = model()
    noisy = torch.randn(2, 32, 32, generator=generator(1))
    a, b = (posterior_mean(sr3, noisy, SIGMA, generator(s)) for s in (1, 2))
    # gamma = 4.5e-5 leaves the state a weight of sqrt(gamma) sigma^2 = 0.03 beside x
    assert (a - b).std() < 0.1 * a.std()


def test_draw_gamma_and_steps_cover_the_joint_noise_levels():
    gamma = draw_gamma(1000, SIGMA, generator())
    assert (gamma == torch.tensor(GAMMA_START)).float().mean() >= 0.5
    levels = step_gammas(8, SIGMA)
    assert levels[0].item() == pytest.approx(GAMMA_START) and (levels.diff() > 0).all()
    noise = ((1 - levels[1:]) / levels[1:]).sqrt()
    assert_close(noise[1:] / noise[:-1], (noise[1] / noise[0]).expand(6))  # equal steps in log


def test_denoise_keeps_order_and_repeats():
    sr3 = model()
    noisy = torch.randn(10, 32, 32, generator=generator(1))
    options = {"batch_size": 4, "precision": "no"}
    once, again = (denoise(sr3, noisy, SIGMA, 3, **options) for _ in range(2))
    assert once.shape == noisy.shape and torch.equal(once, again)
    first, second, _ = denoise_batches(sr3, noisy, SIGMA, 3, **options)
    assert torch.equal(once[:8], torch.cat([first, second]))
    assert (once - denoise(sr3, noisy, SIGMA, 3, seed=1, **options)).abs().max() > 1e-3
    twice = torch.cat([noisy[:4], noisy[:4]])  # each batch has random numbers of its own
    a, b = denoise(sr3, twice, SIGMA, 3, **options).split(4)
    assert (a - b).abs().max() > 1e-3


def test_bad_requests():
    with pytest.raises(ValueError, match="parameterisation 'eps'"):
        SR3(parameterisation="eps", **SMALL)
    with pytest.raises(ValueError, match="at least one"):
        step_gammas(0, SIGMA)
    with pytest.raises(ValueError, match="multiple of 8"):
        posterior_mean(model(), torch.zeros(1, 33, 33), SIGMA)
