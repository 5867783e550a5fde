"""The weights that come with the package do what their headers say, on images made anew."""

from __future__ import annotations

import pytest
import torch

from cryonb.data.volumes import load_volume
from cryonb.denoisers.baselines import linear_filter, over_turns
from cryonb.evaluation.metrics import psnr
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.refine import Refiner, refine
from cryonb.learning.weights import KEPT, MANY, load_kept, load_model
from cryonb.simulation.simulate import clean_scale, setting, simulate_images

MADE = dict(box_size=64, pixel_size_A=3.0, snr=0.1)
SIGMA = 10**0.5


@pytest.fixture(scope="module", params=["white", "structural"])
def case(request):
    """Setting, networks, training images for the filter, and clean and noisy test images."""
    volume = load_volume("channel", 64, 3.0)
    scale = clean_scale(volume)

    def images(n, seed):
        generator = torch.Generator().manual_seed(seed)
        made = simulate_images(volume, n, setting(request.param), generator, scale=scale)
        return made.clean, made.observed(3.0)

    clean, observed = images(96, 12345)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(54321))
    networks = [
        load_kept("channel", request.param, *what, **MADE)
        for what in (("sr3", SR3), ("refine", Refiner))
    ]
    return request.param, networks, images(1000, 777), clean, observed + SIGMA * noise


def mean_psnr(images, clean):
    return float(psnr(images, clean).mean())


def test_it_beats_the_best_linear_filter_and_keeps_its_word(case):
    name, ((model, manifest), (second, said)), training, clean, noisy = case
    linear = mean_psnr(linear_filter(*training, SIGMA)(noisy), clean)

    def once(images):
        return denoise(model, images, SIGMA)

    estimate = once(noisy)
    one = mean_psnr(estimate, clean)
    assert one > linear + 0.7  # see the table in notebook 03; the filter of few images is weaker
    assert mean_psnr(over_turns(once, noisy), clean) > one
    sample = denoise(model, noisy, SIGMA, 8)
    assert said["options"]["refine_steps"] == 1  # it refines the one-step estimate
    refined = mean_psnr(refine(second, estimate, noisy, SIGMA), clean)
    assert refined > mean_psnr(sample, clean) + 1
    # 96 images: the mean PSNR of another draw differs by 0.1 dB
    assert one == pytest.approx(manifest["test"]["posterior_mean"], abs=0.4)
    assert refined == pytest.approx(said["test"]["refined"], abs=0.4)


def test_files_are_small():
    files = list(KEPT.glob("*.safetensors"))
    assert len(files) == 8
    assert all(file.stat().st_size < 10e6 for file in files)


def test_the_model_for_any_molecule_is_the_better_one_where_no_model_was_trained():
    """On the dimer, which neither has seen; and it keeps its word."""
    volume = load_volume("prestin", 64, 3.0)
    generator = torch.Generator().manual_seed(12345)
    clean = simulate_images(
        volume, 96, setting("white"), generator, scale=clean_scale(volume)
    ).clean
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=generator)
    many, manifest = load_model(MANY, SR3)
    one = load_kept("channel", "white", "sr3", SR3, **MADE)[0]
    found = {
        name: mean_psnr(denoise(model, noisy, SIGMA), clean)
        for name, model in {"many": many, "one": one}.items()
    }
    assert found["many"] > found["one"] + 1.5
    assert found["many"] == pytest.approx(manifest["test"]["prestin"]["posterior_mean"], abs=0.4)
