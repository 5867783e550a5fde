"""`cryonb reconstruct` and `cryonb fsc` on files, against the functions behind them."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from test_projection import phantom
from torch.testing import assert_close

from cryonb.cli import main
from cryonb.data.maps import read_map, write_map
from cryonb.data.particle_file import stream_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.evaluation.resolution import fsc, fsc_mask_corrected, resolution_at
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.physics.reconstruct import reconstruct

N, PIXEL = 24, 3.0


@pytest.fixture(scope="module")
def volume():
    return phantom(N, width=1.6).float()


@pytest.fixture
def star(tmp_path, volume):
    """60 particles with shifts, CTF and half sets."""
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(60, generator)
    shifts, defocus = torch.randn(60, 2, generator=generator), 0.5 + torch.rand(60)
    images = apply_ctf(project(volume, rotations, shifts), ctf(N, PIXEL, defocus))
    half = torch.arange(60) % 2 + 1
    particles = particles_from_arrays(
        images, rotations, PIXEL, shifts_px=shifts, half=half, defocus_um=defocus
    )
    return write_particles(particles, tmp_path / "particles.star"), particles


def test_a_stream_is_the_same_as_the_file(star):
    path, particles = star
    parts = list(stream_particles(path, batch_size=7))
    assert [len(p) for p in parts] == [7] * 8 + [4]
    assert_close(torch.cat([p.images for p in parts]), particles.images)
    assert_close(torch.cat([p.rotations for p in parts]), particles.rotations, atol=1e-5, rtol=0)
    second = torch.cat([p.images for p in stream_particles(path, half=2, batch_size=7)])
    assert_close(second, particles.images[1::2])


def test_reconstruct_equals_the_function(star, tmp_path, capsys):
    path, p = star
    for arguments, wave, rows in (
        ([], p.ctf, slice(None)),
        (["--ctf", "on"], p.ctf, slice(None)),
        (["--ctf", "off"], None, slice(None)),
        (["--half", "1", "--symmetry", "C4"], p.ctf, slice(0, None, 2)),
    ):
        out = tmp_path / "map.mrc"
        assert main(["reconstruct", str(path), "--out", str(out), *arguments]) == 0
        found, pixel = read_map(out)
        symmetry = "C4" if "C4" in arguments else "C1"
        wave = None if wave is None else wave[rows]
        known = reconstruct(p.images[rows], p.rotations[rows], p.shifts_px[rows], wave, symmetry)
        assert pixel == PIXEL
        assert_close(found, known, rtol=0, atol=1e-4 * float(known.abs().max()))
    assert "30 particles, C4, with CTF correction" in capsys.readouterr().out


def test_reconstruct_says_what_is_wrong(star, tmp_path, capsys, volume):
    path, particles = star

    def complaint(*arguments):
        assert main(["reconstruct", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "map.mrc"
    assert "does not exist" in complaint(tmp_path / "no.star", "--out", out)
    assert "make it first" in complaint(path, "--out", tmp_path / "nowhere" / "map.mrc")
    assert "unknown" in complaint(path, "--out", out, "--symmetry", "Q4")
    plain = particles_from_arrays(particles.images, particles.rotations, PIXEL)
    bare = write_particles(plain, tmp_path / "bare.star")
    assert "no half set 1" in complaint(bare, "--out", out, "--half", "1")
    assert "rlnDefocusU" in complaint(bare, "--out", out, "--ctf", "on")
    stack = path.with_suffix(".mrcs")
    stack.write_bytes(stack.read_bytes()[:-1000])
    assert "cut short" in complaint(path, "--out", out)
    assert not out.exists()


@pytest.fixture
def halves(tmp_path, volume):
    """Two half maps with independent noise, and the files."""
    noise = torch.randn(2, N, N, N, generator=torch.Generator().manual_seed(1)) * volume.std() * 0.5
    paths = [tmp_path / f"half{i}.mrc" for i in (1, 2)]
    for path, n in zip(paths, noise, strict=True):
        write_map(path, volume + n, PIXEL)
    return paths, [volume + n for n in noise]


def test_fsc_equals_the_functions(halves, tmp_path, volume, capsys):
    paths, maps = halves
    mask = phantom(N, width=4.0).float()
    mask = (mask / mask.max()).clamp(max=0.5) * 2
    write_map(tmp_path / "mask.mrc", mask, PIXEL)
    out = tmp_path / "curve"
    assert (
        main(["fsc", *map(str, paths), "--mask", f"{tmp_path / 'mask.mrc'}", "--out", f"{out}"])
        == 0
    )
    table = pd.read_csv(f"{out}.csv", index_col=0)
    generator = torch.Generator().manual_seed(0)
    known = fsc_mask_corrected(*maps, mask, PIXEL, generator)
    assert_close(torch.tensor(table["corrected"].to_numpy()), known.corrected, rtol=0, atol=1e-5)
    assert_close(torch.tensor(table["unmasked"].to_numpy()), known.unmasked, rtol=0, atol=1e-5)
    said = capsys.readouterr().out
    resolution = resolution_at(known.frequency_per_A, known.corrected, 0.143)
    assert f"{resolution:.2f} Å (corrected, 0.143)" in said
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_fsc_with_a_reference_and_with_masks_that_are_made(halves, tmp_path, volume, capsys):
    paths, maps = halves
    write_map(tmp_path / "truth.mrc", volume, PIXEL)
    reference = ["--reference", str(tmp_path / "truth.mrc")]
    out = ["--out", str(tmp_path / "curve")]
    assert main(["fsc", str(paths[0]), *reference, "--mask", "none", *out]) == 0
    table = pd.read_csv(tmp_path / "curve.csv", index_col=0)
    assert list(table) == ["unmasked"]
    known = fsc(maps[0], volume, PIXEL)[1]
    assert_close(torch.tensor(table["unmasked"].to_numpy()), known, rtol=0, atol=1e-4)
    assert "(unmasked, 0.5)" in capsys.readouterr().out
    assert main(["fsc", str(paths[0]), *reference, *out]) == 0
    assert "(masked, 0.5)" in capsys.readouterr().out


def test_fsc_says_what_is_wrong(halves, tmp_path, volume, capsys):
    paths, _ = halves
    out = ["--out", str(tmp_path / "curve")]

    def complaint(*arguments):
        assert main(["fsc", *map(str, arguments), *out]) == 2
        return capsys.readouterr().err

    write_map(tmp_path / "other.mrc", volume, PIXEL + 1)
    assert "on one grid" in complaint(paths[0], tmp_path / "other.mrc")
    write_map(tmp_path / "small.mrc", volume[1:, 1:, 1:], PIXEL)
    assert "on one grid" in complaint(paths[0], tmp_path / "small.mrc")
    write_map(tmp_path / "hard.mrc", (volume > volume.mean()).float(), PIXEL)
    assert "soft" in complaint(*paths, "--mask", tmp_path / "hard.mrc")
    write_map(tmp_path / "empty.mrc", volume * 0, PIXEL)
    assert "no mask" in complaint(*paths, "--mask", tmp_path / "empty.mrc")
    assert main(["fsc", str(paths[0])]) == 2
    assert "second half map" in capsys.readouterr().err
    assert not (tmp_path / "curve.csv").exists()
