"""cryoSPARC's particle files mean what csparc2star makes of them, and keep all of their fields."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import starfile
import torch
from scipy.spatial.transform import Rotation
from test_projection import phantom
from torch.testing import assert_close

from cryonb.cli import main
from cryonb.data.maps import read_map, write_stack
from cryonb.data.particle_file import open_particles, read_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.physics import projection
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.geometry import random_rotations

ANGLES = np.array([[10.0, 20, 30], [-100, 75, 160], [0, 0, 45], [170, 179, -20]])
SHIFT = np.array([[1.0, -2], [0, 0], [0.5, 3], [-4, 0]])  # (x, y) in pixels
IMAGES = torch.arange(4.0)[:, None, None].expand(4, 16, 16) + torch.eye(16)


def relion_matrix(rot, tilt, psi) -> np.ndarray:
    """Euler_angles2matrix of RELION 3.1, written out."""
    (ca, cb, cg), (sa, sb, sg) = (f(np.radians([rot, tilt, psi])) for f in (np.cos, np.sin))
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


def table(**fields) -> np.ndarray:
    """Four rows as cryoSPARC writes them, last image first."""
    pose = [Rotation.from_matrix(relion_matrix(*angles).T).as_rotvec() for angles in ANGLES]
    columns = {
        "uid": np.array([40, 10, 30, 20], dtype="<u8"),
        "blob/path": np.full(4, b">J7/extract/s.mrc"),
        "blob/idx": np.arange(4, dtype="<u4")[::-1],
        "blob/psize_A": np.full(4, 1.7, "<f4"),
        "blob/sign": np.full(4, -1, "<f4"),
        "ctf/accel_kv": np.array([300, 300, 200, 300], "<f4"),
        "ctf/cs_mm": np.full(4, 2.7, "<f4"),
        "ctf/amp_contrast": np.full(4, 0.1, "<f4"),
        "ctf/df1_A": np.full(4, 15000, "<f4"),
        "ctf/df2_A": np.full(4, 14000, "<f4"),
        "ctf/df_angle_rad": np.full(4, np.pi / 6, "<f4"),
        "ctf/phase_shift_rad": np.full(4, np.pi / 2, "<f4"),
        "ctf/tilt_A": np.zeros((4, 2), "<f4"),
        "alignments3D/pose": np.array(pose, "<f4"),
        "alignments3D/shift": SHIFT.astype("<f4"),
        "alignments3D/split": np.array([0, 1, 0, 1], "<u4"),
    } | fields
    columns = {name: values for name, values in columns.items() if values is not None}
    dtype = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    rows = np.empty(4, dtype)
    for name, values in columns.items():
        rows[name] = values
    return rows


def write(path, rows):
    with open(path, "wb") as file:
        np.save(file, rows)
    return path


@pytest.fixture
def project(tmp_path):
    (tmp_path / "J7" / "extract").mkdir(parents=True)
    write_stack(tmp_path / "J7" / "extract" / "s.mrc", IMAGES, 1.7)
    return tmp_path


def test_poses_shifts_and_ctf_are_those_of_relion(project):
    p = read_particles(write(project / "J7" / "p.cs", table()))
    assert torch.equal(p.images, IMAGES.flip(0))
    expected = np.array([relion_matrix(*angles) for angles in ANGLES])
    written = p.table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    found = np.array([relion_matrix(*angles) for angles in written])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(p.shifts_px[:, [1, 0]], -SHIFT, atol=1e-5)
    assert p.pixel_size_A == pytest.approx(1.7) and p.half.tolist() == [1, 2, 1, 2]
    columns = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"]
    np.testing.assert_allclose(p.table[columns], [[15000, 14000, 30, 90]] * 4, rtol=1e-6)
    assert sorted(p.optics["rlnVoltage"]) == [200, 300] and p.ctf.shape == (4, 16, 9)


def test_what_is_written_keeps_every_field(project):
    rows = table()
    source = open_particles(write(project / "J7" / "p.cs", rows))
    write_stack(project / "o.mrcs", IMAGES, 1.7)
    source.write_like(project / "o.cs", "o.mrcs")
    new = np.load(project / "o.cs")
    assert set(new.dtype.names) == set(rows.dtype.names)
    assert (new["blob/path"] == b"o.mrcs").all() and new["blob/idx"].tolist() == [0, 1, 2, 3]
    for name in set(rows.dtype.names) - {"blob/path", "blob/idx"}:
        assert new[name].dtype == rows[name].dtype and np.array_equal(new[name], rows[name])
    source.write_like(project / "o.star", "o.mrcs")
    a, b = (read_particles(project / f"o.{end}") for end in ("cs", "star"))
    assert torch.equal(a.images, b.images)
    torch.testing.assert_close(a.ctf, b.ctf)
    assert starfile.read(project / "o.star")["particles"]["rlnImageName"][1] == "000002@o.mrcs"


def test_a_passthrough_file_is_matched_by_uid(project):
    rows = table()
    path = write(project / "p.cs", rows[["uid", "alignments3D/pose", "alignments3D/shift"]])
    with pytest.raises(ValueError, match="--passthrough"):
        open_particles(path)
    rest = [name for name in rows.dtype.names if not name.startswith("alignments3D")]
    passed = write(project / "pass.cs", rows[rest][[2, 0, 3, 1]])
    both = open_particles(path, passthrough=passed)
    assert torch.equal(both.read().images, IMAGES.flip(0))
    write(project / "pass.cs", rows[rest][:3])
    with pytest.raises(ValueError, match="lacks particles"):
        open_particles(path, passthrough=passed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ctf/trefoil_A": np.ones((4, 2), "<f4")}, "trefoil_A, whose sign and order"),
        ({"ctf/tilt_A": np.ones((4, 2), "<f4"), "ctf/cs_mm": np.zeros(4)}, "tilt_A without a Cs"),
        ({"blob/sign": np.array([1, -1, 1, 1.0])}, "mixes images of both signs"),
        ({"ctf/anisomag": np.full((4, 4), 0.02, "<f4")}, "ctf/anisomag"),
        ({"blob/idx": np.full(4, 9, "<u4")}, "image 10 of .*which holds 4"),
        ({"blob/path": None}, "no blob/path"),
    ],
)
def test_what_is_not_read_is_refused_by_name(project, fields, message):
    with pytest.raises(ValueError, match=message):
        open_particles(write(project / "p.cs", table(**fields)))


def test_reconstruct_makes_the_map_that_it_makes_of_a_star_file(tmp_path):
    """Whose maps RELION judges in test_relion; with shifts, CTF and a tilt of 270 Å / 2.7 mm."""
    molecule, generator = phantom(24, width=1.6).float(), torch.Generator().manual_seed(0)
    turns, shifts = random_rotations(200, generator), torch.randn(200, 2, generator=generator)
    known = {"shifts_px": shifts, "defocus_um": torch.ones(200)}
    p = particles_from_arrays(torch.zeros(200, 24, 24), turns, 3.0, **known)
    p = dataclasses.replace(p, table=p.table.assign(rlnBeamTiltX=10.0, rlnBeamTiltY=-20.0))
    p = p.with_images(apply_ctf(projection.project(molecule, turns, shifts), p.ctf))
    star = write_particles(p, tmp_path / "p.star")
    rows = np.repeat(table(), 50)
    rows["uid"] = rows["blob/idx"] = np.arange(200)
    rows["blob/path"], rows["blob/psize_A"] = "p.mrcs", 3.0
    rows["ctf/df1_A"] = rows["ctf/df2_A"] = 10000
    rows["ctf/accel_kv"], rows["ctf/phase_shift_rad"] = 300, 0
    rows["ctf/tilt_A"] = [270e3, -540e3]
    rows["alignments3D/pose"] = Rotation.from_matrix(turns).as_rotvec()
    rows["alignments3D/shift"] = -shifts.flip(1)
    maps = {}
    for path in (star, write(tmp_path / "p.cs", rows)):
        out = path.with_suffix(f"{path.suffix}.mrc")
        assert main(["reconstruct", str(path), "--out", str(out)]) == 0
        maps[path.suffix] = read_map(out)[0]
    assert_close(maps[".cs"], maps[".star"], rtol=0, atol=1e-4 * float(molecule.max()))
    assert np.corrcoef(maps[".cs"].ravel(), molecule.ravel())[0, 1] > 0.99
    assert np.corrcoef(maps[".cs"].flip(0).ravel(), molecule.ravel())[0, 1] < 0.9


@pytest.mark.parametrize("raw", [b"", b"text", b"\x93NUMPY\x01\x00"])
def test_damaged_files_are_one_clear_line(tmp_path, raw):
    (tmp_path / "p.cs").write_bytes(raw)
    with pytest.raises(ValueError, match="not a readable .cs file"):
        open_particles(tmp_path / "p.cs")
