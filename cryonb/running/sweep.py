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

from cryonb.base.files import below, read_json, sole, write_json
from cryonb.base.options import SweepOptions
from cryonb.base.workers import count_cores
from cryonb.running.experiment import Experiment, Run, plan_runs
from cryonb.running.runner import check_folder

INSTALL = "pip install 'cryonb[sweeps]'"
SIZED = {"-c", "--cores", "-j", "--jobs", "-e", "--executor", "--profile", "--workflow-profile"}


def sweep(experiment: Experiment, options: SweepOptions, words: tuple[str, ...] = ()) -> int:
    """Run all runs of an experiment that are not finished yet; returns an exit code.

    Words are further options of snakemake, such as ``--executor slurm --jobs 32``. ValueError or
    OSError, with one sentence that says what is wrong, before any run starts.
    """
    folder = options.run_dir or below("runs", experiment.name)
    runs = plan_runs(experiment, folder, options.notebooks)
    check_folder(folder / "sweep.json", experiment.configuration, options.force)
    commands = {run.name: _command(experiment, run, folder, options) for run in runs}
    todo = [run.name for run in runs if options.force or not run.finished(folder)]
    print(f"experiment {experiment.name}: {len(runs)} runs, {len(todo)} to do, folder {folder}")
    if options.dry_run:
        for name, command in commands.items():
            print(f"{name}: {'' if name in todo else 'finished: '}{shlex.join(command[2:])}")
        return 0
    snakemake = importlib.util.find_spec("snakemake")
    if words and not snakemake:
        raise ValueError(f"{' '.join(words)} needs snakemake (not on Windows): {INSTALL}")
    folder.mkdir(parents=True, exist_ok=True)
    with sole(folder / "sweep.json"):
        write_json(folder / "sweep.json", _describe(experiment, runs, commands))
        for name in todo:
            (folder / name / ".finished").unlink(missing_ok=True)
        if snakemake:
            code = _snakemake(folder, words, experiment)
        else:
            code = _one_after_the_other({name: commands[name] for name in todo}, folder)
    left = [run for run in runs if not run.finished(folder)]
    for run in left:
        print(f"{run.name} is not finished: {_why(run, folder)}\n  see {folder / run.name}.log")
    print("the same command tries them again" if left else f"now:  cryonb results {folder}")
    return code


def _command(experiment: Experiment, run: Run, folder: Path, options: SweepOptions) -> list[str]:
    words = ["run", *(notebook.name for notebook in run.chosen)]
    words += ["--profile", experiment.profile, "--run-dir", str(folder / run.name)]
    for name, value in run.given.items():
        words += ["-p", name, value if isinstance(value, str) else repr(value)]
    if options.notebooks:
        words += ["--notebooks", str(options.notebooks)]
    if options.force:
        words += ["--force"]
    return [sys.executable, "-m", "cryonb", *words]


def _describe(experiment: Experiment, runs: list[Run], commands: dict[str, list[str]]) -> dict:
    """What ``sweep.json`` holds, for snakemake and for `cryonb.running.experiment.gather`."""
    sizes = ("configuration", "cores", "memory_GB", "resources")
    return {name: getattr(experiment, name) for name in sizes} | {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "started_in": os.getcwd(),
        "notebooks": [notebook.name for notebook in runs[0].chosen],
        "runs": {r.name: {"varied": r.varied, "command": commands[r.name]} for r in runs},
    }


def _snakemake(folder: Path, words: tuple[str, ...], experiment: Experiment) -> int:
    """Run snakemake in this process; by default as many runs at a time as cores and memory fit."""
    from snakemake.cli import main

    if not SIZED & {word.partition("=")[0] for word in words}:
        memory_MB = max(psutil.virtual_memory().available / 1e6, 1000 * experiment.memory_GB)
        words += ("--cores", str(max(count_cores(), experiment.cores)))
        words += ("--resources", f"mem_mb={memory_MB:.0f}")
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


def _one_after_the_other(commands: dict[str, list[str]], folder: Path) -> int:
    """Do the runs where there is no snakemake; returns the highest exit code."""
    print(f"one run at a time, for want of snakemake: {INSTALL} (not on Windows)")
    codes, env = [0], os.environ | {"CRYONB_PARENT": str(os.getpid())}
    for name, command in commands.items():
        with open(folder / f"{name}.log", "w") as log:
            codes.append(subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=env))
    return max(codes)


def _why(run: Run, folder: Path) -> str:
    """What its notebook's record says, or else the last line of its log."""
    for notebook in run.chosen:
        record = read_json(folder / run.name / f"{notebook.name}.json")
        if record.get("message"):
            return f"{notebook.name} {record['state']}: {record['message']}"
    log = folder / f"{run.name}.log"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it was not started")
