"""The runner, on two or three tiny notebooks in a temporary folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from cryonb import cli
from cryonb.base.files import below, beside, read_json, sole, write_json
from cryonb.cli import main
from cryonb.running import engine, plan
from cryonb.running.plan import Notebook, convert, find_notebooks, read_literals
from cryonb.running.runner import unfinished

ROOT = Path(__file__).parents[1]
CRYONB = [sys.executable, "-m", "cryonb"]
PARAMETERS = """\
run_dir = "runs/lab"  # where outputs go
seed = 0  # seed of everything random
snr = 0.1  # signal to noise
"""
RESULTS = """\
import json, pathlib
out = pathlib.Path(run_dir, "results")
out.mkdir(parents=True, exist_ok=True)
text = json.dumps({{"snr": snr, "seed": seed}})
_ = (out / "{name}.json").write_text(text)
"""
PROFILES = """\
small: {common: {seed: 3}, 00_first: {snr: 1}}
other: {common: {seed: 4}}
big: {needs_gpu: true}
misspelt: {common: {sed: 3}}
mistyped: {00_first: {seed: 0.5}}
nowhere: {00_frist: {seed: 1}}
crooked: {common: [seed, 1]}
../../up: {common: {seed: 1}}
"""


def write_notebook(path: Path, *sources: str, parameters: str = PARAMETERS) -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# Try", id="title"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters"),
        *(nbformat.v4.new_code_cell(s, id=f"c{i}") for i, s in enumerate(sources)),
        nbformat.v4.new_code_cell(RESULTS.format(name=path.stem), id="results"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


@pytest.fixture
def book(tmp_path, monkeypatch):
    """The working directory, with two notebooks and their profiles."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder / "00_first.ipynb", "import sys\nprint(sys.executable)")
    write_notebook(folder / "01_second.ipynb", "print(snr)")
    (folder / "profiles.yml").write_text(PROFILES)
    return tmp_path


def status(book: Path, name: str, run: str = "runs/small") -> dict:
    return json.loads((book / run / f"{name}.json").read_text())


def leftovers(book: Path) -> list[Path]:
    return list(book.rglob("*.partial*"))


def test_run_is_recorded_and_resumed(book, capsys, monkeypatch):
    # A python3 kernel of the user's own, before ours on every search path, must not be taken.
    foreign = book / "foreign" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["no-such-python"], "display_name": "mine", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(book / "foreign"))

    assert main(["run", "--profile", "small"]) == 0
    run = json.loads((book / "runs/small/run.json").read_text())
    assert run["parameters"]["00_first"] == {"run_dir": "runs/small", "seed": 3, "snr": 1.0}
    assert run["parameters"]["01_second"] == {"run_dir": "runs/small", "seed": 3, "snr": 0.1}
    assert run["versions"].keys() >= {"python", "torch", "cryonb"}
    assert run["git"] is None and run["machine"]["cores"] >= 1
    first = status(book, "00_first")
    assert first["state"] == "finished" and first["start"] < first["end"]
    # An idle IPython kernel takes some 50 MB; the bounds only tell MB from kB and GB.
    assert 20 < first["peak_MB"] < 2000 and 0.1 < first["seconds"] < 60
    executed = nbformat.read(book / "runs/small/00_first.ipynb", as_version=4)
    printed = [o.text for c in executed.cells for o in c.get("outputs", [])]
    assert printed == [f"{sys.executable}\n"]
    results = json.loads((book / "runs/small/results/00_first.json").read_text())
    assert results == {"snr": 1.0, "seed": 3}
    shown = capsys.readouterr().out
    assert "snr 1, seed 3" in shown and "runs/small/01_second.ipynb" in shown
    assert not leftovers(book)

    assert main(["run", "--profile", "small"]) == 0
    assert capsys.readouterr().out.count("skipped") == 2
    assert status(book, "00_first") == first

    # A later notebook changes: the earlier one is kept. A folder of another run is refused.
    write_notebook(book / "notebooks/01_second.ipynb", "print(2 * snr)")
    assert main(["run", "--profile", "small"]) == 0
    assert status(book, "00_first") == first
    assert main(["run", "--profile", "small", "-p", "snr", "0.2"]) == 2
    assert main(["run", "--profile", "other", "--run-dir", "runs/small"]) == 2
    assert "another configuration" in capsys.readouterr().err
    assert status(book, "00_first") == first

    # --force takes the folder; the first notebook alone is then newer than the second's input.
    force = ["run", "00", "--profile", "small", "-p", "00_first.snr", "2", "--force"]
    assert main(force) == 0
    assert json.loads((book / "runs/small/results/00_first.json").read_text())["snr"] == 2.0
    assert main(["run", "--profile", "small", "-p", "00_first.snr", "2"]) == 0
    shown = capsys.readouterr().out
    assert "00_first: finished before" in shown and "01_second: running" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "smal"], "unknown profile 'smal'; did you mean small?"),
        (["--profile", "misspelt"], "unknown parameter 'sed'; did you mean seed?"),
        (["--profile", "mistyped"], "00_first.seed is of type int (default 0), not 0.5"),
        (["--profile", "nowhere"], "unknown notebook '00_frist'; did you mean 00_first?"),
        (["--profile", "crooked"], "crooked.common has a value of the wrong kind"),
        (["--profile", "big"], "needs a GPU"),
        (["--profile", "../../up"], "is no name of a file below runs"),
        (["--profile", "small", "-p", "snrr", "1"], "did you mean snr?"),
        (["--profile", "small", "-p", "snr", "much"], "of type float (default 0.1), not 'much'"),
        (["--profile", "small", "-p", "snr", "True"], "of type float"),
        (["--profile", "small", "-p", "seed", "1.0"], "of type int"),
        (["--profile", "small", "-p", "02_third.snr", "1"], "unknown notebook '02_third'"),
        (["--profile", "small", "-p", "00_first.steps", "1"], "unknown parameter of 00_first"),
        (["--profile", "small", "-p", "run_dir", "x"], "--run-dir"),
        (["--profile", "small", "thrid"], "unknown notebook 'thrid'"),
        (["--profile", "small", "--notebooks", "nowhere"], "no notebook NN_name.ipynb in nowhere"),
        (["--profile", "small", "--run-dir", "notebooks"], "is not empty and no run folder"),
        (["--profile", "small", "--run-dir", "notebooks/profiles.yml"], "is a file"),
        (["--profile", "small", "--run-dir", "s3://course/runs"], "no folder of this machine"),
    ],
)
def test_bad_requests_are_one_line_before_anything_runs(
    book, capsys, monkeypatch, arguments, words
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("cryonb: ") and error.count("\n") == 1
    assert not (book / "runs").exists()


def test_what_is_finished_began_no_earlier_than_the_one_before_it_ended(tmp_path):
    first, second = (Notebook(name, Path(name), {}, "key") for name in ("00_first", "01_second"))
    planned = [first, second]

    def left(chosen=planned, **changes) -> list[Notebook]:
        for k, notebook in enumerate(planned):
            times = {"start": f"12:00:0{k}.000", "end": f"12:00:0{k + 1}.000"}
            record = {"state": "finished", "key": "key"} | times
            record |= changes.get(notebook.name[3:], {})
            (tmp_path / f"{notebook.name}.json").write_text(json.dumps(record))
            (tmp_path / f"{notebook.name}.ipynb").touch()
        if "gone" in changes:
            (tmp_path / "01_second.ipynb").unlink()
        return unfinished(planned, chosen, tmp_path)

    assert left() == []  # clocks tick in milliseconds
    assert left(second={"start": "12:00:00.999"}) == [second]
    assert left(second={"key": "other"}) == left(second={"state": "failed"}) == [second]
    assert left(gone=True) == [second] and left([first], gone=True) == []
    assert left(first={"key": "other"}) == planned and left([second], first={"key": "other"}) == []
    planned.append(third := Notebook("02_third", Path("02_third"), {}, "key"))
    late = {"end": "12:00:09.000"}
    assert left([third]) == [] and left([third], first=late) == [third]


def test_a_key_changes_whenever_an_outcome_may(book, monkeypatch):
    def keys(given=(), run_dir="x") -> tuple[str, str]:
        return tuple(n.key for n in plan.plan(plan.read_notebooks(), {}, dict(given), run_dir))

    first, second = keys()
    assert keys(run_dir="elsewhere") == keys({"snr": 0.1}) == (first, second)
    assert (only := keys({"01_second.snr": 1}))[0] == first and only[1] != second
    write_notebook(book / "notebooks/00_first.ipynb", "print('changed')")
    changed = keys()
    assert changed[0] != first and changed[1] != second, "it may read what the first one writes"
    package = book / "cryonb"
    (package / "kept").mkdir(parents=True)
    monkeypatch.setattr(plan, "__file__", str(package / "running" / "plan.py"))
    for name in ("kept/a.safetensors", "b.py", "kept/a.safetensors"):
        before = keys()
        (package / name).write_text(f"{len(before[0])}{before}")
        assert not set(keys()) & set(before), name


def test_notebooks_are_chosen_by_name_number_or_path(book):
    found = plan.read_notebooks()
    for want in ("01_second", "01", "second", "notebooks/01_second.ipynb", "01_second.py"):
        assert plan.choose(found, [want]) == found[1:]
    assert plan.choose(found, []) == plan.choose(found, ["01", "00"]) == found


@pytest.mark.parametrize("source", ["steps = 2 * 3", "a, b = 1, 2", "x.y = 1", "steps = ("])
def test_a_computed_parameter_is_refused(source):
    with pytest.raises(ValueError, match="no.ipynb: the parameters cell"):
        read_literals(Path("no.ipynb"), source)


def test_types_of_parameters():
    assert convert("true", False, "x") is True
    assert convert("1e-3", 1.0, "x") == 1e-3 and isinstance(convert("2", 1.0, "x"), float)
    assert convert("2", "name", "x") == "2" and convert("null", None, "x") is None
    assert convert("[1, 2]", [3], "x") == [1, 2]
    assert convert("data.pdb", None, "x") == "data.pdb"
    with pytest.raises(ValueError, match="type bool"):
        convert(1, False, "x")


def test_a_torn_notebook_is_named(book, capsys):
    path = book / "notebooks/01_second.ipynb"
    path.write_text(path.read_text()[:200])
    assert main(["run", "--profile", "small"]) == 2
    assert "01_second.ipynb is not a readable notebook" in capsys.readouterr().err


def test_notebooks_come_in_order_and_only_numbered_ones(book):
    write_notebook(book / "notebooks/scratch.ipynb")
    assert list(find_notebooks(book / "notebooks")) == ["00_first", "01_second"]


def test_failure_keeps_the_traceback_and_resumes(book, capsys):
    write_notebook(book / "notebooks/01_second.ipynb", "raise ValueError('no particles')")
    assert main(["run", "--profile", "small"]) == 1
    shown = capsys.readouterr().out
    # Cell 3 of the executed notebook: parameters, injected parameters, then the failing one.
    assert "01_second failed: cell 3: ValueError: no particles" in shown
    assert "no particles" in (book / "runs/small/01_second.ipynb").read_text()
    assert status(book, "01_second")["state"] == "failed"
    first = status(book, "00_first")
    write_notebook(book / "notebooks/01_second.ipynb", "print('mended')")
    assert main(["run", "--profile", "small"]) == 0
    assert status(book, "00_first") == first


@pytest.mark.slow
def test_killed_and_overlong_cells_are_told_apart(book, capsys):
    child = "x = bytearray(200_000_000); import time; time.sleep(1)"
    memory = f"import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])\n"
    memory += "os.kill(os.getpid(), 9)"
    write_notebook(book / "notebooks/00_first.ipynb", memory)
    assert main(["run", "--profile", "small"]) == 1
    shown = capsys.readouterr().out
    assert "cell 3: the Python of the notebook was killed" in shown and "memory" in shown
    assert "run the same command again" in shown
    record = status(book, "00_first")
    assert record["state"] == "killed" and record["peak_MB"] > 200
    write_notebook(book / "notebooks/00_first.ipynb", "import time\ntime.sleep(60)")
    stale = book / "runs/small/results/00_first.json"
    stale.parent.mkdir()
    stale.touch()
    assert main(["run", "--profile", "small", "--cell-timeout", "1"]) == 1
    assert status(book, "00_first")["state"] == "timeout" and not stale.exists()
    assert not leftovers(book)


def test_what_a_cell_printed_last_is_its_own():
    watch = engine.Watch("00_first", 2)
    watch.begin_cell()
    watch.write("step 1\r step 2\n\n")
    assert (watch.cell, watch.printed) == (1, "step 2")
    watch.begin_cell()
    assert (watch.cell, watch.printed) == (2, "")


@pytest.mark.slow
def test_long_cells_show_their_last_line(book, capsys, monkeypatch):
    monkeypatch.setattr(engine, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(engine, "SAMPLE_S", 0.1)
    loop = "import time\nfor k in range(4):\n    print('step', k, flush=True)\n    time.sleep(0.3)"
    write_notebook(book / "notebooks/00_first.ipynb", loop)
    assert main(["run", "00", "--profile", "small"]) == 0
    shown = [s for s in capsys.readouterr().out.splitlines() if "00_first: cell 3 of 4" in s]
    assert any(s.endswith(": step 2") for s in shown)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["run", "00", "--profile", "small", "--force"]) == 0
    # On a terminal, one line that is written over and at last erased.
    assert re.search(r"\r\x1b\[K  00_first: cell 3 .*\r\x1b\[K00_first: ", capsys.readouterr().out)


def test_a_full_disk_is_one_line_and_no_half_notebook(book, capsys):
    run = book / "runs" / "small"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / ".00_first.partial.ipynb").symlink_to("/dev/full")
    assert main(["run", "--profile", "small", "--force"]) == 2
    error = capsys.readouterr().err
    assert "No space left" in error and "free some space" in error and error.count("\n") == 1
    assert not (run / "00_first.ipynb").exists() and not leftovers(book)
    assert main(["run", "--profile", "small"]) == 0


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(OSError), beside(path) as part:
        part.write_text("half")
        raise OSError
    assert not list(tmp_path.iterdir())
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    path.write_text("{")
    assert read_json(path) == read_json(tmp_path / "none") == {}


@pytest.mark.parametrize("name", ["", "/up", "../up", "a/../b", "C:up", "\\\\host\\up"])
def test_a_name_leads_nowhere_else(name):
    with pytest.raises(ValueError, match="no name of a file below runs"):
        below("runs", name)


def test_one_run_at_a_time(book, capsys):
    (book / "runs" / "small").mkdir(parents=True)
    with sole(book / "runs" / "small" / "run.json"):
        assert main(["run", "--profile", "small"]) == 2
    assert "run.json is being written by another process" in capsys.readouterr().err
    assert main(["run", "00", "--profile", "small"]) == 0  # what is left of a lock is no lock


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on(book, number):
    wait = (
        "import os, time\nprint(os.getpid(), file=open('kernel', 'w'), flush=True)\ntime.sleep(60)"
    )
    write_notebook(book / "notebooks/01_second.ipynb", wait)
    command = [*CRYONB, "run", "--profile", "small"]
    # Ctrl-C must reach a process whose parent ignores it too: restore the default.
    restore = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, **pipes, **restore)
    deadline = time.monotonic() + 60
    while not (book / "kernel").exists() or not (book / "kernel").read_text().strip():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    stopped = time.monotonic()
    shown, error = process.communicate(timeout=30)
    assert not error
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    state = status(book, "01_second")["state"]
    assert state == ("running" if number == signal.SIGKILL else "interrupted")
    assert number == signal.SIGKILL or "run the same command again" in shown
    first, kernel = status(book, "00_first"), int((book / "kernel").read_text())
    while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != "zombie":
        assert time.monotonic() < stopped + 5, "the notebook's Python outlived the run"
        time.sleep(0.1)

    write_notebook(book / "notebooks/01_second.ipynb", "print('quick')")
    assert main(["run", "--profile", "small"]) == 0
    assert status(book, "00_first") == first and not leftovers(book)


def test_of_two_signals_one_counts():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            cli._interrupt_once()
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_sockets_are_not_shared_with_another_run(book, monkeypatch):
    """They lie beside the kernel's connection file, not under one name in the working directory."""
    source = "import os\nfrom ipykernel.connect import get_connection_file\n"
    source += "own = os.listdir(os.path.dirname(get_connection_file()))\n"
    source += "assert len([f for f in own if 'ipc' in f]) in (0, 5)  # 0: by TCP\n"
    source += "assert not [f for f in os.listdir() if 'ipc' in f]"
    write_notebook(book / "notebooks/00_first.ipynb", source)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["run", "00", "--profile", "big", "--allow-cpu"]) == 0


@pytest.mark.slow
def test_plain_papermill_runs_the_same_notebook(book):
    out = book / "out.ipynb"
    papermill = [sys.executable, "-m", "papermill", "notebooks/00_first.ipynb", str(out)]
    subprocess.run([*papermill, "-p", "snr", "0.05", "-p", "run_dir", "elsewhere"], check=True)
    assert json.loads((book / "elsewhere/results/00_first.json").read_text())["snr"] == 0.05


@pytest.mark.slow
def test_git_state_is_recorded(book):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    git("init", "-q")
    (book / ".gitignore").write_text("*\n")
    git("add", "--force", "notebooks")
    git("commit", "-q", "-m", "book")
    assert main(["run", "00", "--profile", "small", "--run-dir", "out"]) == 0
    before = status(book, "00_first", "out")["git"]
    assert len(before["commit"]) == 40 and before["dirty"] is False
    (book / "notebooks/profiles.yml").write_text(PROFILES + "more: {}\n")
    assert main(["run", "01", "--profile", "small", "--run-dir", "out"]) == 0
    assert status(book, "01_second", "out")["git"] == before | {"dirty": True}


def test_planning_a_run_does_not_wait_for_torch():
    code = (
        "import sys, cryonb.running.runner, cryonb.running.sweep; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


WITHOUT_POSIX = """
import builtins, os
posix, usual = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog"}, builtins.__import__
def without(name, globals=None, *rest, **named):
    who = (globals or {}).get("__name__", "").partition(".")[0]
    if name.partition(".")[0] in posix and who in ("cryonb", "__main__"):
        raise ModuleNotFoundError(f"{name} is not there on Windows")
    return usual(name, globals, *rest, **named)
builtins.__import__ = without
del os.sched_getaffinity
"""
IMPORT_ALL = """
import importlib, pkgutil, cryonb
for module in pkgutil.walk_packages(cryonb.__path__, "cryonb."):
    importlib.import_module(module.name)
"""


def test_every_module_can_be_imported():
    exec(IMPORT_ALL)


@pytest.mark.skipif(os.name != "posix", reason="this is such a system")
def test_what_only_posix_has_is_not_needed(book):
    """Every module is imported, in a notebook that is run, as if this were Windows."""
    (book / "sitecustomize.py").write_text(WITHOUT_POSIX)
    source = "try:\n    import fcntl\nexcept ModuleNotFoundError:\n    print('none')\n" + IMPORT_ALL
    write_notebook(book / "notebooks/00_first.ipynb", source)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(book), str(ROOT)])}
    done = subprocess.run([*CRYONB, "run", "00", "--profile", "small"], env=env)
    assert done.returncode == 0
    assert '"none\\n"' in (book / "runs/small/00_first.ipynb").read_text()
