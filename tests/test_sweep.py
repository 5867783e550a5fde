"""Experiments and sweeps, on tiny notebooks; what they do when things go wrong."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from test_runner import book, status, write_notebook  # noqa: F401

from cryonb.base.files import sole
from cryonb.cli import main
from cryonb.running.experiment import gather, make_experiment, plan_runs, read_experiment
from cryonb.running.plan import find_notebooks, read_profile

ROOT = Path(__file__).parents[1]
EXPERIMENT = {
    "notebooks": ["00_first", "01"],
    "profile": "small",
    "parameters": {"01_second.snr": 0.5},
    "grid": {"00_first.snr": [1]},
    "seeds": [0, 1],
    "memory_GB": 0.5,
}
NAMES = [f"00_first.snr-1_seed-{seed}" for seed in (0, 1)]
FOLDER = "runs/try"


@pytest.fixture
def describe(book):  # noqa: F811
    """A function that writes the experiment, with changes, and returns its path."""

    def write(**changes) -> str:
        path = book / "try.yml"
        path.write_text(yaml.safe_dump({**EXPERIMENT, **changes}))
        return str(path)

    return write


def sweep(path: str, *words: str) -> subprocess.CompletedProcess:
    """In a process of its own: snakemake is not made to be called twice in one."""
    command = [sys.executable, "-m", "cryonb", "sweep", path, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def records(folder: str = FOLDER) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in Path(folder).glob("*/01_second.json")}


def test_a_sweep_is_planned_run_and_skipped(book, describe, capsys):  # noqa: F811
    assert main(["sweep", describe(), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "2 runs, 2 to do" in shown and not (book / "runs").exists()
    line = next(line for line in shown.splitlines() if line.startswith(NAMES[1]))

    done = sweep(describe())
    assert done.returncode == 0 and f"now:  cryonb results {FOLDER}" in done.stdout, done.stderr
    commands = json.loads((book / FOLDER / "sweep.json").read_text())["runs"]
    assert line == f"{NAMES[1]}: {shlex.join(commands[NAMES[1]]['command'][2:])}"
    assert int(re.search(r"mem_mb=(\d+)", done.stderr)[1]) > 500, (
        "as many runs as there is room for"
    )
    found = records()
    assert set(found) == set(NAMES)
    for name, record in found.items():
        given = {"run_dir": f"{FOLDER}/{name}", "seed": int(name[-1]), "snr": 0.5}
        assert record["parameters"] == given and record["state"] == "finished"
        assert status(book, "00_first", f"{FOLDER}/{name}")["parameters"]["snr"] == 1.0
    assert not list(book.rglob("*.lock"))
    assert main(["results", "try.yml"]) == 0
    table = pd.read_csv(f"{FOLDER}/results.csv")
    assert len(table) == 2 * 2 * 4  # runs × notebooks × (snr, seed, seconds, peak_MB)
    assert (
        table.loc[table["quantity"] == "seed", "value"]
        == table.loc[table["quantity"] == "seed", "seed"]
    ).all()

    again = sweep(describe())
    assert "2 runs, 0 to do" in again.stdout and "Nothing to be done" in again.stderr
    assert records() == found
    capsys.readouterr()
    assert main(["sweep", describe(seeds=[0, 1, 2]), "--dry-run"]) == 0  # more may join
    shown = capsys.readouterr().out
    assert "3 runs, 1 to do" in shown and shown.count("finished: cryonb run") == 2
    assert main(["sweep", describe(parameters={}), "--dry-run"]) == 2
    assert "holds a sweep of another configuration" in capsys.readouterr().err
    assert sweep(describe(seeds=[0]), "--force", "--cores", "1").returncode == 0
    assert records()[NAMES[0]]["start"] > found[NAMES[0]]["end"]
    write_notebook(book / "notebooks/01_second.ipynb", "print('changed')")
    assert main(["sweep", describe(), "--dry-run"]) == 0
    assert "2 runs, 2 to do" in capsys.readouterr().out


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
        ({"seeds": [1, 1]}, "two runs would be 00_first.snr-1_seed-1"),
        ({"parameters": {"seed": 1}}, "seed is given twice"),
        ({"list": [{"01_second.snr": 1}]}, "01_second.snr is given twice"),
        ({"list": [{"snr": 1}, {"run_dir": "x"}]}, "each entry of list has the same names"),
    ],
)
def test_bad_experiments_are_one_line_before_anything_runs(
    book,  # noqa: F811
    describe,
    capsys,
    monkeypatch,
    changes,
    words,
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["sweep", describe(**changes)]) == 2
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
        ([path, "--run-dir", "full"], "is not empty and no sweep folder"),
        ([path, "--notebooks", "nowhere"], "no notebook NN_name.ipynb in nowhere"),
    ]:
        assert main(["sweep", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    (book / FOLDER).mkdir(parents=True)
    with sole(book / FOLDER / "sweep.json"):
        assert main(["sweep", path]) == 2
    assert "sweep.json is being written by another process" in capsys.readouterr().err
    assert main(["results", FOLDER]) == 2
    assert "is no folder of a sweep" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["sweep", path, "--cores", "2"]) == 2
    assert "pip install 'cryonb[sweeps]'" in capsys.readouterr().err


def test_without_snakemake_runs_come_one_after_the_other(book, describe, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    source = "if seed == 0:\n    raise ValueError('no particles')"
    write_notebook(book / "notebooks/01_second.ipynb", source)
    assert main(["sweep", describe()]) == 1
    shown = capsys.readouterr().out
    assert f"{NAMES[0]} is not finished: 01_second failed" in shown and NAMES[1] not in shown
    assert [r["state"] for _, r in sorted(records().items())] == ["failed", "finished"]


def test_a_failure_and_a_killed_run_stop_no_other(book, describe, capsys):  # noqa: F811
    source = "import os, pathlib, time\nif seed and not pathlib.Path('mended').exists():\n"
    source += "    if seed == 1:\n        raise ValueError('no particles')\n"
    source += "    os.kill(os.getppid(), 9)\n    time.sleep(60)"
    write_notebook(book / "notebooks/01_second.ipynb", source)
    three = describe(seeds=[0, 1, 2])
    done = sweep(three)
    killed = NAMES[0][:-1] + "2"
    assert done.returncode == 1
    said = f"{NAMES[1]} is not finished: 01_second failed: cell 3: ValueError: no particles"
    assert said in done.stdout and f"{killed} is not finished: 01_second: running" in done.stdout
    states = {name: record["state"] for name, record in records().items()}
    assert states == {NAMES[0]: "finished", NAMES[1]: "failed", killed: "running"}
    assert "no particles" in (book / FOLDER / NAMES[1] / "01_second.ipynb").read_text()
    assert main(["results", FOLDER]) == 0
    assert f"not finished: {NAMES[1]}: 01_second" in capsys.readouterr().out
    kept = records()[NAMES[0]]
    (book / "mended").touch()
    first = status(book, "00_first", f"{FOLDER}/{killed}")
    done = sweep(three)
    assert done.returncode == 0 and "3 runs, 2 to do" in done.stdout
    assert records()[NAMES[0]] == kept and records()[killed]["state"] == "finished"
    assert status(book, "00_first", f"{FOLDER}/{killed}") == first, "only what is missing runs"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on(book, describe, number):  # noqa: F811
    source = "import os, pathlib, time\nif not pathlib.Path('mended').exists():\n"
    source += "    print(os.getpid(), file=open('kernel', 'w'), flush=True)\n    time.sleep(60)"
    write_notebook(book / "notebooks/00_first.ipynb", source)
    few = describe(notebooks=["00"], parameters={})
    command = [sys.executable, "-m", "cryonb", "sweep", few, "--cores", "1"]
    restore = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, **pipes, **restore)
    deadline = time.monotonic() + 90
    while not (book / "kernel").exists() or not (book / "kernel").read_text().strip():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    kernel = int((book / "kernel").read_text())
    process.send_signal(number)
    killed = number == signal.SIGKILL
    assert process.wait(timeout=60) == (-9 if killed else 130)
    last = None if killed else process.stderr.read().splitlines()[-1]
    assert killed or last == "cryonb: stopped; run the same command again to go on"
    while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != "zombie":
        assert time.monotonic() < deadline + 10, "the notebook's Python outlived the sweep"
        time.sleep(0.1)
    (book / "mended").touch()
    done = sweep(few)
    assert done.returncode == 0 and "2 runs, 2 to do" in done.stdout, done.stderr
    assert (
        json.loads((book / FOLDER / NAMES[1] / "00_first.json").read_text())["state"] == "finished"
    )


def test_a_full_disk_is_named(book, describe):  # noqa: F811
    run = book / FOLDER / NAMES[0]
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"configuration": null}')
    (run / ".00_first.partial.ipynb").symlink_to("/dev/full")
    (book / FOLDER / "sweep.json").write_text("{}")
    done = sweep(describe(seeds=[0]), "--force")
    assert done.returncode == 1 and "No space left on device" in done.stdout
    assert "free some space and run the same command again" in done.stdout


SLURM = {  # as much of Slurm as a sweep asks for; a job is run as it is submitted
    "sbatch": "for a; do case $a in --wrap=*) script=${a#--wrap=};; esac; done\n"
    'echo "$@" >submitted; SLURM_JOB_ID=7 sh -c "$script" >job.log 2>&1; echo 7',
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "sacct": "echo '7|COMPLETED'",
    "squeue": "echo '7|COMPLETED'",
    "sacctmgr": "echo my-lab",
    "sinfo": "exit 0",
    "scontrol": "exit 0",
    "scancel": "exit 0",
}


def test_slurm_gets_jobs_of_the_right_size(book, describe, monkeypatch):  # noqa: F811
    """A stand-in for Slurm runs the very job that snakemake's executor submits."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="make test installs it")
    (book / "bin").mkdir()
    for name, script in SLURM.items():
        (book / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (book / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(book / "bin"), prepend=":")
    resources = {"slurm_partition": "short", "slurm_account": "my-lab", "runtime": 30}
    one = describe(seeds=[0], cores=2, memory_GB=4, resources=resources)
    options = ["--executor", "slurm", "--jobs", "1", "--slurm-init-seconds-before-status-checks"]
    done = sweep(one, *options, "1")
    assert done.returncode == 0, done.stderr
    assert records()[NAMES[0]]["state"] == "finished"
    job = (book / FOLDER / "submitted").read_text()
    for words in ("-p short", "-A my-lab", "-t 30", "--mem 4000", "--cpus-per-task=2"):
        assert words in job


def test_hostile_values_reach_the_notebook_as_they_are(book, describe):  # noqa: F811
    """Quotes, newlines, braces; names of runs that would be too long or leave the sweep."""
    values = ['it\'s "so"\n{run} $HOME `ls`; \\ é', "../../up", "x" * 3000]
    parameters = 'run_dir = ""\ntext = ""\nsnr = 0.1\nseed = 0'
    source = "import pathlib\n_ = pathlib.Path(run_dir, 'text').write_text(text)"
    write_notebook(book / "notebooks/00_first.ipynb", source, parameters=parameters)
    wild = describe(notebooks=["00"], parameters={}, grid={"text": values}, seeds=[0])
    done = sweep(wild)
    assert done.returncode == 0, done.stderr
    assert {p.read_text() for p in (book / FOLDER).glob("*/text")} == set(values)
    assert {p.name for p in book.iterdir()} == {"notebooks", "runs", "try.yml"}


def test_results_are_one_tidy_table(book, capsys):  # noqa: F811
    """Four runs as `cryonb run` leaves them, one of them without its second notebook."""
    names = {
        f"snr-{snr}_seed-{seed}": {"snr": snr, "seed": seed}
        for snr in (1.0, 0.1)
        for seed in (0, 1)
    }
    plan = {"runs": {k: {"varied": v} for k, v in names.items()}}
    folder = book / FOLDER
    for name, own in names.items():
        for kind in ("results", "tables"):
            (folder / name / kind).mkdir(parents=True)
        for notebook in ("00_first", "01_second"):
            record = {"state": "finished", "seconds": 2.5, "peak_MB": 100.0}
            (folder / name / f"{notebook}.json").write_text(json.dumps(record))
            measured = {"mse": 2 * own["snr"], "note": "fine"}
            (folder / name / "results" / f"{notebook}.json").write_text(json.dumps(measured))
        table = f"method,snr,mse\nblur,9,{own['snr']}\nnone,9,{2 * own['snr']}\n"
        (folder / name / "tables" / "compare.csv").write_text(table)
    notebooks = {"notebooks": ["00_first", "01_second"]}
    (folder / "sweep.json").write_text(json.dumps(plan | notebooks))
    assert main(["results", FOLDER]) == 0
    assert "4 runs" in capsys.readouterr().out
    found = pd.read_csv(folder / "results.csv")
    assert list(found) == ["run", "snr", "seed", "notebook", "quantity", "value", "text"]
    assert len(found) == 4 * 2 * 4  # runs × notebooks × (mse, note, seconds, peak_MB)
    assert not found.duplicated(["snr", "seed", "notebook", "quantity"]).any()
    mse = found[found["quantity"] == "mse"]
    assert (mse["value"] == 2 * mse["snr"]).all() and set(mse["value"]) == {2.0, 0.2}
    assert (found.loc[found["quantity"] == "run seconds", "value"] == 2.5).all()
    assert (found.loc[found["quantity"] == "note", "text"] == "fine").all()
    compare = pd.read_csv(folder / "table-compare.csv")
    assert list(compare) == ["run", "snr", "seed", "method", "snr (table)", "mse"]
    assert (compare["mse"] / compare["snr"]).round(6).isin([1, 2]).all() and len(compare) == 8
    parquet = pd.read_parquet(folder / "results.parquet")
    pd.testing.assert_frame_equal(parquet, found, check_dtype=False)
    last = list(names)[-1]
    (folder / last / "01_second.json").unlink()
    table, tables, missing = gather(FOLDER)
    assert missing == [f"{last}: 01_second"] and len(tables["compare"]) == 6


def test_values_get_the_types_of_the_parameters(book):  # noqa: F811
    content = {"notebooks": ["00"], "profile": "small", "grid": {"snr": ["1e-1", 1]}}
    runs = plan_runs(make_experiment("x", content), Path("runs/x"))
    assert [run.varied for run in runs] == [{"snr": 0.1}, {"snr": 1.0}]
    content |= {"list": [{"00_first.seed": 5}, {"00_first.seed": 6}]}
    runs = plan_runs(make_experiment("x", content), Path("runs/x"))
    pairs = [(run.varied["snr"], run.varied["00_first.seed"]) for run in runs]
    assert pairs == [(0.1, 5), (1.0, 5), (0.1, 6), (1.0, 6)]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yml")), ids=lambda p: p.stem)
def test_the_examples_can_be_planned(path):
    """Their parameters exist, and profiles that a laptop can run."""
    experiment = read_experiment(path)
    runs = plan_runs(experiment, Path("runs/x"), ROOT / "notebooks")
    assert 4 <= len(runs) <= 40 and experiment.profile in ("smoke", "quick")
    assert "seed" in runs[0].varied and len({run.varied["seed"] for run in runs}) > 1
    assert read_profile(ROOT / "notebooks", experiment.profile)
    assert len({run.name for run in runs}) == len(runs) and find_notebooks(ROOT / "notebooks")
