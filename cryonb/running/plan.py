"""What a run will do: its notebooks, every parameter looked up and its type checked."""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat

from cryonb.base.files import read_yaml

SETTINGS = {"common": dict, "cell_timeout_s": (int, float), "needs_gpu": bool}  # of a profile


@dataclass(frozen=True)
class Notebook:
    """A notebook: its name, file, parameters, and a key that changes whenever its outcome may.

    As it is read, the parameters are its defaults, and the key is a hash of its cells and of the
    source of cryonb. As it is planned, they are the values of a run, and the key is a hash of those
    and of the notebooks before it too.
    """

    name: str
    path: Path
    parameters: dict
    key: str


def find_notebooks(folder: str | Path | None = None) -> dict[str, Path]:
    """Find the numbered notebooks, in order: name such as ``02_train_sr3`` to file.

    By default in ``./notebooks``, or else beside the package; FileNotFoundError if there is none.
    """
    folders = [folder] if folder else ["notebooks", Path(__file__).parents[2] / "notebooks"]
    for candidate in folders:
        if found := sorted(Path(candidate).glob("[0-9][0-9]_*.ipynb")):
            return {path.stem: path for path in found}
    where = " or ".join(map(str, folders))
    raise FileNotFoundError(f"no notebook NN_name.ipynb in {where}; name their folder: --notebooks")


def read_notebooks(folder: str | Path | None = None) -> list[Notebook]:
    """Read the notebooks of `find_notebooks`; ValueError where a parameter is no plain literal."""
    notebooks, package = [], hash_package()
    for name, path in find_notebooks(folder).items():
        try:
            cells = nbformat.read(path, as_version=4).cells
        except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
            raise ValueError(f"{path} is not a readable notebook: {error}") from None
        content = [[c.cell_type, c.source, c.metadata.get("tags", [])] for c in cells]
        source = next((text for _, text, tags in content if "parameters" in tags), "")
        notebooks.append(
            Notebook(name, path, read_literals(path, source), _hash([content, package]))
        )
    return notebooks


def read_literals(path: Path, source: str) -> dict:
    """Values that a parameters cell assigns, by name; ValueError for what is no plain literal."""
    values, text = {}, source
    try:
        for statement in ast.parse(source).body:
            text = ast.unparse(statement)
            (target,) = getattr(statement, "targets", None) or [statement.target]
            values[target.id] = ast.literal_eval(statement.value)
    except (SyntaxError, AttributeError, ValueError):
        raise ValueError(
            f"{path}: the parameters cell may hold only name = literal, not: {text}"
        ) from None
    return values


def hash_package() -> str:
    """Hash the source of cryonb and the weights that come with it."""
    folder = Path(__file__).parents[1]
    files = sorted(p for s in ("**/*.py", "kept/*") for p in folder.glob(s) if p.is_file())
    return _hash(
        [[str(p.relative_to(folder)), hashlib.sha256(p.read_bytes()).hexdigest()] for p in files]
    )


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_profile(folder: Path, name: str) -> dict:
    """Read one profile of ``profiles.yml``: ``common`` and per-notebook values, and settings."""
    path = folder / "profiles.yml"
    profiles = read_yaml(path)
    if name not in profiles:
        raise nearest("profile", name, profiles)
    profile = profiles[name] or {}
    values = profile.items() if isinstance(profile, dict) else [("common", profile)]
    for key, value in values:
        if value is not None and not isinstance(value, SETTINGS.get(key, dict)):
            raise ValueError(f"{path}: {name}.{key} has a value of the wrong kind: {value!r}")
    return {key: value for key, value in values if value is not None}


def plan(notebooks: list[Notebook], profile: dict, given: dict, run_dir: str) -> list[Notebook]:
    """Resolve and check every parameter of every notebook, before anything runs.

    Notebooks' own values give way to the profile's, and these to those `given`: ``name`` for every
    notebook that has it, ``notebook.name`` for one. ValueError for an unknown notebook or parameter
    and for a value of the wrong type.
    """
    asked = list(profile.get("common", {}).items())
    for owner in profile.keys() - SETTINGS.keys():
        asked += [(f"{owner}.{name}", value) for name, value in profile[owner].items()]
    values = _values({n.name: n.parameters for n in notebooks}, [*asked, *given.items()])
    planned, key = [], ""
    for notebook in notebooks:
        own = values[notebook.name]
        key = _hash([notebook.key, own, key])
        here = own | ({"run_dir": run_dir} if "run_dir" in own else {})
        planned.append(replace(notebook, parameters=here, key=key))
    return planned


def _values(defaults: dict[str, dict], asked: list[tuple]) -> dict[str, dict]:
    """Defaults of each notebook, replaced by what is asked for; of two such values the last."""
    values = {notebook: dict(own) for notebook, own in defaults.items()}
    for dotted, value in asked:
        owner, _, name = dotted.rpartition(".")
        if owner and owner not in defaults:
            raise nearest("notebook", owner, defaults)
        if name == "run_dir":
            raise ValueError("run_dir is set by --run-dir, not as a parameter")
        among = [owner] if owner else list(defaults)
        having = [notebook for notebook in among if name in defaults[notebook]]
        if not having:
            known = sorted({p for notebook in among for p in defaults[notebook]} - {"run_dir"})
            raise nearest(f"parameter of {owner}:" if owner else "parameter", name, known)
        for notebook in having:
            default = defaults[notebook][name]
            values[notebook][name] = convert(value, default, f"{notebook}.{name}")
    return values


def nearest(kind: str, name: str, known) -> ValueError:
    """Make the error for an unknown name, with the nearest known one."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


def convert(value, default, where: str):
    """Give `value` the type of `default`, or raise ValueError; text is read as a literal."""
    if isinstance(value, str) and not isinstance(default, str):
        with suppress(ValueError, SyntaxError):
            words = {"true": "True", "false": "False", "null": "None"}
            value = ast.literal_eval(words.get(value.lower(), value))
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is None or type(value) is type(default):
        return value
    kind = type(default).__name__
    raise ValueError(f"parameter {where} is of type {kind} (default {default!r}), not {value!r}")


def choose(notebooks: list[Notebook], wanted: list[str]) -> list[Notebook]:
    """Pick the notebooks named by name, number or path; all of them when none is named."""
    chosen = set()
    for want in wanted:
        stem = Path(want).name.removesuffix(".ipynb").removesuffix(".py")
        hits = [n.name for n in notebooks if stem in (n.name, n.name[:2], n.name[3:])]
        if not hits:
            raise nearest("notebook", stem, [n.name for n in notebooks])
        chosen.update(hits)
    return [n for n in notebooks if n.name in chosen or not wanted]
