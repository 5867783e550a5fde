"""Particle files of other programs: read as RELION reads them, and written as they were."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from cryonb.data.maps import write_stack
from cryonb.data.particle_file import open_particles
from cryonb.data.star import StarFile

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnImagePixelSize #5
1 300 2.7 0.1 2.0
"""


def star(folder, rows: str, labels: str, optics: str = OPTICS, name="p.star", **coding):
    """A STAR file of some rows, and its stack of six images of 8 px, 4 Å/px in the header."""
    write_stack(folder / "s.mrcs", torch.arange(6.0)[:, None, None].expand(6, 8, 8), 4.0)
    loop = "".join(f"_{label} #{k}\n" for k, label in enumerate(labels.split(), 1))
    text = f"{optics}\ndata_particles\n\nloop_\n{loop}{rows}\n"
    (folder / name).write_bytes(text.encode(**coding))
    return folder / name


CELLS = "rlnImageName rlnMicrographName rlnGroupName rlnHelicalTubeID rlnNote rlnOpticsGroup"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "row",
    [
        "1@s.mrcs 001 1e5 0.00000012345 nan 1",
        "1@s.mrcs\to'neill\ta#b\t<NA>\t'two words'\t1",
        'data_x@s.mrcs "q" 1_000 +5 0x1 1 # said by "hand"',
        "000001@s.mrcs H\xe4m \xb5 . ? 1",
    ],
)
def test_cells_that_do_not_change_are_kept_byte_for_byte(tmp_path, row, end):
    row = row.replace("data_x", "1").replace("\n", end)
    text = star(tmp_path, row, CELLS, encoding="latin-1").read_bytes().replace(b"\n", end.encode())
    (tmp_path / "p.star").write_bytes(text)
    open_particles(tmp_path / "p.star").write_like(tmp_path / "o.star", "o.mrcs")
    old = row.split()[0].encode()
    assert (tmp_path / "o.star").read_bytes() == text.replace(old, b"000001@o.mrcs")


def test_text_stays_text_and_numbers_are_exact(tmp_path):
    path = star(tmp_path, "2@s.mrcs 001 1.23456789012e-7", "rlnImageName rlnNote rlnAngleRot")
    table = open_particles(path).table
    assert table["rlnNote"][0] == "001" and table["rlnAngleRot"][0] == 1.23456789012e-7


OLD = "\n# RELION 3.0\n"
READ = {  # name: (labels, row, optics, pixel size, (y, x) origin in Å)
    "plain": ("rlnImageName rlnOpticsGroup rlnOriginXAngst rlnOriginYAngst", "1@s.mrcs 1 3 5",
              OPTICS, 2, (5, 3)),
    "no origins": ("rlnImageName rlnOpticsGroup", "1@s.mrcs 1", OPTICS, 2, (0, 0)),
    "no group": ("rlnImageName", "1@s.mrcs", OPTICS, 2, (0, 0)),
    "origins in px": ("rlnImageName rlnOpticsGroup rlnOriginX rlnOriginY", "1@s.mrcs 1 3 5",
                      OPTICS, 2, (10, 6)),
    "listed twice": ("rlnImageName rlnOpticsGroup", "1@s.mrcs 1", OPTICS + "1 300 2.7 0.1 2.0\n",
                     2, (0, 0)),
    "unused group": ("rlnImageName rlnOpticsGroup", "1@s.mrcs 1", OPTICS + "2 200 2.7 0.1 9\n",
                     2, (0, 0)),
    "3.0, detector": ("rlnImageName rlnDetectorPixelSize rlnMagnification rlnOriginX", "1@s.mrcs "
                      "5 20000 2", OLD, 2.5, (0, 5)),
    "rlnPixelSize": ("rlnImageName rlnPixelSize", "1@s.mrcs 3", OLD, 3, (0, 0)),
    "header": ("rlnImageName", "1@s.mrcs", OLD, 4, (0, 0)),
    "one image": ("rlnImageName", "s.mrcs", OLD, 4, (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_relion_reads_is_read(tmp_path, case):
    labels, row, optics, pixel_A, (y, x) = READ[case]
    particles = open_particles(star(tmp_path, row, labels, optics)).read()
    assert particles.pixel_size_A == pytest.approx(pixel_A)
    torch.testing.assert_close(particles.shifts_px, -torch.tensor([[y, x]]) / pixel_A)
    assert not particles.ctf_applied and particles.ctf is None


def test_pixel_sizes_that_round_apart_are_one(tmp_path):
    """One in 10,000 is half a pixel over a box of 5,000."""
    row = "1@s.mrcs 1\n2@s.mrcs 2"
    for size, same in (("2.00001", True), ("2.01", False)):
        optics = OPTICS + f"2 300 2.7 0.1 {size}\n"
        particles = open_particles(
            star(tmp_path, row, "rlnImageName rlnOpticsGroup", optics)
        ).read()
        if same:
            assert particles.pixel_size_A == pytest.approx(2)
        else:
            with pytest.raises(ValueError, match="pixel sizes"):
                _ = particles.pixel_size_A


def test_a_pixel_size_is_given_where_the_file_has_none(tmp_path):
    path = star(tmp_path, "1@s.mrcs", "rlnImageName", OLD)
    assert open_particles(path, pixel_size_A=1.5).read().pixel_size_A == 1.5
    raw = bytearray((tmp_path / "s.mrcs").read_bytes())
    raw[28:40] = bytes(12)  # mx, my, mz
    (tmp_path / "s.mrcs").write_bytes(raw)
    assert open_particles(path).optics["rlnImagePixelSize"][0] == 0, "unknown, not 1 or inf"
    with pytest.raises(ValueError, match="ixel.?[sS]ize"):
        _ = open_particles(path).read().pixel_size_A
    with pytest.raises(ValueError, match="states 2 Å/px, not 1.5"):
        open_particles(star(tmp_path, "1@s.mrcs", "rlnImageName"), pixel_size_A=1.5)


def test_moved_folders_are_found(tmp_path):
    (tmp_path / "moved").mkdir()
    path = star(tmp_path, "3@Extract/job007/s.mrcs", "rlnImageName")
    (tmp_path / "s.mrcs").rename(tmp_path / "moved" / "s.mrcs")
    with pytest.raises(FileNotFoundError, match=f"none of {tmp_path}.*--root"):
        open_particles(path)
    found = open_particles(path, root=tmp_path / "moved")
    assert found.read().images[0, 0, 0] == 2
    project = tmp_path / "Refine3D" / "job9"
    project.mkdir(parents=True)
    (tmp_path / "Extract" / "job007").mkdir(parents=True)
    (tmp_path / "moved" / "s.mrcs").rename(tmp_path / "Extract" / "job007" / "s.mrcs")
    assert open_particles(path.rename(project / "p.star")).read().images[0, 0, 0] == 2


BAD = {
    "few values": ("rlnImageName rlnNote", "1@s.mrcs a\n2@s.mrcs", "line 20.*none for rlnNote"),
    "many values": ("rlnImageName", "1@s.mrcs 5", "line 18.*'5' has no label"),
    "zero": ("rlnImageName", "000@s.mrcs", "numbers begin at 1"),
    "past": ("rlnImageName", "7@s.mrcs", "image 7 of .*s.mrcs, which holds 6"),
    "twice": ("rlnImageName rlnNote rlnNote", "1@s.mrcs a b", "rlnNote twice"),
    "group": ("rlnImageName rlnOpticsGroup", "1@s.mrcs 3", "group.*3.*not listed"),
    "two tables": ("rlnImageName", "1@s.mrcs\n\ndata_particles\n\nloop_\n_rlnImageName\n1@s.mrcs",
                   "several tables of particles"),
    "empty": ("rlnImageName", "", "lists no particles"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_tables_are_one_clear_line(tmp_path, case):
    labels, row, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        open_particles(star(tmp_path, row, labels))


def test_a_repaired_file_is_read_anew(tmp_path):
    path = star(tmp_path, "1@s.mrcs 5", "rlnImageName")
    with pytest.raises(ValueError, match="no label"):
        open_particles(path)
    assert len(open_particles(star(tmp_path, "1@s.mrcs\n2@s.mrcs", "rlnImageName"))) == 2


def test_a_table_of_one_row_without_loop(tmp_path):
    (tmp_path / "a.star").write_text("data_\n_rlnVoltage 300.0\n_rlnNote '0 1'\n")
    file = StarFile(tmp_path / "a.star")
    frame = file.frame(file.tables[0])
    pd.testing.assert_frame_equal(
        frame, pd.DataFrame({"rlnVoltage": [300.0], "rlnNote": pd.Series(["0 1"], dtype="str")})
    )
    assert np.isfinite(frame["rlnVoltage"]).all()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_are_changed_or_added_and_all_else_is_kept(tmp_path, end):
    text = f"data_particles{end}{end}loop_{end}_rlnAnglePsi #1{end}_rlnNote #2{end}"
    text += f" 1.50 'a b' # first{end}2 c{end}"
    (tmp_path / "a.star").write_bytes(text.encode())
    file = StarFile(tmp_path / "a.star")
    file.write(tmp_path / "b.star", file.tables[0], {"rlnAnglePsi": ["7", "8"], "new": ["x", "y"]})
    expected = text.replace("1.50", "7").replace("2 c", "8 c y").replace("'a b'", "'a b' x")
    expected = expected.replace(f"_rlnNote #2{end}", f"_rlnNote #2{end}_new\n")
    assert (tmp_path / "b.star").read_bytes().decode() == expected
    (tmp_path / "c.star").write_text("data_\n_rlnVoltage 300.0\n_rlnNote c\n")
    file = StarFile(tmp_path / "c.star")
    file.write(tmp_path / "d.star", file.tables[0], {"rlnNote": ["d"], "new": ["1"]})
    assert (tmp_path / "d.star").read_text() == "data_\n_rlnVoltage 300.0\n_rlnNote d\n_new 1\n"
