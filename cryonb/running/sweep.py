"""``cryonb sweep``: run an experiment, many runs at a time, on this machine or on a cluster.

Every run is one ``cryonb run`` in a process of its own, so that a run that is killed takes nothing
with it, and threads are limited for each. Who starts them is an `Executor`: that of a
`dask.distributed` cluster (local, at an address, or of Slurm), or threads where dask is not
installed. A worker needs the same environment and the same file system, nothing else.

A sweep that stops takes away the file ``.running`` in its folder; workers see it and stop too.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from tqdm.auto import tqdm

from cryonb.base.workers import INSTALL, connect, count_cores
from cryonb.running.experiment import Experiment, Run, plan_runs
from cryonb.running.runner import check_folder, lock, read_json, write_json

TRIES = 2  # of a run whose process was killed
FULL = os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CHILD = "import sys; from cryonb.running.sweep import run_here; sys.exit(run_here(sys.argv[1:]))"


def sweep(
    experiment: Experiment,
    folder: str | Path | None = None,
    *,
    notebooks: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    cluster: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> int:
    """Run all runs of an experiment that are not finished yet.

    Parameters
    ----------
    experiment : Experiment
        See `cryonb.running.experiment.read_experiment`.
    folder : path, optional
        Sweep folder, default ``runs/<name of the experiment>``.
    notebooks : path, optional
        Folder of the notebooks, see `cryonb.running.plan.find_notebooks`.
    workers : int, optional
        Runs at a time; default: as many as cores and memory allow, on Slurm one a run, at most 16.
    scheduler : str, optional
        Address of a running dask scheduler, ``tcp://host:8786``.
    cluster : str, optional
        ``slurm``: submit a job for each worker.
    force : bool
        Run even what is finished, and in a folder made by another experiment.
    dry_run : bool
        Print the plan and run nothing.

    Returns
    -------
    int
        Exit code: 0 when all runs are finished, 1 when some are not.

    Raises
    ------
    ValueError, FileNotFoundError, OSError
        With one sentence that says what is wrong and what to do. All runs are checked before any
        starts.
    """
    folder = Path(folder or f"runs/{experiment.name}")
    runs = plan_runs(experiment, folder, notebooks)
    check_folder(folder, experiment.configuration, force, "sweep.json", "sweep")
    jobs = []
    for run in runs:
        words = _arguments(experiment, run, folder, notebooks, force)
        skipped = not force and run.finished(folder)
        if not skipped:
            jobs.append(Job(run, words))
        if dry_run:
            print(f"{run.name}: {'finished, skipped: ' * skipped}cryonb run {shlex.join(words)}")
    print(f"experiment {experiment.name}: {len(runs)} runs, {len(jobs)} to do, folder {folder}")
    if dry_run:
        return 0
    with lock(folder):
        write_json(folder / "sweep.json", _describe(experiment, runs))
        if jobs:
            with pool(experiment, len(jobs), workers, scheduler, cluster) as executor:
                _work(executor, jobs, experiment, folder, len(runs))
    return _report(jobs, folder)


@dataclass
class Job:
    """A run that is to be done: arguments of ``cryonb run``, tries so far, and how it ended."""

    run: Run
    arguments: list[str]
    tries: int = 0
    state: str = "waiting"
    message: str = ""


def _arguments(experiment, run: Run, folder: Path, notebooks, force: bool) -> list[str]:
    words = [step.name for step in run.chosen]
    words += ["--profile", experiment.profile, "--run-dir", str(folder / run.name)]
    for name, value in run.given.items():
        words += ["-p", name, value if isinstance(value, str) else repr(value)]
    words += ["--notebooks", str(notebooks)] if notebooks else []
    return words + ["--force"] * force


def _describe(experiment: Experiment, runs: list[Run]) -> dict:
    return {
        "configuration": experiment.configuration,
        "experiment": experiment.name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "notebooks": [step.name for step in runs[0].chosen],
        "varied": list(runs[0].varied),
        "runs": {run.name: run.varied for run in runs},
    }


@contextmanager
def pool(experiment: Experiment, n_jobs: int, workers=None, scheduler=None, cluster=None):
    """Give an `Executor` that has a worker for each run at a time; arguments as in `sweep`."""
    local = local_workers(experiment.cores, experiment.memory_GB)
    n = min(workers or (16 if cluster else local), n_jobs)
    if not (scheduler or cluster or importlib.util.find_spec("distributed")):
        print(f"{n} runs at a time, {experiment.cores} threads each ({INSTALL}: clusters too)")
        with ThreadPoolExecutor(n) as executor:
            yield executor
        return
    with ExitStack() as stack:
        if cluster:
            scheduler = stack.enter_context(_slurm(experiment, n))
        elif not scheduler:  # threads of this process suffice: a run is a process of its own
            from distributed import LocalCluster

            size = {"n_workers": 1, "threads_per_worker": n, "memory_limit": 0}
            made = LocalCluster(processes=False, dashboard_address="127.0.0.1:0", **size)
            scheduler = stack.enter_context(made)
        client = stack.enter_context(connect(scheduler))
        now = sum(client.ncores().values())
        shown = f"; dashboard {client.dashboard_link}" if importlib.util.find_spec("bokeh") else ""
        print(f"dask: {now} runs at a time so far, {experiment.cores} threads each{shown}")
        yield client.get_executor(pure=False)


def _slurm(experiment: Experiment, n: int):
    """Slurm jobs of one worker with one task each, which may use all cores of the job."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ValueError(f"Slurm needs dask-jobqueue: {INSTALL}") from None
    size = {"cores": 1, "processes": 1, "job_cpu": experiment.cores}
    made = SLURMCluster(**size | {"memory": f"{experiment.memory_GB:g}GB"} | experiment.slurm)
    made.scale(jobs=n)
    return made


def local_workers(cores: int, memory_GB: float) -> int:
    """Runs that fit on this machine at a time, each with so many cores and 10^9 bytes."""
    free_GB = psutil.virtual_memory().available / 1e9
    return max(1, min(count_cores() // cores, int(free_GB // memory_GB)))


def _work(
    executor: Executor, jobs: list[Job], experiment: Experiment, folder: Path, n: int
) -> None:
    """Have all jobs done; each says how it ended. A full disk or Ctrl-C stops them all."""
    running = folder / ".running"
    running.touch()
    where = os.getcwd(), str(running), experiment.cores

    def submit(job: Job):
        job.tries += 1
        log = folder / f"{job.run.name}.log"
        return executor.submit(execute_run, job.arguments, str(log), *where)

    waiting = {submit(job): job for job in jobs}
    try:
        with tqdm(total=n, initial=n - len(jobs), desc=experiment.name, unit="run") as bar:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    job = waiting.pop(future)
                    _judge(job, future, folder)
                    if any(words in job.message for words in FULL):
                        raise OSError(errno.ENOSPC, FULL[0], str(folder))
                    if job.state == "lost" and job.tries < TRIES:
                        waiting[submit(job)] = job
                        continue
                    bar.update()
                    if job.state != "finished":
                        bar.write(f"{job.run.name} {job.state}: {job.message}")
    finally:
        running.unlink(missing_ok=True)
        wait(waiting, timeout=60)


def _judge(job: Job, future, folder: Path) -> None:
    """Say how a try ended, from what it left in its folder."""
    error = CancelledError("no scheduler") if future.cancelled() else future.exception()
    code, output = (None, "") if error else future.result()
    records = [read_json(folder / job.run.name / f"{step.name}.json") for step in job.run.chosen]
    record = next((r for r in records if r.get("state") != "finished"), {})
    errors = [line for line in output.splitlines() if line.startswith("cryonb: ")]
    if job.run.finished(folder):
        job.state, job.message = "finished", ""
    elif error or code < 0 or record.get("state") == "killed":
        why = record.get("message") or (f"signal {-code}" if code else type(error).__name__)
        job.state, job.message = "lost", f"its process was killed ({why})"
    else:
        job.state, job.message = "failed", record.get("message", output[-300:])
        if code == 0:
            job.message = "finished by another cryonb or other notebooks than those here"
        elif errors:
            job.message = errors[-1].removeprefix("cryonb: ")


def _report(jobs: list[Job], folder: Path) -> int:
    """Say what is missing; returns the exit code."""
    bad = [job for job in jobs if job.state != "finished"]
    for job in bad:
        print(f"{job.run.name} {job.state}: {job.message}\n  see {folder / job.run.name}")
    if bad:
        print(f"{len(bad)} runs are not finished; the same command tries them again")
    print(f"now:  cryonb results {folder}")
    return 1 if bad else 0


def execute_run(
    arguments: list[str], log: str, cwd: str, running: str, cores: int
) -> tuple[int, str]:
    """Run ``cryonb run`` in a process of its own, on the worker; stop it when `running` is gone.

    Returns
    -------
    code : int
        As of `subprocess`: negative after a signal.
    output : str
        All that it printed, which is in the file `log` too.
    """
    if not Path(cwd).is_dir():
        return 2, f"cryonb: the worker does not see {cwd}: a sweep needs a shared file system"
    if not Path(cwd, running).exists():
        return 130, ""
    theirs, ours = os.pipe()
    with open(ours, "wb") as leash:  # the child stops when this end closes, in whatever way
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            cwd=cwd,
            env=os.environ | {name: str(cores) for name in THREADS},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        output = None
        while output is None:
            with suppress(subprocess.TimeoutExpired):
                output, _ = process.communicate(timeout=0.5)
            if not Path(cwd, running).exists():
                leash.close()
    with suppress(OSError):
        Path(cwd, log).write_text(output)
    return process.returncode, output


def run_here(arguments: list[str]) -> int:
    """``cryonb run`` with these arguments, stopped as by Ctrl-C when standard input ends."""
    from cryonb.cli import main

    def stop_with_parent():
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    folder = Path(arguments[arguments.index("--run-dir") + 1])
    for _ in range(60):  # where a worker was lost, its run may take a moment to notice
        with suppress(ValueError), lock(folder):
            break
        time.sleep(0.5)
    return main(["run", *arguments])
