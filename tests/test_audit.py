"""The audit, on denoisers whose honesty is known: liars are caught, honest ones pass."""

from __future__ import annotations

import sys

import pytest
import torch
from test_posterior import BOX
from test_projection import phantom
from torch.testing import assert_close

from cryonb.cli import main
from cryonb.data.volumes import load_volume
from cryonb.evaluation.audit import (
    best_match,
    calibration,
    correlation,
    model_bias,
    noise_only,
    reappearance,
    shuffled,
)
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project
from cryonb.poses.templates import volume_templates
from cryonb.simulation.dataset import write_dataset

PIXEL = 4.0


def unit(volume):
    return volume / project(volume, random_rotations(64, torch.Generator().manual_seed(9))).std()


@pytest.fixture(scope="module")
def molecule():
    return unit(phantom(BOX, width=1.6).float())


@pytest.fixture(scope="module")
def views(molecule):
    rotations = random_rotations(40, torch.Generator().manual_seed(0))
    return rotations, project(molecule, rotations)


@pytest.fixture(scope="module")
def liar(views):
    """A denoiser that shows projections of its molecule, whatever it is given."""
    return lambda noisy: views[1][: len(noisy)].clone()


def test_a_projection_matches_itself_in_its_pose(molecule, views):
    rotations, images = views
    likeness, found = best_match(images + 3, molecule, volume_templates(molecule, 6.0))
    assert likeness.mean() > 0.92  # the grid is 6° apart, the blobs are narrow
    assert angular_distance_deg(found, rotations).median() < 6
    assert_close(correlation(images, 2 * images + 1), torch.ones(40), atol=1e-5, rtol=0)
    assert correlation(images, images * 0).eq(0).all()


def test_shuffled_keeps_the_power_and_nothing_else(views):
    images = views[1]
    other = shuffled(images, torch.Generator().manual_seed(0))
    before, after = (torch.fft.rfft2(x).abs() for x in (images, other))
    assert_close(after[:, :, 1:-1], before[:, :, 1:-1], rtol=1e-2, atol=0.1)
    assert correlation(images, other).abs().mean() < 0.4


def test_molecules_from_noise_are_found(molecule, liar):
    options = {"pixel_size_A": PIXEL, "spacing_deg": 10.0}
    found = noise_only(liar, molecule, 2.0, 40, **options)
    assert found.variation == pytest.approx(1, rel=0.2)
    assert found.resemblance > 0.9 and found.resemblance > found.control + 0.05
    assert found.fsc[1][1:6].min() > 0.9 > found.fsc_control[1][1:6].mean()
    honest = noise_only(lambda noisy: 0.01 * noisy, molecule, 2.0, 40, **options)
    assert honest.variation < 0.01
    assert abs(honest.resemblance - honest.control) < 0.05
    # In poses chosen on the noise, the noise itself averages to the molecule: "Einstein".
    assert_close(honest.fsc[1], honest.fsc_control[1])
    assert honest.fsc_control[1][1:4].mean() > 0.3


def test_a_bias_to_the_known_molecule_is_found(molecule, liar):
    other = unit(phantom(BOX, seed=7, width=1.6).float())
    clean = project(other, random_rotations(40, torch.Generator().manual_seed(1)))
    lies = model_bias(liar, clean, clean, molecule, spacing_deg=10.0)
    assert lies.with_known > 0.9 > lies.with_truth + 0.1
    honest = model_bias(lambda noisy: noisy, clean, clean, molecule, spacing_deg=10.0)
    assert honest.with_truth == pytest.approx(1)
    assert honest.with_known == pytest.approx(honest.control)


def test_detail_that_returns_is_found(views):
    clean = views[1]
    liar = reappearance(lambda noisy: clean, clean, 1e-5, PIXEL, 16.0)
    removed, given = liar.beyond
    assert removed == pytest.approx(1, abs=1e-3) and abs(given) < 0.2
    honest = reappearance(lambda noisy: noisy, clean, 1e-5, PIXEL, 16.0)
    removed, given = honest.beyond
    assert given > 0.9 and abs(removed) < 0.2  # a few dozen pixels a ring, 40 images
    near = honest.frequency_per_A < honest.cutoff_per_A
    assert honest.with_removed[near][1:].min() > 0.9
    assert honest.cutoff_per_A == pytest.approx(1 / 16)


@pytest.mark.parametrize(("spread", "ratio"), [(1.0, 1.0), (0.5, 0.4)])
def test_spread_of_samples_is_judged(spread, ratio):
    """Truth and samples drawn about one mean: E|s1 - s2|^2 / E|s - y|^2 = 2 a^2 / (1 + a^2)."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(30, 20, 20, generator=generator)
    clean = mean + torch.randn(mean.shape, generator=generator)
    samples = mean + spread * torch.randn(7, *mean.shape, generator=generator)
    found = calibration(samples, clean, torch.ones(20, 20))
    assert found.between_to_truth == pytest.approx(ratio, rel=0.05)
    assert_close(found.nominal, torch.tensor([0.75, 0.5, 0.25]))
    assert found.ranks.sum() == pytest.approx(1)
    if spread == 1:
        assert_close(found.coverage, found.nominal, atol=0.02, rtol=0)
        assert_close(found.ranks, torch.full((8,), 1 / 8), atol=0.01, rtol=0)
    else:
        assert (found.coverage < found.nominal - 0.1).all()
        assert found.ranks[0] + found.ranks[-1] > 0.4  # the truth lies outside too often
    with pytest.raises(ValueError, match="two at least"):
        calibration(samples[:1], clean, torch.ones(20, 20))


def test_the_report_of_a_liar_and_of_an_honest_function(tmp_path, monkeypatch, capsys):
    counts = {"train": 4, "validation": 4, "test": 24}
    volume = load_volume("channel", 32, 6.0)
    folder = write_dataset(tmp_path / "white", volume, counts, source="channel")
    (tmp_path / "my_denoisers.py").write_text(
        "import torch\n"
        "from cryonb.simulation.dataset import read_dataset\n"
        f"shown = read_dataset({str(folder)!r}).test.clean.images\n"
        "def liar(noisy): return shown[torch.arange(len(noisy)) % len(shown)].clone()\n"
        "def honest(noisy): return 0.01 * noisy\n"
    )
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(tmp_path)  # a module beside the user is found
    verdicts = {}
    for name in ("liar", "honest"):
        out = tmp_path / f"{name}.md"
        given = ["audit", f"my_denoisers:{name}", "--data", str(folder), "--images", "24"]
        assert main([*given, "--out", str(out)]) == 0
        assert out.read_text() in capsys.readouterr().out
        rows = [line for line in out.read_text().splitlines() if line.startswith("| ")][1:]
        verdicts[name] = ["FAILED" in row for row in rows]
        assert len(rows) == 4
    assert all(verdicts["liar"])
    assert not any(verdicts["honest"])
    assert main(["audit", "my_denoisers:nobody", "--data", str(folder)]) == 2
    assert "module:function" in capsys.readouterr().err
    assert main(["audit", "my_denoisers:honest", "--data", str(tmp_path)]) == 2
    assert "No data set" in capsys.readouterr().err
