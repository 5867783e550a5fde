"""`cryonb denoise --reference`: images, poses and evidence from a known structure."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import starfile
import torch
from test_projection import phantom

from cryonb.cli import main
from cryonb.commands import denoise, recognise
from cryonb.data.maps import write_map
from cryonb.data.particle_file import read_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.evaluation.metrics import correlation
from cryonb.physics.fourier import fourier_crop
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project, shift_images

BOX = 32


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """48 particles, every fourth of which is noise alone, and the map in another unit."""
    folder, generator = tmp_path_factory.mktemp("known"), torch.Generator().manual_seed(0)
    volume = phantom(BOX, width=1.6).float()
    poses = random_rotations(48, generator)
    clean = project(volume, poses)
    clean = clean / clean.std()
    clean[::4] = 0
    noisy = 100 + 5 * (clean + torch.randn(clean.shape, generator=generator))
    half = torch.arange(48) % 2 + 1
    write_particles(particles_from_arrays(noisy, poses, 4.0, half=half), folder / "p.star")
    write_map(folder / "map.mrc", volume * 40 + 3, 4.0)
    return folder, clean, poses


def test_images_poses_evidence_and_resuming(case, capsys, monkeypatch):
    folder, clean, poses = case
    words = ["denoise", folder / "p.star", "--reference", folder / "map.mrc", "--spacing-deg", 8]
    words = [*map(str, words), "--samples", "3", "--batch-size", "20", "--device", "cpu"]
    for name in ("one", "two"):
        extra = ["--shards", "2"] if name == "two" else []
        for shard in (["--shard", "1"], ["--shard", "2"]) if extra else ([],):
            assert main([*words, "--out", str(folder / f"{name}.star"), *extra, *shard]) == 0
            if shard == ["--shard", "1"]:  # who goes on does not measure again
                monkeypatch.setattr(denoise, "fit_references", lambda *_: pytest.fail("again"))
    said = capsys.readouterr().out
    assert "an FSC between their maps means nothing" in said and "median log evidence" in said
    one, two = (read_particles(folder / f"{name}.star") for name in ("one", "two"))
    # Two runs differ by the rounding of float32 scores of hundreds of nats, in grey values of sd 5.
    assert (one.images - two.images).abs().max() < 0.03
    assert np.allclose(*(t.table["cryonbLogEvidence"].astype(float) for t in (one, two)), atol=0.1)
    table, seen = starfile.read(folder / "one.star")["particles"], np.arange(48) % 4 > 0
    evidence = table["cryonbLogEvidence"].to_numpy()
    assert evidence[seen].min() > evidence[~seen].max()
    assert angular_distance_deg(one.rotations, poses)[seen].median() < 8
    assert correlation(one.images, clean)[seen].mean() > 0.9
    assert table["rlnMaxValueProbDistribution"].between(0, 1).all()
    assert (folder / "one_std.mrcs").exists() and not list(folder.glob(".*"))


def test_each_half_set_sees_its_own_reference(case, capsys):
    folder, _, _ = case
    write_map(folder / "other.mrc", phantom(BOX, seed=7, width=1.6).float(), 4.0)
    half_maps = ["--half-maps", str(folder / "map.mrc"), str(folder / "other.mrc")]
    words = ["denoise", str(folder / "p.star"), *half_maps, "--spacing-deg", "10"]
    assert main([*words, "--out", str(folder / "halves.star")]) == 0
    table = starfile.read(folder / "halves.star")["particles"]
    true = (table.index % 4 > 0) & (table.index % 2 == 0)
    wrong = table.index % 2 == 1
    evidence = table["cryonbLogEvidence"]
    assert evidence[true].median() > evidence[wrong].median()
    assert "means nothing" not in capsys.readouterr().out


def test_origins_and_evidence_of_a_half_set_in_a_larger_box(case, capsys, monkeypatch):
    """36 px are cropped to 32; the first half set lies beside the centre, the second is noise."""
    folder, clean, poses = case
    pixel_A, half = 4.0 * 32 / 36, 1 + (torch.arange(48) % 4 == 0).long()
    shifted = shift_images(
        fourier_crop(clean, 36, dims=2), torch.tensor([[2.0, -1.0]]).repeat(48, 1)
    )
    noisy = shifted + torch.randn(shifted.shape, generator=torch.Generator().manual_seed(1))
    write_particles(particles_from_arrays(noisy, poses, pixel_A, half=half), folder / "36.star")
    words = ["denoise", str(folder / "36.star"), "--half-maps", *[str(folder / "map.mrc")] * 2]
    words += ["--spacing-deg", "10", "--most-shift", "12", "--out", str(folder / "o36.star")]
    monkeypatch.setattr(recognise, "widening", lambda *_: 1.4)
    monkeypatch.setattr(recognise, "_note_scale", lambda *_, **__: None)
    assert main(words) == 0
    table = starfile.read(folder / "o36.star")["particles"][half.numpy() == 1]
    origins_A = table[["rlnOriginYAngst", "rlnOriginXAngst"]].median()
    assert np.allclose(origins_A, [-2 * pixel_A, pixel_A], atol=1.0)
    first, second = re.findall(r"median log evidence (-?[.0-9]+)", capsys.readouterr().out)
    assert float(first) > 10 > 0 > float(second)


def test_rows_of_neither_half_set_are_refused(case, tmp_path, capsys):
    """They would have no reference, and come out empty."""
    particles = read_particles(case[0] / "p.star")
    table = particles.table.assign(rlnRandomSubset=[1, 2, 0] * 16)
    write_particles(dataclasses.replace(particles, table=table), tmp_path / "p.star")
    maps = ["--half-maps", *[str(case[0] / "map.mrc")] * 2]
    out = tmp_path / "o.star"
    assert main(["denoise", str(tmp_path / "p.star"), *maps, "--out", str(out)]) == 2
    assert "other half sets than 1 and 2" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--reference", "map.mrc", "--symmetry", "C3"], "has no symmetry C3"),
        (["--reference", "missing.mrc"], "missing.mrc does not exist"),
        (["--reference", "map.mrc", "--half-maps", "map.mrc", "map.mrc"], "give one of them"),
        (["--symmetry", "C4"], "symmetry is an option of --reference"),
        (["--reference", "map.mrc", "--spacing-deg", "0.01"], "give a larger --spacing-deg"),
    ],
)
def test_a_reference_that_cannot_be_is_one_line(case, capsys, monkeypatch, words, message):
    folder, _, _ = case
    monkeypatch.chdir(folder)
    assert main(["denoise", "p.star", *words, "--out", "bad.star"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not list(folder.glob(".bad*")), "nothing has begun"


@pytest.mark.parametrize(
    "change, pixel_A, said",
    [
        (lambda v: v, 4.0, None),
        (lambda v: v, 4.17, "best at 96% of its size"),
        (lambda v: v, 3.85, "best at 104% of its size"),
        (lambda v: v.roll(4, 2), 4.0, "stands 24 Å from the middle"),
    ],
)
def test_what_does_not_fit_is_said(case, capsys, tmp_path, change, pixel_A, said):
    """A pixel size off by some per cent, and a molecule beside the middle of its box."""
    folder, _, _ = case
    write_map(tmp_path / "m.mrc", change(phantom(BOX, width=1.6).float()), pixel_A)
    words = ["denoise", str(folder / "p.star"), "--reference", str(tmp_path / "m.mrc")]
    words += ["--most-shift", "20"] if said and "middle" in said else []
    assert main([*words, "--spacing-deg", "10", "--out", str(tmp_path / "o.star")]) == 0
    text = capsys.readouterr().out
    assert "the hand of a reference" in text
    notes = [x for x in text.splitlines() if " of its size" in x or "from the middle" in x]
    assert len(notes) == bool(said) and (said is None or said in notes[0])
