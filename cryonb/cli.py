"""The command line: one function for each subcommand, its help from signature and docstring.

What a command needs is imported when it is called, so that ``--help`` is quick.
"""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter, default_name_transform

from cryonb import __version__
from cryonb.base.options import (
    AbInitioOptions,
    AuditOptions,
    DenoiseOptions,
    FetchOptions,
    Placing,
    ReconstructOptions,
    RunOptions,
    SweepOptions,
    TrainOptions,
)


def _option(name: str) -> str:
    """Name of an option: ``--pixel-size`` of ``pixel_size_A``, whose help tells the unit."""
    return default_name_transform(name.removesuffix("_A").removesuffix("_s"))


app = App(
    "cryonb",
    help="Denoise single-particle cryo-EM images, run the notebooks that teach it.",
    help_epilogue="Every command takes --debug: show the whole traceback of an error.",
    help_format="plaintext",
    version=__version__,
    # Of an option that is given twice the last one counts; there is no --no-force.
    default_parameter=Parameter(allow_repeating=True, negative="", name_transform=_option),
    suppress_keyboard_interrupt=False,
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; an expected error is one line and exit code 2 (--debug: a traceback)."""
    words = sys.argv[1:] if argv is None else argv
    given = [word for word in words if word != "--debug"]
    try:
        for at in (k for k, word in enumerate(words) if word == "--debug"):
            if {"-p", "--set"} & set(words[max(at - 2, 0) : at]):
                raise ValueError("-p wants NAME VALUE, and --debug stands in the place of one")
        code = app(given)
        return (code or 0) if given else 2  # no command at all: the help is shown
    except KeyboardInterrupt:
        print("cryonb: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (CycloptsError, ValueError, OSError) as error:
        if "--debug" in words:
            raise
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some space and run the same command again" if full else ""
        print(f"cryonb: {error}{hint}", file=sys.stderr)
        return 2


def _interrupt_once(*_) -> None:
    """Stop tidily, undisturbed by a second signal: both a shell and a sweep may send one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@app.command
def run(*notebook: str, options: RunOptions = RunOptions()) -> int:
    """Run the notebooks in order; what is finished and unchanged is skipped.

    Parameters
    ----------
    notebook
        Name, number or path; by default all of them.
    """
    from cryonb.running import runner

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once)
    return runner.run(notebook, options)


@app.command
def check(*, fast: bool = False) -> int:
    """Say whether this machine is ready, and how long the notebooks will take here.

    Parameters
    ----------
    fast
        Without the ten seconds that measure its speed.
    """
    from cryonb.running import calibrate as speed
    from cryonb.running.check import environment_report

    report = environment_report()
    for item in report:
        print(f"{'ok ' if item.ok else 'NO '} {item.name:14} {item.value}")
        if item.advice:
            print(f"    {'':14} {item.advice}")
    if times := speed.read_times():
        if not fast and (busy := speed.busy_percent()) > speed.BUSY_PERCENT:
            print(f"\n{busy:.0f} % of the processor is busy: without other programs it takes less")
        here = None if fast else speed.calibrate()
        print(f"\nall notebooks together take\n{speed.say_times(times, here)}")
    return 0 if all(item.ok for item in report) else 1


@app.command
def sweep(
    experiment: Path,
    /,
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
    options: SweepOptions = SweepOptions(),
) -> int:
    """Run an experiment, here or on a cluster; what is finished is skipped.

    Parameters
    ----------
    experiment
        YAML file, see experiments/.
    words
        Further options of snakemake: --cores 4, or --executor slurm --jobs 32.
    """
    from cryonb.running.experiment import read_experiment
    from cryonb.running.sweep import sweep as run_all

    return run_all(read_experiment(experiment), options, words)


@app.command
def results(sweep: Path, /) -> None:
    """Gather the results of a sweep into tables.

    Parameters
    ----------
    sweep
        Folder of the sweep, or the experiment's YAML file.
    """
    from cryonb.running.experiment import read_experiment, write_results

    if sweep.suffix in (".yml", ".yaml"):
        sweep = Path("runs") / read_experiment(sweep).name
    for path in write_results(sweep):
        print(f"wrote {path}")


@app.command
def fetch(name: str, /, *, options: FetchOptions = FetchOptions()) -> None:
    """Get real data by name, and print its path.

    Parameters
    ----------
    name
        EMD-1234, a PDB identifier, EMPIAR-12345/FILE.star, or the name of a micrograph.
    """
    from cryonb.data import fetch as data

    path = data.fetch(name, **vars(options))
    if name in data.MICROGRAPHS:
        note = f"{data.MICROGRAPHS[name].header}; what the sample is, is not stated"
        print(f"{name}: {note}", file=sys.stderr)
    print(path)


@app.command
def train(source: str, /, *, options: TrainOptions = TrainOptions()) -> None:
    """Train the weights that come with cryonb.

    Parameters
    ----------
    source
        channel, prestin, a file, many, or map-cleaner.
    """
    from cryonb.learning.pretrain import train_weights

    train_weights(source, options)


@app.command
def denoise(particles: Path, /, *, out: Path, options: DenoiseOptions = DenoiseOptions()) -> None:
    """Denoise particles of a STAR file or stack; rows, columns, box and CTF stay as they are.

    With a reference, poses, the share of the best and the log evidence of a particle against noise
    are written, too.

    Parameters
    ----------
    particles
        STAR file of RELION, .cs file of cryoSPARC, or a stack (.mrcs, .mrc).
    out
        File of the same kind, or a STAR file from a .cs file; never the input.
    """
    from cryonb.commands.denoise import denoise_file

    denoise_file(particles, out, options)


@app.command
def abinitio(
    particles: Path, /, *, out: Path, options: AbInitioOptions = AbInitioOptions()
) -> None:
    """Make a map from particles alone: no reference, no poses.

    The particles must be of one molecule. Picks that are not centred want --most-shift.

    Parameters
    ----------
    particles
        STAR file of RELION, .cs file or stack.
    out
        The map, .mrc.
    """
    from cryonb.commands.abinitio import abinitio_file

    abinitio_file(particles, out, options)


@app.command
def reconstruct(
    particles: Path,
    /,
    *,
    out: Path,
    options: ReconstructOptions = ReconstructOptions(),
) -> None:
    """Reconstruct a map from particles with known poses.

    Flipped and premultiplied images are treated as such.

    Parameters
    ----------
    particles
        STAR file of RELION.
    out
        The map, .mrc.
    """
    from cryonb.commands.tools import reconstruct_file

    reconstruct_file(particles, out, **vars(options))


@app.command
def audit(
    denoiser: str,
    /,
    *,
    data: Path,
    out: Path = Path("audit.md"),
    options: AuditOptions = AuditOptions(),
) -> None:
    """Test what a denoiser invents, and write a report with verdicts.

    On noise alone, on another molecule, on particles without detail; and whether a diffusion
    model's samples spread as they should.

    Parameters
    ----------
    denoiser
        SR3 weights (.safetensors), or module:function (n, y, x) -> (n, y, x).
    data
        Folder of a data set, such as runs/quick/data/white.
    out
        The report, Markdown.
    """
    from cryonb.commands.report import write_audit

    print(write_audit(denoiser, data, out, options))


@app.command
def clean(
    map: Path,
    /,
    *,
    out: Path,
    weights: Path | None = None,
    mask: str = "none",
    overwrite: bool = False,
    placing: Placing = Placing(),
) -> None:
    """Take noise and detergent out of a map, to look at it or to trace a model in it.

    Not for FSC between half maps: what the network does to both would count as signal.

    Parameters
    ----------
    map
        A map (.mrc, .map, also .gz), the molecule bright.
    out
        The cleaned map, .mrc, with the header of the map.
    weights
        Of `cryonb train map-cleaner`, by default those that come with cryonb.
    mask
        Besides: a soft mask (.mrc), an atomic model, auto or none.
    overwrite
        Replace the output if it is there already.
    """
    from cryonb.commands.maps import clean_file

    clean_file(map, out, weights, mask, overwrite=overwrite, placing=placing)


@app.command
def fsc(
    map: Path,
    half2: Path | None = None,
    /,
    *,
    reference: str | None = None,
    mask: str = "auto",
    out: str = "fsc",
    seed: int = 0,
    placing: Placing = Placing(),
) -> None:
    """Compare two half maps, or a map and a reference, by Fourier shell correlation.

    Parameters
    ----------
    map
        Half map 1, or a map (.mrc).
    half2
        Half map 2 (.mrc).
    reference
        A map or an atomic model, in the frame of the map, instead of half map 2.
    mask
        A soft mask (.mrc), an atomic model, auto (made from the maps) or none.
    out
        Writes OUT.csv and OUT.png.
    seed
        Of the random phases.
    """
    from cryonb.commands.maps import fsc_files

    fsc_files(map, half2, reference, mask, out, seed=seed, placing=placing)
