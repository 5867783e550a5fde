"""Write notebooks/times.yml: what each notebook of a finished run took, on how fast a machine.

``python book/times.py runs/quick``, on the machine of the run and while it does nothing else.
`cryonb check` scales these times to other machines. Profiles that the run is not of stay as they
are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import psutil
import yaml
from stage import ROOT, read_run

from cryonb.base.files import beside, read_json
from cryonb.base.precision import fast_precision
from cryonb.base.workers import count_cores
from cryonb.running.calibrate import BUSY_PERCENT, Calibration, busy_percent, calibrate

HEADER = """\
# What the notebooks took: profile -> machine, its calibration, and notebook -> seconds, peak MB.
# `cryonb check` scales the seconds to the machine at hand. Written by book/times.py; not by hand.
"""


def times_of(run: Path, calibration: Calibration) -> dict[str, dict]:
    """Times of a finished run as they are kept, under the name of its profile.

    Raises
    ------
    FileNotFoundError
        There is no run, or a notebook of it is not finished.
    ValueError
        The run has parameters that the profile does not, or is of another machine.
    """
    chapters, record = read_run(run), read_json(run / "run.json")
    profile, given = record["configuration"]["profile"], record["configuration"]["given"]
    if given:
        raise ValueError(f"{run} is no plain run of {profile}: it was given {', '.join(given)}")
    cores, memory_GB = count_cores(), round(psutil.virtual_memory().total / 1e9, 1)
    if (record["machine"]["cores"], record["machine"]["memory_GB"]) != (cores, memory_GB):
        raise ValueError(f"{run} was made on another machine: calibrate there")
    precision = {"no": "float32"}.get(fast_precision(), "bf16")
    machine = f"{cores} cores, {memory_GB:.0f} GB, trained in {precision}"
    taken = {c.name: (c.record["seconds"], c.record["peak_MB"]) for c in chapters}
    return {
        profile: {
            "machine": f"{machine}, torch {record['versions']['torch']}",
            "calibration": vars(calibration),
            "notebooks": {k: {"seconds": s, "peak_MB": round(m)} for k, (s, m) in taken.items()},
        }
    }


def write_times(path: Path, times: dict[str, dict]) -> None:
    """Put the times of a profile into a file that may hold others."""
    kept = yaml.safe_load(path.read_text()) if path.exists() else {}
    text = yaml.safe_dump(kept | times, sort_keys=False, default_flow_style=None, width=100)
    with beside(path) as part:
        part.write_text(HEADER + text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, such as runs/quick")
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "times.yml")
    args = parser.parse_args()
    if (busy := busy_percent()) > BUSY_PERCENT:
        sys.exit(f"times: {busy:.0f} % of the processor is busy: wait until nothing else runs")
    try:
        times = times_of(args.run, calibrate())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"times: {error}")
    write_times(args.out, times)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
