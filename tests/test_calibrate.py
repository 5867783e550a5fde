"""How long the notebooks take: measured times, and their scaling by the calibration."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from cryonb.base.workers import count_cores
from cryonb.cli import main
from cryonb.running import calibrate as module
from cryonb.running.calibrate import Calibration, calibrate, read_times, say_times
from cryonb.running.plan import find_notebooks

ROOT = Path(__file__).parents[1]
THERE = Calibration(20.0, 5.0)
TIMES = {
    "quick": {
        "machine": "2 cores",
        "calibration": vars(THERE),
        "notebooks": {
            "00_first": {"seconds": 10.0, "peak_MB": 900},
            "01_second": {"seconds": 50.0, "peak_MB": 1200},
        },
    },
    "smoke": {
        "machine": "4 cores",
        "calibration": vars(Calibration(10.0, 2.5)),
        "notebooks": {"00_first": {"seconds": 4.0, "peak_MB": 600}},
    },
}


def rows(text: str) -> dict[str, list[str]]:
    """The table of what is said, by its first column."""
    lines = [line.split() for line in text.replace("\xa0", "_").splitlines()[2 * len(TIMES) :]]
    return {first: rest for first, *rest in lines}


@pytest.mark.parametrize(
    ("here", "factor"),
    [(None, 1), (THERE, 1), (Calibration(40.0, 10.0), 2), (Calibration(80.0, 5.0), 2)],
)
def test_times_scale_with_the_calibration(here, factor):
    said = say_times({"quick": TIMES["quick"]}, here).replace("\xa0", " ")
    total = {1: "60 s", 2: "2 min"}[factor]
    assert said.startswith(f"about {total} for profile quick, memory up to 1.2 GB")
    assert f"{10 * factor} s" in said and ("times what was measured on" in said) == bool(here)


def test_each_profile_is_scaled_by_its_own_machine():
    found = rows(say_times(TIMES, THERE))
    assert found["quick"] == ["smoke"]
    assert found["00_first"] == ["10_s", "8_s"] and found["01_second"] == ["50_s", "-"]
    assert list(found)[-1] == "in" and found["in"] == ["all", "60_s", "8_s"]


def test_the_calibration_measures_what_it_names(monkeypatch):
    monkeypatch.setattr(module, "BOX_SIZE", 16)
    before = calibrate(0.2)
    assert 0 < before.training_ms < 10_000 and 0 < before.projection_ms < 10_000
    project = module.project

    def slow(*given):
        time.sleep(0.2)
        return project(*given)

    monkeypatch.setattr(module, "project", slow)  # of a batch; the figure is for each image
    assert 200 < calibrate(0.2).projection_ms * module.BATCH_SIZE < 800


def test_of_all_repetitions_the_shortest_counts():
    pauses = iter([0, 0.04, 0.01, 0.04])  # the first one warms up
    assert 0.01 <= module._shortest(lambda: time.sleep(next(pauses)), 0.0) < 0.04


def test_the_committed_times_are_of_real_notebooks_and_profiles():
    times, notebooks = read_times(ROOT / "notebooks"), find_notebooks(ROOT / "notebooks")
    profiles = yaml.safe_load((ROOT / "notebooks" / "profiles.yml").read_text())
    assert "quick" in times and times.keys() <= profiles.keys()
    for measured in times.values():
        assert measured["notebooks"].keys() == notebooks.keys()
        assert Calibration(**measured["calibration"]).slower_than(THERE) > 0
        for taken in measured["notebooks"].values():
            assert taken["seconds"] > 0 and taken["peak_MB"] > 100


def test_check_says_how_long(monkeypatch, capsys, tmp_path):
    (tmp_path / "times.yml").write_text(yaml.safe_dump(TIMES))
    monkeypatch.setattr(module, "find_notebooks", lambda _: {"00_first": tmp_path / "x.ipynb"})
    monkeypatch.setattr(module, "calibrate", lambda: Calibration(60.0, 15.0))
    for busy in (80, 2):
        monkeypatch.setattr(module, "busy_percent", lambda percent=busy: percent)
        main(["check"])
        said = capsys.readouterr().out
        assert "about 3\xa0min for profile quick" in said and ("80 %" in said) == (busy == 80)
    monkeypatch.setattr(module, "calibrate", None)
    monkeypatch.setattr(module, "busy_percent", None)
    main(["check", "--fast"])
    assert "about 60\xa0s for profile quick" in capsys.readouterr().out


def test_without_notebooks_there_are_no_times(tmp_path):
    assert read_times(tmp_path) == {}


@pytest.fixture
def times(monkeypatch):
    """The module that writes the times; it is no part of the package."""
    monkeypatch.syspath_prepend(ROOT / "book")
    yield importlib.import_module("times")
    sys.modules.pop("times")


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder that looks like a finished run of this machine."""
    machine = {"cores": count_cores()}
    machine["memory_GB"] = round(psutil.virtual_memory().total / 1e9, 1)
    for name in find_notebooks(ROOT / "notebooks"):
        record = {"state": "finished", "seconds": 12.5, "peak_MB": 812.7}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    change_run(tmp_path, machine=machine, versions={"torch": "2.0"})
    change_run(tmp_path, configuration={"profile": "quick", "given": {}})
    return tmp_path


def change_run(folder: Path, **changes) -> None:
    path = folder / "run.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(record | changes))


def test_a_run_becomes_times_and_other_profiles_stay(times, run):
    path = run / "times.yml"
    path.write_text(yaml.safe_dump(TIMES))
    times.write_times(path, times.times_of(run, THERE))
    found = yaml.safe_load(path.read_text())
    assert found["smoke"] == TIMES["smoke"] and found["quick"]["calibration"] == vars(THERE)
    assert found["quick"]["notebooks"].keys() == find_notebooks(ROOT / "notebooks").keys()
    assert found["quick"]["notebooks"]["00_start_here"] == {"seconds": 12.5, "peak_MB": 813}
    assert path.read_text().startswith("# ")


def test_a_busy_machine_is_not_calibrated(times, run, monkeypatch):
    monkeypatch.setattr(times, "busy_percent", lambda: 80)
    monkeypatch.setattr(sys, "argv", ["times.py", str(run), "--out", str(run / "times.yml")])
    with pytest.raises(SystemExit, match="80 %"):
        times.main()
    monkeypatch.setattr(times, "busy_percent", lambda: 2)
    monkeypatch.setattr(times, "calibrate", lambda: THERE)
    times.main()
    assert yaml.safe_load((run / "times.yml").read_text())["quick"]["calibration"] == vars(THERE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"configuration": {"profile": "quick", "given": {"snr": "1"}}}, "snr"),
        ({"machine": {"cores": 0, "memory_GB": 1.0}}, "another machine"),
    ],
)
def test_other_runs_are_refused(times, run, change, words):
    change_run(run, **change)
    with pytest.raises(ValueError, match=words):
        times.times_of(run, THERE)
    (run / "00_start_here.json").unlink()
    with pytest.raises(FileNotFoundError, match="not finished"):
        times.times_of(run, THERE)
