"""The adapters to other people's denoisers: their units and signs, and that they do denoise."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from cryonb.data.volumes import load_volume
from cryonb.denoisers import peers
from cryonb.denoisers.baselines import linear_filter
from cryonb.evaluation.metrics import psnr
from cryonb.simulation.simulate import SETTINGS, clean_scale, simulate_images

SIGMA = 10**0.5  # SNR 0.1


@pytest.fixture(scope="module")
def data():
    """Clean images to fit on, and clean and noisy ones to judge with."""
    volume = load_volume("channel", 32, 6.0)
    scale, generator = clean_scale(volume), torch.Generator().manual_seed(1)
    images = simulate_images(volume, 2400, SETTINGS["white"], generator, scale=scale).clean
    noisy = images + SIGMA * torch.randn(images.shape, generator=generator)
    return SimpleNamespace(
        train=images[:1200], clean=images[1200:], fit_noisy=noisy[:1200], noisy=noisy[1200:]
    )


def gain(output, noisy, clean) -> float:
    """How much better than the input, in dB."""
    return float((psnr(output, clean) - psnr(noisy, clean)).mean())


def needs(name: str) -> None:
    """Skip without the package. pytest.importorskip would import ASPIRE unrestrained."""
    if why := peers.missing(name):
        pytest.skip(why)


@pytest.mark.parametrize("name", sorted(peers.MODULES))
def test_a_missing_package_is_one_sentence(name, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda module: None)
    sentence = "not installed: pip install 'cryonb[peers]'"
    assert peers.missing(name) == sentence
    with pytest.raises(ImportError) as raised:
        getattr(peers, name)(torch.zeros(1, 8, 8), 1.0)
    assert str(raised.value) == peers.missing(name)
    monkeypatch.setattr(peers, "find_spec", lambda module: module != "pkg_resources")
    assert (peers.missing(name) is None) == (name != "topaz")  # it needs setuptools below 81


@pytest.mark.parametrize("name", sorted(peers.MODULES))
def test_what_none_of_them_can_take(name):
    needs(name)
    denoise = getattr(peers, name)
    for sigma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="sigma"):
            denoise(torch.zeros(1, 8, 8), sigma)
    for images in (torch.zeros(8, 8), torch.full((1, 8, 8), float("nan"))):
        with pytest.raises(ValueError, match="finite stack"):
            denoise(images, 1.0)


def test_bm3d(data, capsys):
    needs("bm3d")
    peers._say_once.cache_clear()
    noisy, clean = data.noisy[:6], data.clean[:6]
    out = peers.bm3d(noisy, SIGMA)
    assert out.shape == noisy.shape and out.dtype == noisy.dtype
    assert gain(out, noisy, clean) > 12
    # Another unit and contrast, and nothing clipped to 0 ... 1.
    other = peers.bm3d(-50 * noisy[:1], 50 * SIGMA)
    assert_close(other / -50, out[:1], rtol=0, atol=0.02)
    assert capsys.readouterr().out.count("non-commercial") == 1  # once for two calls
    tiny = peers.bm3d(noisy[:1], 1e-4)
    assert_close(tiny, noisy[:1], rtol=0, atol=1e-3)


def test_cwf_is_level_with_the_best_linear_filter(data, tmp_path, monkeypatch):
    needs("cwf")
    monkeypatch.chdir(tmp_path)
    hook, handlers = sys.excepthook, logging.getLogger().handlers[:]
    logger = logging.getLogger("somebody.elses")
    out = peers.cwf(data.noisy, SIGMA)
    assert out.shape == data.noisy.shape and out.dtype == data.noisy.dtype
    assert sys.excepthook is hook and logging.getLogger().handlers == handlers
    assert not logger.disabled and not any(tmp_path.iterdir())
    best = linear_filter(data.train, data.train, SIGMA)(data.noisy)
    # It learns the same filter without clean images, from as many.
    difference = (psnr(out, data.clean) - psnr(best, data.clean)).mean()
    assert abs(float(difference)) < 0.5
    scale, offset = peers.affine_fit(out, data.clean)
    assert scale == pytest.approx(1, abs=0.05) and offset == pytest.approx(0, abs=0.05)
    other = peers.cwf(-3 * data.noisy + 70, 3 * SIGMA)
    assert_close((other - 70) / -3, out, rtol=0, atol=0.02)
    with pytest.raises(ValueError, match="square"):
        peers.cwf(data.noisy[:, 1:], SIGMA)


def test_topaz(data):
    needs("topaz")
    fit, noisy = data.fit_noisy[:24], data.noisy[:24]
    for sign in (1, -1):
        scale, offset = peers.affine_fit(peers.topaz(fit, SIGMA, sign), data.train[:24])
        out = peers.topaz(noisy, SIGMA, sign)
        assert out.shape == noisy.shape and out.dtype == noisy.dtype
        assert scale > 0
        assert gain(scale * out + offset, noisy, data.clean[:24]) > 12
    # The images are normalised one by one, in any unit, and the signs are each other's mirror.
    alone = peers.topaz(10 * noisy[3:4] + 5, SIGMA, -1)
    assert_close((alone - 5) / 10, out[3:4], rtol=0, atol=1e-3)
    assert_close(-peers.topaz(-noisy[:2], SIGMA, 1), out[:2], rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="constant"):
        peers.topaz(torch.ones(2, 32, 32), SIGMA)


def test_affine_fit_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(5, 8, 8, generator=generator)
    assert peers.affine_fit(clean / 4 - 1, clean) == pytest.approx((4.0, 4.0), rel=1e-5)
    output = clean / 4 + torch.randn(clean.shape, generator=generator)
    scale, offset = peers.affine_fit(output, clean)
    rest = (scale * output + offset - clean).double()
    assert abs(float(rest.mean())) < 1e-6 and abs(float((rest * output).mean())) < 1e-6
    with pytest.raises(ValueError, match="constant"):
        peers.affine_fit(torch.ones_like(clean), clean)
