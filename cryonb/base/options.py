"""Options of the commands that have many; without torch, for which ``--help`` need not wait."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

TIMEOUT_S = 30.0  # the longest silence of a server

_set = Parameter(("--set", "-p"), allow_leading_hyphen=True, show_default=False)
Settings = Annotated[tuple[tuple[str, str], ...], _set]  # -p NAME VALUE, as often as needed


@dataclass(frozen=True)
class Folders:
    """Where notebooks are read and results written, by `cryonb run` and `cryonb sweep`."""

    run_dir: Path | None = None
    """Folder of the results, by default runs/PROFILE, or runs/NAME of an experiment."""
    notebooks: Path | None = None
    """Folder of the notebooks, by default ./notebooks."""
    force: bool = False
    """Run again, even in a folder of another configuration."""


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions(Folders):
    """How `cryonb run` runs notebooks."""

    profile: str = "quick"
    """Size of the run, see notebooks/profiles.yml."""
    given: Settings = ()
    """NAME VALUE: a parameter of all notebooks that have it, or of one: 02_train_sr3.steps 4."""
    cell_timeout_s: float | None = None
    """Longest time for one cell, in seconds."""
    allow_cpu: bool = False
    """Run a profile that needs a GPU without one."""


@Parameter(name="*")
@dataclass(frozen=True)
class SweepOptions(Folders):
    """How `cryonb sweep` runs an experiment."""

    dry_run: bool = False
    """Print the plan and run nothing."""


@dataclass(frozen=True)
class Reading:
    """How particles are read, by `cryonb denoise` and `cryonb abinitio`."""

    contrast: Literal["auto", "bright", "dark"] = "auto"
    """Of the particles; auto finds out."""
    diameter_A: float | None = None
    """Of the particle in Å, by default 0.75 of the box; noise is measured outside."""
    ctf: Literal["auto", "on", "off"] = "auto"
    """Whether the images carry the CTF; auto: if the file says so or lists the defocus."""
    pixel_size_A: float | None = None
    """Å per pixel, where the file does not state it."""
    root: Path | None = None
    """Folder in which to look for stacks, where they have moved."""
    passthrough: Path | None = None
    """File of cryoSPARC with the fields that a .cs file lacks."""


@Parameter(name="*")
@dataclass(frozen=True)
class DenoiseOptions(Reading):
    """How `cryonb denoise` works."""

    checkpoint: Path | None = None
    """SR3 weights; by default those of the model for any molecule that cryonb has."""
    reference: str | None = None
    """A known structure in the place of a network: map, model, EMD-..., 5U6O."""
    half_maps: tuple[str, str] | None = None
    """Two references in the place of one, each for the half set of its own (rlnRandomSubset)."""
    symmetry: str = "C1"
    """Of the reference."""
    spacing_deg: float = 4.0
    """Between directions of view of the reference."""
    most_shift_A: float = 0.0
    """How far from the middle of its box, along x and y, a particle of the reference may lie."""
    memory: Literal["none", "seen", "clean"] = "none"
    """Particles help one another: by all they have in common, or what is clean of micelles."""
    samples: int = 0
    """0: the posterior mean. 1: one sample. K: their mean, and in OUT_std their deviation."""
    steps: int = 8
    """Of the sampler, for samples."""
    device: str | None = None
    """cpu, cuda or mps; by default the fastest there is."""
    batch_size: int | None = None
    """By default 64, on a GPU 512."""
    seed: int = 0
    """Of the samples."""
    shards: int | None = None
    """Parts that are denoised at the same time, by processes."""
    shard: int | None = None
    """Do this part only, from 1 to SHARDS: other machines do the others into the same output."""


@Parameter(name="*")
@dataclass(frozen=True)
class AbInitioOptions(Reading):
    """How `cryonb abinitio` makes a map."""

    symmetry: str = "C1"
    """Point group, if it is known: imposed when the map has been turned to its axes."""
    most: int = 2000
    """Particles, spread over the file, that the map is made of."""
    starts: int = 2
    """Random starts, each a run of its own; the one of the highest evidence is written."""
    seed: int = 0
    """Of the first start."""
    most_shift_A: float = 0.0
    """How far along x and y a particle may lie from where the file says, or from its centre."""


@Parameter(name="*")
@dataclass(frozen=True)
class ReconstructOptions:
    """How `cryonb reconstruct` makes a map."""

    half: Literal[1, 2] | None = None
    """Only half set 1 or 2 (rlnRandomSubset)."""
    symmetry: str = "C1"
    """Point group: C1, C4, D2 ..."""
    ctf: Literal["auto", "on", "off"] = "auto"
    """off: images as they are; on: as with CTF; auto: as the file says, or lists defocus."""
    batch_size: int = 256
    """Particles at a time."""


@Parameter(name="*")
@dataclass(frozen=True)
class FetchOptions:
    """How `cryonb fetch` gets real data."""

    max_images: int | None = None
    """Of EMPIAR only the first so many particles."""
    cache: Path | None = None
    """Folder to keep files in, by default $CRYONB_CACHE, or the system's cache."""
    mirror: str | None = None
    """Address before the archives' paths, by default $CRYONB_MIRROR, or EMBL-EBI."""
    timeout_s: float = TIMEOUT_S
    """Longest silence of a server, in seconds."""


@Parameter(name="*")
@dataclass(frozen=True)
class TrainOptions:
    """What `cryonb train` learns from, and for how long."""

    setting: str = "white"
    """white or structural noise."""
    snr: float = 0.1
    """Signal variance / noise variance."""
    box_size: int = 64
    """Pixels."""
    pixel_size_A: float = 3.0
    """Å per pixel."""
    projections: int = 16000
    """Training poses; for map-cleaner molecules."""
    images: int = 230000
    """Images that the SR3 model sees."""
    refine_images: int = 60000
    """Images that the U-Net sees."""
    refine_steps: int = 1
    """Sampler steps whose output the U-Net refines."""
    start: float = 0.5
    """Share of the first step."""
    init: Path | None = None
    """SR3 weights to start from."""
    curriculum: float = 0.6
    """Share of the run with less noise than asked."""
    batch_size: int = 32
    """More on a GPU, such as 512."""
    learning_rate: float | None = None
    """By default 1e-3, with --init 5e-4; more for large batches."""
    compile: bool = False
    """Have torch.compile make the network faster (GPUs)."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("kept")
    """Folder for weights and checkpoints."""


@Parameter(name="*")
@dataclass(frozen=True)
class AuditOptions:
    """What `cryonb audit` tests a denoiser on."""

    other: str = "prestin"
    """A molecule that the denoiser does not know."""
    images: int = 128
    """Particles in each test."""
    samples: int = 8
    """Posterior samples for each particle."""
    steps: int = 8
    """Network evaluations of each."""
    seed: int = 0
    """Of everything random."""


@Parameter(name="*")
@dataclass(frozen=True)
class Placing:
    """How maps and models are laid on each other by `cryonb fsc` and `cryonb clean`."""

    pixel_size_A: float | None = None
    """In Å, of all maps given, instead of what their headers say."""
    centre: bool = False
    """Lay middles on middles (of a model: its centre of mass), wherever headers put things."""
    fit: bool = False
    """Turn and move a model to where the map is dense, from where it lies."""
