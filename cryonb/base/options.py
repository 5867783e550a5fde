"""Options of the commands that have many; without torch, for which ``--help`` need not wait."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class DenoiseOptions:
    """How `cryonb denoise` works.

    Attributes
    ----------
    checkpoint
        SR3 weights; by default those of the model for any molecule that cryonb has.
    samples
        0: the posterior mean, in one step. 1: one sample. K: the mean of K samples, and their
        pixel-wise deviation in OUT_std.
    steps
        Of the sampler, for samples.
    diameter_A
        Of the particle in Å, by default 0.75 of the box; noise is measured outside.
    contrast
        Of the particles; auto finds out. The output has the contrast of the input.
    device
        cpu, cuda or mps; by default the fastest there is.
    batch_size
        By default 64, on a GPU 512.
    seed
        Of the samples.
    ctf
        Whether the images carry the CTF; auto: if the file says so or lists the defocus.
    pixel_size_A
        Å per pixel, where the file does not state it.
    root
        Folder in which to look for stacks, where they have moved.
    passthrough
        File of cryoSPARC with the fields that a .cs file lacks.
    shards
        Parts that are denoised at the same time, by processes.
    shard
        Do this part only, from 1 to SHARDS: other machines do the others into the same output.
    """

    checkpoint: Path | None = None
    samples: int = 0
    steps: int = 8
    diameter_A: Annotated[float | None, Parameter("--diameter")] = None
    contrast: Literal["auto", "bright", "dark"] = "auto"
    device: str | None = None
    batch_size: int | None = None
    seed: int = 0
    ctf: Literal["auto", "on", "off"] = "auto"
    pixel_size_A: Annotated[float | None, Parameter("--pixel-size")] = None
    root: Path | None = None
    passthrough: Path | None = None
    shards: int | None = None
    shard: int | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class TrainOptions:
    """What `cryonb train` learns from, and for how long.

    Attributes
    ----------
    setting
        white or structural noise.
    snr
        Signal variance / noise variance.
    box_size
        Pixels.
    pixel_size_A
        Å per pixel.
    projections
        Training poses; for map-cleaner molecules.
    images
        Images that the SR3 model sees.
    refine_images
        Images that the U-Net sees.
    refine_steps
        Sampler steps whose output the U-Net refines.
    start
        Share of the first step.
    init
        SR3 weights to start from.
    curriculum
        Share of the run with less noise than asked.
    batch_size
        More on a GPU, such as 512.
    learning_rate
        By default 1e-3, with --init 5e-4; more for large batches.
    compile
        Have torch.compile make the network faster (GPUs).
    seed
        Of everything random.
    out
        Folder for weights and checkpoints.
    """

    setting: str = "white"
    snr: float = 0.1
    box_size: int = 64
    pixel_size_A: Annotated[float, Parameter("--pixel-size")] = 3.0
    projections: int = 16000
    images: int = 230000
    refine_images: int = 60000
    refine_steps: int = 1
    start: float = 0.5
    init: Path | None = None
    curriculum: float = 0.6
    batch_size: int = 32
    learning_rate: float | None = None
    compile: Annotated[bool, Parameter(negative="")] = False
    seed: int = 0
    out: Path = Path("kept")


@Parameter(name="*")
@dataclass(frozen=True)
class Placing:
    """How maps and models are laid on each other by `cryonb fsc` and `cryonb clean`.

    Attributes
    ----------
    pixel_size_A
        In Å, of all maps given, instead of what their headers say.
    centre
        Lay middles on middles (of a model: its centre of mass), wherever headers put things.
    fit
        Turn and move a model to where the map is dense, from where it lies.
    """

    pixel_size_A: Annotated[float | None, Parameter("--pixel-size")] = None
    centre: Annotated[bool, Parameter(negative="")] = False
    fit: Annotated[bool, Parameter(negative="")] = False
