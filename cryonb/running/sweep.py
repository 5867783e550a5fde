"""``cryonb sweep``: check and plan all runs of an experiment, then let snakemake do them.

Each run is one ``cryonb run`` in a process of its own. Resuming, runs at a time, clusters and what
is to be done again are snakemake's: see ``Snakefile`` beside this file.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from cryonb.base.files import below, sole
from cryonb.base.workers import count_cores
from cryonb.running.experiment import Experiment, Run, plan_runs
from cryonb.running.runner import check_folder, read_json, write_json

INSTALL = "pip install 'cryonb[sweeps]'"
SIZED = ("-c", "--cores", "-j", "--jobs", "-e", "--executor", "--profile", "--workflow-profile")


def sweep(
    experiment: Experiment,
    folder: str | Path | None = None,
    *,
    notebooks: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    words: list[str] = (),
) -> int:
    """Run all runs of an experiment that are not finished yet; returns an exit code.

    Parameters
    ----------
    experiment : Experiment
        See `cryonb.running.experiment.read_experiment`.
    folder : path, optional
        Sweep folder, default ``runs/<name of the experiment>``.
    notebooks : path, optional
        Folder of the notebooks, see `cryonb.running.plan.find_notebooks`.
    force : bool
        Run even what is finished, and in a folder made by another experiment.
    dry_run : bool
        Print the plan and run nothing.
    words : list of str
        Further options of snakemake, such as ``--executor slurm --jobs 32``.

    Raises
    ------
    ValueError, FileNotFoundError, OSError
        With one sentence that says what is wrong, before any run starts.
    """
    folder = Path(folder or below("runs", experiment.name))
    runs = plan_runs(experiment, folder, notebooks)
    check_folder(folder, experiment.configuration, force, "sweep.json", "sweep")
    commands = {run.name: _command(experiment, run, folder, notebooks, force) for run in runs}
    todo = [run.name for run in runs if force or not run.finished(folder)]
    print(f"experiment {experiment.name}: {len(runs)} runs, {len(todo)} to do, folder {folder}")
    if dry_run:
        for name, command in commands.items():
            print(f"{name}: {'' if name in todo else 'finished: '}{shlex.join(command[2:])}")
        return 0
    if words and not importlib.util.find_spec("snakemake"):
        raise ValueError(f"{' '.join(words)} needs snakemake (not on Windows): {INSTALL}")
    folder.mkdir(parents=True, exist_ok=True)
    with sole(folder / "sweep.json"):
        write_json(folder / "sweep.json", _describe(experiment, runs, commands))
        for name in todo:
            (folder / name / ".finished").unlink(missing_ok=True)
        if importlib.util.find_spec("snakemake"):
            code = _snakemake(folder, words, experiment)
        else:
            code = _one_after_the_other({name: commands[name] for name in todo}, folder)
    left = [run for run in runs if not run.finished(folder)]
    for run in left:
        print(f"{run.name} is not finished: {_why(run, folder)}\n  see {folder / run.name}.log")
    print("the same command tries them again" if left else f"now:  cryonb results {folder}")
    return code


def _why(run: Run, folder: Path) -> str:
    """What its notebook's record says, or else the last line of its log."""
    for step in run.chosen:
        record = read_json(folder / run.name / f"{step.name}.json")
        if record.get("message"):
            return f"{step.name} {record['state']}: {record['message']}"
    log = folder / f"{run.name}.log"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it was not started")


def _one_after_the_other(commands: dict[str, list[str]], folder: Path) -> int:
    """Do the runs where there is no snakemake; returns the highest exit code."""
    print(f"one run at a time, for want of snakemake: {INSTALL} (not on Windows)")
    codes, env = [0], os.environ | {"CRYONB_PARENT": str(os.getpid())}
    for name, command in commands.items():
        with open(folder / f"{name}.log", "w") as log:
            codes.append(subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=env))
    return max(codes)


def _command(experiment: Experiment, run: Run, folder: Path, notebooks, force: bool) -> list[str]:
    words = ["run", *(step.name for step in run.chosen)]
    words += ["--profile", experiment.profile, "--run-dir", str(folder / run.name)]
    for name, value in run.given.items():
        words += ["-p", name, value if isinstance(value, str) else repr(value)]
    words += ["--notebooks", str(notebooks)] if notebooks else []
    words += ["--force"] if force else []
    return [sys.executable, "-m", "cryonb", *words]


def _describe(experiment: Experiment, runs: list[Run], commands: dict[str, list[str]]) -> dict:
    return {
        "configuration": experiment.configuration,
        "experiment": experiment.name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "started_in": os.getcwd(),
        "notebooks": [step.name for step in runs[0].chosen],
        "varied": list(runs[0].varied),
        "cores": experiment.cores,
        "memory_GB": experiment.memory_GB,
        "resources": experiment.resources,
        "runs": {r.name: {"varied": r.varied, "command": commands[r.name]} for r in runs},
    }


def _snakemake(folder: Path, words: list[str], experiment: Experiment) -> int:
    """Run snakemake in this process; by default as many runs at a time as cores and memory fit."""
    from snakemake.cli import main

    given = {word.partition("=")[0] for word in words}
    if not given & set(SIZED):
        free_MB = psutil.virtual_memory().available / 1e6
        needed_MB = 1000 * experiment.memory_GB
        words = [*words, "--cores", str(max(count_cores(), experiment.cores))]
        words += ["--resources", f"mem_mb={max(free_MB, needed_MB):.0f}"]
    where = ["--snakefile", str(Path(__file__).with_name("Snakefile")), "--directory", str(folder)]
    always = ["--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", "--keep-going"]
    stopped = []

    def stop(*_):
        stopped.append(True)
        for run in psutil.Process().children():  # they do not hear what this process is sent
            with suppress(psutil.Error):
                run.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        main([*where, *always, *words])
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        signal.signal(signal.SIGINT, before)
    if stopped:
        raise KeyboardInterrupt
    return code
