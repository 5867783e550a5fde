"""Experiments and sweeps, on tiny notebooks; what they do when things go wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from test_runner import CRYONB, book, status, write_notebook  # noqa: F401

from cryonb.cli import main
from cryonb.running import sweep as sweep_module
from cryonb.running.experiment import gather, make_experiment, plan_runs, read_experiment
from cryonb.running.plan import find_notebooks, read_profile
from cryonb.running.runner import lock

ROOT = Path(__file__).parents[1]
EXPERIMENT = {
    "notebooks": ["00_first", "01"],
    "profile": "small",
    "parameters": {"01_second.snr": 0.5},
    "grid": {"00_first.snr": [1, 0.1]},
    "seeds": [0, 1],
}
NAMES = [f"00_first.snr-{snr}_seed-{seed}" for snr in ("1", "0.1") for seed in (0, 1)]
FOLDER = "runs/try"
# Ends `cryonb run`, the parent of the notebook's Python, and then waits to be ended by that.
KILL = """\
import os, pathlib, signal, time
if seed == 1 and not pathlib.Path("mended").exists():
    with open("tries", "a") as file:
        _ = file.write("x")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
"""


@pytest.fixture
def describe(book):  # noqa: F811
    """A function that writes the experiment, with changes, and returns its path."""

    def write(**changes) -> str:
        path = book / "try.yml"
        path.write_text(yaml.safe_dump({**EXPERIMENT, **changes}))
        return str(path)

    return write


def sweep(path: str, *words: str) -> int:
    return main(["sweep", path, *words])


def records(folder: str = FOLDER) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in Path(folder).glob("*/01_second.json")}


def test_a_sweep_is_planned_run_and_skipped(book, describe, capsys):  # noqa: F811
    assert sweep(describe(), "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "4 runs, 4 to do" in shown and not (book / "runs").exists()
    line = next(line for line in shown.splitlines() if line.startswith(NAMES[3]))
    command = line.partition("cryonb ")[2].split()
    assert main([*command, "--run-dir", "by-hand"]) == 0  # what is printed can be run by hand

    assert sweep(describe(), "--workers", "2") == 0
    found = records()
    assert set(found) == set(NAMES)
    for name, record in found.items():
        snr, seed = re.findall(r"-([\d.]+)", name)
        assert record["parameters"] == {
            "run_dir": f"{FOLDER}/{name}",
            "seed": int(seed),
            "snr": 0.5,
        }
        first = status(book, "00_first", f"{FOLDER}/{name}")["parameters"]
        assert first["snr"] == float(snr) and record["state"] == "finished"
    capsys.readouterr()

    assert sweep(describe()) == 0
    assert "4 runs, 0 to do" in capsys.readouterr().out and records() == found
    assert sweep(describe(seeds=[0, 1, 2]), "--dry-run") == 0  # more of the same may join
    shown = capsys.readouterr().out
    assert "6 runs, 2 to do" in shown and shown.count("finished, skipped") == 4
    assert sweep(describe(parameters={}), "--dry-run") == 2
    assert "holds a sweep of another configuration" in capsys.readouterr().err
    assert sweep(describe(seeds=[0], grid={"00_first.snr": [1]}), "--force", "--workers", "1") == 0
    assert records()[NAMES[0]]["start"] > found[NAMES[0]]["end"]
    write_notebook(book / "notebooks/01_second.ipynb", "print('changed')")
    assert sweep(describe(), "--dry-run") == 0
    assert "4 runs, 4 to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"sed": 1}}, "unknown parameter 'sed'; did you mean seed?"),
        ({"grid": {"snr": [0.1, "much"]}}, "of type float (default 0.1), not 'much'"),
        ({"list": [{"01_second.sn": 1}]}, "unknown parameter of 01_second: 'sn'"),
        ({"notebooks": ["01_second"]}, "00_first.snr is no parameter of 01_second"),
        ({"notebooks": ["02_third"]}, "unknown notebook '02_third'"),
        ({"notebooks": []}, "an experiment has at least"),
        ({"profile": "smal"}, "unknown profile 'smal'; did you mean small?"),
        ({"profile": "big"}, "needs a GPU"),
        ({"grids": {}}, "'grids'; did you mean grid?"),
        ({"grid": {"snr": 0.1}}, "snr varies over a list of values, not 0.1"),
        ({"seeds": 3}, "seeds has a value of the wrong kind: 3"),
        ({"seeds": [1, 1]}, "two runs would be 00_first.snr-0.1_seed-1"),
        ({"parameters": {"seed": 1}}, "seed is given twice"),
        ({"list": [{"01_second.snr": 1}]}, "01_second.snr is given twice"),
        ({"list": [{"snr": 1}, {"run_dir": "x"}]}, "each entry of list has the same names"),
    ],
)
def test_bad_experiments_are_one_line_before_anything_runs(
    book, describe, capsys, monkeypatch, changes, words  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert sweep(describe(**changes)) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("cryonb: ") and error.count("\n") == 1
    assert not (book / "runs").exists()


def test_other_bad_requests(book, describe, capsys, monkeypatch):  # noqa: F811
    path = describe()
    (book / "torn.yml").write_text("notebooks: [")
    (book / "full").mkdir()
    (book / "full" / "letter.txt").touch()
    for words, said in [
        (["no-such.yml"], "no-such.yml does not exist"),
        (["torn.yml"], "is not YAML"),
        ([path, "--run-dir", "full"], "no sweep folder and not empty"),
        ([path, "--notebooks", "nowhere"], "no notebook NN_name.ipynb in nowhere"),
    ]:
        assert main(["sweep", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    with lock(book / FOLDER):
        assert sweep(path) == 2
    assert f"in use by another run (process {os.getpid()})" in capsys.readouterr().err
    assert main(["results", FOLDER]) == 2
    assert "is no folder of a sweep" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert sweep(path, "--scheduler", "tcp://127.0.0.1:1") == 2
    assert "a cluster needs dask: pip install" in capsys.readouterr().err


def test_without_dask_threads_do(book, describe, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert sweep(describe(seeds=[0], grid={"00_first.snr": [1]})) == 0
    assert "1 runs at a time" in capsys.readouterr().out and list(records()) == NAMES[:1]


def test_a_failure_keeps_its_traceback_and_stops_nothing(book, describe, capsys):  # noqa: F811
    source = "import pathlib\nif seed == 1 and not pathlib.Path('mended').exists():\n"
    source += "    raise ValueError('no particles')"
    write_notebook(book / "notebooks/01_second.ipynb", source)
    assert sweep(describe(), "--workers", "2") == 1
    shown = capsys.readouterr().out
    assert shown.count("failed: cell 3: ValueError: no particles") >= 2
    states = {name: record["state"] for name, record in records().items()}
    assert states == {name: "failed" if name.endswith("1") else "finished" for name in NAMES}
    failed = book / FOLDER / NAMES[1]
    assert "no particles" in (failed / "01_second.ipynb").read_text()
    assert "no particles" in (book / FOLDER / f"{NAMES[1]}.log").read_text()
    assert main(["results", FOLDER]) == 0
    shown = capsys.readouterr().out
    assert f"not finished: {NAMES[1]}: 01_second" in shown
    kept = records()[NAMES[0]]
    (book / "mended").touch()
    assert sweep(describe(), "--workers", "2") == 0
    assert "4 runs, 2 to do" in capsys.readouterr().out and records()[NAMES[0]] == kept


def test_a_killed_run_is_tried_again_and_then_reported(book, describe, capsys):  # noqa: F811
    write_notebook(book / "notebooks/01_second.ipynb", KILL)
    few = describe(grid={"00_first.snr": [1]})
    assert sweep(few, "--workers", "1") == 1
    assert (book / "tries").read_text() == "x" * sweep_module.TRIES
    assert f"{NAMES[1]} lost: its process was killed (signal 9)" in capsys.readouterr().out
    assert {n: r["state"] for n, r in records().items()} == {
        NAMES[0]: "finished", NAMES[1]: "running"
    }  # fmt: skip
    (book / "mended").touch()
    assert sweep(few) == 0 and records()[NAMES[1]]["state"] == "finished"


def test_a_killed_kernel_is_tried_again(book, describe):  # noqa: F811
    source = "import os, pathlib\nif not pathlib.Path('once').exists():\n"
    source += "    pathlib.Path('once').touch()\n    os.kill(os.getpid(), 9)"
    write_notebook(book / "notebooks/01_second.ipynb", source)
    assert sweep(describe(seeds=[0], grid={"00_first.snr": [1]})) == 0
    assert records()[NAMES[0]]["state"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_goes_on(book, describe, number):  # noqa: F811
    source = "import os, pathlib, time\nif not pathlib.Path('mended').exists():\n"
    source += "    print(os.getpid(), file=open('kernel', 'w'), flush=True)\n    time.sleep(60)"
    write_notebook(book / "notebooks/01_second.ipynb", source)
    few = describe(grid={"00_first.snr": [1]})
    restore = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    command = [CRYONB, "sweep", few, "--workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **restore
    )
    deadline = time.monotonic() + 90
    while not (book / "kernel").exists() or not (book / "kernel").read_text().strip():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    kernel = int((book / "kernel").read_text())
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    killed = number == signal.SIGKILL
    assert process.returncode == (-9 if killed else 130)
    assert killed or "cryonb: stopped; run the same command again to go on" in error
    while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != "zombie":
        assert time.monotonic() < deadline + 30, "the notebook's Python outlived the sweep"
        time.sleep(0.2)
    assert killed or records()[NAMES[0]]["state"] == "interrupted"
    assert NAMES[1] not in records()
    (book / "mended").touch()
    assert sweep(few, "--workers", "2") == 0
    assert {r["state"] for r in records().values()} == {"finished"}


def test_a_full_disk_is_one_line(book, describe, capsys):  # noqa: F811
    for name in NAMES:
        run = book / FOLDER / name
        run.mkdir(parents=True)
        (run / "run.json").write_text('{"configuration": null}')
        (run / ".00_first.partial.ipynb").symlink_to("/dev/full")
    (book / FOLDER / "sweep.json").write_text("{}")
    assert sweep(describe(), "--workers", "1", "--force") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cryonb")]
    assert error == [f"cryonb: [Errno 28] No space left on device: '{FOLDER}'; "
                     "free some space and run the same command again"]  # fmt: skip


def test_a_cluster_whose_worker_is_killed(book, describe, capsys):  # noqa: F811
    """SIGKILL to the dask worker in the middle of a run: another one does it, the rest goes on."""
    distributed = pytest.importorskip("distributed", reason="make test installs it")
    source = (
        "import os, pathlib, psutil, time\nif seed == 1 and not pathlib.Path('once').exists():\n"
    )
    source += "    pathlib.Path('once').touch()\n"
    source += "    psutil.Process(os.getppid()).parent().kill()\n    time.sleep(60)"
    write_notebook(book / "notebooks/01_second.ipynb", source)
    options = dict(n_workers=1, threads_per_worker=1, dashboard_address=None)
    with distributed.LocalCluster(**options) as cluster:
        few = describe(grid={"00_first.snr": [1]})
        assert sweep(few, "--scheduler", cluster.scheduler_address) == 0
    assert (book / "once").exists()
    assert {r["state"] for r in records().values()} == {"finished"} and len(records()) == 2


def test_slurm_gets_jobs_of_the_right_size(book, describe, monkeypatch):  # noqa: F811
    """A stand-in for Slurm runs the very job script that dask-jobqueue submits."""
    pytest.importorskip("dask_jobqueue", reason="make test installs it")
    tools = book / "bin"
    tools.mkdir()
    script = (
        '#!/bin/sh\ncp "$1" submitted\nsh "$1" >job.log 2>&1 &\necho "Submitted batch job $!"\n'
    )
    (tools / "sbatch").write_text(script)
    (tools / "scancel").write_text("#!/bin/sh\nkill $1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    slurm = {"queue": "short", "walltime": "00:30:00", "interface": "lo"}
    few = describe(seeds=[0], cores=2, memory_GB=4, slurm=slurm)
    assert sweep(few, "--cluster", "slurm", "--workers", "1") == 0
    assert len(records()) == 2
    job = (book / "submitted").read_text()
    for line in ("-p short", "--cpus-per-task=2", "--mem=4G", "-t 00:30:00"):
        assert f"#SBATCH {line}" in job
    assert "--nthreads 1" in job


def test_results_are_one_tidy_table(book, describe, capsys):  # noqa: F811
    table = "import csv, pathlib\nfolder = pathlib.Path(run_dir, 'tables')\n"
    table += "folder.mkdir(parents=True, exist_ok=True)\n"
    table += (
        "_ = (folder / 'compare.csv').write_text(f'method,mse\\nblur,{snr}\\nnone,{2 * snr}\\n')"
    )
    write_notebook(book / "notebooks/00_first.ipynb", table)
    assert sweep(describe(), "--workers", "2") == 0
    assert main(["results", "try.yml"]) == 0
    found = pd.read_csv(f"{FOLDER}/results.csv")
    assert list(found) == ["run", "00_first.snr", "seed", "notebook", "quantity", "value"]
    measured = found[~found["quantity"].str.startswith("run ")]
    assert len(measured) == 4 * 2 * 2  # runs × notebooks × (snr, seed)
    assert not measured.duplicated(["00_first.snr", "seed", "notebook", "quantity"]).any()
    snr = measured[(measured["quantity"] == "snr") & (measured["notebook"] == "00_first")]
    assert (snr["value"] == snr["00_first.snr"]).all() and set(snr["value"]) == {1.0, 0.1}
    own = measured[(measured["quantity"] == "seed")]
    assert (own["value"] == own["seed"]).all()
    cost = found[found["quantity"] == "run seconds"]
    assert len(cost) == 8 and (cost["value"] > 0).all()
    compare = pd.read_csv(f"{FOLDER}/table-compare.csv")
    assert list(compare) == ["run", "00_first.snr", "seed", "method", "mse"] and len(compare) == 8
    assert (compare["mse"] / compare["00_first.snr"]).round(6).isin([1, 2]).all()
    parquet = pd.read_parquet(f"{FOLDER}/results.parquet")
    pd.testing.assert_frame_equal(parquet, found, check_dtype=False)
    assert "4 runs" in capsys.readouterr().out
    (book / FOLDER / NAMES[0] / "01_second.json").unlink()
    table, tables, missing = gather(FOLDER)
    assert missing == [f"{NAMES[0]}: 01_second"] and len(tables["compare"]) == 6


def test_values_get_the_types_of_the_parameters(book):  # noqa: F811
    content = {"notebooks": ["00"], "profile": "small", "grid": {"snr": ["1e-1", 1]}}
    runs = plan_runs(make_experiment("x", content), Path("runs/x"))
    assert [run.varied for run in runs] == [{"snr": 0.1}, {"snr": 1.0}]


def test_workers_fit_cores_and_memory(monkeypatch):
    monkeypatch.setattr(sweep_module, "count_cores", lambda: 8)
    memory = type("memory", (), {"available": 10e9})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert sweep_module.local_workers(1, 3.0) == 3  # by memory
    assert sweep_module.local_workers(4, 1.0) == 2  # by cores
    assert sweep_module.local_workers(16, 100.0) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yml")), ids=lambda p: p.stem)
def test_the_examples_can_be_planned(path):
    """Their parameters exist, and profiles that a laptop can run."""
    experiment = read_experiment(path)
    runs = plan_runs(experiment, Path("runs/x"), ROOT / "notebooks")
    assert 4 <= len(runs) <= 40 and experiment.profile in ("smoke", "quick")
    assert "seed" in runs[0].varied and len({run.varied["seed"] for run in runs}) > 1
    assert read_profile(ROOT / "notebooks", experiment.profile)
    assert len({run.name for run in runs}) == len(runs) and find_notebooks(ROOT / "notebooks")
