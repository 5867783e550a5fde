"""Simulated data sets on disk, by split: clean and noisy particles, maps, and a manifest."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from cryonb.base.files import sole
from cryonb.data.maps import read_map, write_map, write_stack
from cryonb.data.mrc import open_mrc
from cryonb.data.particle_file import read_particles
from cryonb.data.particles import Particles, particles_from_arrays, write_particles
from cryonb.data.volumes import Volume
from cryonb.evaluation.metrics import fit_parts, score
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import low_pass
from cryonb.physics.projection import project
from cryonb.simulation.masks import micelle, soft_mask
from cryonb.simulation.simulate import (
    StructuralNoise,
    clean_scale,
    noise_sigma,
    projected_mask,
    setting,
    simulate_images,
)

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Paired particles of one part of a data set: same rows, same poses.

    Attributes
    ----------
    clean, noisy : Particles
        Target and input.
    observed : Tensor (n, y, x)
        The input without its white noise, for training with fresh noise; the very tensor of the
        clean images where these are all there is.
    """

    clean: Particles
    noisy: Particles
    observed: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """A data set on disk: its parts, the true map, masks and the manifest it was made by."""

    train: Split
    validation: Split
    test: Split
    volume: torch.Tensor
    mask: torch.Tensor
    micelle: torch.Tensor
    manifest: dict

    @property
    def sigma(self) -> float:
        """Standard deviation of the white noise."""
        return noise_sigma(self.manifest["snr"])

    @property
    def pixel_size_A(self) -> float:
        """Å per pixel."""
        return self.manifest["pixel_size_A"]


def write_dataset(
    folder: str | os.PathLike,
    volume: Volume,
    counts: dict[str, int],
    *,
    source: str = "",
    snr: float = 0.1,
    noise: str | StructuralNoise = "white",
    defocus_um: tuple[float, float] | None = None,
    seed: int = 0,
) -> Path:
    """Simulate and write a data set: `{split}_clean`, `{split}_noisy`, maps, manifest.

    Written beside and renamed when whole. A folder that holds the same data set already is kept.

    Parameters
    ----------
    folder : path
    volume : Volume
    counts : dict
        Number of particles in each of "train", "validation" and "test".
    source : str
        What the volume was loaded from; recorded.
    snr : float
        Variance of the clean images ÷ variance of the white noise.
    noise : str or StructuralNoise
        A named setting or amounts of one's own.
    defocus_um : (float, float), optional
        See `simulate_images`.
    seed : int

    Raises
    ------
    FileExistsError
        The folder holds a data set made with other parameters, or other files.
    ValueError
        An SNR that is not positive, an unknown setting, a missing split.
    """
    folder = Path(folder)
    amounts = setting(noise) if isinstance(noise, str) else noise
    noise_sigma(snr)  # or ValueError
    if sorted(counts) != sorted(SPLITS) or min(counts.values()) < 2:
        raise ValueError(f"counts is {counts}: give two or more particles for each of {SPLITS}.")
    manifest = {
        "source": str(source or volume.name),
        "symmetry": volume.symmetry,
        "box_size": volume.map.shape[-1],
        "pixel_size_A": volume.pixel_size_A,
        "snr": snr,
        "setting": noise if isinstance(noise, str) else "custom",
        "noise": dataclasses.asdict(amounts),
        "defocus_um": list(defocus_um) if defocus_um else None,
        "counts": dict(counts),
        "seed": seed,
    }
    if _holds(folder, manifest, volume):
        return folder
    manifest["scale"] = clean_scale(volume)
    part = folder.with_name(folder.name + ".part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with sole(folder):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            _simulate(part, volume, amounts, manifest)
            if folder.exists():
                folder.rmdir()  # it is empty; Windows replaces no folder
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _simulate(folder: Path, volume: Volume, noise: StructuralNoise, manifest: dict) -> None:
    """Write all files of a data set."""
    pixel, scale = volume.pixel_size_A, manifest["scale"]
    for i, split in enumerate(SPLITS):
        generator = torch.Generator().manual_seed(manifest["seed"] * len(SPLITS) + i)
        images = simulate_images(
            volume,
            manifest["counts"][split],
            noise,
            generator,
            scale=scale,
            defocus_um=manifest["defocus_um"],
        )
        observed, defocus = images.observed(pixel), images.defocus_um
        white = torch.randn(observed.shape, generator=generator)
        noisy = observed + noise_sigma(manifest["snr"]) * white
        half = torch.arange(len(noisy)) % 2 + 1
        particles = particles_from_arrays(
            noisy, images.rotations, pixel, half=half, defocus_um=defocus
        )
        write_particles(particles, folder / f"{split}_noisy.star")
        clean = particles.with_images(images.clean, ctf_applied=False)
        write_particles(clean, folder / f"{split}_clean.star")
        if images.structure.any():
            write_stack(folder / f"{split}_structure.mrcs", images.structure, pixel)
    write_map(folder / "volume.mrc", volume.map / scale, pixel)
    write_map(folder / "mask.mrc", soft_mask(volume.map, pixel), pixel)
    belt = noise.micelle * micelle(volume) if noise.micelle else volume.map * 0
    write_map(folder / "micelle.mrc", belt / scale, pixel)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _holds(folder: Path, manifest: dict, volume: Volume) -> bool:
    """Whether the folder holds this very data set; FileExistsError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        old = json.loads((folder / "manifest.json").read_text())
        other = [key for key in manifest if old.get(key) != manifest[key]]
        if not other:
            kept = read_map(folder / "volume.mrc")[0] * old["scale"]
            same = torch.allclose(
                kept, volume.map, rtol=0, atol=1e-4 * float(volume.map.abs().max())
            )
            other = [] if same else ["volume, though of the same name"]
    except (OSError, ValueError, KeyError, AttributeError):
        raise FileExistsError(
            f"{folder} is not empty and holds no whole data set: choose another run folder."
        ) from None
    if other:
        there = ", ".join(f"{key} ({old[key]} there)" if key in old else key for key in other)
        raise FileExistsError(
            f"{folder} holds data made with another {there}: give the same, or choose another run "
            "folder."
        )
    return True


def open_dataset(folder: str | os.PathLike, volume: Volume, counts: dict, **made) -> Dataset:
    """Read the data set of a run with the particles it has; `write_dataset` if there is none.

    A notebook opened beside a finished run so works on the particles of that run, and says it.
    Arguments and errors are those of `write_dataset`.
    """
    try:
        there = json.loads((Path(folder) / "manifest.json").read_text())["counts"]
    except (OSError, ValueError, KeyError):  # nothing, or nothing whole: write_dataset judges
        there = counts
    if there != counts:
        numbers = ", ".join(f"{n:,} for {split}" for split, n in there.items())
        print(f"{folder} is of a run with other numbers of particles, used here: {numbers}")
    return read_dataset(write_dataset(folder, volume, there, **made))


def read_dataset(folder: str | os.PathLike) -> Dataset:
    """Read a data set that `write_dataset` wrote; FileNotFoundError if there is none."""
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(
            f"No data set in {folder}: run the notebook 01_simulate with the same run_dir first."
        )
    manifest = json.loads((folder / "manifest.json").read_text())
    splits = [_read_split(folder, split, manifest["pixel_size_A"]) for split in SPLITS]
    maps = [read_map(folder / f"{name}.mrc")[0] for name in ("volume", "mask", "micelle")]
    return Dataset(*splits, *maps, manifest)


def _read_split(folder: Path, split: str, pixel_size_A: float) -> Split:
    clean = read_particles(folder / f"{split}_clean.star")
    noisy = read_particles(folder / f"{split}_noisy.star")
    observed, path = clean.images, folder / f"{split}_structure.mrcs"
    if path.is_file():
        observed = observed + torch.tensor(open_mrc(path).data)
    if noisy.ctf_applied:
        observed = apply_ctf(observed, ctf(observed.shape[-1], pixel_size_A, noisy.defocus_um))
    return Split(clean, noisy, observed)


def score_test(images: torch.Tensor, data: Dataset) -> dict[str, float]:
    """Score denoised test particles: `metrics.score`, whole box and in the particle's mask.

    With a micelle in the data set, "micelle_left" is its share in the images: the fit of
    ``a clean + share micelle + level`` to all of them, blurred to 6 px. Noise has no part in it.

    Parameters
    ----------
    images : Tensor (n, y, x)
        One for each of the first n particles of ``data.test``, in its order.
    data : Dataset
    """
    n = len(images)
    rotations, clean = data.test.clean.rotations[:n], data.test.clean.images[:n]
    scores = score(images, clean, projected_mask(data.mask, rotations))
    if data.micelle.any():
        stacks = images, clean, project(data.micelle, rotations)
        blurred = (low_pass(x, 6 * data.pixel_size_A, data.pixel_size_A, dims=2) for x in stacks)
        scores["micelle_left"] = fit_parts(*blurred)[1]
    return scores


def write_denoised(
    folder: str | os.PathLike, stage: str, data: Dataset, images: torch.Tensor
) -> Path:
    """Write denoised test particles (n, y, x) as `folder/stage.star`, rows and poses as the noisy.

    They are written as free of the CTF, which the targets are.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    particles = data.test.noisy.with_images(images, ctf_applied=False)
    return write_particles(particles, Path(folder) / f"{stage}.star")
