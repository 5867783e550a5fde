"""The learners' copies: no solution is left in them, and nothing after a solution needs it."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def exercises():
    spec = importlib.util.spec_from_file_location("exercises", ROOT / "book" / "exercises.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(notebook) -> list[str]:
    return [c.source for c in notebook.cells if c.cell_type == "code"]


def prose(notebook) -> str:
    return "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def loaded(source: str) -> set[str]:
    """Names that a cell reads, without those that its comprehensions bind themselves."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    bound = [n.target for n in ast.walk(tree) if isinstance(n, ast.comprehension)]
    own = {n.id for target in bound for n in ast.walk(target) if isinstance(n, ast.Name)}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    return {n.id for n in found} - own


def stored(source: str) -> set[str]:
    """Names that a cell leaves behind; those of comprehensions and functions stay inside."""
    found, todo = set(), [ast.parse(TransformerManager().transform_cell(source))]
    inner = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif not isinstance(node, inner):
            todo += ast.iter_child_nodes(node)
    return found


@each
def test_every_exercise_is_left_and_every_solution_is_gone(exercises, path):
    whole = nbformat.read(path, as_version=4)
    copy = exercises.without_solutions(whole)
    nbformat.validate(copy)
    count = prose(whole).count("{solution-start}")
    exercise = r"`{3,}\{exercise(?:-start)?\}.*\n:label: .*\n(?:`{3,}\n)?"
    levels = re.findall(exercise + r"\*(Easy|Medium|Hard), ([1-9]\d?) minutes\.\*\n", prose(whole))
    assert len(levels) == len(re.findall(r"\{exercise(?:-start)?\}", prose(whole))) >= 3
    assert code(copy).count(exercises.PLACE) == count
    assert "{solution" not in prose(copy)
    for word in ("{exercise}", "{exercise-start}", "{exercise-end}", "## Quiz", "## Recap"):
        assert prose(copy).count(word) == prose(whole).count(word), word
    kept = [source for source in code(copy) if source != exercises.PLACE]
    assert kept == [source for source in code(whole) if source in kept]
    assert len(kept) < len(code(whole)) or count == 0


@each
def test_every_answer_of_the_quiz_says_whether_it_is_right(path):
    quiz = re.search(
        r"^## Quiz\n(.*?)^## ", prose(nbformat.read(path, as_version=4)) + "\n## ", re.M | re.S
    )
    questions = re.split(r"^\*\*\d\.\*\* ", quiz[1], flags=re.M)[1:]
    assert len(questions) == 3
    for question in questions:
        answers = re.findall(r"^```\{dropdown\} \((\w)\) .+\n\*\*(Right|No)\.\*\* ", question, re.M)
        letters, verdicts = zip(*answers, strict=True)
        assert letters == ("a", "b", "c") and verdicts.count("Right") == 1, question


@each
def test_what_is_folded_in_jupyterlab(exercises, path):
    """Imports, long cells that only plot, and all there is of a solution, its outputs too."""
    whole = nbformat.read(path, as_version=4)
    kept, seen = code(exercises.without_solutions(whole)), 0
    for cell in (c for c in whole.cells if c.cell_type == "code"):
        folded, lines = cell.metadata.get("jupyter", {}), cell.source.splitlines()
        solution = cell.source not in kept
        plots = "plt.subplots" in lines[0] and len(list(filter(None, lines))) > 10
        assert folded.get("source_hidden", False) or not (plots or solution or seen == 0), lines[0]
        assert folded.get("outputs_hidden", False) == solution, lines[0]
        seen += 1
    for part in re.findall(r"\{solution-start\}.*?\{solution-end\}", prose(whole), re.S):
        assert re.search(
            r"^:class: dropdown\n`{3,}\n.*", part, re.M
        )  # what is said of it folds, too


@each
def test_nothing_after_a_solution_needs_it(exercises, path):
    """Without this a learner who skips an exercise would meet a NameError, or other numbers."""
    whole = nbformat.read(path, as_version=4)
    kept = code(exercises.without_solutions(whole))
    removed = set()
    for source in code(whole):
        if source not in kept:
            removed |= stored(source)
            continue
        used = (loaded(source) & removed) - stored(source)
        assert not used, f"{used} of a solution, in: {source[:80]}"
        removed -= stored(source)


def test_a_solution_that_does_not_end_is_refused(exercises):
    cell = nbformat.v4.new_markdown_cell
    start, end = "```{solution-start} a\n:class: dropdown\n```", "```{solution-end}\n```"
    for texts in ([start], [end], [start, start, end]):
        with pytest.raises(ValueError, match="solution"):
            exercises.without_solutions(nbformat.v4.new_notebook(cells=[*map(cell, texts)]))


def test_a_learners_work_is_kept(exercises, tmp_path, monkeypatch, capsys):
    target = tmp_path / "copies"
    monkeypatch.setattr(sys, "argv", ["exercises.py", str(target)])
    exercises.main()
    copies = sorted(target.iterdir())
    assert [p.name for p in copies] == [p.name for p in NOTEBOOKS]
    copies[0].write_text("mine")
    copies[1].unlink()
    exercises.main()
    assert copies[0].read_text() == "mine" and copies[1].exists()
    assert f"kept  {copies[0]}" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["exercises.py", str(target), "--force"])
    exercises.main()
    assert nbformat.read(copies[0], as_version=4).cells
