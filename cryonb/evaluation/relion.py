"""RELION's auto-refinement and post-processing, called where RELION is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import starfile
import torch

from cryonb.data.maps import read_map, write_map
from cryonb.data.particles import Particles, read_particles
from cryonb.evaluation.resolution import MaskedFSC

PROGRAMS = ("mpirun", "relion_refine_mpi", "relion_postprocess")
ADVICE = "RELION is not installed. On Debian and Ubuntu: `sudo apt install relion`."
FSC_COLUMNS = {
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
    "corrected": "rlnFourierShellCorrelationCorrected",
}


class Refined(NamedTuple):
    """Result of `auto_refine`: unfiltered half maps (z, y, x), and particles with RELION's poses.

    The particles' images, and their order, are those of the file that was given.
    """

    half1: torch.Tensor
    half2: torch.Tensor
    particles: Particles


def installed() -> bool:
    """Whether all programs that this module calls are on the path."""
    return all(map(shutil.which, PROGRAMS))


def _call(command: list, folder: Path) -> None:
    """Run a program in a folder; FileNotFoundError without RELION, RuntimeError if it fails."""
    if not installed():
        raise FileNotFoundError(ADVICE)
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr + done.stdout).strip()[-2000:]
        raise RuntimeError(f"{command[0]} failed in {folder}:\n{last}")


def auto_refine(
    particles: str | os.PathLike,
    reference: torch.Tensor,
    folder: str | os.PathLike,
    *,
    symmetry: str,
    reference_A: float,
    diameter_A: float,
) -> Refined:
    """Refine poses and half maps of a particle file by relion_refine, its two halves apart.

    On three processes (a leader and two halves). Needs minutes for hundreds of particles of 64 px.
    Half maps that are there already are read and not made again.

    Parameters
    ----------
    particles : path
        STAR file, whose half sets (rlnRandomSubset) are kept. Its poses are not used.
    reference : Tensor (z, y, x)
        First reference, which is filtered to `reference_A` (Å).
    folder : path
        For everything that RELION writes.
    diameter_A : float
        Of the circle around each particle, outside which images are masked.

    Raises
    ------
    FileNotFoundError, RuntimeError
        Without RELION; with its last words if it fails.
    """
    folder, star = Path(folder).resolve(), Path(particles).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    given = read_particles(star)
    halves = [folder / f"run_half{i}_class001_unfil.mrc" for i in (1, 2)]
    if not all(half.is_file() for half in halves):
        write_map(folder / "reference.mrc", reference, given.pixel_size_A)
        command = "mpirun --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1 -n 3"
        command += " relion_refine_mpi --auto_refine --split_random_halves --norm --scale"
        command += " --flatten_solvent --zero_mask --low_resol_join_halves 40 --pool 30 --pad 1"
        command += " --healpix_order 2 --auto_local_healpix_order 4 --oversampling 1"
        command += " --offset_range 2 --offset_step 2 --dont_combine_weights_via_disc"
        command += " --random_seed 1"
        command += f" --ini_high {reference_A} --particle_diameter {diameter_A} --sym {symmetry}"
        files = ["--i", star.name, "--ref", folder / "reference.mrc", "--o", folder / "run"]
        ctf = ["--ctf"] if given.ctf_applied else []
        # Image names in a STAR file count from the folder of the call.
        _call([*command.split(), *ctf, *files], star.parent)
    return Refined(*(read_map(half)[0] for half in halves), _poses(folder / "run_data.star", given))


def _poses(star: Path, given: Particles) -> Particles:
    """Rows of `given` with the poses of a STAR file that RELION wrote, whose order may differ."""
    table = starfile.read(star, always_dict=True)["particles"].set_index("rlnImageName")
    table = table.loc[given.table["rlnImageName"]].reset_index()
    return Particles(given.images, given.optics, table)


def postprocess(
    half1: torch.Tensor,
    half2: torch.Tensor,
    mask: torch.Tensor,
    pixel_size_A: float,
    folder: str | os.PathLike,
) -> MaskedFSC:
    """FSC of half maps (z, y, x) by relion_postprocess, as `fsc_mask_corrected` has it.

    Errors as in `auto_refine`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, map in {"half1": half1, "half2": half2, "mask": mask}.items():
        write_map(folder / f"{name}.mrc", map, pixel_size_A)
    command = "relion_postprocess --i half1.mrc --i2 half2.mrc --mask mask.mrc --o ./postprocess"
    _call([*command.split(), "--angpix", pixel_size_A], folder)
    table = starfile.read(folder / "postprocess.star")["fsc"]
    frequency = torch.arange(len(table)) / (half1.shape[-1] * pixel_size_A)
    curves = {k: torch.tensor(table[v].to_numpy(float)) for k, v in FSC_COLUMNS.items()}
    return MaskedFSC(frequency, **curves)
