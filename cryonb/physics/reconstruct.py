"""Reconstruction with known poses by direct insertion into Fourier space."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch

from cryonb.physics.fourier import check_cubic, shell_index
from cryonb.physics.geometry import symmetry_rotations
from cryonb.physics.projection import check_poses, pad_centred, shift_phases, sinc2_envelope


class Views(NamedTuple):
    """Images (n, y, x), the matrices (n, 3, 3) of their slices, and what they carry.

    `matched` (n, y, x // 2 + 1) multiplies the images' transforms before they are added up, by
    default the conjugate of `ctf`: see `cryonb.data.optics.matched_filter`.
    """

    images: torch.Tensor
    rotations: torch.Tensor
    shifts_px: torch.Tensor | None = None
    ctf: torch.Tensor | None = None
    matched: torch.Tensor | None = None


def reconstruct(
    images: torch.Tensor,
    rotations: torch.Tensor,
    shifts_px: torch.Tensor | None = None,
    ctf: torch.Tensor | None = None,
    symmetry: str = "C1",
    *,
    batch_size: int = 64,
    weight_floor: float = 1e-3,
) -> torch.Tensor:
    """Reconstruct a volume from images with known poses.

    Each image's transform is a central slice; it is laid trilinearly into the transform of the
    volume, padded twofold, and every Fourier voxel becomes the least-squares mean of what fell near
    it, ``V(k) = sum CTF* X / max(sum |CTF|^2, floor)``. The floor, `weight_floor` times the mean of
    its shell, keeps rarely seen voxels from blowing up, as in relion_reconstruct. Dividing by the
    trilinear kernel's transform, sinc^2, then removes its envelope, and `flatten_corners` the noise
    where no molecule can be.

    Parameters
    ----------
    images : torch.Tensor, shape (n, y, x)
    rotations : torch.Tensor, shape (n, 3, 3)
        Poses, see `cryonb.physics.conventions`.
    shifts_px : torch.Tensor, optional, shape (n, 2)
        (y, x) positions of the particles, which are moved back.
    ctf : torch.Tensor, optional, shape (n, y, x // 2 + 1)
        CTF that the images carry, complex with odd aberrations; None for images without.
    symmetry : str
        Every image is inserted with all its mates.
    batch_size : int
        Images at a time; memory grows with it.
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
        Views(images[b], rotations[b], shifts_px[b], None if ctf is None else ctf[b]) for b in parts
    )
    return reconstruct_batches(batches, symmetry, weight_floor=weight_floor)


def reconstruct_halves(
    images: torch.Tensor, rotations: torch.Tensor, symmetry: str = "C1"
) -> torch.Tensor:
    """Maps (2, z, y, x), each from every second image; their mean is the full map."""
    halves = (slice(i, None, 2) for i in (0, 1))
    return torch.stack([reconstruct(images[h], rotations[h], symmetry=symmetry) for h in halves])


@torch.no_grad()
def reconstruct_batches(
    batches: Iterable[Views],
    symmetry: str = "C1",
    *,
    weight_floor: float = 1e-3,
    ridge: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do as `reconstruct` from a stream of batches, holding one of them at a time.

    Parameters
    ----------
    batches : iterable of Views
    symmetry, weight_floor
        As in `reconstruct`.
    ridge : torch.Tensor, optional, shape (n // 2 + 1,)
        Power of the noise in an image's transform ÷ power of the volume's transform, for each
        shell: with it the result is the Wiener estimate. Infinite for shells to leave out.

    Returns
    -------
    torch.Tensor of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If there is no batch, or box sizes differ.
    """
    box, sums = 0, None
    turns, mates = _turns_and_rest(symmetry_rotations(symmetry))
    for images, rotations, shifts_px, ctf, matched in itertools.starmap(Views, batches):
        if sums is None:
            box = check_cubic(images, 2)
            padded = 2 * box
            shape = padded, padded, box + 2  # one spare column beyond Nyquist
            kinds = torch.complex64, torch.float32
            sums = [torch.zeros(shape, dtype=kind, device=images.device) for kind in kinds]
        if images.shape[-2:] != (box, box):
            raise ValueError(f"batches mix {box} px with {tuple(images.shape[-2:])}: use one box")
        rotations, shifts_px = check_poses(rotations, shifts_px, images.device)
        frequencies, *values = _central_values(images.float(), shifts_px, ctf, matched)
        for mate in mates.to(rotations):
            _insert(sums, mate @ rotations, frequencies * (padded / box), values)
    if sums is None:
        raise ValueError("there are no images to reconstruct from: pass at least one batch")
    sums = _symmetrise(*_fold(*sums), turns)
    return flatten_corners(_solve(*sums, box, weight_floor, ridge))


def _turns_and_rest(mates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mates that take the grid to itself, and as many others as make all mates by products.

    The first cost nothing for each image: turning the sums is as good as turning every image.
    """
    turns = mates[(mates - mates.round()).abs().amax((1, 2)) < 1e-6].round()
    rest = []
    for mate in mates:
        known = [(mate @ other.T - turns).abs().amax((1, 2)).min() < 1e-6 for other in rest]
        if not any(known):
            rest.append(mate)
    return turns, torch.stack(rest)


def _central_values(
    images: torch.Tensor,
    shifts_px: torch.Tensor,
    ctf: torch.Tensor | None,
    matched: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frequencies (2, m) as x and y indices, matched X (b, m) and matched CTF (b or 1, m)."""
    box = images.shape[-1]
    x_ft = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    x_ft = x_ft * shift_phases(-shifts_px, box)
    ctf = torch.ones_like(x_ft.real[:1]) if ctf is None else ctf.to(x_ft.device)
    matched = ctf.conj() if matched is None else matched.to(x_ft.device)
    ky = (torch.fft.fftfreq(box, device=images.device) * box).round()
    kx = torch.arange(box // 2 + 1, device=images.device) * 1.0
    ky, kx = torch.meshgrid(ky, kx, indexing="ij")
    inside = kx.square() + ky.square() <= (box // 2) ** 2
    # The column kx = 0 holds both Friedel mates, every other column one: halve it.
    share = torch.where(kx == 0, 0.5, 1.0)
    values = (matched * x_ft * share)[:, inside], ((matched * ctf).real * share)[:, inside]
    return torch.stack([kx, ky])[:, inside], *values


def _insert(
    sums: list[torch.Tensor],
    rotations: torch.Tensor,
    frequencies: torch.Tensor,
    values: list[torch.Tensor],
) -> None:
    """Add data and weights (b, m) at the rotated frequencies, spread over the eight voxels around.

    All arrays are flat: index_add_ takes rows of several numbers eight times slower.
    """
    padded, width = sums[0].shape[1:]
    at = (rotations[:, :, :2] @ frequencies).transpose(0, 1).flatten(1)
    x, y, z = at.clamp(-padded / 2, padded / 2)  # each (b * m,); magnified ones may lie beyond
    sign = torch.where(x < 0, -1.0, 1.0)  # the other half: take the Friedel mate
    data = values[0].flatten()
    data = torch.complex(data.real, data.imag * sign)
    weights = values[1].expand(len(rotations), -1).flatten()
    x, y, z = (_two_around(k * sign, padded) for k in (x, y, z))
    for (at_z, part_z), (at_y, part_y) in itertools.product(z, y):
        row, part = (at_z * padded + at_y) * width, part_z * part_y
        for at_x, part_x in x:
            index, share = row + at_x, part * part_x
            sums[0].view(-1).index_add_(0, index, data * share)
            sums[1].view(-1).index_add_(0, index, weights * share)


def _two_around(k: torch.Tensor, padded: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Index of the two grid points around each position, and their shares of it."""
    low = k.floor()
    upper, index = k - low, low.long()
    wrapped = [torch.where(i < 0, i + padded, i) for i in (index, index + 1)]
    return [(wrapped[0], 1 - upper), (wrapped[1], upper)]


def _fold(data: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums without the spare column; the planes that hold their own Friedel mates get theirs."""
    data, weights = data[:, :, :-1].contiguous(), weights[:, :, :-1].contiguous()
    for sums in (data, weights):
        planes = sums[:, :, [0, -1]]  # x = 0 and Nyquist
        sums[:, :, [0, -1]] += torch.roll(planes.flip(0, 1), (1, 1), dims=(0, 1)).conj()  # index -k
    return data, weights


def _symmetrise(
    data: torch.Tensor, weights: torch.Tensor, turns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over all turns of the grid onto itself, (g, 3, 3), plane by plane."""
    if len(turns) == 1:
        return data, weights
    padded, _, width = data.shape
    k = (torch.fft.fftfreq(padded, device=data.device) * padded).round().long()
    y, x = torch.meshgrid(k, k.abs()[:width], indexing="ij")
    result = torch.zeros_like(data), torch.zeros_like(weights)
    for i, turn in itertools.product(range(padded), turns.long().tolist()):
        at_x, at_y, at_z = (r[0] * x + r[1] * y + r[2] * k[i] for r in turn)
        sign = torch.where(at_x < 0, -1, 1)  # the other half: the Friedel mate
        rows = (at_z * sign) % padded * padded + (at_y * sign) % padded
        found = rows * width + at_x * sign
        values = data.view(-1)[found]
        result[0][i] += torch.complex(values.real, values.imag * sign)
        result[1][i] += weights.view(-1)[found]
    return result


def _solve(
    data: torch.Tensor,
    weights: torch.Tensor,
    box: int,
    weight_floor: float,
    ridge: torch.Tensor | None = None,
) -> torch.Tensor:
    """Volume (box, box, box) of the summed data and weights."""
    padded = data.shape[0]
    shells = shell_index((padded,) * 3, data.device).flatten()
    mean = torch.bincount(shells, weights.flatten()) / torch.bincount(shells)
    floor = (weight_floor * mean)[shells].view_as(weights).to(weights)
    empty = torch.finfo(weights.dtype).tiny  # a shell that nothing fell into stays zero
    weights = torch.maximum(weights, floor).clamp(min=empty)
    if ridge is not None:  # an image's pixel is one of the (padded / box)^3 voxels around it
        at = (shells * box / padded).round().long().clamp(max=box // 2)
        weights = weights + (ridge * (box / padded) ** 3)[at].view_as(weights).to(weights)
    volume_ft = data / weights
    volume_ft[(shells > box // 2 * padded / box).view_as(weights)] = 0  # beyond Nyquist: a rim
    volume = torch.fft.fftshift(torch.fft.irfftn(volume_ft, s=(padded,) * 3))
    return pad_centred(volume / sinc2_envelope(padded, volume.device), box, dims=3)


def flatten_corners(volume: torch.Tensor) -> torch.Tensor:
    """Set what lies outside the sphere in the box (z, y, x) to its mean, with a cosine edge.

    A molecule that fits the box in every pose lies inside. Outside is half of the box, and noise
    alone, which would count in every FSC of the whole box. relion_reconstruct does the same. The
    edge goes from the sphere of diameter n 3 px outwards.
    """
    box = check_cubic(volume, 3)
    k = torch.arange(box, device=volume.device) - box // 2
    radius = (k.square() + k[:, None].square() + k[:, None, None].square()).sqrt()
    outside = 0.5 - 0.5 * torch.cos(torch.pi * ((radius - box / 2) / 3).clamp(0, 1))
    return torch.lerp(volume, (outside * volume).sum() / outside.sum(), outside)
