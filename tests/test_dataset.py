"""Data sets on disk: what is written is read; nothing half-written; nothing overwritten."""

from __future__ import annotations

import dataclasses
import json
import resource

import numpy as np
import pytest
import torch

from cryonb.data.particle_file import read_particles
from cryonb.data.volumes import load_volume
from cryonb.physics.geometry import angular_distance_deg
from cryonb.simulation import dataset
from cryonb.simulation.dataset import open_dataset, read_dataset, score_test, write_dataset
from cryonb.simulation.masks import micelle
from cryonb.simulation.simulate import (
    StructuralNoise,
    clean_scale,
    setting,
    simulate_images,
)

COUNTS = {"train": 5, "validation": 3, "test": 4}


@pytest.fixture(scope="module")
def volume():
    return load_volume("channel", 32, 6.0)


def contents(folder):
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}


@pytest.mark.parametrize("defocus_um", [None, (1.0, 2.0)])
@pytest.mark.parametrize("noise", ["white", "structural"])
def test_write_read(tmp_path, volume, noise, defocus_um):
    folder = tmp_path / "deep" / "d"
    options = {"source": "channel", "snr": 0.2, "noise": noise, "defocus_um": defocus_um, "seed": 3}
    assert write_dataset(folder, volume, COUNTS, **options) == folder
    data = read_dataset(folder)
    scale = clean_scale(volume)
    for i, split in enumerate(("train", "validation", "test")):
        part = getattr(data, split)
        generator = torch.Generator().manual_seed(3 * 3 + i)
        images = simulate_images(
            volume, COUNTS[split], setting(noise), generator, scale=scale, defocus_um=defocus_um
        )
        assert torch.equal(part.clean.images, images.clean)
        alone = noise == "white" and not defocus_um  # no memory for what is there already
        assert (part.observed is part.clean.images) == alone
        # The STAR file keeps six decimals of angle (degrees) and defocus (Å).
        torch.testing.assert_close(part.noisy.rotations, images.rotations, atol=1e-5, rtol=0)
        torch.testing.assert_close(part.observed, images.observed(6.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(part.clean.rotations, part.noisy.rotations)
        assert part.noisy.half.tolist() == [k % 2 + 1 for k in range(COUNTS[split])]
        assert part.noisy.ctf_applied == (defocus_um is not None) and not part.clean.ctf_applied
        if defocus_um:
            torch.testing.assert_close(part.noisy.defocus_um, images.defocus_um)
    torch.testing.assert_close(data.volume, volume.map / scale)
    belt = setting(noise).micelle * micelle(volume) / scale
    torch.testing.assert_close(data.micelle, belt)
    assert data.mask.min() == 0 and data.mask.max() == 1
    assert data.sigma == pytest.approx(0.2**-0.5) and data.pixel_size_A == 6.0
    assert data.manifest["setting"] == noise and data.manifest["counts"] == COUNTS


def test_splits_and_seeds_share_no_pose(tmp_path, volume):
    poses = []
    for seed in (0, 1):
        data = read_dataset(write_dataset(tmp_path / str(seed), volume, COUNTS, seed=seed))
        poses += [part.clean.rotations for part in (data.train, data.validation, data.test)]
    poses = torch.cat(poses)
    apart = angular_distance_deg(poses[:, None], poses[None]) + 360 * torch.eye(len(poses))
    assert apart.min() > 0.5  # 24 random rotations; a shared one gives 0


def test_the_same_again_keeps_every_byte(tmp_path, volume, monkeypatch):
    folder = write_dataset(tmp_path / "d", volume, COUNTS, noise="structural")
    before = contents(folder)
    monkeypatch.setattr(dataset, "simulate_images", None)  # nothing may be simulated
    write_dataset(folder, volume, COUNTS, noise="structural")
    assert contents(folder) == before


@pytest.mark.parametrize(
    "other",
    [
        {"snr": 0.3},
        {"seed": 1},
        {"noise": "structural"},
        {"noise": StructuralNoise(micelle=0.5)},
        {"defocus_um": (1.0, 2.0)},
        {"source": "elsewhere"},
        {"counts": COUNTS | {"test": 6}},
    ],
    ids=lambda o: next(iter(o)),
)
def test_another_data_set_in_the_folder_is_refused(tmp_path, volume, other):
    folder = write_dataset(tmp_path / "d", volume, COUNTS)
    before = contents(folder)
    name = next(iter(other))
    counts = other.pop("counts", COUNTS)
    with pytest.raises(FileExistsError, match=f"(?s)another.*{name}.*choose another run folder"):
        write_dataset(folder, volume, counts, **other)
    assert contents(folder) == before and [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_run_with_other_counts_is_read_and_said(tmp_path, volume, capsys):
    folder = write_dataset(tmp_path / "d", volume, COUNTS)
    before = contents(folder)
    data = open_dataset(folder, volume, COUNTS | {"train": 99, "test": 2})
    assert len(data.train.clean) == COUNTS["train"] and len(data.test.clean) == COUNTS["test"]
    assert f"{COUNTS['train']} for train" in capsys.readouterr().out and contents(folder) == before
    with pytest.raises(FileExistsError, match=r"another snr \(0.1 there\): give the same"):
        open_dataset(folder, volume, COUNTS, snr=0.3)
    assert len(open_dataset(tmp_path / "new", volume, COUNTS).test.clean) == COUNTS["test"]
    assert capsys.readouterr().out == ""


def test_another_volume_of_the_same_name_is_refused(tmp_path, volume):
    folder = write_dataset(tmp_path / "d", volume, COUNTS)
    with pytest.raises(FileExistsError, match="another volume"):
        write_dataset(folder, dataclasses.replace(volume, map=volume.map.flip(0)), COUNTS)


def test_foreign_files_are_refused_and_an_empty_folder_is_used(tmp_path, volume):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_dataset(folder, volume, COUNTS)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    write_dataset(folder, volume, COUNTS)
    assert len(read_dataset(folder).test.clean) == COUNTS["test"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr": 0.0}, "give a positive number"),
        ({"snr": -1.0}, "give a positive number"),
        ({"noise": "structurel"}, "choose one of white, structural"),
        ({"counts": {"train": 5, "test": 5}}, "two or more particles for each of"),
        ({"counts": COUNTS | {"test": 1}}, "two or more particles for each of"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, volume, options, message):
    counts = options.pop("counts", COUNTS)
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "d", volume, counts, **options)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing_and_other_data_alone(tmp_path, volume):
    old = write_dataset(tmp_path / "old", volume, COUNTS)
    before = contents(old)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # a stack of 15 images
    try:
        with pytest.raises(OSError):
            write_dataset(tmp_path / "new", volume, COUNTS | {"validation": 40})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(old) == before and [p.name for p in tmp_path.iterdir()] == ["old"]


def test_ctrl_c_leaves_nothing(tmp_path, volume, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "soft_mask", interrupted)  # after the particles are written
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "d", volume, COUNTS)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_cleaned(tmp_path, volume):
    part = tmp_path / "d.part"
    part.mkdir()
    (part / "train_clean.mrcs").write_bytes(b"half a stack")
    (part / "stray.txt").write_text("")
    folder = write_dataset(tmp_path / "d", volume, COUNTS)
    assert not part.exists() and not (folder / "stray.txt").exists()
    assert len(read_dataset(folder).train.clean) == COUNTS["train"]


def test_no_data_set_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebook 01_simulate"):
        read_dataset(tmp_path / "nothing")


def test_a_lost_stack_is_named(tmp_path, volume):
    folder = write_dataset(tmp_path / "d", volume, COUNTS)
    (folder / "test_noisy.mrcs").unlink()
    with pytest.raises(FileNotFoundError, match="test_noisy.mrcs"):
        read_dataset(folder)


def test_files_are_relions(tmp_path, volume):
    folder = write_dataset(tmp_path / "d", volume, COUNTS, noise="structural")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["noise"] == dataclasses.asdict(StructuralNoise())
    noisy = read_particles(folder / "test_noisy.star")
    assert noisy.table["rlnImageName"][0] == "000001@test_noisy.mrcs"
    assert {"rlnAngleRot", "rlnOriginXAngst", "rlnRandomSubset"} <= set(noisy.table.columns)
    assert np.isfinite(noisy.images.numpy()).all()


def test_share_of_the_micelle_is_all_in_the_input_half_in_half_and_none_in_the_target(
    tmp_path, volume
):
    belt = StructuralNoise(micelle=1.0, neighbours=0, ice=0, carbon=0)
    data = read_dataset(write_dataset(tmp_path / "d", volume, COUNTS, noise=belt))
    clean, observed = data.test.clean.images, data.test.observed
    for images, share in ((clean, 0), (observed, 1), (0.5 * (clean + observed) + 3, 0.5)):
        assert score_test(images, data)["micelle_left"] == pytest.approx(share, abs=1e-3)
    white = read_dataset(write_dataset(tmp_path / "w", volume, COUNTS))
    assert "micelle_left" not in score_test(white.test.noisy.images, white)
