"""JupyterLab as `make lab` opens it: notebooks run to their last cell, and sliders move."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import nbformat
import papermill
import pytest

from cryonb.running.plan import plan, read_notebooks, read_profile

ROOT = Path(__file__).parents[1]
TOKEN = "for-this-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Copies of two notebooks at the smoke profile, for JupyterLab to open."""
    folder = tmp_path_factory.mktemp("lab")
    found = read_notebooks(ROOT / "notebooks")
    steps = plan(found, read_profile(ROOT / "notebooks", "smoke"), {}, "run")
    for step in steps[:2]:
        notebook = papermill.iorw.load_notebook_node(str(step.path))
        made = papermill.parameterize.parameterize_notebook(notebook, step.parameters)
        made.metadata.pop("papermill", None)
        nbformat.write(made, folder / step.path.name)
        shutil.copy(step.path.with_suffix(".py"), folder)
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """Address of a JupyterLab that `make lab` has started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--no-browser --ip=127.0.0.1 --port={port} --IdentityProvider.token={TOKEN}"
    options += " --allow-root"  # where the tests are run by the super-user
    command = [shutil.which("make"), "-C", str(ROOT), "lab", f"LAB_ROOT={folder}"]
    with open(folder / "log", "w") as log:
        command.append(f"ARGS={options}")
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


@pytest.fixture
def page(browser, lab):
    """A page that notes requests to other hosts."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    elsewhere = []
    page.on("request", lambda r: r.url.startswith(("http", "ws")) and elsewhere.append(r.url))
    yield page
    page.close()
    assert [url for url in elsewhere if lab.partition("://")[2] not in url] == []


def open_notebook(page, lab, name: str):
    page.goto(f"{lab}/lab/tree/{name}?token={TOKEN}&reset", timeout=120_000)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=120_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()


def find(page, selector: str):
    """Scroll from the top until something is there: JupyterLab draws only the cells in view."""
    panel = page.locator(".jp-WindowedPanel-outer").first
    panel.evaluate("panel => panel.scrollTo(0, 0)")
    for _ in range(100):
        page.wait_for_timeout(300)
        if page.locator(selector).count():
            page.locator(selector).first.scroll_into_view_if_needed()
            return page.locator(selector).first
        panel.evaluate("panel => panel.scrollBy(0, 600)")
    raise AssertionError(f"no {selector} in the notebook")


@pytest.mark.parametrize("name", ["00_start_here", "01_simulate"])
def test_a_notebook_runs_to_its_end(page, lab, folder, name):
    open_notebook(page, lab, f"{name}.ipynb")
    run_all(page)
    results = folder / "run" / "results" / f"{name}.json"
    for _ in range(600):
        if results.exists():
            break
        errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
        assert not errors.count(), errors.first.inner_text()
        page.wait_for_timeout(500)
    assert results.exists(), "not finished in five minutes"


def one_cell(folder: Path, name: str, *lines: str):
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell("\n".join(lines))]
    nbformat.write(notebook, folder / name)


def test_arrow_keys_move_a_slider(page, lab, folder):
    """Not a matter of course: JupyterLab hears keys first, and has uses of its own for them."""
    lines = ("import numpy as np", "from cryonb.showing.widgets import frame_viewer")
    shown = "frame_viewer(np.random.rand(4, 8, 8), list('abcd'), title='Noise')"
    one_cell(folder, "viewer.ipynb", *lines, shown)
    open_notebook(page, lab, "viewer.ipynb")
    run_all(page)
    viewer = find(page, ".cryonb-frames")
    image, slider = viewer.locator("img"), viewer.locator("input[type=range]")
    before = image.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert slider.input_value() == "1" and image.get_attribute("src") != before


def test_a_control_has_the_kernel_draw_anew(page, lab, folder):
    lines = ("import ipywidgets, numpy as np", "from cryonb.showing.widgets import live_viewer")
    draw = "draw = lambda n: ([np.eye(n)] * n, [f'{k + 1} of {n}' for k in range(n)])"
    shown = "live_viewer(draw, {'n': ipywidgets.Dropdown(options=[4, 2, 8])}, title='Bench')"
    one_cell(folder, "live.ipynb", *lines, draw, shown)
    open_notebook(page, lab, "live.ipynb")
    run_all(page)
    viewer = find(page, ".cryonb-frames")
    assert viewer.locator("span").inner_text() == "4 of 4"
    for choice in ("8", "2"):
        page.locator(".widget-dropdown select").select_option(label=choice)
        viewer.get_by_text(f"{choice} of {choice}").wait_for(timeout=30_000)
        size = "image => image.naturalWidth"
        assert viewer.locator("img").evaluate(size) == int(choice)


def test_a_paired_script_opens_as_a_notebook(page, lab):
    open_notebook(page, lab, "00_start_here.py")
    find(page, ".jp-Notebook .jp-CodeCell")


def test_exercises_are_shown_as_such(page, lab, folder):
    """jupyterlab-myst draws what the book draws; without it the reader would meet backticks."""
    notebook = nbformat.read(folder / "00_start_here.ipynb", as_version=4)
    notebook.cells = [c for c in notebook.cells if "{exercise-start}" in c.source][:1]
    assert notebook.cells
    nbformat.write(notebook, folder / "exercise.ipynb")
    open_notebook(page, lab, "exercise.ipynb")
    shown = page.locator(".jp-MarkdownCell").first
    shown.locator("aside, .myst-exercise, .exercise").first.wait_for(timeout=60_000)
    assert "```" not in shown.inner_text() and "Predict a pose" in shown.inner_text()
