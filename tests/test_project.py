"""The project's own files agree with each other, and the Makefile's way in is a safe one."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from cyclopts import CycloptsError
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import cryonb
from cryonb.base.options import RunOptions
from cryonb.cli import app, main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch"}  # conda-forge's name: ours
SKIPPED = {".git", ".venv", "runs", "exercises", "wheels", "cache", "build", "_build", "dist"}
SKIPPED |= {"__pycache__", ".ruff_cache", ".pytest_cache"}


def required() -> dict[str, SpecifierSet]:
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    return {r.name: r.specifier for r in map(Requirement, lines)}


def make(*words, cwd=ROOT, **env) -> subprocess.CompletedProcess:
    command = [shutil.which("make"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env or None)


def test_environment_yml_has_the_names_and_ranges_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    *conda, last = environment["dependencies"]
    pip = last["pip"]
    assert "pip" in conda and pip[-1] == "--editable ."
    found = {}
    for line in [*conda, *pip[:-1]]:
        requirement = Requirement(line)
        found[CONDA_NAMES.get(requirement.name, requirement.name)] = requirement.specifier
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert found.pop("pip") == SpecifierSet()
    assert found == required()


def test_constraints_are_exact_and_within_the_ranges():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", v) for v in pins.values()), "public versions only"
    extras = PROJECT["optional-dependencies"]
    more = map(Requirement, [*extras["sweeps"], *extras["s3"]])
    for name, allowed in (required() | {r.name: r.specifier for r in more}).items():
        assert pins[name] in allowed, f"{name} {pins[name]} is not in {allowed}"


def test_each_folder_of_the_package_imports_only_from_those_before_it():
    package = ROOT / "cryonb"
    assert {p.parent.name for p in package.glob("*/__init__.py")} == set(cryonb.ROOMS)
    imports = set()
    for path in package.glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("cryonb."):
                imports.add((path.parent.name, node.module.split(".")[1]))
    assert not [(a, b) for a, b in imports if _floor(b) > _floor(a)]
    assert {a for a, b in imports if b == "showing"} == {"showing", "commands"}


def test_the_package_stays_thin():
    """Readable in a day; see CONTRIBUTING.md before you raise a number."""
    lines = {p: len(p.read_text().splitlines()) for p in (ROOT / "cryonb").rglob("*.py")}
    assert max(lines.values()) <= 350 and sum(lines.values()) <= 14_500


def _floor(room: str) -> int:
    return cryonb.ROOMS.index(room)


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == cryonb.__version__ == str(citation["version"])
    assert f"## {cryonb.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture
def fake(tmp_path):
    """A function that puts a stand-in for a Python on a path of its own, and that path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "echo", "env", "mkdir", "touch"):
        (folder / tool).symlink_to(shutil.which(tool))

    def write(name: str, version: str, has_venv: bool = True) -> Path:
        new = tuple(map(int, version.split("."))) >= (3, 11)
        script = f"""#!/bin/sh
case "$*" in
  *print*) echo {version} ;;
  *sys.exit*) exit {0 if new else 1} ;;
  *ensurepip*) exit {0 if has_venv else 1} ;;
  *) echo "$0 $*"; exit 7 ;;
esac
"""
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
        return folder / name

    def run(*words):
        done = make("tutorial", f"VENV={tmp_path}/venv", *words, PATH=str(folder))
        assert done.returncode != 0 and not (tmp_path / "venv").exists()
        ours = [s for s in done.stderr.splitlines() if not s.startswith("make")]
        return done.stdout, ours

    return write, run


def test_make_says_what_to_install(fake):
    write, run = fake
    _, (line,) = run()
    assert "Python 3.11 or newer" in line and "sudo apt install python3 python3-venv" in line
    write("python3", "3.9")
    _, (line,) = run()
    assert "python3 is 3.9" in line and "sudo apt install" in line
    write("python3.12", "3.12", has_venv=False)
    _, (line,) = run()
    assert "python3.12 (Python 3.12)" in line and line.endswith("python3.12-venv")
    _, (line,) = run("PYTHON=no-such-python")
    assert "no no-such-python found" in line
    _, (line,) = run("PYTHON=python3")
    assert "python3 is 3.9" in line


def test_make_takes_the_first_python_that_is_new_enough(fake):
    write, run = fake
    write("python3", "3.9")
    write("python3.13", "3.13")
    shown, _ = run()
    assert "creating" in shown and "python3.13 -m venv" in shown
    named = write("mine", "3.11")
    shown, _ = run(f"PYTHON={named}")
    assert f"{named} -m venv" in shown


def test_make_targets():
    shown = make("help").stdout
    targets = "tutorial test check lab book exercises offline-bundle lint notebooks clean"
    for target in targets.split():
        assert re.search(rf"^  {target} ", shown, re.M)
    dry = make("-n", "tutorial", "PROFILE=workshop", "ARGS=-p seed 1").stdout
    assert "cryonb run --profile workshop -p seed 1" in dry


PAGES = ["README.md"]
PAGES += [f"book/{name}.md" for name in ("index", "troubleshooting", "experiments", "speed")]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_readme_and_book_exist(page):
    text = (ROOT / page).read_text().replace("\\\n", " ")  # a line that ends in a backslash goes on
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.S)
    blocks = [block for kind, block in blocks if kind in ("", "bash", "sh", "shell", "console")]
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in commands]
    commands = [[words[0].removeprefix(".venv/bin/"), *words[1:]] for words in commands if words]
    assert commands and (page != "README.md" or ["make", "test"] in commands)
    for words in commands:
        if words[:1] == ["make"]:
            assert make("-n", *words[1:]).returncode == 0, words
        elif words[:3] == ["python", "-m", "cryonb"]:
            app.parse_args(words[3:], exit_on_error=False, print_error=False)
        elif words[:1] == ["cryonb"]:
            app.parse_args(words[1:], exit_on_error=False, print_error=False)
        for word in words:
            if re.fullmatch(
                r"(?:\./)?(?:notebooks|benchmarks|tests|cryonb|experiments)/[\w./]+", word
            ):
                assert (ROOT / word).exists(), words


COMMANDS = [name for name in app if not name.startswith("-")]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_quick_and_says_what_each_option_is(command):
    """Under half a second of CPU, since nothing is imported that a command alone needs."""
    before = os.times()
    words = [sys.executable, "-m", "cryonb", *([command] if command else []), "--help"]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    after = os.times()
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 0.5
    assert done.returncode == 0 and f"Usage: cryonb {command or 'COMMAND'}" in done.stdout
    for line in done.stdout.splitlines():
        if re.match(r"│[ *]+-", line):
            assert re.match(r"│[ *]+-[-\w]+( -\w)?( [^ ]+)*  +\w", line), f"says nothing: {line}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --no-such", "Unknown option: --no-such"),
        ("denoise p.star --out o.star --sampels 3", "Did you mean --samples?"),
        ("denoise p.star --out o.star --samples few", 'unable to convert "few" into int'),
        ("denoise p.star", "--out requires an argument"),
        ("reconstruct p.star --out o.mrc --half 3", "Choose from: 1, 2"),
        ("fly", 'Unknown command "fly"'),
        ("fsc a.mrc", "give a second half map, or --reference"),
        ("denoise p.star --out o.star", "p.star does not exist"),
        ("denoise . --out o.star", ". is a folder, not a file"),
        ("reconstruct p.star --out .", ". is a folder: name a file in it"),
        ("run 00 --cell-timeout -1", "a cell timeout of -1 s"),
        ("train channel --images 0", "images is 0"),
    ],
)
def test_what_a_command_does_not_take_is_one_line(words, said, capsys):
    assert main(words.split()) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.startswith("cryonb: ") and shown.count("\n") == 1
    with pytest.raises((CycloptsError, ValueError, OSError), match=re.escape(said)):
        main([*words.split(), "--debug"])


@pytest.mark.parametrize("words", ["run -p snr --debug 02", "run --set --debug"])
def test_debug_is_no_value(words):
    with pytest.raises(ValueError, match="--debug stands in the place"):
        main(words.split())


def test_no_command_at_all_shows_the_help(capsys):
    assert main([]) == 2 and "Usage: cryonb COMMAND" in capsys.readouterr().out


def test_a_parameter_is_given_by_name_and_value():
    words = "run 00 -p snr -1 --profile quick --set 01_second.text --x 03 --profile smoke"
    _, found, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert found.args == ("00", "03")
    given = (("snr", "-1"), ("01_second.text", "--x"))
    assert found.kwargs == {"options": RunOptions(profile="smoke", given=given)}


def test_no_path_of_one_machine():
    pattern = re.compile(r"/(work|farm|root|tmp|home)/[A-Za-z._-]")
    for path in ROOT.rglob("*"):
        if SKIPPED & set(path.relative_to(ROOT).parts) or not path.is_file():
            continue
        if path.suffix in {".py", ".md", ".toml", ".yml", ".ipynb", ".txt", ".json", ".cff", ""}:
            found = pattern.search(path.read_text(errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_ci_runs_what_the_makefile_has():
    script = (ROOT / ".ci/run").read_text()
    assert script.startswith("#!") and "make test" in script and "make lint" in script
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"]).returncode == 0
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    steps = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert ".ci/run" in steps
    for words in (shlex.split(step) for step in steps):
        if words[:3] == ["python", "-m", "cryonb"]:
            app.parse_args(words[3:], exit_on_error=False, print_error=False)
