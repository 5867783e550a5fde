"""A viewer of precomputed frames with a slider, the same in a live kernel and in a saved page.

Every frame is in the widget's state as a PNG, so nothing has to be computed when the slider moves:
a notebook executed by papermill, and the page made from it, stay interactive without a kernel.
`live_viewer` adds controls that do compute, for those who have a kernel.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import traitlets


class FrameViewer(anywidget.AnyWidget):
    """Pictures with a slider, a play button and arrow keys; make one with `frame_viewer`."""

    _esm = Path(__file__).with_name("frame_viewer.js")
    _css = Path(__file__).with_name("frame_viewer.css")
    frames = traitlets.List(traitlets.Unicode()).tag(sync=True)  # PNG, base64
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    alt = traitlets.List(traitlets.Unicode()).tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)
    pixelated = traitlets.Bool(True).tag(sync=True)
    width_px = traitlets.Int(320).tag(sync=True)
    interval_ms = traitlets.Int(400).tag(sync=True)


def frame_viewer(
    frames,
    labels: list[str],
    alt: list[str] | None = None,
    *,
    title: str,
    index: int = 0,
    limits: tuple[float, float] | None = None,
    pixelated: bool = True,
    width_px: int = 320,
) -> FrameViewer:
    """Make a viewer from arrays, matplotlib figures or PNG data, the frame `index` shown first.

    Parameters
    ----------
    frames : sequence
        Each an array or tensor ``(y, x)`` (shown in grey), ``(y, x, 3)`` or ``(y, x, 4)`` uint8, a
        matplotlib figure, or PNG bytes.
    labels, alt : list of str
        Beside the slider, and for those who do not see the picture, one a frame.
    title : str
        Heading, and the name that screen readers give the controls.
    limits : (float, float), optional
        Values shown black and white; default the 0.5 and 99.5 percentile of all grey frames.
    pixelated : bool
        Whether pixels stay sharp squares when the picture is enlarged.

    ValueError when there is no frame, or the numbers of frames, labels and texts differ.
    """
    frames, labels = list(frames), [str(label) for label in labels]
    alt = [f"{title}, {label}" for label in labels] if alt is None else list(alt)
    if not frames or not len(frames) == len(labels) == len(alt):
        counts = f"{len(frames)} frames, {len(labels)} labels, {len(alt)} texts"
        raise ValueError(f"a viewer needs one label and one text a frame, but there are {counts}")
    if not 0 <= index < len(frames):
        raise ValueError(f"index {index} is not one of the {len(frames)} frames, counted from 0")
    frames = [f if isinstance(f, bytes) or hasattr(f, "savefig") else np.asarray(f) for f in frames]
    grey = [f[np.isfinite(f)] for f in frames if isinstance(f, np.ndarray) and f.ndim == 2]
    if limits is None and grey:
        limits = tuple(np.percentile(np.concatenate(grey), (0.5, 99.5)))
    pictures = [base64.b64encode(_png(f, limits)).decode() for f in frames]
    about = {"title": title, "index": index, "pixelated": pixelated, "width_px": width_px}
    return FrameViewer(frames=pictures, labels=labels, alt=alt, **about)


def flip_through(
    stacks: dict[str, np.ndarray], n: int = 4, *, title: str, limits: tuple[float, float]
) -> FrameViewer:
    """Make a viewer of the first n images of each stack (n, y, x), side by side, stack by stack."""
    frames = [np.concatenate([*np.asarray(stack[:n])], 1) for stack in stacks.values()]
    return frame_viewer(frames, list(stacks), title=title, limits=limits, width_px=640)


def live_viewer(
    draw: Callable[..., tuple[list, list[str]]],
    controls: dict[str, ipywidgets.ValueWidget],
    *,
    title: str,
    limits: tuple[float, float] | None = None,
) -> ipywidgets.VBox:
    """Make a viewer whose frames are computed anew when a control changes; it needs a kernel.

    Parameters
    ----------
    draw : callable
        Takes the value of each control by its name, and returns frames and labels as
        `frame_viewer` takes them. An error in it is shown in the place of the labels.
    controls : dict of str to ipywidgets
        Such as ``{"snr": FloatLogSlider()}``; one without a description is called by its name.
        They stand above the viewer, which shows the last frame.
    """

    def frames() -> FrameViewer:
        pictures, labels = draw(**{name: control.value for name, control in controls.items()})
        about = {"title": title, "limits": limits, "index": len(labels) - 1, "width_px": 640}
        return frame_viewer(pictures, labels, **about)

    def redraw(_=None):
        try:
            new = frames()
        except Exception as error:  # in a callback it would vanish in the kernel's log
            viewer.labels = [f"{type(error).__name__}: {error}"] * len(viewer.labels)
            return
        with viewer.hold_sync():
            viewer.labels, viewer.alt, viewer.index = new.labels, new.alt, new.index
            viewer.frames = new.frames

    viewer = frames()
    for name, control in controls.items():
        control.description = control.description or name
        if hasattr(control, "continuous_update"):
            control.continuous_update = False  # when it is let go of, not on the way
        control.observe(redraw, "value")
    row = ipywidgets.Layout(flex_flow="row wrap")
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values()), layout=row), viewer])


def _png(frame, limits) -> bytes:
    """PNG data of one frame; grey values go linearly from `limits` to 0 and 255."""
    if isinstance(frame, bytes):
        return frame
    file = io.BytesIO()
    if hasattr(frame, "savefig"):
        frame.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()
    from PIL import Image

    if frame.ndim == 2:
        low, high = limits
        scaled = (np.nan_to_num(frame.astype(float), nan=low) - low) / max(high - low, 1e-12)
        frame = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
    Image.fromarray(frame).save(file, format="png")
    return file.getvalue()
