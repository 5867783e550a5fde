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

import yaml

from cryonb.base.files import beside
from cryonb.running.plan import Step, choose, find_notebooks, nearest, plan_all, read_profile
from cryonb.running.runner import is_finished, read_json, require_gpu

if TYPE_CHECKING:
    import pandas as pd

FIELDS = {  # key of the YAML file: type of its value
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
    """What to run, what is fixed, and what varies.

    Attributes
    ----------
    name : str
        Of the file, without its suffix.
    notebooks : list of str
        Names or numbers; they run in the order of the notebooks.
    profile : str
        A name in ``profiles.yml``.
    fixed : dict of str to object
        Parameters of all runs, ``name`` or ``notebook.name``.
    varied : list of dict
        Parameters of each run, the same names in each.
    cores : int
        Of each run.
    memory_GB : float
        That a run needs at most, in 10^9 bytes.
    resources : dict
        Further resources of a run, as snakemake and its executors name them: ``runtime`` in
        minutes, ``slurm_partition``, ``slurm_account`` ...
    """

    name: str
    notebooks: list[str]
    profile: str = "quick"
    fixed: dict = field(default_factory=dict)
    varied: list[dict] = field(default_factory=lambda: [{}])
    cores: int = 1
    memory_GB: float = 3.0
    resources: dict = field(default_factory=dict)

    @property
    def configuration(self) -> dict:
        """What may not change in a sweep folder; more values of what varies may join it."""
        return {"profile": self.profile, "given": self.fixed, "notebooks": self.notebooks}


@dataclass(frozen=True)
class Run:
    """One run of an experiment: its folder's name, what varies, all steps and those to execute."""

    name: str
    varied: dict
    steps: list[Step]
    chosen: list[Step]
    given: dict

    def finished(self, folder: Path) -> bool:
        """Say whether a sweep folder has it, unchanged."""
        return is_finished(self.steps, self.chosen, folder / self.name)


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment from a YAML file.

    ``grid`` maps names to lists of values, all combinations of which are run; ``list`` holds
    further settings, each a mapping of names to values, run with every combination; ``seeds`` is
    short for one more list in the grid.

    Raises
    ------
    FileNotFoundError, ValueError
        With one sentence that says what is wrong.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist: name a YAML file of experiments/"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return make_experiment(path.stem, content)


def make_experiment(name: str, content: dict) -> Experiment:
    """Make an experiment from what a YAML file holds, see `read_experiment`.

    Raises
    ------
    ValueError
    """
    if not isinstance(content, dict) or not content.get("notebooks"):
        raise ValueError(f"{name}: an experiment has at least  notebooks: [NN_name, ...]")
    for key, value in content.items():
        if key not in FIELDS:
            raise nearest(f"key of the experiment {name}:", key, list(FIELDS))
        if not isinstance(value, FIELDS[key]):
            raise ValueError(f"{name}: {key} has a value of the wrong kind: {value!r}")
    fixed, grid = content.get("parameters", {}), dict(content.get("grid", {}))
    if "seeds" in content:
        grid["seed"] = content["seeds"]
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name}: {key} varies over a list of values, not {values!r}")
    further = content.get("list", [{}])
    if any(not isinstance(one, dict) or one.keys() != further[0].keys() for one in further):
        raise ValueError(f"{name}: each entry of list has the same names, such as {{snr: 0.1}}")
    for twice in (grid.keys() & fixed, grid.keys() & further[0], further[0].keys() & fixed):
        if twice:
            raise ValueError(f"{name}: {min(twice)} is given twice; leave it in one place")
    combined = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    varied = [{**one, **combination} for one in further for combination in combined]
    options = {
        k: content[k] for k in ("profile", "cores", "memory_GB", "resources") if k in content
    }
    return Experiment(
        name, [str(n) for n in content["notebooks"]], fixed=fixed, varied=varied, **options
    )


def plan_runs(
    experiment: Experiment, folder: Path, notebooks: str | Path | None = None
) -> list[Run]:
    """Resolve and check all parameters of all runs, before any starts.

    Parameters
    ----------
    experiment : Experiment
    folder : Path
        The sweep folder.
    notebooks : path, optional
        See `cryonb.running.plan.find_notebooks`.

    Raises
    ------
    ValueError, FileNotFoundError
        As in `cryonb.running.plan.plan`; for a parameter of a notebook that is not run; for two
        runs that are the same.
    """
    found = find_notebooks(notebooks)
    profile = read_profile(next(iter(found.values())).parent, experiment.profile)
    if profile.get("needs_gpu"):
        require_gpu(experiment.profile)
    names = [run_name(varied) for varied in experiment.varied]
    if twice := {n for n in names if names.count(n) > 1}:
        raise ValueError(f"{experiment.name}: two runs would be {min(twice)}; vary each value once")
    given = [experiment.fixed | varied for varied in experiment.varied]
    asked = [(g, str(folder / n)) for g, n in zip(given, names, strict=True)]
    plans, runs = plan_all(found, profile, asked), []
    for steps, own, varied, name in zip(plans, given, experiment.varied, names, strict=True):
        chosen = choose(steps, experiment.notebooks)
        reached = {key: _reached(key, chosen) for key in own}
        runs.append(Run(name, {k: reached[k] for k in varied}, steps, chosen, own))
    return runs


def _reached(name: str, chosen: list[Step]):
    """Value that a parameter has in the notebooks of the experiment, with its type."""
    owner, _, own = name.rpartition(".")
    for step in chosen:
        if own in step.parameters and owner in ("", step.name):
            return step.parameters[own]
    among = ", ".join(step.name for step in chosen)
    raise ValueError(f"{name} is no parameter of {among}, the notebooks of this experiment")


def run_name(varied: dict) -> str:
    """Name of a run's folder: ``snr-0.1_seed-0``; ``run`` where nothing varies.

    Of what is too long for a file system, the end becomes a hash.
    """
    words = (re.sub(r"[^\w.+-]+", "-", f"{name}-{value}") for name, value in varied.items())
    name = "_".join(words) or "run"
    end = hashlib.sha256(repr(varied).encode()).hexdigest()[:16]
    return name if len(name.encode()) < 200 else f"{name[:40]}-{end}"


def gather(folder: str | Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], list[str]]:
    """Gather what the finished notebooks of a sweep measured.

    Parameters
    ----------
    folder : path
        A sweep folder; it may still be growing.

    Returns
    -------
    table : DataFrame
        One row for each run × notebook × quantity. Columns: ``run``, each parameter that varies,
        ``notebook``, ``quantity`` and ``value``, and ``text`` for what is no number. Wall time
        and memory of the run are the quantities ``run seconds`` and ``run peak_MB``.
    tables : dict of str to DataFrame
        The notebooks' own tables (``tables/*.csv``), those of all runs under each other.
    missing : list of str
        ``run: notebook`` of what is not finished.

    Raises
    ------
    FileNotFoundError
        When there is no sweep.
    """
    import pandas as pd  # each run imports this module and needs no tables

    folder = Path(folder)
    sweep = read_json(folder / "sweep.json")
    if not sweep:
        raise FileNotFoundError(f"{folder} is no folder of a sweep: run  cryonb sweep  first")
    rows, tables, missing = [], {}, []
    for run, planned in sweep["runs"].items():
        plain = (str, int, float)  # a list is no value for a column
        varied = planned["varied"].items()
        head = {"run": run, **{k: v if isinstance(v, plain) else str(v) for k, v in varied}}
        done = 0
        for notebook in sweep["notebooks"]:
            record = read_json(folder / run / f"{notebook}.json")
            if record.get("state") != "finished":
                missing.append(f"{run}: {notebook}")
                continue
            done += 1
            measured = read_json(folder / run / "results" / f"{notebook}.json")
            measured |= {f"run {k}": record[k] for k in ("seconds", "peak_MB")}
            rows += [head | {"notebook": notebook} | _cell(k, v) for k, v in measured.items()]
        if done == len(sweep["notebooks"]):
            for path in sorted((folder / run / "tables").glob("*.csv")):
                own = pd.read_csv(path).rename(columns={k: f"{k} (table)" for k in head})
                tables.setdefault(path.stem, []).append(own.assign(**head)[[*head, *own]])
    columns = ["run", *sweep["varied"], "notebook", "quantity", "value", "text"]
    table = pd.DataFrame(rows, columns=columns).dropna(axis="columns", how="all")
    return table, {name: pd.concat(own, ignore_index=True) for name, own in tables.items()}, missing


def _cell(quantity: str, value) -> dict:
    kind, plain = ("value", float) if isinstance(value, (int, float)) else ("text", str)
    return {"quantity": quantity, kind: plain(value)}


def write_results(folder: str | Path) -> list[Path]:
    """Write `gather`'s tables as ``results.csv`` and ``table-*.csv``, beside and renamed.

    ``results.parquet`` is written too where pyarrow is installed.

    Returns
    -------
    list of Path
        What was written.
    """
    folder = Path(folder)
    table, tables, missing = gather(folder)
    written = []
    for name, frame in ({"results": table} | {f"table-{k}": v for k, v in tables.items()}).items():
        with beside(folder / f"{name}.csv") as part:
            frame.to_csv(part, index=False)
        written.append(folder / f"{name}.csv")
    try:
        with beside(folder / "results.parquet") as part:
            table.to_parquet(part, index=False)
        written.append(folder / "results.parquet")
    except ImportError:
        print("no results.parquet: pip install pyarrow")
    for line in missing:
        print(f"not finished: {line}")
    print(f"{table['run'].nunique()} runs, {len(table):,} values")
    return written
