"""`cryonb reconstruct` and `cryonb fsc` on files, against the functions behind them."""

from __future__ import annotations

import dataclasses
import math
import random
import struct

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_projection import phantom
from torch.testing import assert_close

from cryonb.cli import main
from cryonb.commands import maps
from cryonb.commands.maps import fsc_files
from cryonb.data.maps import PlacedMap, read_map, read_placed_map, write_map, write_map_like
from cryonb.data.molecules import Atoms
from cryonb.data.particle_file import stream_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import fit_atoms, from_atoms, read_atoms
from cryonb.evaluation.resolution import fsc, fsc_mask_corrected, resolution_at
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import fourier_crop
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.physics.reconstruct import reconstruct
from cryonb.simulation.masks import model_mask

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
    assert "30 particles (30 with CTF), C4" in capsys.readouterr().out


def test_reconstruct_says_what_is_wrong(star, tmp_path, capsys, volume):
    path, particles = star

    def complaint(*arguments):
        assert main(["reconstruct", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "map.mrc"
    assert "does not exist" in complaint(tmp_path / "no.star", "--out", out)
    assert "end the output's name in .mrc or" in complaint(path, "--out", tmp_path / "map.txt")
    assert "make it first" in complaint(path, "--out", tmp_path / "nowhere" / "map.mrc")
    assert "unknown" in complaint(path, "--out", out, "--symmetry", "Q4")
    assert "unknown" in complaint(path, "--out", out, "--symmetry", "C100000")
    assert "batch_size is 0" in complaint(path, "--out", out, "--batch-size", "0")
    stack = path.with_suffix(".mrcs").rename(path.with_suffix(".mrc"))
    path.write_text(path.read_text().replace(".mrcs", ".mrc"))
    before = stack.read_bytes()
    assert "would replace the input" in complaint(path, "--out", stack)
    assert stack.read_bytes() == before
    plain = particles_from_arrays(particles.images, particles.rotations, PIXEL)
    bare = write_particles(plain, tmp_path / "bare.star")
    assert "no half set 1" in complaint(bare, "--out", out, "--half", "1")
    assert "rlnDefocusU" in complaint(bare, "--out", out, "--ctf", "on")
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
    said = capsys.readouterr().out
    assert "(unmasked, 0.5)" in said and "the same" not in said
    assert main(["fsc", str(paths[0]), *reference, *out]) == 0
    assert "(masked, 0.5)" in capsys.readouterr().out


def test_fsc_says_what_is_wrong(halves, tmp_path, volume, capsys):
    paths, _ = halves
    out = ["--out", str(tmp_path / "curve")]

    def complaint(*arguments):
        assert main(["fsc", *map(str, arguments), *out]) == 2
        return capsys.readouterr().err

    write_map(tmp_path / "other.mrc", volume, PIXEL + 1)
    assert "voxels of 4 Å, the first map of 3 Å" in complaint(paths[0], tmp_path / "other.mrc")
    write_map(tmp_path / "small.mrc", volume[4:, 4:, 4:], PIXEL)
    assert "--centre to lay" in complaint(paths[0], tmp_path / "small.mrc")
    assert "--fit moves an atomic model" in complaint(*paths, "--fit")
    (tmp_path / "model.pdb").write_text("END\n")
    assert "is an atomic model" in complaint(paths[0], tmp_path / "model.pdb")
    write_map(tmp_path / "hard.mrc", (volume > volume.mean()).float(), PIXEL)
    assert "soft" in complaint(*paths, "--mask", tmp_path / "hard.mrc")
    write_map(tmp_path / "empty.mrc", volume * 0, PIXEL)
    assert "same value everywhere" in complaint(*paths, "--mask", tmp_path / "empty.mrc")
    assert main(["fsc", str(paths[0])]) == 2
    assert "second half map" in capsys.readouterr().err
    assert not (tmp_path / "curve.csv").exists()


def placed(path, map, start=(0, 0, 0), origin=(0, 0, 0), pixel_A=PIXEL):
    """Write a map (z, y, x) with NSTART and ORIGIN (x, y, z)."""
    write_map(path, map, pixel_A)
    with mrcfile.mmap(path, "r+") as mrc:
        mrc.nstart, mrc.header.origin = start, origin
    return path


@pytest.fixture(scope="module")
def ball():
    """A map of 24³ voxels that is smooth and vanishes at its edges."""
    xyz = np.random.default_rng(1).normal(size=(60, 3)) * (6, 5, 4)
    atoms = Atoms(xyz - xyz.mean(0), np.full(60, "C"), np.full(60, 150.0), "ball")
    return from_atoms(atoms, N, PIXEL).map


@pytest.fixture
def compare(tmp_path):
    """A function that gives the FSC of a map with a reference, unmasked."""

    def curve(map, reference, *options):
        out, reference = f"{tmp_path / 'c'}", ["--reference", str(reference)]
        assert main(["fsc", str(map), *reference, "--out", out, "--mask", "none", *options]) == 0
        return pd.read_csv(f"{out}.csv", index_col=0)["unmasked"].to_numpy()

    return curve


@pytest.mark.parametrize("start", [(0, 0, 0), (1, 0, 0), (-24, 7, 300)])
def test_a_map_is_itself_wherever_it_lies(tmp_path, volume, compare, start, capsys):
    path = placed(tmp_path / "a.mrc", volume, start)
    assert compare(path, path) == pytest.approx(1)
    far = placed(tmp_path / "b.mrc", volume, origin=tuple(PIXEL * s for s in start))
    assert compare(path, far) == pytest.approx(1)
    said = capsys.readouterr()
    assert "disagree" not in said.err and said.out.count("one and the same") == 2
    both = placed(tmp_path / "both.mrc", volume, (5, 5, 5), tuple(PIXEL * s for s in start))
    assert ("disagree" in (compare(both, both), capsys.readouterr().err)[1]) == any(start)


@pytest.mark.parametrize("shift", [(3.0, -2.0, 1.0), (0.5, -1.25, 2.0)])
def test_frames_that_differ_are_aligned(tmp_path, ball, compare, capsys, shift):
    """Moved by whole or fractional voxels, the header saying so: the same map."""
    frequency = torch.meshgrid(*[torch.fft.fftfreq(N)] * 3, indexing="ij")
    phase = sum(f * s for f, s in zip(frequency, shift[::-1], strict=True))
    moved = torch.fft.ifftn(torch.fft.fftn(ball) * torch.exp(2j * torch.pi * phase)).real
    one = placed(tmp_path / "one.mrc", ball)
    two = placed(tmp_path / "two.mrc", moved, origin=tuple(PIXEL * s for s in shift))
    assert compare(one, two)[1:-1].min() > 0.99
    assert "resampled onto it" in capsys.readouterr().out
    assert compare(one, placed(two, moved))[1:].min() < 0.5


def test_bricks_are_padded_and_other_pixels_resampled(tmp_path, ball, compare, capsys):
    cut = placed(tmp_path / "cut.mrc", ball[2:20, 1:, :].contiguous(), start=(0, 1, 2))
    whole, fine = placed(tmp_path / "whole.mrc", ball), tmp_path / "fine.mrc"
    assert compare(cut, cut) == pytest.approx(1)
    assert compare(cut, whole)[1:].min() > 0.99 and compare(whole, cut)[1:].min() > 0.99
    placed(fine, fourier_crop(ball, 36), pixel_A=PIXEL * 24 / 36)
    assert compare(whole, fine)[1:].min() > 0.99
    assert "2 Å/px" in capsys.readouterr().out
    near = placed(tmp_path / "near.mrc", ball, pixel_A=PIXEL * 1.0005)
    assert compare(whole, near) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["one volume of four axes", "big-endian", "no MAP", "stamp"])
def test_maps_of_other_programs_are_read_and_cleaned(tmp_path, ball, compare, kind):
    plain, path = placed(tmp_path / "plain.mrc", ball, (4, 5, 6)), tmp_path / "other.mrc"
    data = ball.numpy()[None] if kind.startswith("one") else ball.numpy()
    with mrcfile.new(path) as mrc:
        mrc.set_data(data.astype(">f4" if kind == "big-endian" else "<f4"))
        mrc.voxel_size, mrc.nstart = PIXEL, (4, 5, 6)
    raw = bytearray(path.read_bytes())
    if kind in ("no MAP", "stamp"):
        raw[208:216] = bytes(8) if kind == "no MAP" else b"MAP DDDD"
    path.write_bytes(raw)
    assert compare(path, plain) == pytest.approx(1) and compare(plain, path) == pytest.approx(1)
    outs = [tmp_path / "plain_clean.mrc", tmp_path / "other_clean.mrc"]
    for given, out in zip((plain, path), outs, strict=True):
        assert main(["clean", str(given), "--out", str(out)]) == 0
    expected, found = (read_placed_map(out) for out in outs)
    assert torch.equal(expected.map, found.map) and expected.first_A == found.first_A
    assert mrcfile.validate(outs[1]) and mrcfile.read(outs[1]).shape == data.shape


def test_an_unknown_pixel_size_is_asked_for(tmp_path, volume, compare, capsys):
    path, out = tmp_path / "bare.mrc", tmp_path / "out.mrc"
    for field in ("mx", "cella"):
        write_map(path, volume, PIXEL)
        with mrcfile.mmap(path, "r+") as mrc:
            mrc.header[field] = 0
        for command in (
            ["fsc", str(path), str(path)],
            ["clean", str(path), "--out", f"{tmp_path}/x.mrc"],
        ):
            assert main(command) == 2
            assert "--pixel-size" in capsys.readouterr().err
        assert compare(path, path, "--pixel-size", "2.5") == pytest.approx(1)
        assert main(["clean", str(path), "--out", str(out), "--pixel-size=2.5", "--overwrite"]) == 0
        assert mrcfile.open(out).voxel_size.tolist() == pytest.approx((2.5, 2.5, 2.5))
    assert main(["fsc", str(path), str(path), "--pixel-size", "nan"]) == 2


@pytest.fixture
def model(tmp_path):
    """A PDB file of 60 atoms about (90, 60, 120) Å."""
    xyz = np.random.default_rng(0).normal(size=(60, 3)) * (10, 6, 4) + (90.0, 60.0, 120.0)
    lines = [
        f"HETATM{i:5d}  C   UNK A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 40.00           C  "
        for i, (x, y, z) in enumerate(xyz, 1)
    ]
    (tmp_path / "model.pdb").write_text("\n".join([*lines, "END", ""]))
    return tmp_path / "model.pdb", read_atoms(tmp_path / "model.pdb", centre=False)


def test_models_lie_in_the_frame_of_the_map(tmp_path, model, compare, capsys):
    path, atoms = model
    first = (85.0, 30.0, 45.0)  # z, y, x; box of 72 Å, so that nothing lies in one at the origin
    density = from_atoms(atoms, 36, 2.0, first).map
    framed = placed(tmp_path / "map.mrc", density, origin=first[::-1], pixel_A=2.0)
    assert compare(framed, path) == pytest.approx(1, abs=1e-4)
    lost = placed(tmp_path / "lost.mrc", density, pixel_A=2.0)
    assert main(["fsc", str(lost), "--reference", str(path)]) == 2
    assert "--centre, --fit" in capsys.readouterr().err
    assert compare(lost, path, "--centre")[1] > 0.8  # it lies 9 Å off the middle
    assert compare(lost, path, "--centre", "--fit")[1:15].min() > 0.99


def test_a_model_is_fitted_from_nearby(model):
    _, atoms = model
    given = PlacedMap(from_atoms(atoms, 36, 2.0, (85.0, 30.0, 45.0)).map, 2.0, (85.0, 30.0, 45.0))
    turn = Rotation.from_rotvec([10, -8, 6], degrees=True)
    middle = atoms.xyz_A.mean(0)
    off = dataclasses.replace(atoms, xyz_A=turn.apply(atoms.xyz_A - middle) + middle + [4, -3, 2])
    found = fit_atoms(off, given)
    assert np.sqrt(((found.xyz_A - atoms.xyz_A) ** 2).sum(1).mean()) < 0.3  # Å; 6 before


def test_masks_and_models_for_maps_that_are_no_cubes(tmp_path, model, volume):
    """What is cleaned has the frame, shape and header of what was given."""
    path, atoms = model
    brick = from_atoms(atoms, 36, 2.0, (85.0, 30.0, 45.0)).map[8:28, 3:33, 8:33].contiguous()
    name = placed(tmp_path / "brick.mrc", brick, origin=(61.0, 36.0, 101.0), pixel_A=2.0)
    mask = model_mask(atoms.xyz_A, tuple(brick.shape), 2.0, (101.0, 36.0, 61.0))
    placed(tmp_path / "mask.mrc", mask, pixel_A=2.0)  # as RELION's: no place
    outs = [tmp_path / f"{name}.mrc.gz" for name in ("plain", "model", "mask")]
    for out, with_mask in zip(outs, ("none", path, tmp_path / "mask.mrc"), strict=True):
        assert main(["clean", str(name), "--out", str(out), "--mask", str(with_mask)]) == 0
    plain, modelled, masked = (read_placed_map(out) for out in outs)
    assert plain.map.shape == brick.shape and plain.first_A == (101.0, 36.0, 61.0)
    assert_close(masked.map, plain.map * mask, atol=1e-5, rtol=1e-5)
    assert_close(modelled.map, plain.map * mask, atol=1e-5, rtol=1e-5)
    assert outs[0].read_bytes()[:2] == b"\x1f\x8b"


def test_a_deposited_map_that_is_no_cube_agrees_with_its_model(tmp_path, shared_data, compare):
    """EMD-3488 cut as EMDB cuts maps: NSTART, and the cell of the whole."""
    whole, model = shared_data / "emd_3488.mrc", shared_data / "5ni1_updated.cif"
    with mrcfile.open(whole) as mrc:
        data = mrc.data.copy()
    with mrcfile.new(tmp_path / "cut.mrc.gz", compression="gzip") as mrc:
        mrc.set_data(data[15:85, 20:80, 10:90].copy())
        mrc.header.mx = mrc.header.my = mrc.header.mz = 100
        mrc.header.cella, mrc.nstart = (105, 105, 105), (10, 20, 15)
    known, found = (compare(path, model) for path in (whole, tmp_path / "cut.mrc.gz"))
    assert (
        compare(tmp_path / "cut.mrc.gz", whole)[1:24].min() > 0.97
    )  # to 3.5 Å; then noise, and that was cut
    # shells of the padded cube are 100 / 80 times as wide
    assert np.interp(np.arange(40) / 0.8, np.arange(51), known)[1:30] == pytest.approx(
        found[1:30], abs=0.05
    )


def test_any_header_ends_in_a_result_or_in_one_line(tmp_path, ball, monkeypatch):
    """A thousand mutated headers: fields of absurd values, files cut anywhere."""
    monkeypatch.setattr(maps, "_report", lambda *_: None)
    good, path = placed(tmp_path / "good.mrc", ball[::2, ::2, ::2]), tmp_path / "a.mrc"
    rng = random.Random(0)
    raw, read = good.read_bytes(), 0
    words = [struct.pack("<i", n) for n in (0, 1, -1, 3, 12, 401, 2**31 - 1, -(2**31))]
    words += [struct.pack("<f", x) for x in (-1, 30, 120, 1e30, 1e-30, math.nan, math.inf)]
    for _ in range(1000):
        header = bytearray(raw[:1024])
        for place in rng.choices(range(0, 232, 4), k=rng.choice((1, 2, 3))):
            header[place : place + 4] = rng.choice([*words, rng.randbytes(4)])
        path.write_bytes((header + raw[1024:])[: rng.choice((None, None, rng.randrange(len(raw))))])
        try:
            assert np.isfinite(fsc_files(path, reference=good, mask="none").to_numpy()).all()
            given = read_placed_map(path)
            write_map_like(tmp_path / "b.mrc", given.map, path, given.pixel_size_A)
            again = read_placed_map(tmp_path / "b.mrc")
            assert torch.equal(again.map, given.map) and again.first_A == given.first_A
            assert again.pixel_size_A == pytest.approx(given.pixel_size_A, rel=2e-3)
            read += 1
        except (ValueError, OSError) as error:
            assert len(str(error).splitlines()) == 1
    assert 200 < read < 800
