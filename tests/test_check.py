"""The environment report: what it says where something is missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from cryonb.cli import main
from cryonb.running import check


def items(folder=".") -> dict[str, check.Item]:
    return {item.name: item for item in check.environment_report(folder)}


def test_this_machine_is_described(capsys):
    report = items()
    assert report["Python"].ok and report["packages"].ok, report["packages"].advice
    assert report.keys() >= {"torch", "cores", "memory", "bf16", "GPU", "disk", "RELION", "writing"}
    code = main(["check", "--fast"])
    shown = capsys.readouterr().out
    assert code == (0 if all(item.ok for item in report.values()) else 1)
    assert all(item.value in shown for name, item in report.items() if name in ("Python", "GPU"))


def test_what_is_missing_comes_with_advice(tmp_path, monkeypatch):
    # The super-user may write anywhere, so a file that stands where a folder should be.
    (tmp_path / "file").write_text("")
    refused = items(tmp_path / "file")["writing"]
    assert not refused.ok and "--run-dir" in refused.advice
    monkeypatch.setattr(check, "MEMORY_GB", 1e9)
    monkeypatch.setattr(check, "DISK_GB", 1e9)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    gone = check.distribution

    def distribution(name):
        if name == "mrcfile":
            raise PackageNotFoundError(name)
        return gone(name)

    monkeypatch.setattr(check, "distribution", distribution)
    report = items(tmp_path)
    assert report["packages"].advice == "pip install mrcfile" and not report["packages"].ok
    assert not report["memory"].ok and "PROFILE=smoke" in report["memory"].advice
    assert not report["disk"].ok and main(["check", "--fast"]) == 1
    monkeypatch.setattr(check, "requires", lambda _: ["numpy>=2", "no-such>1; extra == 'test'"])
    assert items()["packages"].value.startswith("1 of 1, ")
    assert report["GPU"].ok and report["RELION"].ok and "relion" in report["RELION"].advice


@pytest.mark.parametrize(
    ("precision", "words"), [("bf16", "in hardware"), ("no", "not in hardware")]
)
def test_bf16_is_what_the_networks_would_take(monkeypatch, precision, words):
    monkeypatch.setattr("cryonb.base.precision.fast_precision", lambda: precision)
    found = items()["bf16"]
    assert found.value == words and found.ok and ("float32" in found.advice) == (precision == "no")
