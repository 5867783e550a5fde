"""Stage the book: the executed notebooks of a run, and the pages around them, for jupyter-book.

``python stage.py RUN TARGET`` writes a folder that mirrors the repository (``notebooks/...``), so
that links between notebooks and links to launch them are right. Pages are Jinja templates: every
number in them that belongs to a run is read from that run.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml
from checklist import draw_page, read_checklist
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import spearmanr
from vendor import ONLY_TESTS

import cryonb
from cryonb.base.files import read_json
from cryonb.running.check import span
from cryonb.running.plan import find_notebooks

BOOK = Path(__file__).parent
ROOT = BOOK.parent
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
VIEWER_HERE = "<!-- viewer -->"  # in index.md: where the frames of the cell tagged so appear
FRONT_PAGE = "front-page"
WORDS_A_MINUTE = 200  # and a minute for each figure


@dataclass(frozen=True)
class Chapter:
    """An executed notebook with what the run recorded about it."""

    name: str
    path: Path
    record: dict
    results: dict

    @cached_property
    def notebook(self) -> nbformat.NotebookNode:
        return nbformat.read(self.path, as_version=4)

    @property
    def title(self) -> str:
        return self.notebook.cells[0].source.splitlines()[0].removeprefix("# ")

    @property
    def prose(self) -> str:
        return "\n".join(c.source for c in self.notebook.cells if c.cell_type == "markdown")

    @property
    def read_minutes(self) -> int:
        return self.minutes_of()

    def minutes_of(self, sections: Collection[str] = ("",)) -> int:
        """Minutes to read the sections whose titles begin so; ValueError if there is none."""
        words, figures, title, met = 0, 0, "", set()
        for cell in self.notebook.cells:
            parts = re.split(r"^(?=## )", cell.source, flags=re.M)
            for part in parts if cell.cell_type == "markdown" else [""]:
                title = part[3:] if part.startswith("## ") else title
                if begun := [name for name in sections if title.startswith(name)]:
                    met.update(begun)
                    words += len(re.findall(r"\w+", part))
            figures += figures_of(cell) if title.startswith(tuple(sections)) else 0
        if met != set(sections):
            raise ValueError(f"{self.name} has no section {set(sections) - met}")
        return round(words / WORDS_A_MINUTE) + figures

    def section(self, begin: str) -> str:
        """The whole title of the section whose title begins so."""
        return re.search(rf"^## ({re.escape(begin)}.*)", self.prose, re.M)[1]

    @property
    def exercises(self) -> int:
        return len(re.findall(r"^`{3,}\{exercise(?:-start)?\}", self.prose, re.M))

    @property
    def figures(self) -> int:
        return sum(map(figures_of, self.notebook.cells))


def figures_of(cell: nbformat.NotebookNode) -> int:
    return sum("image/png" in o.get("data", {}) for o in cell.get("outputs", []))


class Case(NamedTuple):
    """One test of a claim: two results, and whether the first is the larger one."""

    name: str
    larger: float
    smaller: float
    held: bool


def read_run(run: Path) -> list[Chapter]:
    """Read the chapters of a run folder, in order.

    Raises
    ------
    FileNotFoundError
        When there is no run, or a notebook of it is not finished.
    """
    hint = f"run `make tutorial PROFILE={run.name}` first, or name another run: make book RUN=..."
    if not (run / "run.json").exists():
        raise FileNotFoundError(f"no run in {run}: {hint}")
    chapters = []
    for name in find_notebooks(ROOT / "notebooks"):
        record = read_json(run / f"{name}.json")
        if record.get("state") != "finished":
            raise FileNotFoundError(f"{run}: {name} is not finished: {hint}")
        results = read_json(run / "results" / f"{name}.json")
        chapters.append(Chapter(name, run / f"{name}.ipynb", record, results))
    return chapters


def viewer_states(notebook: nbformat.NotebookNode) -> dict[str, dict]:
    """Widget models of the frame viewers, and those that they refer to, by id."""
    states = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    kept = {k: v for k, v in states.items() if v["model_module"] == "anywidget"}
    for model in list(kept.values()):
        for value in model["state"].values():
            if isinstance(value, str) and value.startswith("IPY_MODEL_"):
                other = value.removeprefix("IPY_MODEL_")
                kept[other] = states[other]
    return kept


def for_a_page(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Fold what JupyterLab folds, and leave out progress bars: of all widgets only viewers stay."""
    kept = viewer_states(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if view_of(o) in {None, *kept}]
            if cell.metadata.get("jupyter") == {"source_hidden": True}:  # solutions fold as a whole
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
    notebook.metadata["widgets"] = widgets_of(kept)
    return notebook


def view_of(output: dict) -> str | None:
    """Id of the widget that an output of a cell shows, if it shows one."""
    return output.get("data", {}).get(WIDGET_VIEW, {}).get("model_id")


def widgets_of(states: dict[str, dict]) -> dict:
    return {WIDGET_STATE: {"state": states, "version_major": 2, "version_minor": 0}}


def front_viewer(chapters: Iterable[Chapter]) -> nbformat.NotebookNode | None:
    """A notebook of the one cell that is tagged for the front page, with a large frame viewer."""
    for chapter in chapters:
        states = viewer_states(chapter.notebook)
        tagged = [c for c in chapter.notebook.cells if FRONT_PAGE in c.metadata.get("tags", [])]
        for cell, output in ((c, o) for c in tagged for o in c.get("outputs", [])):
            if (model := view_of(output)) not in states:
                continue
            viewer = states[model]["state"] | {"width_px": 640}
            layout = viewer["layout"].removeprefix("IPY_MODEL_")
            kept = {model: states[model] | {"state": viewer}, layout: states[layout]}
            tags = {"tags": ["remove-input"]}
            shown = nbformat.v4.new_code_cell(cell.source, outputs=[output], metadata=tags)
            return nbformat.v4.new_notebook(cells=[shown], metadata={"widgets": widgets_of(kept)})
    return None


def front_page(text: str, chapters: list[Chapter]) -> nbformat.NotebookNode:
    """The front page as a notebook, since only a notebook can hold a viewer's frames."""
    before, after = map(nbformat.v4.new_markdown_cell, text.split(VIEWER_HERE))
    page = front_viewer(chapters) or nbformat.v4.new_notebook()
    page.cells = [before, *page.cells, after]
    return page


def tests_of(claim: dict) -> dict[str, list[str]]:
    """Keys of the two results that each case of a claim compares."""
    cases = claim["cases"]
    if isinstance(cases, dict):
        return cases
    return {
        case: [claim[side].replace("*", case) for side in ("larger", "smaller")] for case in cases
    }


def judge(claims: list[dict], chapters: dict[str, Chapter]) -> list[dict]:
    """Claims with the numbers and the verdict of this run; "not tested" where it has no numbers."""
    judged = []
    for claim in claims:
        chapter, cases = chapters[claim["chapter"]], []
        for name, keys in tests_of(claim).items():
            name, *keys = (text.format(**chapter.record["parameters"]) for text in (name, *keys))
            if all(key in chapter.results for key in keys):
                larger, smaller = (chapter.results[key] for key in keys)
                cases.append(Case(name, larger, smaller, larger > smaller))
        held = [case.held for case in cases]
        word = "confirmed" if all(held) else "depends" if any(held) else "not confirmed"
        judgement = {"cases": cases, "verdict": word if cases else "not tested"}
        judged.append({"needs": ""} | claim | judgement)
    return judged


def ranks(table: dict[str, list[float]], chapter: Chapter) -> list[tuple[str, str, float, int]]:
    """Spearman's correlation of the order of methods, the paper's and ours, by block and column."""
    found, columns = [], ("mse", "psnr_dB", "ssim")
    for block, first in (("white", 0), ("second", 3)):
        for i, column in enumerate(columns, first):
            keys = {
                k: f"{block}: {k} {column}".format(**chapter.record["parameters"]) for k in table
            }
            pairs = [
                (table[k][i], chapter.results[key])
                for k, key in keys.items()
                if key in chapter.results
            ]
            if len(pairs) > 2:
                found.append((block, column, float(spearmanr(pairs).statistic), len(pairs)))
    return found


def number(value: float | None, digits: int = 2) -> str:
    """Format a result; a dash where the run has none."""
    return "–" if value is None else f"{value:.{digits}f}"


def clock(minute: int) -> str:
    """Time of day, from minutes after midnight."""
    return f"{minute // 60}:{minute % 60:02d}"


@dataclass(frozen=True)
class Module:
    """A module or a folder of the package, and the first sentence that it says of itself."""

    name: str
    sentence: str

    @classmethod
    def read(cls, path: Path) -> Module:
        return cls(path.stem, ast.get_docstring(ast.parse(path.read_text())).partition("\n")[0])


def rooms() -> dict[str, tuple[str, list[Module]]]:
    """Each folder of the package, in order, with its sentence and its modules."""
    found = {}
    for room in cryonb.ROOMS:
        inside = sorted((Path(cryonb.__file__).parent / room).glob("*.py"))
        modules = {path.stem: Module.read(path) for path in inside}
        found[room] = modules.pop("__init__").sentence, list(modules.values())
    return found


def context(run: Path, chapters: list[Chapter]) -> dict:
    """Everything that a page may mention."""
    numbered = {chapter.name[:2]: chapter for chapter in chapters}
    return {
        "run": read_json(run / "run.json"),
        "chapters": chapters,
        "chapter": numbered,
        "claims": judge(yaml.safe_load((BOOK / "claims.yml").read_text()), numbered),
        "ranks": ranks(yaml.safe_load((BOOK / "table1.yml").read_text()), numbered["04"]),
        "times": yaml.safe_load((ROOT / "notebooks" / "times.yml").read_text()),
        "schedules": yaml.safe_load((BOOK / "schedules.yml").read_text()),
        "rooms": rooms(),
        "citation": yaml.safe_load((ROOT / "CITATION.cff").read_text()),
    }


def stage(run: Path, target: Path, repository: str = "") -> None:
    """Write the sources of the book for one run into a fresh folder."""
    chapters = read_run(run)
    shutil.rmtree(target, ignore_errors=True)
    (target / "notebooks").mkdir(parents=True)
    pages = Environment(
        loader=FileSystemLoader(BOOK), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    pages.filters |= {"number": number, "span": span, "clock": clock}
    known = context(run, chapters)
    for page in BOOK.glob("*.md"):
        text = pages.get_template(page.name).render(known)
        if page.stem == "index":
            nbformat.write(front_page(text, chapters), target / "index.ipynb")
        else:
            (target / page.name).write_text(text)
    for chapter in chapters:
        place = target / "notebooks" / f"{chapter.name}.ipynb"
        nbformat.write(for_a_page(chapter.notebook), place)
    write_api(target / "api")
    copy_files(target)
    write_config(target, repository)


def write_api(folder: Path) -> None:
    """One page a module, generated from its docstrings."""
    for room, (_, modules) in rooms().items():
        (folder / room).mkdir(parents=True)
        for module in modules:
            name = f"{room}.{module.name}"
            body = f"```{{eval-rst}}\n.. automodule:: cryonb.{name}\n   :members:\n```\n"
            (folder / room / f"{module.name}.md").write_text(f"# `{name}`\n\n{body}")


def copy_files(target: Path) -> None:
    """What goes into the site as it is."""
    for name in ("_toc.yml", "references.bib", "logo.svg"):
        shutil.copy(BOOK / name, target)
    for name in ("assets", "drawings"):
        shutil.copytree(BOOK / name, target / name)
    shutil.copytree(ROOT / "docs", target / "docs")
    vendor = BOOK / "_build" / "vendor"
    ignore = shutil.ignore_patterns(*ONLY_TESTS, "versions.json")
    shutil.copytree(vendor, target / "_extra" / "vendor", ignore=ignore)
    draw_page(read_checklist()).savefig(target / "_extra" / "checklist.pdf")


def write_config(target: Path, repository: str) -> None:
    """The configuration, with links to the repository where there is one to link to."""
    config = yaml.safe_load((BOOK / "_config.yml").read_text())
    if repository:
        config["sphinx"]["config"]["html_theme_options"] |= {
            "repository_url": repository,
            "repository_branch": "main",
            "path_to_docs": "",
            "use_repository_button": True,
            "launch_buttons": {
                "notebook_interface": "jupyterlab",
                "binderhub_url": "https://mybinder.org",
            },
        }
    (target / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, such as runs/quick")
    parser.add_argument("target", type=Path, help="folder to write, such as book/_build/source")
    parser.add_argument("--repository", default="", help="address that pages link to")
    args = parser.parse_args()
    try:
        stage(args.run, args.target, args.repository)
    except FileNotFoundError as error:
        sys.exit(f"book: {error}")


if __name__ == "__main__":
    main()
