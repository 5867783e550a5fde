"""The frame viewer: its state in Python, in a notebook run by papermill, and in a real browser."""

from __future__ import annotations

import base64
import html
import io
import json
import shutil
import subprocess

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from cryonb.running import engine
from cryonb.showing.widgets import frame_viewer, live_viewer


def pixels(frame: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(frame))))


def test_grey_frames_share_their_scale():
    ramp = torch.arange(12.0).reshape(3, 4)
    viewer = frame_viewer([ramp, ramp + 12], ["a", "b"], title="Ramp", limits=(0, 23))
    first, second = (pixels(f) for f in viewer.frames)
    assert first.shape == (3, 4) and first[0, 0] == 0 and second[-1, -1] == 255
    assert np.array_equal(first, (255 * ramp.numpy() / 23).round().astype(np.uint8))
    assert viewer.alt == ["Ramp, a", "Ramp, b"] and viewer.labels == ["a", "b"]
    torn = np.full((2, 2), np.nan)
    assert pixels(frame_viewer([torn, np.eye(2)], "ab", title="t").frames[0]).max() == 0
    assert pixels(frame_viewer([np.ones((2, 2))], "a", title="t").frames[0]).shape == (2, 2)


def test_figures_colours_and_png_pass():
    figure, _ = plt.subplots(figsize=(1, 1))
    colour = np.zeros((2, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colour).save(file, format="png")
    viewer = frame_viewer([figure, colour, file.getvalue()], "abc", title="Kinds")
    plt.close(figure)
    assert pixels(viewer.frames[0]).ndim == 3
    assert pixels(viewer.frames[1]).shape == pixels(viewer.frames[2]).shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("frames", "labels", "options"),
    [([], [], {}), ([np.eye(2)], ["a", "b"], {}), ([np.eye(2)], ["a"], {"index": 1})],
)
def test_wrong_counts_are_refused(frames, labels, options):
    with pytest.raises(ValueError, match="frames"):
        frame_viewer(frames, labels, title="Wrong", **options)


def test_state_is_kept_in_the_executed_notebook(tmp_path):
    source = (
        "import numpy as np\nfrom cryonb.showing.widgets import frame_viewer\n"
        "frame_viewer(np.eye(4).reshape(2, 2, 4), ['a', 'b'], title='Kept', index=1)"
    )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(notebook, tmp_path / "viewer.ipynb")
    outcome = engine.execute(tmp_path / "viewer.ipynb", tmp_path / "out.ipynb", {}, 60.0)
    assert outcome["state"] == "finished", outcome["message"]
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (state,) = executed.metadata.widgets.values()
    (viewer,) = [s["state"] for s in state["state"].values() if s["model_module"] == "anywidget"]
    assert viewer["index"] == 1 and viewer["labels"] == ["a", "b"] and len(viewer["frames"]) == 2
    assert "export default { render }" in viewer["_esm"] and ".cryonb-frames" in viewer["_css"]
    (output,) = executed.cells[-1].outputs
    assert "application/vnd.jupyter.widget-view+json" in output.data


BROWSER = """
<!doctype html><meta charset="utf-8"><div id="el"></div><pre id="log"></pre><script type="module">
const state = STATE, heard = {};
const model = {
  get: (key) => state[key],
  set: (key, value) => { state[key] = value; },
  save_changes: () => { state.saved = (state.saved || 0) + 1; },
  on: (name, call) => { heard[name] = call; },
  off: (name) => { delete heard[name]; },
};
const clean = render({ model, el: document.getElementById("el") });
const $ = (tag) => document.querySelector("#el " + tag), log = {};
const look = () => [state.index, $("img").alt, $("span").textContent, $("input").value];
const press = (key) => $("button").dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
log.names = [$("div").getAttribute("aria-label"), $("button").getAttribute("aria-label"),
  $("input").getAttribute("aria-label")];
log.title = $("div > div").textContent;
log.start = look();
$("input").value = 2; $("input").oninput(); log.slid = look();
press("ArrowRight"); log.wrapped = look();
press("ArrowLeft"); log.back = look();
state.index = 1; heard["change:index"](); log.kernel = look();
$("button").click(); log.playing = $("button").getAttribute("aria-label");
await new Promise((done) => setTimeout(done, 200));
log.moved = state.saved > 3;
$("button").click(); log.paused = $("button").getAttribute("aria-label");
await $("img").decode();
log.picture = [$("img").naturalWidth, $("img").naturalHeight, $("img").style.imageRendering];
clean(); log.left = Object.keys(heard).length;
document.getElementById("log").textContent = JSON.stringify(log);
JAVASCRIPT
</script>
"""


def test_the_viewer_works_in_a_browser(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no browser here: sudo apt install chromium")
    title = 'Noise "grows" <b>'
    viewer = frame_viewer(np.arange(60).reshape(3, 4, 5), ["0", "1", "2"], title=title)
    viewer.interval_ms = 30
    state = {key: getattr(viewer, key) for key in viewer.keys if not key.startswith("_")}
    script = viewer._esm.replace("export default { render };", "")
    page = BROWSER.replace("STATE", json.dumps(state, default=str)).replace("JAVASCRIPT", script)
    (tmp_path / "page.html").write_text(page)
    command = f"{browser} --headless --no-sandbox --disable-gpu --disable-background-networking"
    command += f" --user-data-dir={tmp_path}/profile --virtual-time-budget=5000 --dump-dom"
    address = (tmp_path / "page.html").as_uri()
    text = ""
    for _ in range(3):  # a browser on a busy machine may dump the page before its script has ended
        words = [*command.split(), address]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        text = done.stdout.partition('<pre id="log">')[2].partition("</pre>")[0]
        if text:
            break
    log = json.loads(html.unescape(text))
    assert log == {
        "names": [title, f"Play {title}", f"{title}: frame"],
        "title": title,
        "start": [0, f"{title}, 0", "0", "0"],
        "slid": [2, f"{title}, 2", "2", "2"],
        "wrapped": [0, f"{title}, 0", "0", "0"],
        "back": [2, f"{title}, 2", "2", "2"],
        "kernel": [1, f"{title}, 1", "1", "1"],
        "playing": f"Pause {title}",
        "moved": True,
        "paused": f"Play {title}",
        "picture": [5, 4, "pixelated"],
        "left": 0,
    }


def test_a_live_viewer_draws_anew_when_a_control_changes():
    def draw(level, kind):
        if kind == "wrong":
            raise ValueError("no such kind")
        return [np.full((4, 4), level), np.eye(4)], ["flat", f"{kind} {level}"]

    controls = {
        "level": ipywidgets.IntSlider(value=1, max=5),
        "kind": ipywidgets.Dropdown(options=["eye", "other", "wrong"]),
    }
    box = live_viewer(draw, controls, title="Bench", limits=(0, 5))
    viewer = box.children[-1]
    assert viewer.labels == ["flat", "eye 1"] and viewer.index == 1
    before = list(viewer.frames)
    controls["level"].value = 4
    assert viewer.labels == ["flat", "eye 4"] and viewer.alt == ["Bench, flat", "Bench, eye 4"]
    assert viewer.frames[0] != before[0] and viewer.frames[1] == before[1]
    assert controls["level"].description == "level" and not controls["level"].continuous_update
    controls["kind"].value = "wrong"
    assert viewer.labels[viewer.index] == "ValueError: no such kind"
    controls["kind"].value = "other"
    assert viewer.labels == ["flat", "other 4"]
