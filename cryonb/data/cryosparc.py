"""Particle files of cryoSPARC (.cs): numpy tables of one row per image, in RELION's words and back.

A pose is the rotation vector whose ZYZ Euler angles are rot, tilt and psi; shifts are RELION's
origins in pixels; ``blob/idx`` counts from 0; ``ctf/tilt_A`` is beam tilt times Cs. csparc2star of
pyem says the same. ``blob/sign`` is kept and not applied: images have the contrast of their files.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial.transform import Rotation

from cryonb.base.files import beside, existing
from cryonb.data.optics import TILT
from cryonb.data.star import ANGLES, ORIGINS
from cryonb.physics.geometry import matrix_to_euler

PLAIN = {
    "ctf/df1_A": "rlnDefocusU",
    "ctf/df2_A": "rlnDefocusV",
    "ctf/accel_kv": "rlnVoltage",
    "ctf/cs_mm": "rlnSphericalAberration",
    "ctf/amp_contrast": "rlnAmplitudeContrast",
    "ctf/bfactor": "rlnCtfBfactor",
    "ctf/scale": "rlnCtfScalefactor",
    "blob/psize_A": "rlnImagePixelSize",
}
RADIANS = {"ctf/df_angle_rad": "rlnDefocusAngle", "ctf/phase_shift_rad": "rlnPhaseShift"}
NOT_READ = "ctf/trefoil_A ctf/tetra_A ctf/shift_A ctf/scale_const ctf/anisomag".split()


def read_cs(path: str | os.PathLike, passthrough: str | os.PathLike | None = None) -> np.ndarray:
    """Rows of a .cs file, with the fields that only its passthrough file has, matched by uid."""
    rows = _load(path)
    if passthrough is None:
        return rows
    other = _load(passthrough)
    if "uid" not in rows.dtype.names or "uid" not in other.dtype.names:
        raise ValueError(f"{path} and {passthrough} cannot be matched: one has no uid")
    order = np.argsort(other["uid"], kind="stable")
    at = np.searchsorted(other["uid"][order], rows["uid"]).clip(max=max(len(other) - 1, 0))
    if len(other) == 0 or (other["uid"][order[at]] != rows["uid"]).any():
        raise ValueError(f"{passthrough} lacks particles of {path}: give the one of the same job")
    other = other[order[at]]
    return _joined(rows, {n: other[n] for n in other.dtype.names if n not in rows.dtype.names})


def cs_table(rows: np.ndarray, path: str | os.PathLike) -> pd.DataFrame:
    """Particle table in RELION's words; ValueError without images, or for what is not read."""
    fields = rows.dtype.names
    if not {"blob/path", "blob/idx"} <= set(fields):
        raise ValueError(f"{path} has no blob/path: give its passthrough file, too (--passthrough)")
    if found := [name for name in NOT_READ if name in fields and np.any(rows[name])]:
        raise ValueError(
            f"{path} has {', '.join(found)}, whose sign and order cryoSPARC does not state: fit "
            "aberrations in RELION, or set the field to 0 where it may be neglected"
        )
    if "blob/sign" in fields and len(np.unique(np.sign(rows["blob/sign"]))) > 1:
        raise ValueError(f"{path} mixes images of both signs (blob/sign): give those of one")
    stacks = [os.fsdecode(stack).removeprefix(">") for stack in rows["blob/path"]]
    numbers = rows["blob/idx"].astype(np.int64) + 1
    names = [f"{k:06d}@{stack}" for k, stack in zip(numbers, stacks, strict=True)]
    table = pd.DataFrame({"rlnImageName": names})
    for name in (name for name in PLAIN if name in fields):
        table[PLAIN[name]] = rows[name].astype(np.float64).round(6)  # float32 in the file
    for name in (name for name in RADIANS if name in fields):
        table[RADIANS[name]] = np.degrees(rows[name].astype(np.float64))
    if "ctf/tilt_A" in fields and np.any(rows["ctf/tilt_A"]):
        if "ctf/cs_mm" not in fields or not (rows["ctf/cs_mm"] > 0).all():
            raise ValueError(f"{path} has ctf/tilt_A without a Cs, with which it is no angle")
        cs_A = 1e7 * rows["ctf/cs_mm"].astype(np.float64)
        table[TILT] = 1e3 * np.arcsin(rows["ctf/tilt_A"] / cs_A[:, None])  # mrad
    if "alignments3D/pose" in fields:
        turns = Rotation.from_rotvec(rows["alignments3D/pose"].astype(np.float64)).as_matrix()
        table[ANGLES] = matrix_to_euler(torch.from_numpy(turns)).numpy()
    if "alignments3D/shift" in fields:
        size = "alignments3D/psize_A" if "alignments3D/psize_A" in fields else "blob/psize_A"
        if size not in fields:
            raise ValueError(f"{path} has shifts in pixels but no blob/psize_A: add it")
        shift_A = rows["alignments3D/shift"] * rows[size].astype(np.float64)[:, None]
        table[ORIGINS] = shift_A[:, ::-1]
    if "alignments3D/split" in fields and len(np.unique(rows["alignments3D/split"])) == 2:
        table["rlnRandomSubset"] = rows["alignments3D/split"].astype(np.int64) + 1
    return table


def write_cs(path: Path, rows: np.ndarray, stack: str) -> None:
    """Write rows with their images in another stack; all other fields as they are."""
    paths = np.full(len(rows), os.fsencode(stack))
    numbers = np.arange(len(rows), dtype=np.uint32)
    with beside(path) as part, open(part, "wb") as file:
        np.save(file, _joined(rows, {"blob/path": paths, "blob/idx": numbers}))


def _load(path: str | os.PathLike) -> np.ndarray:
    existing(path)
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError) as error:
        raise ValueError(f"{path} is not a readable .cs file ({error})") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.names is None or rows.ndim != 1:
        raise ValueError(f"{path} is no table of particles as cryoSPARC writes them (.cs)")
    return rows


def _joined(rows: np.ndarray, more: dict[str, np.ndarray]) -> np.ndarray:
    """Rows with more fields, or others in the place of their own."""
    new = [(name, values.dtype, values.shape[1:]) for name, values in more.items()]
    old = [field for field in rows.dtype.descr if field[0] and field[0] not in more]
    joined = np.empty(len(rows), dtype=old + new)
    for name in joined.dtype.names:
        joined[name] = more[name] if name in more else rows[name]
    return joined
