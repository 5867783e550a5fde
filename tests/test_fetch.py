"""`cryonb fetch`: what is kept, what is checked, and what is said when it fails."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from cryonb import fetch as module
from cryonb.cli import main
from cryonb.fetch import MICROGRAPHS, SDIST, fetch

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
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CRYONB_CACHE", str(folder))
    return folder


def kept(cache: Path) -> list[str]:
    """All that lies in the cache, half files too."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file())


@pytest.fixture
def sdist(tmp_path, monkeypatch):
    """A source distribution for pip with a small micrograph, and that micrograph's bytes."""
    wanted, content = MICROGRAPHS["micrograph-epu"], os.urandom(5000)
    files = {"backend.py": BACKEND.encode(), "pyproject.toml": PYPROJECT.encode()}
    files |= {"PKG-INFO": b"Metadata-Version: 2.1\nName: mrcfile\nVersion: 1.5.4\n"}
    path = tmp_path / "links" / "mrcfile-1.5.4.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (files | {wanted.member: content}).items():
            item = tarfile.TarInfo(f"mrcfile-1.5.4/{name}")
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setattr(module, "SDIST", (*SDIST[:2], sha256(path.read_bytes())))
    known = wanted._replace(sha256=sha256(content))
    monkeypatch.setitem(MICROGRAPHS, "micrograph-epu", known)
    return path, content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_micrograph_comes_through_pip_once(sdist, cache, capsys):
    path, content = sdist
    assert main(["fetch", "micrograph-epu"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{cache / 'micrograph-epu.mrc'}\n"
    assert "what the sample is, is not stated" in shown.err
    assert (cache / "micrograph-epu.mrc").read_bytes() == content
    path.unlink()
    assert fetch("micrograph-epu") == cache / "micrograph-epu.mrc"
    assert kept(cache) == ["micrograph-epu.mrc", "micrograph-epu.mrc.json"]


def test_a_micrograph_that_is_not_the_known_one_is_not_kept(sdist, cache, monkeypatch):
    other = MICROGRAPHS["micrograph-epu"]._replace(sha256="0" * 64)
    monkeypatch.setitem(MICROGRAPHS, "micrograph-epu", other)
    with pytest.raises(ValueError, match="not the known 000000000000…, and is not kept"):
        fetch("micrograph-epu")
    assert kept(cache) == []


def test_pip_runs_nothing_of_another_distribution(sdist, cache, monkeypatch, capsys):
    monkeypatch.setattr(module, "SDIST", SDIST)
    assert main(["fetch", "micrograph-epu"]) == 2
    assert "DO NOT MATCH THE HASHES" in capsys.readouterr().err.splitlines()[-1]
    assert kept(cache) == []


def test_without_network_pip_says_so_and_what_else_there_is(sdist, cache, capsys):
    sdist[0].unlink()
    assert main(["fetch", "micrograph-epu"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "pip could not get mrcfile 1.5.4" in line and "use channel, prestin or a file" in line
    assert kept(cache) == []
