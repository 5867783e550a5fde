"""Micrographs found, read or simulated, and their CTF fitted. Short and readable.

For a lesson and a first look; a real project uses CTFFIND, Topaz or RELION. Micrographs are as the
camera gives them, particles dark. Introduced in: 05_real_data.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import uniform_filter1d
from scipy.optimize import minimize

from cryonb.data.fetch import fetch
from cryonb.data.maps import write_map
from cryonb.data.mrc import open_mrc
from cryonb.data.volumes import Volume, load_volume
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import (
    filter_radially,
    radial_frequency,
    radial_mean,
    spread_shells,
)
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project

BAND_A = (30.0, 5.0)  # resolutions between which Thon rings are fitted


class CTFFit(NamedTuple):
    """Defocus of a micrograph.

    Attributes
    ----------
    defocus_um, astigmatism_um, angle_deg : float
        Mean of the two defocus values, half their difference, and the angle of the larger one.
    correlation : float
        Of the fitted CTF² with the power spectrum free of its background, in the band of the fit.
    """

    defocus_um: float
    astigmatism_um: float
    angle_deg: float
    correlation: float


def find_data(
    name: str, folder: Path, *, most_images: int, box_size: int, pixel_size_A: float, seed: int = 0
) -> tuple[str, Path, torch.Tensor | None]:
    """Find real data by name, or simulate a micrograph in their place.

    Parameters
    ----------
    name : str
        "auto": the micrograph "micrograph-epu", or, where it cannot be had, "simulated".
        "simulated": a micrograph of the channel, written to `folder`.
        A micrograph or an entry of EMPIAR, see `cryonb.data.fetch.fetch`, or the path of a file.
    most_images : int
        Of an entry of EMPIAR.
    box_size, pixel_size_A, seed
        Of the simulation.

    Returns
    -------
    name, path
        What was found.
    positions : Tensor (m, 2) or None
        (y, x) of the particles in a simulated micrograph.
    """
    if name == "auto":
        try:
            return "micrograph-epu", fetch("micrograph-epu"), None
        except (OSError, ValueError) as error:
            print(f"No real micrograph ({error}): a simulated one takes its place.")
            name = "simulated"
    if name == "simulated":
        scene, path = load_volume("channel", box_size, pixel_size_A), folder / "simulated.mrc"
        options = {"snr": 0.5, "defocus_um": 1.7, "seed": seed}
        micrograph, positions = simulate_micrograph(scene, 80, 14 * box_size, **options)
        write_map(path, micrograph[None], pixel_size_A)
        return name, path, positions
    if name.startswith(("micrograph-", "EMPIAR-")):
        most = most_images if name.startswith("EMPIAR-") else None
        return name, fetch(name, max_images=most), None
    return name, Path(name), None


def read_micrograph(path: str | os.PathLike) -> tuple[torch.Tensor, float]:
    """Read one micrograph; hot and dead pixels take the median of their neighbours.

    Returns
    -------
    micrograph : Tensor (y, x), float32
    pixel_size_A : float

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; damaged; a movie, a stack or a volume; no pixel size; NaN.
    """
    mrc = open_mrc(path)
    data, (_, y_A, x_A) = mrc.data, mrc.voxel_A
    if len(data) > 1 or np.iscomplexobj(data):
        raise ValueError(f"{path} holds an array {data.shape}, no micrograph: align movies first")
    if not (x_A > 0 and abs(x_A - y_A) < 1e-3 * x_A):
        raise ValueError(
            f"{path} has no pixel size, or no square pixels, in its header ({x_A:g} × {y_A:g} Å): "
            "set it with mrcfile or RELION"
        )
    if not np.isfinite(data).all() or data.min() == data.max():
        raise ValueError(f"{path} holds NaN or infinite pixels, or one value: make it again")
    return remove_hot_pixels(torch.from_numpy(data[0].astype(np.float32))), x_A


def remove_hot_pixels(image: torch.Tensor) -> torch.Tensor:
    """Give pixels more than 6 deviations from the median that of the 5 × 5 around them."""
    values = image.numpy()
    low, middle, high = np.percentile(values[::7, ::7], [15.9, 50, 84.1])  # mean ± deviation
    hot = np.argwhere(np.abs(values - middle) > 3 * max(high - low, 1e-12))
    if not len(hot):
        return image
    around = sliding_window_view(np.pad(values, 2, mode="reflect"), (5, 5))
    healed = values.copy()
    healed[tuple(hot.T)] = np.median(around[tuple(hot.T)], axis=(1, 2))
    return torch.from_numpy(healed)


def fit_ctf(
    power_ft: torch.Tensor,
    pixel_A: float,
    *,
    defocus_um: tuple[float, float] = (0.3, 5.0),
    **optics,
) -> CTFFit:
    """Fit defocus and astigmatism to the Thon rings of a power spectrum.

    The smooth background is taken off the logarithm of the power. The defocus whose CTF² correlates
    best with the rings is looked for on a grid of 10 nm in the radial mean, then refined in two
    dimensions with the astigmatism. After CTFFIND4 (Rohou and Grigorieff 2015), much simplified.

    Parameters
    ----------
    power_ft : Tensor (n, n // 2 + 1)
        Mean periodogram of the micrograph.
    defocus_um : (float, float)
        Range of the search.
    **optics
        `voltage_kv`, `spherical_aberration_mm`, `amplitude_contrast`: `cryonb.physics.ctf.ctf`.
    """
    box = 2 * (power_ft.shape[-1] - 1)
    profile, rings = thon_rings(power_ft)
    shells = torch.arange(box // 2 + 1) / (box * pixel_A)
    band = _band(shells, pixel_A)
    grid = torch.arange(*defocus_um, 0.01)
    # Row ky = 0 of a small CTF with as many columns as there are shells.
    models = torch.stack([ctf(box, pixel_A, float(z), **optics)[0, 0] for z in grid])
    match = torch.corrcoef(torch.cat([profile[None], models.square()])[:, band])[0, 1:]
    best = float(grid[match.argmax()])
    band = _band(radial_frequency(box, 2) / pixel_A, pixel_A)

    def loss(values) -> float:
        defocus, astigmatism, angle = map(float, values)
        model = ctf(
            box, pixel_A, defocus, astigmatism_um=astigmatism, astigmatism_angle_deg=angle, **optics
        )[0].square()
        return -float(torch.corrcoef(torch.stack([model[band], rings[band]]))[0, 1])

    tries = itertools.product((best - 0.04, best, best + 0.04), (0.02, 0.08), range(0, 180, 45))
    first = np.array(min(tries, key=loss), dtype=float)
    start = first + np.array([(0, 0, 0), (0.02, 0, 0), (0, 0.03, 0), (0, 0, 25)])
    options = {"xatol": 1e-3, "fatol": 1e-5, "maxiter": 100, "initial_simplex": start}
    found = minimize(loss, first, method="Nelder-Mead", options=options)
    defocus, astigmatism, angle = map(float, found.x)
    if astigmatism < 0:  # the larger defocus lies at right angles
        astigmatism, angle = -astigmatism, angle + 90
    return CTFFit(defocus, astigmatism, angle % 180, -float(found.fun))


def thon_rings(power_ft: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of the power free of its smooth part: radial mean (shells,), and in rfft layout."""
    box = 2 * (power_ft.shape[-1] - 1)
    rings = power_ft.clamp_min(1e-30).log()
    profile = radial_mean(rings, box, dims=2).float()
    smooth = uniform_filter1d(profile.numpy(), max(5, box // 25), mode="nearest")
    smooth = torch.from_numpy(smooth)
    return profile - smooth, rings - spread_shells(smooth, box)


def _band(frequency: torch.Tensor, pixel_A: float) -> torch.Tensor:
    return (frequency > 1 / BAND_A[0]) & (frequency < 1 / max(BAND_A[1], 2.2 * pixel_A))


def simulate_micrograph(
    volume: Volume,
    n: int,
    size: int,
    *,
    snr: float = 0.1,
    defocus_um: float = 2.0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Simulate a micrograph (size, size) of dark particles, CTF and coloured noise.

    Returns
    -------
    micrograph : Tensor (y, x)
        In counts about 1000.
    positions : Tensor (m, 2)
        (y, x) of the particles that found room, at most `n`.
    """
    generator = torch.Generator().manual_seed(seed)
    box, positions = volume.map.shape[-1], torch.zeros(0, 2, dtype=torch.long)
    for at in torch.randint(box // 2, size - box // 2, (20 * n, 2), generator=generator):
        if len(positions) < n and ((positions - at).float().norm(dim=1) > 0.8 * box).all():
            positions = torch.cat([positions, at[None]])
    images = project(volume.map, random_rotations(len(positions), generator))
    images = images / images.std()
    scene = torch.zeros(size, size)
    for (y, x), image in zip((positions - box // 2).tolist(), images, strict=True):
        scene[y : y + box, x : x + box] += image
    scene = apply_ctf(scene[None], ctf(size, volume.pixel_size_A, defocus_um))[0]
    white = torch.randn(size, size, generator=generator)
    noise = filter_radially(white, lambda f: (1 + 3 * torch.exp(-((f / 0.06) ** 2))).sqrt(), dims=2)
    return 1000 - 30 * (scene + noise / noise.std() * snr**-0.5), positions
