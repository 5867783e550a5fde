"""Random molecules, to train one denoiser for proteins that it has never seen.

A molecule is drawn from a family of globular, membrane and ring-like assemblies: helices and
strands with ideal backbones are packed into one to five domains, and a symmetry copies them. The
folds mean nothing; sizes, densities and shapes at 5 Å and coarser are those of proteins.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation
from tqdm.auto import tqdm

from cryonb.base.draws import draw_options
from cryonb.base.workers import in_processes
from cryonb.data import molecules
from cryonb.data.maps import level_and_scale
from cryonb.data.volumes import Volume
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import filter_radially, fourier_crop, low_pass, radial_frequency
from cryonb.physics.projection import shift_images
from cryonb.physics.reconstruct import flatten_corners
from cryonb.simulation.masks import micelle
from cryonb.simulation.simulate import map_noise, setting, simulate_images

RESIDUE_A3 = 135.0  # volume of a residue in a folded protein
SYMMETRIES = (1, 1, 1, 2, 2, 3, 4, 4, 5, 6)  # of the cyclic groups, as often as they are drawn


def random_molecule(rng: np.random.Generator) -> molecules.Atoms:
    """Draw a molecule of 150 to 4,000 residues, its symmetry axis along z: backbone and CB atoms.

    Half of those with helices along z lie in a membrane.
    """
    n_fold = int(rng.choice(SYMMETRIES))
    residues = np.exp(rng.uniform(np.log(150), np.log(4000))) / n_fold
    upright = rng.random() < 0.5
    backbone = _subunit(max(residues, 60), upright, rng)
    radius = np.linalg.norm(backbone.reshape(-1, 3), axis=1).max()
    if n_fold > 1:  # beside the axis, near enough to touch its neighbour
        backbone = backbone + [rng.uniform(0.5, 0.9) * radius / np.sin(np.pi / n_fold), 0, 0]
    atoms = molecules.with_o_and_cb(backbone).reshape(-1, 3)
    xyz = np.concatenate([turn.apply(atoms) for turn in Rotation.create_group(f"C{n_fold}")])
    xyz[:, 2] -= xyz[:, 2].mean()
    if n_fold == 1:
        xyz -= xyz.mean(0)
    element = np.tile(np.array(["N", "C", "C", "O", "C"]), len(xyz) // 5)
    b_factor = np.full(len(xyz), np.exp(rng.uniform(np.log(50), np.log(400))))
    slab = (-15.0, 15.0) if upright and rng.random() < 0.5 else None
    return molecules.Atoms(xyz, element, b_factor, "random", f"C{n_fold}", slab)


def _subunit(residues: float, upright: bool, rng: np.random.Generator) -> np.ndarray:
    """Backbone (residue, 3, 3) of one subunit around its own centre."""
    domains = int(np.clip(rng.poisson(residues / 250), 1, 5))
    share = rng.dirichlet(np.full(domains, 4.0)) * residues
    centre, radius, placed = np.zeros(3), 0.0, []
    for i, n in enumerate(share):
        before, radius = radius, (RESIDUE_A3 * n * 3 / (4 * np.pi)) ** (1 / 3)
        if i:
            centre = centre + 0.95 * (before + radius) * _direction(rng, upright=False)
        stretch = np.exp(rng.normal(0, 0.25, 3))
        stretch /= stretch.prod() ** (1 / 3)
        placed += _domain(n, centre, radius * stretch, upright and i == 0, rng)
    backbone = np.concatenate(placed)
    return backbone - backbone.mean((0, 1))


def _domain(n: float, centre, radii, upright: bool, rng) -> list[np.ndarray]:
    """Helices and strands of `n` residues in an ellipsoid, each in the roomiest of ten places."""
    pieces, count, strands = [], 0, rng.choice([0.0, 0.3, 0.8])
    while count < n:
        kind = "E" if rng.random() < strands else "H"
        length = rng.uniform(12, 25) if kind == "E" else rng.uniform(12, 40)
        length = min(length, 1.6 * radii.max())
        tree = KDTree(np.concatenate([p[:, 1] for p in pieces])) if pieces else None
        ways = [_place(kind, length, centre, radii, upright, rng) for _ in range(10)]
        room = [tree.query(way[:, 1])[0].min() if tree else 0.0 for way in ways]
        pieces.append(ways[int(np.argmax(room))])
        count += len(pieces[-1])
    return pieces


def _place(kind: str, length: float, centre, radii, upright: bool, rng) -> np.ndarray:
    """One element (residue, 3, 3) about a random point of the ellipsoid."""
    middle = centre + radii * _direction(rng, upright=False) * 0.85 * rng.random() ** (1 / 3)
    half = 0.5 * length * _direction(rng, upright)
    return molecules.ideal_backbone(kind, middle - half, middle + half, rng.normal(size=3))


def _direction(rng: np.random.Generator, upright: bool) -> np.ndarray:
    """Unit vector, uniform on the sphere or within about 25° of the z axis."""
    v = rng.normal(size=3) * (0.3 if upright else 1.0) + [0, 0, 1.0 if upright else 0.0]
    return v / np.linalg.norm(v)


def training_images(
    n_molecules: int,
    views: int,
    box_size: int = 64,
    seed: int = 0,
    *,
    pixel_size_A: float | None = None,
    diameter_A: float | None = None,
    transfer: torch.Tensor | None = None,
    workers: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Simulate what a denoiser for any molecule is trained on, or for any that is like one's own.

    Each molecule gets its own pixel size (it fills 0.35 to 0.8 of the box), structural noise of
    its own (neighbours, an ice gradient, a carbon edge, in a membrane a micelle), a defocus of 0.4
    to 3.5 µm for each image (a quarter of the molecules are without CTF), and a filter such as
    whitening by the measured noise spectrum makes. Images are phase-flipped, as
    `cryonb.data.whitening` feeds them: the target is ``|CTF| filter * projection``.

    Parameters
    ----------
    n_molecules, views : int
        Random molecules, and projections of each.
    pixel_size_A, diameter_A : float, optional
        Take this pixel size, and molecules within 30 % of this diameter.
    transfer : Tensor (n, y, x // 2 + 1), optional
        Measured ``|CTF|`` filters, one of which is drawn for each image.
    workers : int
        Processes that share the molecules; the images are the same, up to rounding.

    Returns
    -------
    target, observed : Tensor (n_molecules * views, y, x)
        Both in units of the target's pooled standard deviation per molecule, times a random
        contrast; without white noise.
    """
    one = partial(_of_molecule, seed, views, box_size, pixel_size_A, diameter_A, transfer)
    made = tqdm(in_processes(one, n_molecules, workers), total=n_molecules, desc="molecules")
    target, observed = map(np.concatenate, zip(*made, strict=True))
    return torch.from_numpy(target), torch.from_numpy(observed)


def _reach_A(atoms: molecules.Atoms) -> float:
    return float(np.linalg.norm(atoms.xyz_A, axis=1).max())


def coarse_volume(atoms: molecules.Atoms, box_size: int, pixel_size_A: float) -> Volume:
    """Volume of atoms that are all alike, Gaussians of one B factor.

    It takes a thirtieth of the time of `cryonb.data.volumes.from_atoms`, and has nearly the same
    shape at 2 Å per pixel and more.
    """
    fine, step_A = 2 * box_size, pixel_size_A / 2
    edges = [(np.arange(fine + 1) - fine // 2 - 0.5) * step_A] * 3
    counts, _ = np.histogramdd(atoms.xyz_A[:, ::-1], edges)  # (z, y, x)
    grid = fourier_crop(torch.from_numpy(counts).float(), box_size)
    decay = float(atoms.b_factor.mean()) / (4 * pixel_size_A**2)
    blurred = filter_radially(grid, lambda f: torch.exp(-decay * f**2))
    return Volume(blurred, pixel_size_A, atoms.name, atoms.symmetry, atoms.membrane_z_A)


def _of_molecule(
    seed: int, views: int, box: int, pixel_A, diameter_A, transfer, i: int
) -> tuple[np.ndarray, np.ndarray]:
    """Target and observed images of the molecule of number `i`, a function of (seed, i) alone."""
    rng = np.random.default_rng((seed, i))
    atoms = random_molecule(rng)
    while diameter_A and not 0.7 < 2 * _reach_A(atoms) / diameter_A < 1.3:
        atoms = random_molecule(rng)
    width_A = 2 * _reach_A(atoms) + 8
    pixel_A = pixel_A or max(width_A / (rng.uniform(0.35, 0.8) * box), 1.8)
    volume = coarse_volume(atoms, box, pixel_A)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    amounts = setting("structural" if rng.random() < 0.5 else "white")
    if not atoms.membrane_z_A:
        amounts = replace(amounts, micelle=0.0)
    images = simulate_images(volume, views, amounts, generator, scale=None)
    shifts = 2.0 * torch.randn(views, 2, generator=generator)
    both = torch.stack([images.clean, images.clean + images.structure])
    both = torch.stack([shift_images(stack, shifts) for stack in both])
    if transfer is None:
        transfer = _transfer(views, box, pixel_A, rng, generator)
    else:
        transfer = transfer[torch.randint(len(transfer), (views,), generator=generator)]
    both = apply_ctf(both, transfer)
    both = both / both[0].std() * torch.exp(0.2 * torch.randn(views, 1, 1, generator=generator))
    return both[0].numpy(), both[1].numpy()


def _transfer(n: int, box: int, pixel_A: float, rng, generator) -> torch.Tensor:
    """``|CTF|`` times a whitening filter, rfft layout (n or 1, y, x // 2 + 1)."""
    f = radial_frequency(box, 2)
    strength, width = rng.exponential(2.0), np.exp(rng.uniform(np.log(0.02), np.log(0.3)))
    whitening = (1 + strength * torch.exp(-((f / width) ** 2))).rsqrt()
    if rng.random() < 0.25:
        return whitening[None]
    defocus = 0.4 + 3.1 * torch.rand(n, generator=generator)
    voltage = float(rng.choice([200.0, 300.0]))
    return ctf(box, pixel_A, defocus, voltage_kv=voltage).abs() * whitening


def training_volumes(
    n_molecules: int, box_size: int = 64, pixel_size_A: float = 3.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random molecules and their micelles, from which `draw_maps` makes maps.

    Three of five molecules have a micelle, around a slab of 30 Å somewhere in their middle, of
    random width and density; the other belts are zero. Molecules wider than 0.9 boxes are left out.

    Returns
    -------
    molecules, belts : Tensor (n_molecules, z, y, x), float16
        In units of each molecule's standard deviation over the box.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in tqdm(range(n_molecules), desc="molecules"):
        atoms = random_molecule(rng)
        while 2 * _reach_A(atoms) + 8 > 0.9 * box_size * pixel_size_A:
            atoms = random_molecule(rng)
        volume, belt = coarse_volume(atoms, box_size, pixel_size_A), torch.zeros(())
        if rng.random() < 0.6:
            z_A = float(np.quantile(atoms.xyz_A[:, 2], rng.uniform(0.25, 0.75)))
            belt = micelle(
                volume,
                membrane_z_A=(z_A - 15, z_A + 15),
                width_A=rng.uniform(15, 32),
                shell_A=rng.uniform(6, 12),
                head_level=rng.uniform(0.5, 1.1),
                core_level=rng.uniform(-0.4, 0.4),
            )
        both = torch.stack([volume.map, belt.expand_as(volume.map)])
        pairs.append((both / volume.map.std()).half())
    return tuple(torch.stack(maps) for maps in zip(*pairs, strict=True))


def draw_maps(
    volumes, n: int, generator: torch.Generator, *, pixel_size_A: float = 3.0, patch: int = 48
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw what a map cleaner is trained on: pieces of noisy maps, and the molecules in them.

    A molecule with 0.3 to 1.3 of its micelle is turned by 90° steps and gets noise like that of a
    reconstruction, of power f^p with p from 0 to 1.5, strong enough to bring its FSC with the truth
    down to 0.5 at a resolution from 2.1 to 8 pixels. Half of the maps are flat outside a sphere.
    All are sharpened or blurred by a B factor within ±150 Å², and two of three are low-passed near
    that resolution. The target is the molecule, filtered alike.

    Parameters
    ----------
    volumes : (Tensor, Tensor)
        Of `training_volumes`.
    patch : int
        Voxels along the edge of the piece that is cut out, at most the box.

    Returns
    -------
    target, observed : Tensor (n, patch, patch, patch)
        In units of the standard deviation of the whole observed map, its median at zero.
    """
    pairs = [_draw_map(volumes, generator, pixel_size_A, patch) for _ in range(n)]
    return tuple(torch.stack(maps) for maps in zip(*pairs, strict=True))


def _draw_map(volumes, generator, pixel_A: float, patch: int) -> torch.Tensor:
    """One target and observed map: (2, patch, patch, patch)."""
    u = torch.rand(7, **draw_options(generator)).tolist()
    turns = torch.randint(0, 4, (3,), **draw_options(generator)).tolist()
    molecule, belt = (v[int(u[0] * len(v))].float() for v in volumes)
    observed = molecule + (0.3 + u[1]) * belt
    resolution_A = pixel_A * 2.1 * (8 / 2.1) ** u[2]
    noise = map_noise(molecule, resolution_A, pixel_A, generator, power=1.5 * u[3])
    observed = observed + (flatten_corners(noise) if u[4] < 0.5 else noise)
    both, decay = torch.stack([molecule, observed]), 75 * (2 * u[5] - 1) / 2 / pixel_A**2
    both = filter_radially(both, lambda f: torch.exp(-decay * f**2))
    if u[6] < 2 / 3:
        both = low_pass(both, resolution_A * (0.75 + u[6]), pixel_A)
    level, scale = level_and_scale(both[1])
    both = torch.stack([both[0], both[1] - level]) / scale
    for turn, plane in zip(turns, ((1, 2), (2, 3), (1, 2)), strict=True):
        both = torch.rot90(both, turn, plane)
    box = both.shape[-1]
    corner = torch.randint(0, box - patch + 1, (3,), **draw_options(generator)).tolist()
    return both[(slice(None), *(slice(c, c + patch) for c in corner))]
