"""Fixtures shared by the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve others
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the notebooks and programs that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update"
    " --disable-background-networking --disable-sync"
).split()


SLOW_FILES = {"test_benchmarks", "test_calibrate", "test_compare", "test_denoise", "test_direct"}
SLOW_FILES |= {
    "test_gan",
    "test_kept",
    "test_pretrain",
    "test_remote",
    "test_runner",
    "test_search",
}
SLOW_FILES |= {"test_sweep", "test_train"}
SLOW_FIXTURES = {"smoke_run", "relion", "browser"}


def pytest_collection_modifyitems(items):
    """Mark what trains, runs all notebooks, or starts RELION or a browser; not in `make check`."""
    for item in items:
        if item.module.__name__ in SLOW_FILES or SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker("slow")
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of two processes each takes whole files; one takes both that look at all notebooks.

    By a scheduler of our own, since the groups of pytest-xdist 3.8 are lost with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.split("::")[0]).stem
            return "smoke" if file in {"test_book", "test_notebooks"} else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """Two threads for torch, as continuous integration has cores; one in each of two processes."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session")
def relion():
    """A function that runs a RELION program: ``relion("relion_project", "--i", path, cwd=folder)``.

    It returns the program's standard output and raises AssertionError with its words on failure.
    Without RELION the test is skipped, or fails when CRYONB_REQUIRE_RELION=1.
    """
    if not shutil.which("relion_reconstruct"):
        if os.environ.get("CRYONB_REQUIRE_RELION") == "1":
            pytest.fail("RELION is required here but not installed: apt-get install relion")
        pytest.skip("RELION is not installed: sudo apt install relion")

    def call(program: str, *arguments, cwd: Path | None = None, timeout: float = 300) -> str:
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return call


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; a test without one is skipped, and says what to install."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no browser here: sudo apt install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> Path:
    """Run folder of all notebooks, executed once by the runner at the smoke profile."""
    from cryonb.base.options import RunOptions
    from cryonb.running.runner import run

    notebooks = Path(__file__).parents[1] / "notebooks"
    if not list(notebooks.glob("*.ipynb")):
        pytest.skip("no notebooks yet")
    folder = tmp_path_factory.mktemp("smoke")
    with contextlib.chdir(folder):
        code = run([], RunOptions(Path("run"), notebooks, profile="smoke"))
    assert code == 0, "see the captured output for the failing cell"
    assert [p.name for p in folder.iterdir()] == ["run"], "a notebook writes outside its run_dir"
    return folder / "run"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real structures and maps beside the checkout; skips where there is none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return folder
