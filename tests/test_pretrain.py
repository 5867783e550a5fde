"""`cryonb train` makes the weights files that the notebooks load."""

from __future__ import annotations

import pytest
import torch

from cryonb.base.options import TrainOptions
from cryonb.cli import main
from cryonb.data.volumes import load_volume
from cryonb.learning import pretrain
from cryonb.learning.diffusion import SR3
from cryonb.learning.refine import Refiner
from cryonb.learning.weights import load_model

SMALL = "--box-size 32 --pixel-size 6 --projections 64 --images 64 --refine-images 64".split()


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    monkeypatch.setattr(pretrain, "TESTED", 32)


def test_no_network_is_tested_on_what_one_of_them_learned():
    volume, options = load_volume("channel", 16, 12.0), TrainOptions(box_size=16)
    parts = [pretrain._images(volume, options, 3, part, "cpu")[0] for part in range(3)]
    apart = torch.cdist(*torch.cat(parts).flatten(1).expand(2, -1, -1))
    assert apart.fill_diagonal_(1).min() > 0.1


def test_train_writes_both_stages_and_goes_on(tmp_path, capsys):
    out = tmp_path / "kept"
    assert main(["train", "channel", *SMALL, "--out", str(out)]) == 0
    first, second = (out / f"channel-white-{stage}.safetensors" for stage in ("sr3", "refine"))
    _, manifest = load_model(first, SR3)
    assert manifest["options"]["box_size"] == 32 and manifest["options"]["pixel_size_A"] == 6.0
    assert set(manifest["test"]) == {"noisy", "posterior_mean", "sample"}
    assert load_model(second, Refiner)[1]["test"]["refined"] > manifest["test"]["noisy"]
    before = first.stat().st_mtime_ns
    second.unlink()  # as if it had been stopped between the stages
    assert main(["train", "channel", *SMALL, "--out", str(out)]) == 0
    assert first.stat().st_mtime_ns == before and second.is_file()
    assert f"{first} is there and kept: delete it" in capsys.readouterr().out


def test_a_misspelt_setting_is_one_clear_line(tmp_path, capsys):
    assert main(["train", "channel", "--setting", "wite", "--out", str(tmp_path)]) == 2
    assert "white, structural" in capsys.readouterr().err


def test_options_for_a_gpu_are_kept_in_the_header(tmp_path):
    options = ["--batch-size", "16", "--curriculum", "0.2", "--learning-rate", "2e-3"]
    assert main(["train", "channel", *SMALL, *options, "--out", str(tmp_path)]) == 0
    _, manifest = load_model(tmp_path / "channel-white-sr3.safetensors", SR3)
    said = manifest["options"]
    assert (said["batch_size"], said["curriculum"], said["learning_rate"]) == (16, 0.2, 2e-3)
    assert not said["compile"] and manifest["device"]
