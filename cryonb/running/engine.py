"""Execute one notebook with papermill, in this Python, watching its progress and memory."""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from traitlets.config import Config

HEARTBEAT_S = 20.0  # between two lines of a long cell where output is not a terminal
SAMPLE_S = 0.25  # between two readings of the kernel's memory
PARENT = int(os.environ.get("CRYONB_PARENT", 0))  # a sweep's process, with which its runs end
SOCKET_PATH = 80  # of the 107 characters that the path of a local socket may have


class ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs this code, whatever kernelspecs the user has installed."""

    shutdown_wait_time = 1.0  # seconds, then the kernel is killed: it may be busy and not listen

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=CRITICAL"]
        policy = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        env = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "OMP_WAIT_POLICY": policy}
        return KernelSpec(argv=[*argv, "-f", "{connection_file}"], env=env, language="python")


class Watch:
    """Shows where a running notebook is and what it printed last; measures its peak memory.

    To papermill it is the stream that the notebook prints to.
    """

    def __init__(self, name: str, n_cells: int):
        self.name, self.n_cells, self.cell, self.printed = name, n_cells, 0, ""
        self.start = self.cell_start = time.monotonic()
        self.peak_bytes = 0  # of all that this process has started: the kernel and its children
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._loop)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)

    def begin_cell(self, **_) -> None:
        self.cell, self.printed, self.cell_start = self.cell + 1, "", time.monotonic()

    def write(self, text: str) -> None:
        for line in re.split(r"[\r\n]", text):
            self.printed = line.strip() or self.printed

    def flush(self) -> None:
        pass

    def _loop(self) -> None:
        shown, terminal = time.monotonic(), sys.stdout.isatty()
        while not self._stop.wait(SAMPLE_S):
            if PARENT and os.getppid() != PARENT:
                return _thread.interrupt_main()  # as Ctrl-C does
            with suppress(psutil.Error):  # one of them has just ended
                children = psutil.Process().children(recursive=True)
                resident = sum(child.memory_info().rss for child in children)
                self.peak_bytes = max(self.peak_bytes, resident)
            if time.monotonic() - shown > (1.0 if terminal else HEARTBEAT_S):
                shown = time.monotonic()
                text = (
                    f"  {self.name}: cell {self.cell} of {self.n_cells}, {shown - self.start:.0f} s"
                )
                text += f", this cell {shown - self.cell_start:.0f} s"
                if self.printed:
                    text += f": {self.printed}"
                if terminal:
                    width = shutil.get_terminal_size().columns - 1
                    print(f"\r\x1b[K{text[:width]}", end="", flush=True)
                else:
                    print(text[:200], flush=True)


def execute(notebook: Path, output: Path, parameters: dict, cell_timeout_s: float) -> dict:
    """Execute a notebook; `output` has its outputs, up to an error's traceback, never half a file.

    Returns ``state``: finished, failed, timeout, killed or interrupted; ``message``: empty, or one
    line that says what went wrong and in which cell; ``seconds``; ``peak_MB``: largest resident
    memory of the kernel and its children together, as seen every quarter of a second. OSError when
    the executed notebook cannot be written, for instance on a full disk.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    watch = Watch(output.stem, sum(c.cell_type == "code" for c in cells) + bool(parameters))
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    state, message = "finished", ""
    try:
        with watch:
            _papermill(notebook, partial, parameters, watch, cell_timeout_s)
    except papermill.PapermillExecutionError as error:
        state, message = "failed", f"{error.ename}: {error.evalue}"
    except CellTimeoutError:
        state, message = "timeout", f"took longer than {cell_timeout_s:g} s (--cell-timeout)"
    except DeadKernelError:
        used = f"{watch.peak_bytes / 1e6:,.0f} MB in use before, a full memory is likely"
        state, message = "killed", f"the Python of the notebook was killed ({used})"
    except KeyboardInterrupt:
        state, message = "interrupted", "stopped from the keyboard"
    except RuntimeError as error:
        state, message = "failed", f"the notebook's Python did not start: {error}"
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if partial.exists():
        os.replace(partial, output)
    message = message and f"cell {watch.cell}: {message}"
    seconds, peak_MB = round(time.monotonic() - watch.start, 2), round(watch.peak_bytes / 1e6, 1)
    return {"state": state, "message": message, "seconds": seconds, "peak_MB": peak_MB}


def _papermill(notebook, partial, parameters, watch: Watch, cell_timeout_s: float) -> None:
    """papermill.execute_notebook; its kernel's sockets lie in a folder that no other run shares."""
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what went wrong is told by us
    ensure_event_loop().set_exception_handler(_say_unless_interrupted)
    with tempfile.TemporaryDirectory(prefix="cryonb", ignore_cleanup_errors=True) as folder:
        local = os.name == "posix" and len(folder) < SOCKET_PATH
        transport = "ipc" if local else "tcp"
        connection = {"transport": transport, "connection_file": f"{folder}/kernel.json"}
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=120,
            execution_timeout=cell_timeout_s,
            stdout_file=watch,
            stderr_file=watch,
            kernel_manager_class=ThisPython,
            on_cell_execute=watch.begin_cell,
            config=Config({"KernelManager": connection}),
        )


def _say_unless_interrupted(loop: asyncio.AbstractEventLoop, context: dict) -> None:
    """Ctrl-C ends tasks that nobody waits for any more: that is no news."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)
