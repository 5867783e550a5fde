"""The table of denoisers: what enters it, what it refuses, and the experiments beside it."""

from __future__ import annotations

import math
import time
from functools import partial

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from cryonb.data.volumes import load_volume
from cryonb.denoisers import methods
from cryonb.denoisers.baselines import linear_filter
from cryonb.denoisers.compare import (
    Comparison,
    peak_memory,
    run_all,
    train_for,
)
from cryonb.denoisers.direct import Direct
from cryonb.evaluation.metrics import mse, psnr
from cryonb.learning.train import Progress
from cryonb.simulation.dataset import read_dataset, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    volume = load_volume("channel", 32, 6.0)
    counts = {"train": 24, "validation": 12, "test": 10}
    folder = tmp_path_factory.mktemp("compare") / "white"
    return read_dataset(write_dataset(folder, volume, counts, source="channel"))


def test_any_function_enters_in_one_line(data):
    table = Comparison(data)
    table.add("half", lambda noisy: noisy / 2)
    clean, noisy = data.test.clean.images, data.test.noisy.images
    assert table.rows["half"]["mse"] == pytest.approx(float(mse(noisy / 2, clean).mean()))
    assert table.psnr_dB["half"] == pytest.approx(float(psnr(noisy / 2, clean).mean()))
    assert "over_limit" not in table.rows["half"] and "MSE ÷ limit" not in table.markdown()


def test_ratio_to_the_limit_is_over_the_same_particles(data):
    clean, noisy = data.test.clean.images, data.test.noisy.images
    limit = 0.9 * clean[:6] + 0.1 * noisy[:6]
    table = Comparison(data, limit)
    table.add("the limit", methods.Method(lambda _: limit, first=6))
    table.add("noisy", lambda noisy: noisy)
    assert table.rows["the limit"]["over_limit"] == pytest.approx(1)
    assert table.rows["the limit"]["images"] == 6 and table.rows["noisy"]["images"] == 10
    assert table.rows["noisy"]["over_limit"] == pytest.approx(100, rel=1e-4)


def test_a_method_may_learn_from_more_particles_and_do_only_a_few(data):
    seen = []

    def denoise(noisy):
        seen.append(len(noisy))
        time.sleep(0.14)
        return noisy * 0

    more = data.train.noisy.images
    table = Comparison(data)
    table.add("learner", methods.Method(denoise, "by heart", 12.0, first=4, also=more))
    assert seen == [4 + 24] and len(table.images["learner"]) == 4
    assert table.rows["learner"]["train_tflop"] == 12.0
    assert 5 <= table.rows["learner"]["ms_per_image"] < 25  # of all 28 that it was given
    assert table.settings["learner"] == "by heart"


def test_all_methods_run_but_those_whose_package_is_missing(capsys):
    def absent(noisy):
        raise ImportError("not installed: pip install it")

    noisy = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(0))
    learner = methods.Method(lambda given: given - len(given), first=4, also=noisy[:2])
    images = run_all({"learner": learner, "absent": methods.Method(absent)}, noisy)
    assert list(images) == ["learner"]
    assert_close(images["learner"], noisy[:4] - 6)
    assert "absent is left out: not installed" in capsys.readouterr().out


def test_what_is_no_denoiser_is_refused(data):
    table = Comparison(data)
    with pytest.raises(ValueError, match="thirds returned"):
        table.add("thirds", lambda noisy: noisy[::3])
    with pytest.raises(ValueError, match="NaN"):
        table.add("not a number", lambda noisy: noisy / 0 * 0)


def test_a_missing_package_is_a_note_in_every_form_of_the_table(data, tmp_path):
    def absent(noisy):
        raise ImportError("not installed: pip install 'cryonb[peers]'")

    table = Comparison(data)
    table.add("zero", torch.zeros_like)
    table.add("BM3D", absent)
    assert "| BM3D | not installed" in table.markdown()
    columns = {line.count("|") for line in table.markdown().splitlines() if "BM3D" not in line}
    assert len(columns) == 1
    table.write(tmp_path / "tables", "compare")
    frame = pd.read_csv(tmp_path / "tables" / "compare.csv", index_col="method")
    assert frame.loc["BM3D", "note"].startswith("not installed")
    assert frame.loc["zero", "mse"] == pytest.approx(table.rows["zero"]["mse"])
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == ["compare.csv", "compare.md"]
    assert table.results("white")["white: BM3D note"].startswith("not installed")


def test_peak_memory_sees_what_came_and_went():
    for n in (50, 25):  # 200 and 100 MiB: each block is counted anew
        with peak_memory() as peak:
            held = torch.ones(n, 2**20)
            del held
        assert 3.6 * n < peak[0] < 4 * n + 60


def test_a_budget_buys_so_many_images_and_is_looked_at_on_the_way():
    """A network of one product of 2 × 4 FLOP an image, forward alone: 512 buy 64 images."""
    layer = torch.nn.Linear(4, 1, bias=False).requires_grad_(False)

    def start(model, *, n_images):
        n = min(n_images, 128)
        for k in range(4, n + 1, 4):
            model(torch.zeros(4, 4))
            yield Progress(k // 4, k, k / n, 1.0)

    curve = train_for(512e-12, start, layer, evaluate=lambda: 7.0, title="fake")
    assert [t * 1e12 for t, _ in curve] == pytest.approx([32, 64, 128, 256, 512])
    assert {quality for _, quality in curve} == {7.0}
    assert math.isnan(train_for(512e-12, start, layer)[0][1])


def test_classical_rows_are_chosen_on_validation_and_beat_the_noise(data):
    rows, table = methods.classical(data, 2), Comparison(data)
    for name in ("noisy", "mean image", "Gaussian blur", "best linear filter"):
        table.add(name, rows[name])
    dB = table.psnr_dB
    assert dB["best linear filter"] > dB["Gaussian blur"] > dB["noisy"] + 10
    width = float(table.settings["Gaussian blur"].split()[0])
    held = data.validation
    errors = [
        float(mse(methods.blur(held.noisy.images, w), held.clean.images).mean())
        for w in (width - 0.25, width, width + 0.25)
    ]
    assert errors[1] == min(errors)


def test_memory_knows_its_own_training_images(data):
    method, templates = methods.template_posterior(data, 5)
    assert method.first == 5 and templates.target.shape[1] == 2 * 24
    noisy, clean = data.train.noisy.images, data.train.clean.images
    assert psnr(method.denoise(noisy), clean).mean() > psnr(noisy, clean).mean() + 20


def test_kept_rows_are_for_the_data_they_were_made_for(data):
    assert list(methods.pretrained(data)) == [
        "SR3 for any molecule, one step"
    ]  # the others: at 64 px
    simple, clean = methods.for_molecule(data, 0.05), data.train.clean.images
    assert_close(
        simple.denoise(data.test.noisy.images),
        linear_filter(clean, clean, 0.05**-0.5)(data.test.noisy.images),
    )
    for molecule, noise in (("channel", "white"), ("channel", "structural"), ("prestin", "white")):
        made = data.manifest | {"box_size": 64, "pixel_size_A": 3.0, "snr": 0.1}
        there = methods.replace(data, manifest=made | {"source": molecule, "setting": noise})
        assert "weights that come" in methods.for_molecule(there, 0.1).settings
        rows = methods.pretrained(there)
        assert "kept SR3 → U-Net" in rows and all(row.settings for row in rows.values())


def test_a_run_that_was_cut_off_finds_its_networks_again(data, tmp_path, monkeypatch):
    stacks = data.train.clean.images, data.train.observed
    training = methods.Training(data, 4, stacks, tmp_path, batch_size=4)
    recipe = Direct(data.sigma)
    first = training.row("U-Net", recipe)
    with monkeypatch.context() as patch:
        patch.setattr(methods, "train_for", None)  # nothing is trained again
        again = training.row("U-Net", recipe)
    assert again.curve == [list(p) for p in first.curve]
    noisy = data.test.noisy.images
    assert_close(again.denoise(noisy), first.denoise(noisy), rtol=0, atol=0.05)
    trained, train_for = [], methods.train_for
    monkeypatch.setattr(
        methods, "train_for", lambda *a, **k: trained.append(k) or train_for(*a, **k)
    )
    methods.replace(training, images=8).row("U-Net", recipe)  # asked for something else
    assert len(trained) == 1


def test_every_learned_row_trains_and_gives_back_its_network(data, tmp_path):
    """All recipes, at the cost of eight images; other notebooks read them from the folder."""
    stacks = data.train.clean.images, data.train.observed
    training = methods.Training(data, 8, stacks, tmp_path, batch_size=4)
    rows = methods.learned(training, 2, 2, 8)
    assert len(rows) == 9 and all(row.train_tflop == training.tflop for row in rows.values())
    noisy = data.test.noisy.images
    for name, method in rows.items():
        assert method.denoise(noisy).shape == noisy.shape
        assert (method.network is None) == ("sample" in name and "sees" not in name), name
        costs = [cost for cost, _ in method.curve]
        assert costs == sorted(costs)  # whole batches: the last may go a little over
        assert not costs or costs[-1] == pytest.approx(training.tflop, rel=0.6)
    found = methods.of_run(tmp_path, data.sigma, pixel_size_A=data.manifest["pixel_size_A"])
    assert len(found) == 6 and not methods.of_run(tmp_path, data.sigma, pixel_size_A=1.0)
    for name, row in {"RobustGAN": "RobustGAN", "SR3 → U-Net": "SR3 → U-Net, sees sample"}.items():
        assert_close(found[name](noisy), rows[row](noisy), rtol=0, atol=0.05)


def test_blur_keeps_the_mean():
    images = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    out = partial(methods.blur, width_px=2.0)(images)
    assert out.dtype == images.dtype and out.var() < 0.1
