"""The archive for a machine without a network: what is in it, and that make takes it from there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bundle(monkeypatch):
    """The module that bundles, with stand-ins for what it would get through the network."""
    spec = importlib.util.spec_from_file_location("bundle", ROOT / "book" / "bundle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def get(name):
        if name == "micrograph-fei":
            raise OSError("no network")
        return ROOT / "LICENSE"

    def wheels(target):
        (target / "one-1.0-py3-none-any.whl").write_bytes(b"PK")
        return list(target.iterdir())

    monkeypatch.setattr(module, "fetch", get)
    monkeypatch.setattr(module, "wheels", wheels)
    return module


def offline(*words, cwd: Path) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ["PATH"]}
    command = [shutil.which("make"), "-n", *words, "OFFLINE=1"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)


def test_the_project_is_whole_and_nothing_made_goes_along(bundle, tmp_path):
    for name in ("runs/quick/a", ".venv/b", "x.egg-info/c", "cryonb/__pycache__/d", "cryonb/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to("cryonb")
    assert list(map(str, bundle.checkout(tmp_path))) == ["cryonb/e.py"]
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
        assert set(listed.stdout.split()) - set(map(str, bundle.checkout(ROOT))) == set()


def test_make_works_from_the_unpacked_archive(bundle, tmp_path, monkeypatch, capsys):
    built = tmp_path / "html"
    built.mkdir()
    (built / "index.html").write_text("book")
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "run.json").write_text("{}")
    archive = bundle.bundle(tmp_path / "a stick", built, tmp_path / "quick")
    assert "left out: micrograph-fei: no network" in capsys.readouterr().out
    assert [p.name for p in archive.parent.iterdir()] == [archive.name]  # nothing half is left
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent, filter="data")
    folder = archive.parent / "cryonb"
    for name in (
        "cache/LICENSE",
        "wheels/one-1.0-py3-none-any.whl",
        "book/_build/html/index.html",
        "runs/quick/run.json",
    ):
        assert (folder / name).is_file(), name
    done = offline("tutorial", "PROFILE=smoke", cwd=folder)
    assert done.returncode == 0 and "cryonb run --profile smoke" in done.stdout
    shown = subprocess.run(
        [shutil.which("make"), "--print-data-base", "--question", "OFFLINE=1", "help"],
        cwd=folder,
        capture_output=True,
        text=True,
    ).stdout
    for line in ("PIP_NO_INDEX := 1", "PIP_FIND_LINKS := wheels", "CRYONB_CACHE = $(CURDIR)/cache"):
        assert line in shown, line


def test_without_wheels_make_says_where_they_come_from():
    done = offline("tutorial", cwd=ROOT)
    assert done.returncode != 0 and "make offline-bundle" in done.stderr


def test_no_packages_is_one_line_and_no_archive(bundle, tmp_path, monkeypatch):
    def refuse(target):
        raise OSError("pip could not get all packages")

    monkeypatch.setattr(bundle, "wheels", refuse)
    monkeypatch.setattr(sys, "argv", ["bundle.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="^bundle: pip could not"):
        bundle.main()
    monkeypatch.setattr(sys, "argv", ["bundle.py", "--run", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no run"):
        bundle.main()
    assert not list(tmp_path.iterdir())
