"""Read, write, read; and one clear sentence for every damaged input."""

from __future__ import annotations

import resource

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from cryonb.data.optics import (
    CARRIED,
    CORRECTED,
    FLIPPED,
    MULTIPLIED,
    PHASE_FLIPPED,
    PLAIN,
    PREMULTIPLIED,
    matched_filter,
)
from cryonb.data.particle_file import read_particles
from cryonb.data.particles import CTF_APPLIED, Particles, particles_from_arrays, write_particles
from cryonb.data.whitening import NoiseModel, transfer_to_network
from cryonb.physics.geometry import angular_distance_deg, random_rotations


def make(n: int = 6, box: int = 9, **options) -> Particles:
    g = torch.Generator().manual_seed(0)
    options = {
        "shifts_px": torch.randn(n, 2, generator=g),
        "half": torch.arange(n) % 2 + 1,
        "defocus_um": 1 + torch.rand(n, generator=g),
    } | options
    return particles_from_arrays(
        torch.randn(n, box, box, generator=g), random_rotations(n, g), 1.7, **options
    )


def test_arrays_come_back_from_the_tables():
    g = torch.Generator().manual_seed(1)
    rotations, shifts = random_rotations(5, g), torch.randn(5, 2, generator=g)
    p = particles_from_arrays(torch.zeros(5, 8, 8), rotations, 1.7, shifts_px=shifts)
    assert angular_distance_deg(p.rotations, rotations).max() < 0.05  # float32 angles
    torch.testing.assert_close(p.shifts_px, shifts)
    assert (p.pixel_size_A, p.box_size, len(p)) == (1.7, 8, 5)
    assert p.half is None and p.defocus_um is None and p.ctf is None and not p.ctf_applied
    # RELION's origin is the move back: x first is the second component of (y, x).
    np.testing.assert_allclose(p.table["rlnOriginXAngst"], -1.7 * shifts[:, 1], rtol=1e-6)


@pytest.mark.parametrize("box", [8, 9])
def test_read_write_read(tmp_path, box):
    first = make(box=box)
    path = write_particles(first, tmp_path / "new" / "p.star")
    second = read_particles(path)
    assert torch.equal(second.images, first.images)
    for name in ("shifts_px", "half", "defocus_um", "pixel_size_A", "ctf_applied", "ctf"):
        torch.testing.assert_close(getattr(second, name), getattr(first, name), atol=1e-5, rtol=0)
    # The STAR file keeps six decimals of a degree.
    torch.testing.assert_close(second.rotations, first.rotations, atol=1e-6, rtol=0)
    third = read_particles(write_particles(second, tmp_path / "again.star"))
    names = ["rlnImageName"]  # the only column that changes: another stack
    pd.testing.assert_frame_equal(third.table.drop(columns=names), second.table.drop(columns=names))
    pd.testing.assert_frame_equal(third.optics, second.optics)
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == [
        "again.mrcs",
        "again.star",
        "p.mrcs",
        "p.star",
    ]


def test_the_stack_is_what_relion_expects(tmp_path):
    write_particles(make(), tmp_path / "p.star")
    with mrcfile.open(tmp_path / "p.mrcs") as mrc:
        assert mrc.is_image_stack() and mrc.data.dtype == np.float32
        assert mrc.data.shape == (6, 9, 9)
        assert mrc.voxel_size.x == mrc.voxel_size.y == pytest.approx(1.7)
    blocks = starfile.read(tmp_path / "p.star")
    assert list(blocks["particles"]["rlnImageName"][:2]) == ["000001@p.mrcs", "000002@p.mrcs"]
    assert blocks["optics"]["rlnImageSize"].item() == 9


def test_foreign_columns_order_and_several_stacks_are_kept(tmp_path):
    a, b = make(4), make(3)
    write_particles(a, tmp_path / "a.star")
    (tmp_path / "sub").mkdir()
    write_particles(b, tmp_path / "sub" / "b.star")
    ta = starfile.read(tmp_path / "a.star")
    tb = starfile.read(tmp_path / "sub" / "b.star")["particles"]
    tb["rlnImageName"] = tb["rlnImageName"].str.replace("@", "@sub/")
    mixed = pd.concat([ta["particles"], tb]).sample(frac=1, random_state=0)
    mixed["rlnUserNote"] = [f"note{i}" for i in range(7)]
    starfile.write({"optics": ta["optics"], "particles": mixed}, tmp_path / "mixed.star")
    p = read_particles(tmp_path / "mixed.star")
    assert list(p.table["rlnUserNote"]) == list(mixed["rlnUserNote"])
    for image, name in zip(p.images, p.table["rlnImageName"], strict=True):
        number, stack = name.split("@")
        source = b if stack.startswith("sub") else a
        assert torch.equal(image, source.images[int(number) - 1])
    again = read_particles(write_particles(p, tmp_path / "merged.star"))
    assert torch.equal(again.images, p.images)
    assert list(again.table["rlnUserNote"]) == list(mixed["rlnUserNote"])


@pytest.mark.parametrize("index", [slice(1, 4), [3, 0], torch.tensor([3, 0]), "half"])
def test_select(index):
    p = make()
    index = p.half == 2 if isinstance(index, str) else index
    s = p.select(index)
    assert torch.equal(s.images, p.images[index])
    torch.testing.assert_close(s.rotations, p.rotations[index])
    assert torch.equal(s.half, p.half[index])


def test_whether_the_ctf_is_applied_is_recorded(tmp_path):
    p = make()
    assert p.ctf_applied and p.ctf.shape == (6, 9, 5)
    corrected = p.with_images(torch.zeros_like(p.images), ctf_applied=False)
    back = read_particles(write_particles(corrected, tmp_path / "p.star"))
    assert not back.ctf_applied and back.ctf is None
    torch.testing.assert_close(back.defocus_um, p.defocus_um)  # known all the same
    moved = p.optics.drop(columns=CTF_APPLIED), p.table.assign(**{CTF_APPLIED: [0, 1] * 3})
    there = Particles(p.images, *moved)  # ASPIRE writes what it does not know into this table
    torch.testing.assert_close(there.ctf[0::2], torch.ones_like(there.ctf[0::2]))
    torch.testing.assert_close(there.ctf[1::2], p.ctf[1::2])
    foreign = Particles(p.images, p.optics.drop(columns=CTF_APPLIED), p.table)
    assert foreign.ctf_applied  # a RELION file that knows the defocus


def test_each_row_says_what_was_done_to_its_image(tmp_path):
    """Of the row, before its optics group; as of the file, so of what is read again."""
    p = make(5)
    optics = p.optics.drop(columns=CTF_APPLIED).assign(rlnCtfDataArePhaseFlipped=1)
    flags = {
        CTF_APPLIED: [1, 1, 1, 0, 1],
        MULTIPLIED: [0, 1, 0, 0, 0],
        FLIPPED: [1, 1, 0, 1, 0],
        CORRECTED: [0, 0, 0, 0, 1],
    }
    mixed = Particles(p.images, optics, p.table.assign(**flags))
    back = read_particles(write_particles(mixed, tmp_path / "p.star"))
    assert list(back.state) == [PHASE_FLIPPED, PREMULTIPLIED, CARRIED, PLAIN, PLAIN]
    c, ones = p.ctf, torch.ones_like(p.ctf[0])
    expected = torch.stack([c[0].abs(), c[1] ** 2, c[2], ones, ones])
    torch.testing.assert_close(back.ctf, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="others do not"):
        _ = back.ctf_applied
    said = back.with_ctf(False)
    assert said.ctf is None and not said.ctf_applied


BAD_COLUMNS = {
    "missing": ({"rlnVoltage": None}, "lacks rlnVoltage"),
    "unset": ({"rlnAngleTilt": [1.0, 2.0, -999.0]}, "rlnAngleTilt .* the first is 3"),
    "no number": ({"rlnDefocusU": ["1e4", "x", "1e4"]}, "rlnDefocusU .* the first is 2"),
    "volts": ({"rlnVoltage": [300, 300, 3e5]}, r"rlnVoltage is 300000 in row 3.*kV .is it in V"),
    "Cs in Å": ({"rlnSphericalAberration": 2.7e7}, r"2.7e\+07 in row 1.* mm .is it in µm"),
    "Cs in µm": ({"rlnSphericalAberration": 2700}, r"2700 in row 1.* mm .is it in µm"),
    "per cent": ({"rlnAmplitudeContrast": 10}, "AmplitudeContrast is 10 .*per cent"),
    "a light year": ({"rlnDefocusV": [1e4, 1e30, 1e4]}, r"rlnDefocusV is 1e\+30 in row 2"),
    "far away": ({"rlnOriginXAngst": [0, 0, 1e30]}, r"rlnOriginXAngst is 1e\+30 in row 3"),
    "turned often": ({"rlnAnglePsi": [0, -1e9, 0]}, r"rlnAnglePsi is -1e\+09 in row 2"),
    "infinite": ({"rlnDefocusU": np.inf}, "rlnDefocusU is .*no number"),
    "micrometres": ({"rlnDefocusU": 1.5}, "10,000"),
    "no list": ({"rlnOddZernike": "[1,"}, "rlnOddZernike"),
    "tomogram": ({"rlnTomoVisibleFrames": "[1,1]"}, "tomograms .rlnTomoVisible"),
    "volumes": ({"rlnImageDimensionality": 3}, "tomograms"),
    "two scales": ({"rlnImagePixelSize": [1.7, 1.7, 1.701]}, "1.7 to 1.701"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_columns_that_cannot_be_used_are_named(case):
    columns, message = BAD_COLUMNS[case]
    p = make(3)
    table = p.table.assign(**{k: v for k, v in columns.items() if v is not None})
    optics = p.optics.drop(columns=[name for name, value in columns.items() if value is None])
    with pytest.raises(ValueError, match=message):
        q = Particles(p.images, optics, table)
        _ = q.ctf, q.slices, q.shifts_px


def test_images_are_multiplied_by_the_conjugate_of_what_they_carry():
    """So that odd aberrations go; premultiplied ones need no more than that."""
    carried = torch.tensor([0.3 + 0.4j, 0.3 + 0.4j])[:, None, None]
    found = matched_filter(carried, np.array([CARRIED, PREMULTIPLIED])).flatten()
    torch.testing.assert_close(found, torch.tensor([0.3 - 0.4j, 0.6 - 0.8j]))


def test_in_focus_is_a_defocus_and_nearly_equal_pixels_are_equal():
    p = make(3, box=16)
    table = p.table.assign(rlnDefocusU=0.0, rlnDefocusV=0.0, rlnImagePixelSize=[1.7, 1.70001, 1.7])
    q = Particles(p.images, p.optics, table)
    torch.testing.assert_close(q.ctf[:, 0, 0], torch.full((3,), 0.1))
    assert q.pixel_size_A == 1.7


def test_poses_are_not_searched_in_images_of_two_scales():
    p, noise = make(3, box=16), NoiseModel(torch.ones(9), 0.1, 1, 6.0)
    near, far = (p.optics.assign(rlnMagMat00=m, rlnMagMat11=2 - m) for m in (1.007, 1.06))
    assert transfer_to_network(Particles(p.images, near, p.table), noise).shape == (3, 16, 9)
    with pytest.raises(ValueError, match="rlnMagMat00 to 11 are 6.0% off 1"):
        transfer_to_network(Particles(p.images, far, p.table), noise)


def test_astigmatism_and_optics_groups_reach_the_ctf():
    p = make(2)
    table = p.table.assign(
        rlnDefocusU=12000.0, rlnDefocusV=8000.0, rlnDefocusAngle=0.0, rlnOpticsGroup=[2, 1]
    )
    optics = pd.concat([p.optics, p.optics.assign(rlnOpticsGroup=2, rlnAmplitudeContrast=0.2)])
    ctf = Particles(p.images, optics, table).ctf
    torch.testing.assert_close(ctf[:, 0, 0], torch.tensor([0.2, 0.1]))
    assert (ctf[1, 0, 1:] - ctf[1, 1:5, 0]).abs().max() > 0.1  # larger defocus along x
    plate = Particles(p.images, optics, table.assign(rlnPhaseShift=[90.0, 0.0])).ctf
    torch.testing.assert_close(plate[:, 0, 0], torch.tensor([0.96**0.5, 0.1]))  # cos(asin 0.2)


def test_impossible_particles_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one per image"):
        make(half=torch.ones(5))
    with pytest.raises(ValueError, match="pass defocus_um"):
        make(defocus_um=None, ctf_applied=True)
    p = make()
    with pytest.raises(ValueError, match="one row per image"):
        Particles(p.images[:3], p.optics, p.table)
    with pytest.raises(ValueError, match="y = x"):
        Particles(p.images[:, :5], p.optics, p.table)
    with pytest.raises(ValueError, match="same box"):
        p.with_images(p.images[:, :5, :5], ctf_applied=False)
    with pytest.raises(ValueError, match=r"\.star"):
        write_particles(p, tmp_path / "p.mrcs")
    with pytest.raises(ValueError, match="blanks"):
        write_particles(p, tmp_path / "my particles.star")
    lacking = Particles(p.images, p.optics, p.table.drop(columns="rlnAnglePsi"))
    with pytest.raises(ValueError, match="rlnAnglePsi"):
        _ = lacking.rotations
    strange = Particles(p.images, p.optics, p.table.assign(rlnAnglePsi=np.nan))
    with pytest.raises(ValueError, match="drop these rows"):
        _ = strange.rotations


def test_damaged_files_are_refused(tmp_path):
    p = make()
    star, stack = tmp_path / "p.star", tmp_path / "p.mrcs"
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_particles(star)
    write_particles(p, star)
    blocks = starfile.read(star)

    (tmp_path / "garbage.star").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ValueError, match="lists no particles"):
        read_particles(tmp_path / "garbage.star")
    starfile.write({"particles": blocks["particles"]}, tmp_path / "old.star")
    assert read_particles(tmp_path / "old.star").pixel_size_A == pytest.approx(1.7)  # the stack's
    table = blocks["particles"].drop(columns="rlnAngleTilt")
    starfile.write(blocks | {"particles": table}, tmp_path / "lacking.star")
    with pytest.raises(ValueError, match="rlnAngleTilt"):
        _ = read_particles(tmp_path / "lacking.star").rotations
    table = blocks["particles"].assign(rlnImageName="000@p.mrcs")
    starfile.write(blocks | {"particles": table}, tmp_path / "unnumbered.star")
    with pytest.raises(ValueError, match="000001@stack"):
        read_particles(tmp_path / "unnumbered.star")
    table = blocks["particles"].copy()
    table.loc[2, "rlnImageName"] = "000007@p.mrcs"
    starfile.write(blocks | {"particles": table}, tmp_path / "past.star")
    with pytest.raises(ValueError, match="image 7 of .*p.mrcs, which holds 6"):
        read_particles(tmp_path / "past.star")
    write_particles(make(2, box=11), tmp_path / "other.star")
    table.loc[2, "rlnImageName"] = "000001@other.mrcs"
    starfile.write(blocks | {"particles": table}, tmp_path / "mixed.star")
    with pytest.raises(ValueError, match="mixes box sizes"):
        read_particles(tmp_path / "mixed.star")

    whole = stack.read_bytes()
    stack.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cut short"):
        read_particles(star)
    stack.write_bytes(whole[:500])
    with pytest.raises(ValueError, match="cut short"):
        read_particles(star)
    stack.unlink()
    with pytest.raises(FileNotFoundError, match="p.mrcs, named in"):
        read_particles(star)
    write_particles(p, star)
    with mrcfile.mmap(stack, "r+") as mrc:
        mrc.data[4, 0, 0] = np.nan
    with pytest.raises(ValueError, match="first in row 5"):
        read_particles(star)


def test_a_full_disk_leaves_the_old_files_and_says_so(tmp_path):
    star = write_particles(make(), tmp_path / "p.star")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a stack of 60 x 81 x 4 bytes: no
    try:
        with pytest.raises(OSError, match="free some space"):
            write_particles(make(60), star)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
