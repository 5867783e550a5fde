"""The command line: ``cryonb run``, ``check``, ``fetch``, ``train``, ``denoise`` and others.

A subcommand is a function that adds its arguments to a parser and sets ``call``, the function that
takes the parsed arguments and returns an exit code. What it needs is imported when it is called.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import signal
import sys
from functools import partial

# Subcommands whose module reads its own arguments: name -> (module of cryonb, function, help).
DELEGATED = {
    "sweep": ("running.sweep", "sweep_main", "run an experiment, here or on a cluster"),
    "results": ("running.experiment", "results_main", "gather a sweep's results into one table"),
    "fetch": ("data.fetch", "fetch_main", "get real data by name, and print its path"),
    "train": ("learning.pretrain", "train_main", "train the weights that come with cryonb"),
    "denoise": ("commands.denoise", "denoise_main", "denoise particles of a STAR file or stack"),
    "reconstruct": ("commands.tools", "reconstruct_main", "make a map from a particle STAR file"),
    "audit": ("commands.report", "audit_main", "what a denoiser invents: a report with verdicts"),
    "clean": ("commands.tools", "clean_main", "take noise and detergent out of a map"),
    "fsc": ("commands.tools", "fsc_main", "resolution of half maps, or against a reference"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; an expected error is one line and exit code 2 (``--debug``: a traceback).

    Parameters
    ----------
    argv : list of str, optional
        Default: the arguments of this process.

    Returns
    -------
    int
        Exit code.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in DELEGATED:
        parser.error(f"unknown argument: {' '.join(rest)}")
    try:
        return args.call(rest if args.command in DELEGATED else args) or 0
    except KeyboardInterrupt:
        print("cryonb: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some space and run the same command again" if full else ""
        print(f"cryonb: {error}{hint}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the whole traceback"
    )
    parser = argparse.ArgumentParser(prog="cryonb", description=__doc__.splitlines()[0])
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_run(commands.add_parser("run", parents=[debug], help="run the notebooks in order"))
    check = commands.add_parser(
        "check", parents=[debug], help="is this machine ready, and how fast?"
    )
    check.add_argument(
        "--fast", action="store_true", help="without the ten seconds that measure its speed"
    )
    check.set_defaults(call=_check)
    for name, (module, function, text) in DELEGATED.items():
        command = commands.add_parser(name, help=text, add_help=False)
        command.set_defaults(call=partial(_delegate, f"cryonb.{module}", function))
    return parser


def _delegate(module: str, function: str, rest: list[str]) -> int | None:
    return getattr(importlib.import_module(module), function)(rest)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("notebook", nargs="*", help="name, number or path; default: all of them")
    add("--profile", default="quick", help="size of the run, see notebooks/profiles.yml")
    add("--run-dir", help="run folder (default runs/PROFILE)")
    add(
        "-p",
        "--set",
        dest="given",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of all notebooks that have it, or of one: 02_train_sr3.steps",
    )
    add("--notebooks", help="folder of the notebooks (default ./notebooks)")
    add("--cell-timeout", type=float, metavar="S", help="longest time for one cell, in seconds")
    add("--force", action="store_true", help="run again, even in a folder of another configuration")
    add("--allow-cpu", action="store_true", help="run a profile that needs a GPU without one")
    parser.set_defaults(call=_run)


def _run(args) -> int:
    from cryonb.running.runner import run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as tidily as by Ctrl-C
    return run(
        args.notebook,
        profile=args.profile,
        run_dir=args.run_dir,
        given=dict(args.given),
        notebooks=args.notebooks,
        cell_timeout_s=args.cell_timeout,
        force=args.force,
        allow_cpu=args.allow_cpu,
    )


def _check(args) -> int:
    from cryonb.running import calibrate as speed
    from cryonb.running.check import environment_report

    report = environment_report()
    for item in report:
        print(f"{'ok ' if item.ok else 'NO '} {item.name:14} {item.value}")
        if item.advice:
            print(f"    {'':14} {item.advice}")
    if times := speed.read_times():
        if not args.fast and (busy := speed.busy_percent()) > speed.BUSY_PERCENT:
            print(f"\n{busy:.0f} % of the processor is busy: without other programs it takes less")
        here = None if args.fast else speed.calibrate()
        print(f"\nall notebooks together take\n{speed.say_times(times, here)}")
    return 0 if all(item.ok for item in report) else 1
