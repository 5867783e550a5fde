"""Micrographs against simulated ones, whose defocus and particles are known."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryonb.data import micrographs
from cryonb.data.micrographs import find_data, fit_ctf, read_micrograph, remove_hot_pixels
from cryonb.physics.ctf import ctf


@pytest.mark.parametrize("defocus_um", [0.9, 2.4])
@pytest.mark.parametrize("astigmatism_um", [0.0, 0.08])
def test_the_fit_finds_defocus_and_astigmatism(defocus_um, astigmatism_um):
    g = torch.Generator().manual_seed(1)
    optics = {"astigmatism_um": astigmatism_um, "astigmatism_angle_deg": 35.0}
    transfer = ctf(256, 1.5, defocus_um, **optics)[0]
    envelope = torch.exp(-torch.arange(129) / 60)
    power = (0.3 * transfer**2 + 1) * (0.2 + envelope)
    power = power * (1 + 0.05 * torch.randn(power.shape, generator=g))
    fit = fit_ctf(power, 1.5)
    assert fit.defocus_um == pytest.approx(defocus_um, abs=0.02)
    assert fit.astigmatism_um == pytest.approx(astigmatism_um, abs=0.015)
    if astigmatism_um:
        assert abs((fit.angle_deg - 35 + 90) % 180 - 90) < 8
    assert fit.correlation > 0.3


def test_noise_has_no_rings():
    power = 1 + 0.05 * torch.randn(256, 129, generator=torch.Generator().manual_seed(0))
    assert fit_ctf(power, 1.5).correlation < 0.1


def test_data_are_found_by_name_or_simulated(tmp_path, monkeypatch, capsys):
    options = {"most_images": 5, "box_size": 32, "pixel_size_A": 6.0}

    def no_network(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(micrographs, "fetch", no_network)
    name, path, placed = find_data("auto", tmp_path, **options)
    assert name == "simulated" and "no network" in capsys.readouterr().out
    image, pixel_A = read_micrograph(path)
    assert pixel_A == pytest.approx(6.0) and image.shape == (448, 448)
    # Particles are dark: each box is darker in its middle than the micrograph is, on average.
    boxes = torch.stack([image[y - 4 : y + 4, x - 4 : x + 4] for y, x in placed])
    assert len(placed) > 30 and (boxes.mean((1, 2)) < image.mean()).float().mean() > 0.9
    asked = []
    monkeypatch.setattr(micrographs, "fetch", lambda name, **k: asked.append((name, k)) or path)
    for name in ("auto", "micrograph-fei", "EMPIAR-10081"):
        find_data(name, tmp_path, **options)
    assert [x for x, _ in asked] == ["micrograph-epu", "micrograph-fei", "EMPIAR-10081"]
    assert [k.get("max_images") for _, k in asked] == [None, None, 5]
    assert find_data("own.star", tmp_path, **options) == ("own.star", Path("own.star"), None)


def test_hot_pixels_take_their_neighbours_value():
    image = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    hot = image.clone()
    hot[10, 20], hot[0, 63] = 500.0, -500.0
    healed = remove_hot_pixels(hot)
    changed = (healed != image).nonzero().tolist()
    assert changed == [[0, 63], [10, 20]] and healed.abs().max() < 6


def write(path: Path, data, pixel_A: float = 1.5) -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = pixel_A
    return path


def test_a_micrograph_comes_back(tmp_path):
    data = np.random.default_rng(0).integers(0, 100, (40, 50)).astype(np.uint16)
    image, pixel_A = read_micrograph(write(tmp_path / "m.mrc", data))
    assert pixel_A == pytest.approx(1.5) and np.array_equal(image.numpy(), data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "pixel_A", "message"),
    [
        (np.ones((3, 40, 40), np.float32), 1.0, "align movies"),
        (np.ones((40, 40), np.complex64), 1.0, "no micrograph"),
        (np.ones((40, 40), np.float32), 0.0, "pixel size"),
        (np.full((40, 40), np.nan, np.float32), 1.0, "NaN"),
    ],
)
def test_other_files_are_refused(tmp_path, data, pixel_A, message):
    with pytest.raises(ValueError, match=message):
        read_micrograph(write(tmp_path / "m.mrc", data, pixel_A))


def test_a_cut_or_missing_file_is_refused(tmp_path):
    path = write(tmp_path / "m.mrc", np.ones((40, 40), np.float32))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="cut short"):
        read_micrograph(path)
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_micrograph(tmp_path / "no.mrc")
