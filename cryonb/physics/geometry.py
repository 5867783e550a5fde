"""Rotations: RELION angles, uniform poses, symmetry and distances."""

from __future__ import annotations

import math
import re

import torch
from scipy.spatial.transform import Rotation

from cryonb.base.draws import draw_options


def euler_to_matrix(rot_tilt_psi_deg: torch.Tensor) -> torch.Tensor:
    """Pose of RELION angles: R = Rz(rot) Ry(tilt) Rz(psi), scipy's intrinsic "ZYZ".

    Parameters
    ----------
    rot_tilt_psi_deg : torch.Tensor, shape (n, 3)
        Degrees.

    Returns
    -------
    torch.Tensor, shape (n, 3, 3)
        Acts on column vectors (x, y, z).
    """
    angles = torch.as_tensor(rot_tilt_psi_deg)
    dtype = angles.dtype if angles.is_floating_point() else torch.float32
    turns = Rotation.from_euler("ZYZ", angles.double().cpu().numpy(), degrees=True)
    return torch.from_numpy(turns.as_matrix()).to(angles.device, dtype)


def matrix_to_euler(rotations: torch.Tensor) -> torch.Tensor:
    """RELION angles (n, 3) of poses (n, 3, 3): rot, tilt, psi in degrees, tilt in [0, 180].

    Where tilt is 0 or 180, rot is set to 0.
    """
    R = rotations.double()
    sin_tilt = torch.hypot(R[..., 0, 2], R[..., 1, 2])
    tilt = torch.atan2(sin_tilt, R[..., 2, 2])
    poles = sin_tilt < 1e-6
    rot = torch.where(poles, 0.0, torch.atan2(R[..., 1, 2], R[..., 0, 2]))
    # At a pole R = Ry(tilt) Rz(psi), whose middle row is (sin psi, cos psi, 0).
    psi = torch.where(
        poles,
        torch.atan2(R[..., 1, 0], R[..., 1, 1]),
        torch.atan2(R[..., 2, 1], -R[..., 2, 0]),
    )
    return torch.rad2deg(torch.stack([rot, tilt, psi], dim=-1)).to(rotations.dtype)


def random_rotations(n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Poses (n, 3, 3) drawn uniformly on SO(3), as unit quaternions from normal random numbers.

    The same seed of the generator gives the same poses, on its device.
    """
    q = torch.randn(n, 4, dtype=torch.float64, **draw_options(generator))
    turns = Rotation.from_quat(q.cpu().numpy(), scalar_first=True)  # brings q to unit length
    return torch.from_numpy(turns.as_matrix()).to(q.device, torch.float32)


def symmetry_rotations(symmetry: str) -> torch.Tensor:
    """Rotations of a point group: Cn about z, Dn with a twofold axis along x (as in RELION).

    Parameters
    ----------
    symmetry : str
        "C1", "C4", "D2", ...

    Returns
    -------
    torch.Tensor of float32, shape (order, 3, 3)

    Raises
    ------
    ValueError
        If the group is not cyclic or dihedral.
    """
    if not re.fullmatch(r"[CD][1-9]\d?\d?", symmetry.upper()):
        raise ValueError(
            f"symmetry {symmetry!r} is unknown: use a group such as 'C1', 'C4' or 'D2'"
        )
    group = Rotation.create_group(symmetry.upper())
    return torch.from_numpy(group.as_matrix()).float()


def angular_distance_deg(a: torch.Tensor, b: torch.Tensor, symmetry: str = "C1") -> torch.Tensor:
    """Smallest rotation angle between poses `a` and `g b` over the symmetry's rotations `g`.

    From the chord ``||a - g b|| = 2 sqrt(2) sin(angle / 2)``, which is exact for small angles too.

    Parameters
    ----------
    a, b : torch.Tensor, shape (..., 3, 3)
        Poses; shapes broadcast.
    symmetry : str
        Point group of the volume.

    Returns
    -------
    torch.Tensor, shape (...)
        Degrees, between 0 and 180.
    """
    mates = symmetry_rotations(symmetry).to(b) @ b.unsqueeze(-3)  # (..., order, 3, 3)
    chord = (a.unsqueeze(-3) - mates).flatten(-2).norm(dim=-1).amin(-1)
    return torch.rad2deg(2 * torch.asin((chord / math.sqrt(8)).clamp(max=1)))
