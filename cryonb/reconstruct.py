"""Reconstruction with known poses by direct insertion into Fourier space."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

from cryonb.fourier import check_cubic, shell_index
from cryonb.geometry import symmetry_rotations
from cryonb.projection import check_poses, pad_centred, shift_phases, sinc2_envelope


def reconstruct(
    images: torch.Tensor,
    rotations: torch.Tensor,
    shifts_px: torch.Tensor | None = None,
    ctf: torch.Tensor | None = None,
    symmetry: str = "C1",
    *,
    batch_size: int = 64,
    padding: int = 2,
    weight_floor: float = 1e-3,
) -> torch.Tensor:
    """Reconstruct a volume from images with known poses.

    Each image's transform is a central slice; it is laid trilinearly into the padded transform of
    the volume, and every Fourier voxel becomes the least-squares mean of what fell near it,
    ``V(k) = sum CTF X / max(sum CTF^2, floor)``. The floor, `weight_floor` times the mean of its
    shell, keeps rarely seen voxels from blowing up, as in relion_reconstruct. Dividing by
    the trilinear kernel's transform, sinc^2, then removes its envelope.

    Parameters
    ----------
    images : torch.Tensor, shape (n, y, x)
    rotations : torch.Tensor, shape (n, 3, 3)
        Poses, see `cryonb.conventions`.
    shifts_px : torch.Tensor, optional, shape (n, 2)
        (y, x) positions of the particles, which are moved back.
    ctf : torch.Tensor, optional, shape (n, y, x // 2 + 1)
        CTF that the images carry; None for images without.
    symmetry : str
        Every image is inserted with all its mates.
    batch_size : int
        Images at a time; memory grows with it.
    padding : int
        Padding of the volume.
    weight_floor : float
        Smallest weight relative to the mean of its shell.

    Returns
    -------
    torch.Tensor of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If there are no images or their number differs from that of the poses or CTFs.
    """
    n = len(images)
    rotations, shifts_px = check_poses(rotations, shifts_px, images.device)
    if len(rotations) != n or (ctf is not None and len(ctf) not in (1, n)):
        raise ValueError(f"{n} images but {len(rotations)} rotations: pass one pose (and CTF) each")
    if ctf is not None:
        ctf = ctf.expand(n, -1, -1)
    parts = (slice(i, i + batch_size) for i in range(0, n, batch_size))
    batches = (
        (images[b], rotations[b], shifts_px[b], None if ctf is None else ctf[b]) for b in parts
    )
    return reconstruct_batches(batches, symmetry, padding=padding, weight_floor=weight_floor)


@torch.no_grad()
def reconstruct_batches(
    batches: Iterable[tuple],
    symmetry: str = "C1",
    *,
    padding: int = 2,
    weight_floor: float = 1e-3,
) -> torch.Tensor:
    """Do as `reconstruct` from a stream of batches, holding one of them at a time.

    Parameters
    ----------
    batches : iterable of tuple
        ``(images, rotations, shifts_px or None, ctf or None)``; trailing None may be left out.
    symmetry, padding, weight_floor
        As in `reconstruct`.

    Returns
    -------
    torch.Tensor of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If there is no batch, or box sizes differ.
    """
    sums, box = None, 0
    mates = symmetry_rotations(symmetry)
    for images, rotations, *rest in batches:
        shifts_px, ctf = (*rest, None, None)[:2]
        if sums is None:
            box = check_cubic(images, 2)
            padded = padding * box + padding * box % 2
            # Complex data and weight of each voxel, with one spare column beyond Nyquist.
            sums = torch.zeros(padded, padded, padded // 2 + 2, 3, device=images.device)
        if images.shape[-2:] != (box, box):
            raise ValueError(f"batches mix {box} px with {tuple(images.shape[-2:])}: use one box")
        rotations, shifts_px = check_poses(rotations, shifts_px, images.device)
        frequencies, values = _central_values(images.float(), shifts_px, ctf)
        for mate in mates.to(images.device):
            _insert(sums, mate @ rotations, frequencies * (padded / box), values)
    if sums is None:
        raise ValueError("there are no images to reconstruct from: pass at least one batch")
    return _solve(sums, box, weight_floor)


def _central_values(
    images: torch.Tensor, shifts_px: torch.Tensor, ctf: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies (m, 2) as (x, y) indices, and (CTF X, CTF^2) as three reals, (b, m, 3)."""
    box = images.shape[-1]
    x_ft = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    x_ft = x_ft * shift_phases(-shifts_px, box)
    ctf = torch.ones_like(x_ft.real) if ctf is None else ctf.to(x_ft.real)
    ky = (torch.fft.fftfreq(box, device=images.device) * box).round()
    ky, kx = torch.meshgrid(
        ky, torch.arange(box // 2 + 1, device=images.device) * 1.0, indexing="ij"
    )
    inside = kx.square() + ky.square() <= (box // 2) ** 2
    # The column kx = 0 holds both Friedel mates, every other column one: halve it.
    weight = torch.where(kx == 0, 0.5, 1.0)
    values = torch.cat([torch.view_as_real(ctf * x_ft), ctf.square()[..., None]], dim=-1)
    return torch.stack([kx, ky], dim=-1)[inside], (values * weight[..., None])[:, inside]


def _insert(
    sums: torch.Tensor, rotations: torch.Tensor, frequencies: torch.Tensor, values: torch.Tensor
) -> None:
    """Add values (b, m, 3) at the rotated frequencies, spread over the eight voxels around."""
    padded, width = sums.shape[0], sums.shape[2]
    at = torch.einsum("bij,mj->bmi", rotations[:, :, :2], frequencies).flatten(0, 1)  # xyz
    mate = at[:, :1] < 0  # the other half: take the Friedel mate
    at = torch.where(mate, -at, at)
    conjugate = torch.tensor([1.0, -1.0, 1.0], device=at.device)
    values = torch.where(mate, values.flatten(0, 1) * conjugate, values.flatten(0, 1))
    low = at.floor()
    upper_weight = at - low
    index = [(low[:, i].long() + torch.arange(2, device=at.device)[:, None]) for i in range(3)]
    x, y, z = index[0], index[1] % padded, index[2] % padded  # (2, points) each: low and high
    wx, wy, wz = (torch.stack([1 - w, w]) for w in upper_weight.unbind(1))
    flat = sums.view(-1, 3)
    for i, j, k in itertools.product((0, 1), repeat=3):
        weight = wz[i] * wy[j] * wx[k]
        flat.index_add_(0, (z[i] * padded + y[j]) * width + x[k], values * weight[:, None])


def _solve(sums: torch.Tensor, box: int, weight_floor: float) -> torch.Tensor:
    """Volume (box, box, box) of the summed data and weights, which are used up."""
    padded = sums.shape[0]
    sums = sums[:, :, :-1]
    # The plane x = 0 also gets what its Friedel mates left on the other side of it.
    plane = sums[:, :, 0]
    other = torch.roll(plane.flip(0, 1), (1, 1), dims=(0, 1))  # index -k
    plane += other * torch.tensor([1.0, -1.0, 1.0], device=sums.device)
    weights = sums[..., 2]
    shells = shell_index((padded,) * 3, sums.device).flatten()
    mean = torch.bincount(shells, weights.flatten()) / torch.bincount(shells)
    floor = (weight_floor * mean)[shells].view_as(weights).to(weights)
    empty = torch.finfo(weights.dtype).tiny  # a shell that nothing fell into stays zero
    volume_ft = torch.view_as_complex(sums[..., :2].contiguous())
    volume_ft = volume_ft / torch.maximum(weights, floor).clamp(min=empty)
    volume_ft[(shells > box // 2 * padded / box).view_as(weights)] = 0  # beyond Nyquist: a rim
    volume = torch.fft.fftshift(torch.fft.irfftn(volume_ft, s=(padded,) * 3))
    return pad_centred(volume / sinc2_envelope(padded, volume.device), box, dims=3)
