"""Run the notebooks in order into a run folder that says what was run and can be resumed.

Papermill executes; this module adds what it lacks. Everything asked for is checked before anything
runs, a notebook that is finished and unchanged is skipped, and the run folder holds

- ``run.json``: profile, parameters, versions, git state, seeds, machine;
- ``NN_name.ipynb``: the executed notebook, and ``NN_name.json``: state, times, peak memory, key;
- what the notebooks write under their ``run_dir``, ``results/NN_name.json`` among it.

No notebook needs this module: plain papermill executes them just as well.
"""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from cryonb.base.files import below, beside, sole
from cryonb.base.workers import count_cores
from cryonb.running.engine import execute
from cryonb.running.plan import Step, choose, find_notebooks, hash_package, plan, read_profile

PACKAGES = ("cryonb", "torch", "numpy", "scipy", "papermill", "ipykernel")


def run(
    wanted: list[str] = (),
    *,
    profile: str = "quick",
    run_dir: str | Path | None = None,
    given: dict | None = None,
    notebooks: str | Path | None = None,
    cell_timeout_s: float | None = None,
    force: bool = False,
    allow_cpu: bool = False,
) -> int:
    """Run notebooks in order; those finished and unchanged in the run folder are skipped.

    Parameters
    ----------
    wanted : list of str
        Names, numbers or paths; all notebooks when empty.
    profile : str
        A name in ``profiles.yml``.
    run_dir : path, optional
        Run folder, default ``runs/<profile>``.
    given : dict of str to object, optional
        Parameter values, see `cryonb.running.plan.plan`.
    notebooks : path, optional
        Folder of the notebooks, see `cryonb.running.plan.find_notebooks`.
    cell_timeout_s : float, optional
        Longest time for one cell in seconds; default the profile's, or else 3600.
    force : bool
        Run even what is finished, and in a folder made with another configuration.
    allow_cpu : bool
        Run a profile that needs a GPU without one.

    Returns
    -------
    int
        Exit code: 0 when all is finished, 1 after a failure, 130 after Ctrl-C.

    Raises
    ------
    ValueError, FileNotFoundError, OSError
        With one sentence that says what is wrong and what to do, before anything runs.
    """
    if cell_timeout_s is not None and not cell_timeout_s > 0:
        raise ValueError(f"a cell timeout of {cell_timeout_s:g} s: give more than 0")
    found = find_notebooks(notebooks)
    folder = next(iter(found.values())).parent
    settings = read_profile(folder, profile)
    run_dir, given = Path(run_dir or below("runs", profile)), given or {}
    steps = plan(found, settings, given, str(run_dir))
    chosen = choose(steps, wanted)
    if settings.get("needs_gpu") and not allow_cpu:
        require_gpu(profile)
    check_folder(run_dir, {"profile": profile, "given": given}, force)
    timeout = cell_timeout_s or settings.get("cell_timeout_s", 3600)
    run_dir.mkdir(parents=True, exist_ok=True)
    with sole(run_dir / "run.json"):
        git = git_state(folder)
        write_json(run_dir / "run.json", describe(profile, given, steps, git))
        print(f"profile {profile}, {len(chosen)} of {len(steps)} notebooks, run folder {run_dir}")
        code = _run_steps(steps, chosen, run_dir, timeout, force, git)
        print(table(run_dir, chosen))
    return code


def _run_steps(steps, chosen, run_dir, timeout, force, git) -> int:
    latest = ""  # end of the last notebook so far: what is older than its input runs again
    for step in steps:
        record = read_json(run_dir / f"{step.name}.json")
        if step in chosen and (force or not is_current(record, step, run_dir, latest)):
            record = _run_step(step, run_dir, timeout, git)
            if record["state"] != "finished":
                kept = run_dir / f"{step.name}.ipynb"
                print(f"{step.name} {record['state']}: {record['message']}\n  see {kept}")
                print("  run the same command again: it goes on with this notebook")
                return 130 if record["state"] == "interrupted" else 1
            print(f"{step.name}: {record['seconds']:.0f} s, peak {record['peak_MB']:,.0f} MB")
        elif step in chosen:
            print(f"{step.name}: finished before and unchanged, skipped")
        latest = max(latest, record.get("end") or "")
    return 0


def is_current(record: dict, step: Step, run_dir: Path, latest: str) -> bool:
    """Say whether a status record shows this very step finished, after the steps before it."""
    return (
        record.get("state") == "finished"
        and record.get("key") == step.key
        and record["start"] >= latest
        and (run_dir / f"{step.name}.ipynb").exists()
    )


def _run_step(step: Step, run_dir: Path, timeout: float, git: dict | None) -> dict:
    status = run_dir / f"{step.name}.json"
    record = {
        "notebook": step.name,
        "state": "running",
        "start": _now(),
        "end": None,
        "parameters": step.parameters,
        "source_hash": step.source_hash,
        "package_hash": hash_package(),
        "key": step.key,
        "git": git,
    }
    write_json(status, record)
    (run_dir / "results" / f"{step.name}.json").unlink(missing_ok=True)
    print(f"{step.name}: running", flush=True)
    output = run_dir / f"{step.name}.ipynb"
    outcome = execute(step.path, output, step.parameters, cell_timeout_s=timeout)
    record |= asdict(outcome) | {"end": _now()}
    write_json(status, record)
    return record


def require_gpu(profile: str) -> None:
    """Raise ValueError when torch sees no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            f"profile {profile} needs a GPU (CUDA) and torch sees none here; take PROFILE=workshop,"
            " or insist with --allow-cpu (days)"
        )


def is_finished(steps: list[Step], chosen: list[Step], run_dir: Path) -> bool:
    """Say whether a run folder has all the chosen steps finished and unchanged."""
    latest = ""
    for step in steps:
        record = read_json(run_dir / f"{step.name}.json")
        if step in chosen and not is_current(record, step, run_dir, latest):
            return False
        latest = max(latest, record.get("end") or "")
    return True


def check_folder(
    run_dir: Path, configuration: dict, force: bool, record: str = "run.json", kind: str = "run"
) -> None:
    """Refuse a folder of another configuration, one that is not a run folder, or an address.

    `record` is the file that says what a folder is, `kind` its word in the message.

    Raises
    ------
    ValueError
    """
    if ":/" in str(run_dir):
        raise ValueError(
            f"{run_dir} is no folder of this machine; papermill itself writes notebooks to a bucket"
        )
    if force or not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is a file; name a folder with --run-dir")
    before = read_json(run_dir / record).get("configuration")
    if before is None and any(p.name != f".{record}.lock" for p in run_dir.iterdir()):
        raise ValueError(
            f"{run_dir} is no {kind} folder and not empty; use another --run-dir or --force"
        )
    if before not in (None, configuration):
        words = [" ".join(str(v) for v in c.values() if v) for c in (before, configuration)]
        raise ValueError(
            f"{run_dir} holds a {kind} of another configuration ({words[0]}, now {words[1]}); "
            "use another --run-dir, or --force to run it anew"
        )


def describe(profile: str, given: dict, steps: list[Step], git: dict | None) -> dict:
    """Collect what ``run.json`` records of a run."""
    memory = psutil.virtual_memory().total
    return {
        "configuration": {"profile": profile, "given": given},
        "written": _now(),
        "parameters": {s.name: s.parameters for s in steps},
        "seeds": {s.name: s.parameters.get("seed") for s in steps},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "git": git,
        "machine": {
            "cores": count_cores(),
            "memory_GB": round(memory / 1e9, 1),
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


def table(run_dir: Path, chosen: list[Step]) -> str:
    """Format the closing table: notebook, state, seconds, peak memory, results, and the paths."""
    width = max(len(s.name) for s in chosen)
    lines = ["", f"{'notebook':{width}}  {'state':11}  {'seconds':>7}  {'peak MB':>7}  results"]
    for step in chosen:
        record = read_json(run_dir / f"{step.name}.json")
        results = read_json(run_dir / "results" / f"{step.name}.json")
        shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in results.items()]
        lines.append(
            f"{step.name:{width}}  {record.get('state', '-'):11}  {record.get('seconds', 0):7.1f}"
            f"  {record.get('peak_MB', 0):7.0f}  {', '.join(shown[:4])}"
        )
    paths = [run_dir / f"{s.name}.ipynb" for s in chosen]
    return "\n".join([*lines, "", "executed notebooks:", *(f"  {p}" for p in paths if p.exists())])


def span(seconds: float) -> str:
    """A duration in words that fit its size."""
    return f"{seconds:.0f}\xa0s" if seconds < 90 else f"{seconds / 60:.0f}\xa0min"


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file beside its place, then rename it: never half a file."""
    with beside(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON file; an empty dict where it is missing or torn."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
