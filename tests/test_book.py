"""The book, built from the notebooks at the smoke profile, and read in a headless browser."""

from __future__ import annotations

import functools
import http.server
import importlib
import io
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import papermill
import pytest
import yaml
from bs4 import BeautifulSoup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cryonb.running.plan import find_notebooks

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
VENDOR = BOOK / "_build" / "vendor"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def stage():
    """The module that stages the book; it is no part of the package."""
    pytest.importorskip("jupyter_book", reason="pip install -e '.[test,book]', or make test")
    sys.path.insert(0, str(BOOK))
    try:
        yield importlib.import_module("stage")
    finally:
        sys.path.remove(str(BOOK))


@pytest.fixture(scope="module")
def site(stage, smoke_run, tmp_path_factory) -> Path:
    """Folder of the built pages; a warning fails the build."""
    importlib.import_module("vendor").vendor(VENDOR)
    folder = tmp_path_factory.mktemp("book")
    stage.stage(smoke_run, folder / "source")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", folder / "source"]
    command += ["--path-output", folder, "-W", "-n", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def pages(site) -> list[str]:
    own = [p for p in site.rglob("*.html") if not {"_static", "vendor"} & set(p.parts)]
    return sorted(str(p.relative_to(site)) for p in own)


@pytest.fixture(scope="module")
def address(site):
    """Where a web server on this machine shows the book, under a path of its own."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    mount = site.parent / "mount"
    mount.mkdir(exist_ok=True)
    (mount / "some-path").symlink_to(site)
    handler = functools.partial(Handler, directory=str(mount))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/some-path/"
        server.shutdown()


class Reader:
    """A page that writes down what goes wrong: errors, and requests that fail or go elsewhere."""

    def __init__(self, browser, address: str, **options):
        self.address, self.problems = address, []
        self.page = browser.new_page(viewport=DESK, **options)
        note = self.problems.append
        self.page.on("pageerror", lambda error: note(f"script error {error}"))
        self.page.on("console", lambda m: m.type == "error" and note(f"console {m.text}"))
        self.page.on("requestfailed", lambda request: note(f"failed {request.url}"))
        self.page.on("response", lambda r: r.status >= 400 and note(f"{r.status} {r.url}"))
        self.page.on("request", self._request)

    def _request(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.problems.append(f"request to another host {request.url}")

    def open(self, name: str):
        self.page.goto(self.address + name, timeout=120_000)
        self.page.wait_for_load_state("networkidle", timeout=120_000)
        if self.page.locator(".math").count():
            self.page.wait_for_function("() => window.MathJax && MathJax.startup.promise")
            self.page.evaluate("() => MathJax.startup.promise.then(() => true)")
        return self.page


@pytest.fixture
def reader(browser, address):
    reader = Reader(browser, address)
    yield reader
    reader.page.close()
    assert not reader.problems


def pixels(locator) -> np.ndarray:
    picture = Image.open(io.BytesIO(locator.screenshot())).convert("RGB")
    return np.asarray(picture, dtype=int)


def test_the_site_holds_every_notebook_and_module(site, pages):
    assert {f"notebooks/{name}.html" for name in find_notebooks(ROOT / "notebooks")} <= set(pages)
    modules = [p for p in (ROOT / "cryonb").glob("*/*.py") if p.stem != "__init__"]
    assert {f"api/{p.parent.name}/{p.stem}.html" for p in modules} <= set(pages)
    assert {"index.html", "paper.html", "status.html", "instructors.html", "search.html"} <= set(
        pages
    )
    assert sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) < 60e6


def test_internal_links_lead_somewhere(site, pages):
    soups = {name: BeautifulSoup((site / name).read_text(), "html.parser") for name in pages}
    ids = {name: {tag["id"] for tag in soup.find_all(id=True)} for name, soup in soups.items()}
    broken = []
    for name, soup in soups.items():
        for tag in soup.find_all("a", href=True):
            link = urlsplit(tag["href"])
            if link.scheme or link.netloc:
                continue
            target = (site / name).parent / unquote(link.path) if link.path else site / name
            target = str(target.resolve().relative_to(site.resolve()))
            if not (site / target).is_file():
                broken.append((name, tag["href"]))
            elif link.fragment and target in ids and unquote(link.fragment) not in ids[target]:
                broken.append((name, tag["href"]))
    assert not broken


def test_every_figure_of_a_notebook_has_words(site, pages):
    for name in pages:
        soup = BeautifulSoup((site / name).read_text(), "html.parser")
        for image in soup.select("article img"):
            assert image.get("alt") and "_images/" not in image["alt"], (name, image)


def test_every_page_is_whole_on_desk_and_phone(reader, pages):
    for name in pages:
        page = reader.open(name)
        state = page.evaluate(
            """() => ({
              titles: document.querySelectorAll("article h1").length,
              maths: document.querySelectorAll(".math").length,
              drawn: document.querySelectorAll(".math > mjx-container").length,
              broken: [...document.images].filter((i) => i.complete && !i.naturalWidth)
                .map((i) => i.src),
              searches: [...document.querySelectorAll("input[type=search]")]
                .filter((i) => i.checkVisibility()).length,
            })"""
        )
        if name not in ("search.html", "genindex.html", "py-modindex.html"):
            assert state["titles"] == 1, name
            assert state["searches"] <= 1, name
        assert state["drawn"] == state["maths"] and not state["broken"], (name, state)
        page.set_viewport_size(PHONE)
        width = page.evaluate("() => document.documentElement.scrollWidth")
        assert width <= PHONE["width"], f"{name} is {width} pixels wide on a phone"
        page.set_viewport_size(DESK)
        assert not reader.problems, name


def test_frame_viewers_move(reader):
    for name in ("index.html", "notebooks/00_start_here.html"):
        page = reader.open(name)
        viewer = page.locator(".cryonb-frames").first
        slider, image = viewer.locator("input[type=range]"), viewer.locator("img")
        viewer.wait_for()
        before, text = image.get_attribute("src"), image.get_attribute("alt")
        slider.focus()
        page.keyboard.press("ArrowLeft" if slider.input_value() != "0" else "ArrowRight")
        assert image.get_attribute("src") != before and image.get_attribute("alt") != text
        button = viewer.locator("button")
        button.click()
        assert button.get_attribute("aria-label").startswith("Pause")
        button.click()


def test_solutions_unfold(reader):
    page = reader.open("notebooks/02_train_sr3.html")
    solution = page.locator(".solution.dropdown").first
    content = solution.locator(".cell").first
    assert not content.is_visible()
    solution.locator(".toggle-button").first.click()
    content.wait_for(state="visible")


def test_search_finds(reader):
    page = reader.open("search.html?q=micelle")
    page.locator("#search-results li a").first.wait_for()
    titles = page.locator("#search-results li a").all_inner_texts()
    assert any("Simulate particles" in title for title in titles), titles


def test_dark_mode_leaves_pictures_alone(browser, address):
    shots = []
    for scheme in ("light", "dark"):
        reader = Reader(browser, address, color_scheme=scheme)
        page = reader.open("notebooks/00_start_here.html")
        assert page.evaluate("() => document.documentElement.dataset.theme") == scheme
        viewer = page.locator(".cryonb-frames img").first
        viewer.wait_for()
        shots.append([pixels(page.locator("article .cell_output img").first), pixels(viewer)])
        page.close()
    for light, dark in zip(*shots, strict=True):
        inside = (slice(12, -12), slice(12, -12))  # the rim has padding and round corners
        assert light.shape == dark.shape and np.array_equal(light[inside], dark[inside])


def test_it_opens_from_a_file(browser, site):
    reader = Reader(browser, site.as_uri() + "/")
    page = reader.open("index.html")
    page.locator(".cryonb-frames img").first.wait_for()
    page = reader.open("conventions.html")
    page.locator("mjx-container").first.wait_for()
    page = reader.open("search.html?q=micelle")
    page.locator("#search-results li a").first.wait_for()
    page.close()
    assert not reader.problems


def test_no_serious_barrier_for_assistive_technology(browser, address, pages):
    axe = (VENDOR / "axe-core" / "axe.min.js").read_text()
    kinds = ["index.html", "paper.html", "notebooks/02_train_sr3.html", "api/data/star.html"]
    every = sorted({n for n in pages if not n.startswith("api/")} | set(kinds))
    found = []
    for scheme, names in {"light": every, "dark": kinds}.items():  # only colours differ
        reader = Reader(browser, address, color_scheme=scheme)
        for name in names:
            page = reader.open(name)
            page.evaluate(axe)
            result = page.evaluate("() => axe.run({resultTypes: ['violations']})")
            for violation in result["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    where = violation["nodes"][0]["html"][:200]
                    found.append((scheme, name, violation["id"], len(violation["nodes"]), where))
        reader.page.close()
    assert not found, "\n".join(map(str, found))


def test_numbers_on_pages_are_those_of_the_run(site, stage, smoke_run):
    chapters = stage.read_run(smoke_run)
    status = (site / "status.html").read_text()
    for chapter in chapters:
        assert f"{chapter.record['peak_MB']:,.0f} MB" in status
        assert chapter.exercises >= 1 and chapter.figures >= 5 and chapter.read_minutes > 5
    paper = BeautifulSoup((site / "paper.html").read_text(), "html.parser")
    verdicts = {cell.get_text() for cell in paper.select("table tr td:last-child strong")}
    assert {"confirmed"} < verdicts <= {"confirmed", "not confirmed", "depends", "not tested"}
    cells = [[c.get_text(strip=True) for c in r.select("td")] for r in paper.select("table tr")]
    assert all(all(row) for row in cells if row)  # no row without evidence or a reason


def test_schedules_add_up(stage, smoke_run):
    """The sum is what is promised; at workshop reading and half a slot of computing fit."""
    chapters = {c.name[:2]: c for c in stage.read_run(smoke_run)}
    times = yaml.safe_load((ROOT / "notebooks" / "times.yml").read_text())["workshop"]["notebooks"]
    schedules = yaml.safe_load((BOOK / "schedules.yml").read_text())
    assert [s["minutes"] for s in schedules.values()][:2] == [90, 240]
    for name, plan in schedules.items():
        assert sum(slot["minutes"] for slot in plan["slots"]) == plan["minutes"], name
        assert sum(slot.get("break", False) for slot in plan["slots"]) == plan.get("breaks", 0)
        for slot in plan["slots"]:
            if "notebook" in slot:
                chapter = chapters[slot["notebook"]]
                compute = times[chapter.name]["seconds"] / 60 if slot.get("run") else 0
                read = chapter.minutes_of(slot.get("read", [""]))
                assert max(2 * compute, read + compute) <= slot["minutes"], (name, chapter.name)
    with pytest.raises(ValueError, match="no section"):
        chapters["00"].minutes_of(["Nothing of the kind"])


def test_the_checklist_is_one_page(stage, site):
    """Each row of the table in 07 is on it, and nothing runs over its edge."""
    checklist = importlib.import_module("checklist")
    rows = checklist.read_checklist()
    page = checklist.draw_page(rows)
    words = "\n".join(text.get_text() for text in page.texts)
    prose = (ROOT / "notebooks" / "07_trust.py").read_text().partition("A checklist")[2]
    assert len(rows) == prose.partition("```")[0].count("# | ") - 1  # without its heading
    assert all(f"Before you {before}:" in words for before, *_ in rows)
    renderer = FigureCanvasAgg(page).get_renderer()
    for text in page.texts:
        box = text.get_window_extent(renderer).transformed(page.transFigure.inverted())
        assert 0 < box.x0 and box.x1 < 0.95 and 0.15 < box.y0 and box.y1 < 1, text.get_text()
    assert len(re.findall(rb"/Type /Page\b", (site / "checklist.pdf").read_bytes())) == 1


def test_a_run_that_is_linked_is_read_and_never_written(smoke_run, tmp_path):
    """The recipe of book/server.md: folders of one's own, files that are links."""
    recipe = (BOOK / "server.md").read_text().partition("cp -rs /srv/cryonb/workshop/{")[2]
    folders = recipe.partition("}")[0].split(",")
    shared = [p for name in folders for p in (smoke_run / name).rglob("*") if p.is_file()]
    before = [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in shared]
    own = tmp_path / "own"
    own.mkdir()
    subprocess.run(["cp", "-rs", *(smoke_run / name for name in folders), own], check=True)
    notebook = find_notebooks(ROOT / "notebooks")["06_reconstruct_fsc"]
    sizes = {"box_size": 32, "pixel_size_A": 6.0, "map_particles": 8, "route_particles": [48]}
    papermill.execute_notebook(
        notebook, None, sizes | {"reference_A": 36.0, "run_dir": str(own)}, progress_bar=False
    )
    assert (own / "results" / "06_reconstruct_fsc.json").is_file()
    assert [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in shared] == before


def test_code_folds_for_those_who_write_none(reader):
    page = reader.open("notebooks/06_reconstruct_fsc.html?code=folded")
    code = page.locator(".cell_input")
    assert code.count() > 20 and not any(c.is_visible() for c in code.all())
    page.locator("details.hide > summary").first.click()
    code.first.wait_for(state="visible")


def test_claims_are_judged_by_their_cases(stage):
    chapter = stage.Chapter("00_x", Path(), {"parameters": {"k": 2}}, {"a": 1.0, "2 b": 2.0})
    claim = {"claim": "x", "chapter": "00", "test": "t"}

    def verdict(**cases):
        return [c["verdict"] for c in stage.judge([claim | {"cases": cases}], {"00": chapter})]

    assert verdict(one=["{k} b", "a"]) == ["confirmed"]
    assert verdict(one=["a", "{k} b"]) == ["not confirmed"]
    assert verdict(one=["a", "{k} b"], two=["{k} b", "a"]) == ["depends"]
    assert verdict(one=["a", "not measured"]) == ["not tested"]
    (one,) = stage.judge(
        [claim | {"larger": "*", "smaller": "a", "cases": ["{k} b"]}], {"00": chapter}
    )
    assert one["verdict"] == "confirmed" and one["cases"][0].name == "2 b"
    table = {"x": [3.0] * 6, "y": [2.0] * 6, "{k} z": [1.0] * 6}
    results = {f"white: {name} mse": i for i, name in enumerate(("x", "y", "2 z"))}
    chapter = stage.Chapter("04_x", Path(), {"parameters": {"k": 2}}, results)
    assert stage.ranks(table, chapter) == [("white", "mse", pytest.approx(-1), 3)]


def test_without_a_run_one_line_says_what_to_do(tmp_path):
    make = [shutil.which("make"), "--silent", "book", f"RUN={tmp_path / 'none'}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and len(lines) == 1 and "make tutorial" in lines[0]
    command = [sys.executable, BOOK / "stage.py", tmp_path, tmp_path / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "source").exists()
    assert "make tutorial" in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_archive_that_was_changed_is_refused(stage, monkeypatch):
    vendor = importlib.import_module("vendor")

    def pack(command, **_):
        Path(command[-1], "x.tgz").write_bytes(b"not what was asked for")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(vendor.shutil, "which", lambda *_, **__: "npm")
    monkeypatch.setattr(vendor.subprocess, "run", pack)
    with pytest.raises(ValueError, match="sha512"):
        vendor.fetch("requirejs", vendor.PACKAGES["requirejs"])
