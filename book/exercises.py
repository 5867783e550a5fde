"""Write the learners' copies of the notebooks: the same, without the solutions of the exercises.

``python exercises.py TARGET`` writes ``TARGET/NN_name.ipynb`` for each notebook. Copies that are
there already are kept, a learner has worked in them; ``--force`` writes them anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

from cryonb.base.files import beside
from cryonb.running.plan import find_notebooks

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
START, END = "{solution-start}", "{solution-end}"
PLACE = "# Your solution\n"


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Put an empty cell in the place of each solution, its prose and its code alike.

    Parameters
    ----------
    notebook : NotebookNode
        As in the repository; solutions stand between ``{solution-start}`` and ``{solution-end}``,
        each the first thing behind the backticks of its line.

    Returns
    -------
    NotebookNode
        A new notebook.

    Raises
    ------
    ValueError
        Where a solution does not end, or ends before it starts.
    """
    cells, inside = [], False
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            cells += [] if inside else [cell]
            continue
        kept, fence = [], ""
        for line in cell.source.splitlines():
            mark = line.lstrip("`")
            if mark.startswith((START, END)):
                if mark.startswith(START) == inside:
                    raise ValueError(f"a solution starts or ends twice: {line}")
                cells += _prose(kept, cell)
                cells += [] if inside else [nbformat.v4.new_code_cell(PLACE)]
                inside, kept, fence = not inside, [], line[: len(line) - len(mark)]
            elif fence:  # options of the directive, up to the backticks that close it
                fence = "" if line == fence else fence
            elif not inside:
                kept.append(line)
        cells += _prose(kept, cell)
    if inside:
        raise ValueError("a solution does not end")
    alone = {"jupytext": {"formats": "ipynb"}}  # a copy has no .py beside it
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata | alone)


def _prose(lines: list[str], cell) -> list[nbformat.NotebookNode]:
    text = "\n".join(lines).strip()
    return [nbformat.v4.new_markdown_cell(text, metadata=cell.metadata)] if text else []


def write(target: Path, force: bool = False) -> list[tuple[Path, bool]]:
    """Write all copies; those that are there already stay, unless `force` is set.

    Parameters
    ----------
    target : Path
        Folder, made if it is missing.
    force : bool
        Write over copies that are there.

    Returns
    -------
    list of (Path, bool)
        Each copy, and whether it was written now.
    """
    target.mkdir(parents=True, exist_ok=True)
    done = []
    for name, path in find_notebooks(NOTEBOOKS).items():
        copy = target / f"{name}.ipynb"
        new = force or not copy.exists()
        if new:
            with beside(copy) as part:
                nbformat.write(without_solutions(nbformat.read(path, as_version=4)), part)
        done.append((copy, new))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="folder to write, such as exercises")
    parser.add_argument("--force", action="store_true", help="write over copies that are there")
    args = parser.parse_args()
    try:
        for path, new in write(args.target, args.force):
            print(f"{'wrote' if new else 'kept ':5} {path}")
    except (OSError, ValueError) as error:
        sys.exit(f"exercises: {error}")


if __name__ == "__main__":
    main()
