"""What a run will do: the notebooks, their parameters with names and types checked, and their keys.

The key of a notebook is a hash of its source, the source of cryonb, its parameters and the keys of
the notebooks before it: when it is unchanged, so is the outcome.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

PROFILE_SETTINGS = {"common": dict, "cell_timeout_s": (int, float), "needs_gpu": bool}


@dataclass(frozen=True)
class Step:
    """One notebook of a run: its name, file, all parameter values, source hash and key."""

    name: str
    path: Path
    parameters: dict
    source_hash: str
    key: str


def find_notebooks(folder: str | Path | None = None) -> dict[str, Path]:
    """Find the numbered notebooks, in order.

    Parameters
    ----------
    folder : path, optional
        Default: ``./notebooks``, or else the one beside the installed package.

    Returns
    -------
    dict of str to Path
        Name such as ``02_train_sr3`` to file.

    Raises
    ------
    FileNotFoundError
        When there is none.
    """
    beside = Path(__file__).parents[2] / "notebooks"
    folders = [Path(folder)] if folder else [Path("notebooks"), beside]
    for candidate in folders:
        if found := sorted(candidate.glob("[0-9][0-9]_*.ipynb")):
            return {path.stem: path for path in found}
    places = " or ".join(str(f) for f in folders)
    raise FileNotFoundError(
        f"no notebook NN_name.ipynb in {places}; name their folder: --notebooks"
    )


def read_parameters(notebook: Path) -> dict:
    """Read the default values in the cell tagged ``parameters``.

    Raises
    ------
    ValueError
        When the file is no notebook, or a value is not a plain literal.
    """
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"{notebook} is not a readable notebook: {error}") from None
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    values = {}
    try:
        statements = ast.parse(tagged[0].source).body if tagged else []
    except SyntaxError as error:
        raise ValueError(f"{notebook}: the parameters cell is not Python: {error}") from None
    for statement in statements:
        try:
            (target,) = getattr(statement, "targets", None) or [statement.target]
            values[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            text = ast.unparse(statement)
            raise ValueError(
                f"{notebook}: the parameters cell may hold only name = literal, not: {text}"
            ) from None
    return values


def nearest(kind: str, name: str, known) -> ValueError:
    """Make the error for an unknown name, with the nearest known one."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


def convert(value, default, where: str):
    """Give `value` the type of `default`; text from a command line is read as a literal.

    Raises
    ------
    ValueError
        When the types differ; an integer is accepted where a float is expected.
    """
    if isinstance(value, str) and not isinstance(default, str):
        with suppress(ValueError, SyntaxError):
            words = {"true": "True", "false": "False", "null": "None"}
            value = ast.literal_eval(words.get(value.lower(), value))
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return value
    kind = type(default).__name__
    raise ValueError(f"parameter {where} is of type {kind} (default {default!r}), not {value!r}")


def read_profile(folder: Path, name: str) -> dict:
    """Read one profile of ``profiles.yml``: ``common`` and per-notebook values, and settings.

    Raises
    ------
    FileNotFoundError, ValueError
        When the file is missing or malformed, or the profile is unknown.
    """
    path = folder / "profiles.yml"
    try:
        profiles = yaml.safe_load(path.read_text())
        profile = dict(profiles[name] or {}) if name in profiles else None
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; it names the profiles of a run") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold profile: {{notebook: {{name: value}}}}: {error}"
        ) from None
    if profile is None:
        raise nearest("profile", name, list(profiles))
    for key, value in profile.items():
        if not isinstance(value, PROFILE_SETTINGS.get(key, dict) if value is not None else object):
            raise ValueError(f"{path}: {name}.{key} has a value of the wrong kind: {value!r}")
    return profile


def plan(notebooks: dict[str, Path], profile: dict, given: dict, run_dir: str) -> list[Step]:
    """Resolve and check every parameter of every notebook, before anything runs.

    Parameters
    ----------
    notebooks : dict of str to Path
    profile : dict
        From `read_profile`.
    given : dict of str to object
        From the command line: ``name`` applies to every notebook that has it,
        ``notebook.name`` to one.
    run_dir : str
        The value of each notebook's ``run_dir``.

    Raises
    ------
    ValueError
        For an unknown notebook or parameter and for a value of the wrong type.
    """
    return plan_all(notebooks, profile, [(given, run_dir)])[0]


def plan_all(
    notebooks: dict[str, Path], profile: dict, runs: list[tuple[dict, str]]
) -> list[list[Step]]:
    """Plan many runs, each a pair (given, run_dir) as in `plan`, reading every file once."""
    defaults = {name: read_parameters(path) for name, path in notebooks.items()}
    sources = {name: _hash_notebook(path) for name, path in notebooks.items()}
    package = hash_package()
    plans = []
    for given, run_dir in runs:
        values = _values(defaults, profile, given)
        plans.append(_with_keys(notebooks, values, sources, package, run_dir))
    return plans


def _values(defaults: dict[str, dict], profile: dict, given: dict) -> dict[str, dict]:
    values = {name: dict(own) for name, own in defaults.items()}
    asked = [("", name, value) for name, value in (profile.get("common") or {}).items()]
    for owner in profile.keys() - PROFILE_SETTINGS.keys():
        asked += [(owner, name, value) for name, value in (profile[owner] or {}).items()]
    for dotted, value in given.items():
        owner, _, name = dotted.rpartition(".")
        asked.append((owner, name, value))
    for owner, name, value in asked:
        for n in _owners(owner, name, defaults):
            values[n][name] = convert(value, defaults[n][name], f"{n}.{name}")
    return values


def _owners(owner: str, name: str, defaults: dict[str, dict]) -> list[str]:
    if owner and owner not in defaults:
        raise nearest("notebook", owner, list(defaults))
    if name == "run_dir":
        raise ValueError("run_dir is set by --run-dir, not as a parameter")
    among = [owner] if owner else list(defaults)
    owners = [n for n in among if name in defaults[n]]
    if not owners:
        known = sorted({p for n in among for p in defaults[n]} - {"run_dir"})
        raise nearest(f"parameter of {owner}:" if owner else "parameter", name, known)
    return owners


def _with_keys(notebooks, values, sources, package, run_dir) -> list[Step]:
    steps, above = [], ""
    for name, path in notebooks.items():
        own = {k: v for k, v in values[name].items() if k != "run_dir"}
        above = _hash([sources[name], package, own, above])
        here = own | ({"run_dir": run_dir} if "run_dir" in values[name] else {})
        steps.append(Step(name, path, here, sources[name], above))
    return steps


def _hash_notebook(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return _hash([[c.cell_type, c.source, c.metadata.get("tags", [])] for c in cells])


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def hash_package() -> str:
    """Hash the source of cryonb and the weights that come with it."""
    folder = Path(__file__).parents[1]
    files = sorted(p for s in ("**/*.py", "kept/*") for p in folder.glob(s) if p.is_file())
    named = [(str(p.relative_to(folder)), p.read_bytes()) for p in files]
    return _hash([[name, hashlib.sha256(content).hexdigest()] for name, content in named])


def choose(steps: list[Step], wanted: list[str]) -> list[Step]:
    """Pick the named steps, by name, number or path; all of them when none is named."""
    chosen = set()
    for want in wanted:
        stem = Path(want).name.removesuffix(".ipynb").removesuffix(".py")
        hits = [s.name for s in steps if stem in (s.name, s.name[:2], s.name[3:])]
        if not hits:
            raise nearest("notebook", stem, [s.name for s in steps])
        chosen.update(hits)
    return [s for s in steps if s.name in chosen or not wanted]
