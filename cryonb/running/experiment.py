"""Experiments: what to vary, in a few lines of YAML, and the tidy table of what came out.

A run of an experiment is a run folder of `cryonb.running.runner`, named by the values that vary. A
sweep folder holds one for each, ``sweep.json`` that lists them, and the tables of `write_results`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryonb.base.files import beside, read_json, read_yaml
from cryonb.running.plan import Notebook, choose, nearest, plan, read_notebooks, read_profile
from cryonb.running.runner import require_gpu, unfinished

if TYPE_CHECKING:
    import pandas as pd

KINDS = {  # key of the YAML file: type of its value
    "notebooks": list,
    "profile": str,
    "parameters": dict,
    "grid": dict,
    "list": list,
    "seeds": list,
    "cores": int,
    "memory_GB": (int, float),
    "resources": dict,
}


@dataclass(frozen=True)
class Experiment:
    """What to run, what is fixed, and what varies."""

    name: str
    notebooks: list[str]  # names or numbers
    profile: str = "quick"  # a name in profiles.yml
    parameters: dict = field(default_factory=dict)  # of all runs: ``name`` or ``notebook.name``
    varied: list[dict] = field(default_factory=lambda: [{}])  # of each run, with the same names
    cores: int = 1  # of each run
    memory_GB: float = 3.0  # that a run needs at most, in 10^9 bytes
    resources: dict = field(default_factory=dict)  # of a run, as snakemake's executors name them

    @property
    def configuration(self) -> dict:
        """What may not change in a sweep folder; more values of what varies may join it."""
        return {"profile": self.profile, "given": self.parameters, "notebooks": self.notebooks}


@dataclass(frozen=True)
class Run:
    """One run: its folder's name, parameters, all notebooks as planned, and those to execute."""

    name: str
    varied: dict
    given: dict
    planned: list[Notebook]
    chosen: list[Notebook]

    def finished(self, folder: Path) -> bool:
        """Say whether a sweep folder has it, unchanged."""
        return not unfinished(self.planned, self.chosen, folder / self.name)


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment from a YAML file, see `make_experiment`."""
    return make_experiment(Path(path).stem, read_yaml(path))


def make_experiment(name: str, content: dict) -> Experiment:
    """Make an experiment from what a YAML file holds.

    ``grid`` maps names to lists of values, all combinations of which are run; ``list`` holds
    further settings, each a mapping of names to values, run with every combination; ``seeds`` is
    short for one more list in the grid. The other keys are fields of `Experiment`. ValueError says
    what is wrong.
    """
    if not content.get("notebooks"):
        raise ValueError(f"{name}: an experiment has at least  notebooks: [NN_name, ...]")
    for key, value in content.items():
        if key not in KINDS:
            raise nearest(f"key of the experiment {name}:", key, KINDS)
        if not isinstance(value, KINDS[key]):
            raise ValueError(f"{name}: {key} has a value of the wrong kind: {value!r}")
    options = {"parameters": {}, **content, "notebooks": [str(n) for n in content["notebooks"]]}
    grid, settings = options.pop("grid", {}), options.pop("list", [{}])
    seeds = {"seed": options.pop("seeds")} if "seeds" in content else {}
    for key, values in (grid | seeds).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name}: {key} varies over a list of values, not {values!r}")
    if any(not isinstance(s, dict) or s.keys() != settings[0].keys() for s in settings):
        raise ValueError(f"{name}: each entry of list has the same names, such as {{snr: 0.1}}")
    names = [*grid, *seeds, *settings[0], *options["parameters"]]
    if twice := [key for key in names if names.count(key) > 1]:
        raise ValueError(f"{name}: {twice[0]} is given twice; leave it in one place")
    grid |= seeds
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    return Experiment(name, varied=[s | point for s in settings for point in points], **options)


def plan_runs(
    experiment: Experiment, folder: Path, notebooks: str | Path | None = None
) -> list[Run]:
    """Resolve and check all parameters of all runs in a sweep folder, before any starts.

    ValueError as in `cryonb.running.plan.plan`; for a parameter of a notebook that is not run; for
    two runs that are the same. FileNotFoundError where there are no notebooks.
    """
    found = read_notebooks(notebooks)
    profile = read_profile(found[0].path.parent, experiment.profile)
    if profile.get("needs_gpu"):
        require_gpu(experiment.profile)
    runs = {}
    for varied in experiment.varied:
        name, given = run_name(varied), experiment.parameters | varied
        if name in runs:
            raise ValueError(f"{experiment.name}: two runs would be {name}; vary each value once")
        planned = plan(found, profile, given, str(folder / name))
        chosen = choose(planned, experiment.notebooks)
        values = {key: _value(key, chosen) for key in given}
        runs[name] = Run(name, {key: values[key] for key in varied}, given, planned, chosen)
    return list(runs.values())


def _value(name: str, chosen: list[Notebook]):
    """Value of a parameter in the notebooks of an experiment, with its type."""
    owner, _, own = name.rpartition(".")
    for notebook in chosen:
        if own in notebook.parameters and owner in ("", notebook.name):
            return notebook.parameters[own]
    among = ", ".join(notebook.name for notebook in chosen)
    raise ValueError(f"{name} is no parameter of {among}, the notebooks of this experiment")


def run_name(varied: dict) -> str:
    """Name of a run's folder: ``snr-0.1_seed-0``; a hash ends what a file system cannot take."""
    words = (re.sub(r"[^\w.+-]+", "-", f"{name}-{value}") for name, value in varied.items())
    name = "_".join(words) or "run"
    end = hashlib.sha256(repr(varied).encode()).hexdigest()[:16]
    return name if len(name.encode()) < 200 else f"{name[:40]}-{end}"


def gather(folder: str | Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], list[str]]:
    """Gather what the finished notebooks of a sweep measured; it may still be growing.

    Returns
    -------
    table : DataFrame
        One row for each run × notebook × quantity. Columns: ``run``, each parameter that varies,
        ``notebook``, ``quantity`` and ``value``, and ``text`` for what is no number. Wall time
        and memory of the run are the quantities ``run seconds`` and ``run peak_MB``.
    tables : dict of str to DataFrame
        The notebooks' own tables (``tables/*.csv``), those of all finished runs under each other.
    missing : list of str
        ``run: notebook`` of what is not finished.

    FileNotFoundError when there is no sweep.
    """
    import pandas as pd  # each run imports this module and needs no tables

    folder = Path(folder)
    sweep = read_json(folder / "sweep.json")
    if not sweep:
        raise FileNotFoundError(f"{folder} is no folder of a sweep: run  cryonb sweep  first")
    rows, tables, missing = [], {}, []
    for run, planned in sweep["runs"].items():
        varied = planned["varied"].items()  # a list is no value for a column
        head = {"run": run} | {
            k: v if isinstance(v, str | float | int) else str(v) for k, v in varied
        }
        records = {n: read_json(folder / run / f"{n}.json") for n in sweep["notebooks"]}
        left = [n for n, record in records.items() if record.get("state") != "finished"]
        missing += [f"{run}: {notebook}" for notebook in left]
        for notebook in records.keys() - set(left):
            measured = read_json(folder / run / "results" / f"{notebook}.json")
            measured |= {f"run {k}": records[notebook][k] for k in ("seconds", "peak_MB")}
            for quantity, value in measured.items():
                number = isinstance(value, int | float)
                cell = {"value": float(value)} if number else {"text": str(value)}
                rows.append(head | {"notebook": notebook, "quantity": quantity} | cell)
        for path in [] if left else sorted((folder / run / "tables").glob("*.csv")):
            own = pd.read_csv(path).rename(columns={k: f"{k} (table)" for k in head})
            tables.setdefault(path.stem, []).append(own.assign(**head)[[*head, *own]])
    columns = [*head, "notebook", "quantity", "value", "text"]
    table = pd.DataFrame(rows, columns=columns).dropna(axis="columns", how="all")
    return table, {name: pd.concat(own, ignore_index=True) for name, own in tables.items()}, missing


def write_results(folder: str | Path) -> list[Path]:
    """Write `gather`'s tables as ``results.csv`` and ``table-*.csv``; returns what was written.

    ``results.parquet`` is written too where pyarrow is installed.
    """
    table, tables, missing = gather(folder)
    frames = {"results.csv": table} | {f"table-{k}.csv": own for k, own in tables.items()}
    for name, frame in frames.items():
        with beside(Path(folder, name)) as part:
            frame.to_csv(part, index=False)
    try:
        with beside(Path(folder, "results.parquet")) as part:
            table.to_parquet(part, index=False)
        frames["results.parquet"] = table
    except ImportError:
        print("no results.parquet: pip install pyarrow")
    for line in missing:
        print(f"not finished: {line}")
    print(f"{table['run'].nunique()} runs, {len(table):,} values")
    return [Path(folder, name) for name in frames]
