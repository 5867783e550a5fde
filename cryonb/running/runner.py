"""Run the notebooks in order into a run folder that says what was run and can be resumed.

Papermill executes; this module adds what it lacks. Everything asked for is checked before anything
runs, a notebook that is finished and unchanged is skipped, and the run folder holds

- ``run.json``: profile, parameters, versions, git state, machine;
- ``NN_name.ipynb``: the executed notebook, and ``NN_name.json``: state, times, peak memory, key;
- what the notebooks write under their ``run_dir``, ``results/NN_name.json`` among it.

No notebook needs this module: plain papermill executes them just as well.
"""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from cryonb.base.files import below, read_json, sole, write_json
from cryonb.base.options import RunOptions
from cryonb.base.workers import count_cores
from cryonb.running.engine import execute
from cryonb.running.plan import Notebook, choose, plan, read_notebooks, read_profile

PACKAGES = ("cryonb", "torch", "numpy", "scipy", "papermill", "ipykernel")


def run(wanted: list[str] = (), options: RunOptions = RunOptions()) -> int:
    """Run notebooks in order; those finished and unchanged in the run folder are skipped.

    Wanted are names, numbers or paths; all notebooks when empty. Returns an exit code: 0 when all
    is finished, 1 after a failure, 130 after Ctrl-C. ValueError or OSError, with one sentence that
    says what is wrong and what to do, before anything runs.
    """
    if options.cell_timeout_s is not None and not options.cell_timeout_s > 0:
        raise ValueError(f"a cell timeout of {options.cell_timeout_s:g} s: give more than 0")
    notebooks = read_notebooks(options.notebooks)
    folder = notebooks[0].path.parent
    profile = read_profile(folder, options.profile)
    run_dir = Path(options.run_dir or below("runs", options.profile))
    configuration = {"profile": options.profile, "given": dict(options.given)}
    planned = plan(notebooks, profile, configuration["given"], str(run_dir))
    chosen = choose(planned, wanted)
    if profile.get("needs_gpu") and not options.allow_cpu:
        require_gpu(options.profile)
    check_folder(run_dir / "run.json", configuration, options.force)
    run_dir.mkdir(parents=True, exist_ok=True)
    with sole(run_dir / "run.json"):
        git = git_state(folder)
        write_json(run_dir / "run.json", {"configuration": configuration, **describe(planned, git)})
        print(f"{options.profile}: {len(chosen)} of {len(planned)} notebooks, folder {run_dir}")
        todo = chosen if options.force else unfinished(planned, chosen, run_dir)
        for notebook in chosen[: len(chosen) - len(todo)]:
            print(f"{notebook.name}: finished before and unchanged, skipped")
        timeout_s = options.cell_timeout_s or profile.get("cell_timeout_s", 3600)
        code = _execute_all(todo, run_dir, timeout_s, git)
        print(table(run_dir, chosen))
    return code


def unfinished(planned: list[Notebook], chosen: list[Notebook], run_dir: Path) -> list[Notebook]:
    """Chosen notebooks from the first that is not finished, or changed, or older than its input."""
    latest = ""  # end of the last notebook so far
    for notebook in planned:
        record = read_json(run_dir / f"{notebook.name}.json")
        finished = record.get("state") == "finished" and record["key"] == notebook.key
        there = finished and (run_dir / f"{notebook.name}.ipynb").exists()
        if notebook in chosen and not (there and record["start"] >= latest):
            return chosen[chosen.index(notebook) :]
        latest = max(latest, record.get("end") or "")
    return []


def _execute_all(todo: list[Notebook], run_dir: Path, timeout_s: float, git: dict | None) -> int:
    """Execute notebooks until one does not finish, and keep a record of each; an exit code."""
    for notebook in todo:
        name, output = notebook.name, run_dir / f"{notebook.name}.ipynb"
        record = {"notebook": name, "state": "running", "start": _now(), "end": None, "git": git}
        record |= {"parameters": notebook.parameters, "key": notebook.key}
        write_json(run_dir / f"{name}.json", record)
        (run_dir / "results" / f"{name}.json").unlink(missing_ok=True)
        print(f"{name}: running", flush=True)
        record |= execute(notebook.path, output, notebook.parameters, timeout_s)
        record |= {"end": _now()}
        write_json(run_dir / f"{name}.json", record)
        if record["state"] != "finished":
            print(f"{name} {record['state']}: {record['message']}\n  see {output}")
            print("  run the same command again: it goes on with this notebook")
            return 130 if record["state"] == "interrupted" else 1
        print(f"{name}: {record['seconds']:.0f} s, peak {record['peak_MB']:,.0f} MB")
    return 0


def require_gpu(profile: str) -> None:
    """Raise ValueError when torch sees no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        hint = "take PROFILE=workshop, or insist with --allow-cpu (days)"
        raise ValueError(f"profile {profile} needs a GPU (CUDA) and torch sees none here; {hint}")


def check_folder(record: Path, configuration: dict, force: bool) -> None:
    """Refuse a folder whose ``run.json`` or ``sweep.json`` holds another configuration, or none."""
    folder, kind = record.parent, record.stem
    if ":/" in str(folder):
        raise ValueError(
            f"{folder} is no folder of this machine; papermill itself writes notebooks to a bucket"
        )
    if force or not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder with --run-dir")
    before = read_json(record).get("configuration")
    if before is None and {path.name for path in folder.iterdir()} - {f".{record.name}.lock"}:
        raise ValueError(f"{folder} is not empty and no {kind} folder; name another with --run-dir")
    if before not in (None, configuration):
        then, now = (" ".join(str(v) for v in c.values() if v) for c in (before, configuration))
        raise ValueError(
            f"{folder} holds a {kind} of another configuration ({then}, now {now}); "
            "use another --run-dir, or --force to run it anew"
        )


def describe(planned: list[Notebook], git: dict | None) -> dict:
    """What ``run.json`` records besides the configuration: parameters, versions, machine."""
    return {
        "written": _now(),
        "parameters": {notebook.name: notebook.parameters for notebook in planned},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "git": git,
        "machine": {
            "cores": count_cores(),
            "memory_GB": round(psutil.virtual_memory().total / 1e9, 1),
            "platform": platform.platform(),
        },
    }


def git_state(folder: Path) -> dict | None:
    """Commit and whether there are uncommitted changes; None outside a checkout of cryonb."""

    def ask(*words):
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", "profiles.yml")
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def table(run_dir: Path, chosen: list[Notebook]) -> str:
    """The closing table: notebook, state, seconds, peak memory, results; and the paths."""
    lines = ["", f"{'notebook':20}  {'state':11}  {'seconds':>7}  {'peak MB':>7}  results"]
    for name in (notebook.name for notebook in chosen):
        record = {"state": "-", "seconds": 0, "peak_MB": 0} | read_json(run_dir / f"{name}.json")
        results = read_json(run_dir / "results" / f"{name}.json")
        shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in results.items()]
        figures = f"{record['seconds']:7.1f}  {record['peak_MB']:7.0f}"
        lines.append(f"{name:20}  {record['state']:11}  {figures}  {', '.join(shown[:4])}")
    paths = [run_dir / f"{notebook.name}.ipynb" for notebook in chosen]
    return "\n".join([*lines, "", "executed notebooks:", *(f"  {p}" for p in paths if p.exists())])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
