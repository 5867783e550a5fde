"""Execute one notebook with papermill, in this Python, watching its progress and memory.

Plain papermill has no time limit, shows nothing inside a long cell, and takes whatever kernel is
called ``python3`` on the machine. `execute` adds these three; everything else is papermill's.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

HEARTBEAT_S = 20.0  # between two lines of a long cell where output is not a terminal
SAMPLE_S = 0.25  # between two readings of the kernel's memory


@dataclass(frozen=True)
class Outcome:
    """How one execution ended.

    Attributes
    ----------
    state : str
        ``finished``, ``failed``, ``timeout``, ``killed`` or ``interrupted``.
    message : str
        Empty, or one line that says what went wrong and in which cell.
    seconds : float
        Wall-clock time.
    peak_MB : float
        Largest resident memory of the kernel and its children together, in 10^6 bytes, as seen
        every quarter of a second and after each cell.
    """

    state: str
    message: str
    seconds: float
    peak_MB: float


class ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs this code, whatever kernelspecs the user has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class Watch:
    """Shows where a running notebook is, and keeps the peak memory of its kernel."""

    def __init__(self, name: str):
        self.name, self.n_cells, self.cell, self.pid = name, 0, 0, None
        self.start = self.cell_start = time.monotonic()
        self.line, self.peak_bytes, self.seconds = "", 0, 0.0
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._loop)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.seconds = time.monotonic() - self.start
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)

    def begin_cell(self, pid: int | None) -> None:
        self.pid, self.cell, self.line, self.cell_start = pid, self.cell + 1, "", time.monotonic()

    def weigh(self) -> None:
        self.peak_bytes = max(self.peak_bytes, resident_bytes(self.pid))

    def hear(self, text: str) -> None:
        lines = [line.strip() for line in re.split(r"[\r\n]", text)]
        self.line = next((line for line in reversed(lines) if line), self.line)

    def _loop(self) -> None:
        terminal, shown = sys.stdout.isatty(), time.monotonic()
        while not self._stop.wait(SAMPLE_S):
            self.weigh()
            now = time.monotonic()
            if now - shown < (1.0 if terminal else HEARTBEAT_S):
                continue
            shown = now
            text = f"{self.name}: cell {self.cell} of {self.n_cells}, {now - self.start:.0f} s"
            if now - self.cell_start > 2:
                text += f", this cell {now - self.cell_start:.0f} s"
            text += f": {self.line}" if self.line else ""
            if terminal:
                width = shutil.get_terminal_size((100, 24)).columns
                print(f"\r\x1b[K  {text}"[: width + 4], end="", flush=True)
            else:
                print(f"  {text[:200]}", flush=True)


def resident_bytes(pid: int | None) -> int:
    """Resident memory of a process and all its children, in bytes; 0 when it is gone."""
    try:
        process = psutil.Process(pid) if pid else None
        family = [process, *process.children(recursive=True)] if process else []
        return sum(p.memory_info().rss for p in family)
    except psutil.Error:
        return 0


class _Client(PapermillNotebookClient):
    def __init__(self, nb_man, watch: Watch, **options):
        self.watch = watch
        watch.n_cells = sum(cell.cell_type == "code" for cell in nb_man.nb.cells)
        super().__init__(nb_man, **options)

    def execute_cell(self, cell, cell_index, **options):
        if cell.cell_type == "code":
            self.watch.begin_cell(getattr(self.km.provisioner, "pid", None))
        try:
            return super().execute_cell(cell, cell_index, **options)
        except (CellTimeoutError, KeyboardInterrupt):
            self.shutdown_kernel = "immediate"  # it is busy and will not listen
            raise
        finally:
            self.watch.weigh()

    def process_message(self, *args, **options):
        output = super().process_message(*args, **options)
        if output and output.output_type == "stream":
            self.watch.hear(output.text)
        return output


class _Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, watch, execution_timeout, **_):
        log = logging.Logger(__name__, level=logging.CRITICAL)  # outcomes are told by us
        with _runtime_folder() as connection:
            client = _Client(
                nb_man,
                watch=watch,
                timeout=execution_timeout,
                startup_timeout=120,
                kernel_name=kernel_name,
                kernel_manager_class=ThisPython,
                config=Config({"KernelManager": connection}),
                log=log,
            )
            extra = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "OMP_WAIT_POLICY": "PASSIVE"}
            return client.execute(env={**extra, **os.environ})


@contextmanager
def _runtime_folder():
    """Keep the kernel's connection in a short-lived folder; local sockets where its path is short.

    Sockets take their name from the connection file. Without one they would lie in the working
    directory, under a name that two runs at a time share.
    """
    before = os.environ.get("JUPYTER_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="cryonb", ignore_cleanup_errors=True) as folder:
        os.environ["JUPYTER_RUNTIME_DIR"] = folder
        try:  # a socket's path may have 107 characters
            transport = "ipc" if os.name == "posix" and len(folder) < 80 else "tcp"
            yield {"transport": transport, "connection_file": f"{folder}/kernel.json"}
        finally:
            os.environ.pop("JUPYTER_RUNTIME_DIR")
            if before is not None:
                os.environ["JUPYTER_RUNTIME_DIR"] = before


def execute(
    notebook: Path, output: Path, parameters: dict, *, cell_timeout_s: float = 3600
) -> Outcome:
    """Execute a notebook and keep it, with its outputs or its traceback.

    Parameters
    ----------
    notebook, output : Path
        What to execute, and where the executed notebook goes; it is written beside and renamed
        at the end, so that `output` is never half a notebook.
    parameters : dict
        Values for papermill to inject after the cell tagged ``parameters``.
    cell_timeout_s : float
        Longest time that one cell may take, in seconds.

    Returns
    -------
    Outcome

    Raises
    ------
    OSError
        When the executed notebook cannot be written, for instance on a full disk.
    """
    papermill_engines.register("cryonb", _Engine)
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    watch = Watch(output.stem)
    try:
        with watch:
            state, message = _attempt(notebook, partial, parameters, watch, cell_timeout_s)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    if state == "killed":
        message += f" ({watch.peak_bytes / 1e6:,.0f} MB in use before, a full memory is likely)"
    return Outcome(state, message, round(watch.seconds, 2), round(watch.peak_bytes / 1e6, 1))


def _attempt(notebook, partial, parameters, watch, cell_timeout_s) -> tuple[str, str]:
    try:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=parameters,
            engine_name="cryonb",
            kernel_name="python3",
            progress_bar=False,
            watch=watch,
            execution_timeout=cell_timeout_s,
        )
        return "finished", ""
    except papermill.PapermillExecutionError as error:
        return "failed", f"cell {watch.cell}: {error.ename}: {error.evalue}"
    except CellTimeoutError:
        return (
            "timeout",
            f"cell {watch.cell} took longer than {cell_timeout_s:g} s (--cell-timeout)",
        )
    except DeadKernelError:
        return "killed", f"cell {watch.cell}: the Python of the notebook was killed"
    except KeyboardInterrupt:
        return "interrupted", f"cell {watch.cell}: stopped from the keyboard"
    except RuntimeError as error:  # the kernel did not start
        return "failed", f"the notebook's Python did not start: {error}"
