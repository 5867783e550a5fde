"""MRC headers of other writers: dimensions that fit the file's length decide."""

from __future__ import annotations

import gzip
import struct

import mrcfile
import numpy as np
import pytest

from cryonb.data.mrc import open_mrc

IMAGES = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)


def patched(folder, *patches, data=IMAGES, name="a.mrcs"):
    """A stack whose bytes at (place, bytes) are overwritten."""
    path = folder / name
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.set_image_stack()
        mrc.voxel_size = 1.5
    raw = bytearray(path.read_bytes())
    for place, put in patches:
        raw[place : place + len(put)] = put
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("dtype", ["i1", "i2", "u2", "f2", "f4", "c8", ">f4", ">i2"])
def test_every_mode_and_byte_order_is_what_mrcfile_reads(tmp_path, dtype):
    path = patched(tmp_path, data=IMAGES.astype(dtype))
    mrc = open_mrc(path)
    assert not mrc.odd and np.array_equal(mrc.data, mrcfile.read(path))
    assert mrc.voxel_A == pytest.approx((1.5, 1.5, 1.5)) and mrc.volumes == 1


@pytest.mark.parametrize("stamp", ["44110000", "44202020", "00000000", "11110000"])
def test_foreign_stamps_are_read_with_a_note(tmp_path, capsys, stamp):
    mrc = open_mrc(patched(tmp_path, (212, bytes.fromhex(stamp))))
    assert np.array_equal(mrc.data, IMAGES) and "machine stamp" in mrc.odd
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_without_map_identifier_is_read(tmp_path, capsys):
    path = patched(tmp_path, (208, b"\0" * 8), (92, struct.pack("<i", 123456)))
    assert np.array_equal(open_mrc(path, quiet=True).data, IMAGES)
    assert capsys.readouterr().err == ""
    assert "no 'MAP '" in open_mrc(path).odd and "no 'MAP '" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "first"), [(0, 255), (1, -1), (None, -1)])
def test_bytes_are_unsigned_where_imod_says_so(tmp_path, flags, first):
    imod = [] if flags is None else [(152, struct.pack("<2i", 1146047817, flags))]
    path = patched(tmp_path, *imod, data=np.full((1, 2, 2), -1, np.int8))
    assert open_mrc(path).data[0, 0, 0] == first


@pytest.mark.parametrize("place", [28, 40])
def test_an_unknown_voxel_is_zero(tmp_path, place):
    assert open_mrc(patched(tmp_path, (place, bytes(12)))).voxel_A == (0, 0, 0)


def test_one_volume_of_four_axes_and_gzip(tmp_path):
    with mrcfile.new(tmp_path / "v.mrc") as mrc:
        mrc.set_data(IMAGES[None])
    assert open_mrc(tmp_path / "v.mrc").data.shape == (3, 4, 5)
    (tmp_path / "v.mrc.gz").write_bytes(gzip.compress((tmp_path / "v.mrc").read_bytes()))
    packed = open_mrc(tmp_path / "v.mrc.gz")
    assert np.array_equal(packed.data, IMAGES) and packed.volumes == 1
    with mrcfile.new(tmp_path / "two.mrc") as mrc:
        mrc.set_data(np.stack([IMAGES, IMAGES]))
    assert open_mrc(tmp_path / "two.mrc").volumes == 2


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ([(0, struct.pack("<i", 500))], "cut short"),
        ([(8, struct.pack("<i", -3))], "damaged"),
        ([(12, struct.pack("<i", 3))], "mode 3, which is not read"),
        ([(12, struct.pack("<i", 77))], "damaged"),
        ([(92, struct.pack("<i", 9999))], "cut short"),
    ],
)
def test_what_does_not_fit_is_damaged(tmp_path, patches, message):
    with pytest.raises(ValueError, match=message):
        open_mrc(patched(tmp_path, *patches))


@pytest.mark.parametrize("keep", [0, 500, 1100])
def test_cut_files_are_damaged(tmp_path, keep):
    path = patched(tmp_path)
    whole = path.read_bytes()
    for raw in (whole[:keep], gzip.compress(whole)[: max(20, keep // 10)]):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="cut short"):
            open_mrc(path)
