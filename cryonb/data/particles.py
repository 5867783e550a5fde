"""Particles in memory, and their files: a STAR file of RELION and the stack beside it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cryonb.data.maps import write_stack
from cryonb.data.optics import PLAIN, Columns
from cryonb.data.star import (
    ANGLES,
    CTF_APPLIED,
    DEFOCUS,
    MICROSCOPE,
    ORIGINS,
    image_names,
    write_star,
)
from cryonb.physics.fourier import fourier_crop
from cryonb.physics.geometry import euler_to_matrix, matrix_to_euler


@dataclass(frozen=True)
class Particles:
    """Images with their optics and poses, in the words of RELION's two tables.

    Attributes
    ----------
    images : torch.Tensor of float32, shape (n, y, x)
        Square particle images, bright on a background of zero.
    optics : pandas.DataFrame
        One row per optics group, RELION column names without the leading underscore.
    table : pandas.DataFrame
        One row per image, in the order of `images`.
    """

    images: torch.Tensor
    optics: pd.DataFrame
    table: pd.DataFrame

    def __post_init__(self):
        if self.images.ndim != 3 or self.images.shape[1] != self.images.shape[2]:
            raise ValueError(f"images have shape {tuple(self.images.shape)}: pass (n, y, x), y = x")
        if len(self.images) != len(self.table):
            raise ValueError(
                f"{len(self.images)} images, {len(self.table)} table rows: pass one row per image"
            )
        _ = self.columns  # says what cannot be read

    def __len__(self) -> int:
        return len(self.images)

    @property
    def columns(self) -> Columns:
        """What the tables say, particle by particle."""
        return Columns(self.optics, self.table)

    @property
    def box_size(self) -> int:
        """Pixels a side."""
        return self.images.shape[-1]

    @property
    def pixel_size_A(self) -> float:
        """Å per pixel; ValueError if particles differ in it."""
        return self.columns.pixel_size_A

    @property
    def rotations(self) -> torch.Tensor:
        """Poses, shape (n, 3, 3)."""
        return euler_to_matrix(self.columns.numbers(*ANGLES).float())

    @property
    def slices(self) -> torch.Tensor:
        """Matrices (n, 3, 3) that carry frequencies of an image to those of the volume.

        The poses, but for images whose magnification differs between directions.
        """
        magnification = self.columns.magnification
        if magnification is None:
            return self.rotations
        return torch.cat(
            [self.rotations[:, :, :2] @ magnification, self.rotations[:, :, 2:]], dim=2
        )

    @property
    def shifts_px(self) -> torch.Tensor:
        """Positions relative to the box centre in pixels, (y, x), shape (n, 2)."""
        return -(self.columns.numbers(*ORIGINS) / self.pixel_size_A).float()

    @property
    def half(self) -> torch.Tensor | None:
        """Half set 1 or 2 of each particle, shape (n,) int64, or None."""
        if "rlnRandomSubset" not in self.table:
            return None
        return self.columns.numbers("rlnRandomSubset")[:, 0].long()

    @property
    def defocus_um(self) -> torch.Tensor | None:
        """Mean defocus in µm, positive for underfocus, shape (n,), or None."""
        if not self.columns.has("rlnDefocusU"):
            return None
        return (self.columns.defocus_A[:, :2].mean(1) * 1e-4).float()

    @property
    def state(self) -> np.ndarray:
        """State of each image (n,), a name from `cryonb.data.optics`: without CTF, with CTF ..."""
        return self.columns.state

    @property
    def ctf_applied(self) -> bool:
        """Whether the images carry the CTF; ValueError if some do and others do not."""
        carried = self.state != PLAIN
        if carried.any() and not carried.all():
            raise ValueError("some images carry the CTF and others do not: select one kind")
        return bool(carried.all())

    @property
    def ctf(self) -> torch.Tensor | None:
        """What each noise-free image is filtered with: `cryonb.data.optics.Columns.transfer`."""
        return self.columns.transfer(self.box_size)

    def with_ctf(self, applied: bool) -> Particles:
        """Return the same particles, said to carry the CTF or not."""
        table = self.table.drop(columns=CTF_APPLIED, errors="ignore")
        optics = self.optics.assign(**{CTF_APPLIED: int(applied)})
        return dataclasses.replace(self, optics=optics, table=table)

    def resampled(self, box_size: int) -> Particles:
        """Return the particles in another box size of the same width in Å, by Fourier cropping."""
        if box_size == self.box_size:
            return self
        known = (self.columns.numbers("rlnImagePixelSize") != 0).any()
        pixel_A = self.pixel_size_A * self.box_size / box_size if known else 0.0
        new = {"rlnImagePixelSize": pixel_A}
        optics = self.optics.assign(**new, rlnImageSize=box_size)
        table = self.table.drop(columns="rlnImagePixelSize", errors="ignore")
        images = fourier_crop(self.images, box_size, dims=2)
        return dataclasses.replace(self, images=images, optics=optics, table=table)

    def select(self, index) -> Particles:
        """Return the particles of `index`: a slice, a list or tensor of numbers, or a bool mask."""
        rows = torch.arange(len(self))[index].reshape(-1)
        images = self.images[rows.to(self.images.device)]
        return Particles(images, self.optics, self.table.iloc[rows.numpy()])

    def with_images(self, images: torch.Tensor, *, ctf_applied: bool | None = None) -> Particles:
        """Return the same particles with other pixels (n, y, x), for instance denoised ones.

        `ctf_applied` says whether the new images carry the CTF; by default their state is that of
        the old. A corrected image must not be corrected again.
        """
        if images.shape != self.images.shape:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, not {tuple(self.images.shape)}: "
                "pass one image of the same box per particle"
            )
        said = self if ctf_applied is None else self.with_ctf(ctf_applied)
        return dataclasses.replace(said, images=images)


def particles_from_arrays(
    images: torch.Tensor,
    rotations: torch.Tensor,
    pixel_size_A: float,
    *,
    shifts_px: torch.Tensor | None = None,
    half: torch.Tensor | None = None,
    defocus_um: torch.Tensor | None = None,
    voltage_kv: float = 300.0,
    spherical_aberration_mm: float = 2.7,
    amplitude_contrast: float = 0.1,
    ctf_applied: bool | None = None,
) -> Particles:
    """Build the two RELION tables around images and poses.

    Parameters
    ----------
    images : torch.Tensor, shape (n, y, x)
    rotations : torch.Tensor, shape (n, 3, 3)
    shifts_px : torch.Tensor, optional, shape (n, 2)
        (y, x) in pixels; zero by default.
    half : torch.Tensor, optional, shape (n,)
        Half set, 1 or 2.
    defocus_um : torch.Tensor, optional, shape (n,)
        µm, positive for underfocus.
    ctf_applied : bool, optional
        Whether the images carry the CTF. By default: if `defocus_um` is given. ValueError for a
        CTF without defocus, or lengths that differ.
    """
    n = len(images)
    if ctf_applied and defocus_um is None:
        raise ValueError("ctf_applied=True needs the defocus: pass defocus_um")
    given = {"rotations": rotations, "shifts_px": shifts_px, "half": half, "defocus_um": defocus_um}
    for name, values in given.items():
        if values is not None and len(values) != n:
            raise ValueError(f"{len(values)} {name} but {n} images: pass one per image")
    table = pd.DataFrame({"rlnImageName": image_names(n, "particles.mrcs")})
    table["rlnMicrographName"] = "simulated.mrc"
    table["rlnOpticsGroup"] = 1
    angles = matrix_to_euler(torch.as_tensor(rotations).double().cpu().reshape(n, 3, 3))
    table[ANGLES] = angles.numpy()
    origins = torch.zeros(n, 2) if shifts_px is None else -torch.as_tensor(shifts_px) * pixel_size_A
    table[ORIGINS] = origins.double().cpu().numpy()
    if defocus_um is not None:
        defocus_A = torch.as_tensor(defocus_um).double().cpu().numpy() * 1e4
        table[DEFOCUS] = np.stack([defocus_A, defocus_A, np.zeros(n)], axis=1)
        table["rlnPhaseShift"] = 0.0  # without it, cryoDRGN 4.3 makes a map of NaN
    if half is not None:
        table["rlnRandomSubset"] = torch.as_tensor(half).cpu().numpy().astype(int)
    lenses = map(float, (voltage_kv, spherical_aberration_mm, amplitude_contrast))
    optics = {
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnOpticsGroup": 1,
        **dict(zip(MICROSCOPE, lenses, strict=True)),
        "rlnImagePixelSize": float(pixel_size_A),
        "rlnImageSize": int(images.shape[-1]),
        "rlnImageDimensionality": 2,
        CTF_APPLIED: int(defocus_um is not None if ctf_applied is None else ctf_applied),
    }
    return Particles(images.float(), pd.DataFrame([optics]), table)


def write_particles(particles: Particles, star_path: str | os.PathLike) -> Path:
    """Write `name.star`, whose path is returned, and the stack `name.mrcs` beside it.

    Both are written under other names and renamed when complete; the folder is made if needed.
    Image names are relative to the STAR file, so run RELION in its folder. ValueError if the name
    does not end in `.star` or has a blank, at which RELION would cut it.
    """
    star_path = Path(star_path)
    if star_path.suffix != ".star" or len(star_path.name.split()) != 1:
        raise ValueError(f"{star_path.name!r} is no STAR file name: end in .star, without blanks")
    stack_path = star_path.with_suffix(".mrcs")
    names = image_names(len(particles), stack_path.name)
    blocks = {
        "optics": particles.optics.assign(rlnImageSize=particles.box_size),
        "particles": particles.table.assign(rlnImageName=names),
    }
    star_path.parent.mkdir(parents=True, exist_ok=True)
    write_stack(stack_path, particles.images, particles.pixel_size_A)
    write_star(star_path, blocks)
    return star_path
