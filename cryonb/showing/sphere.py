"""The posterior over directions of view on the sphere, and how noise spreads it."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from cryonb.physics.geometry import symmetry_rotations
from cryonb.poses.posterior import effective_number, posterior
from cryonb.poses.templates import Templates, view_axes
from cryonb.showing.plotting import grey_limits
from cryonb.showing.widgets import FrameViewer, frame_viewer
from cryonb.simulation.simulate import noise_sigma

DECADES = 4  # of the colour scale: what is less likely than the likeliest by more is dark
COLOURS = plt.get_cmap("viridis")


def show_sphere(
    directions_deg: torch.Tensor,
    log_weight: torch.Tensor,
    true_axis: torch.Tensor,
    images: dict[str, tuple],
    *,
    symmetry: str = "C1",
    title: str = "",
) -> Figure:
    """Draw weights of directions of view on the sphere (Mollweide: equal areas), images beside.

    Parameters
    ----------
    directions_deg : Tensor (m, 2)
        rot and tilt, of a grid as of `cryonb.poses.templates.view_directions`.
    log_weight : Tensor (m,)
    true_axis : Tensor (3,)
        The true direction, circled with its symmetry mates.
    images : dict of str to (Tensor (y, x), (low, high))
        Two images with their grey scales, from top to bottom.
    """
    fig = plt.figure(figsize=(7.6, 3.7), layout="none")  # every frame in the same place
    ax = fig.add_axes((0.06, 0.16, 0.64, 0.72), projection="mollweide", facecolor=COLOURS(0.0))
    decades, order = ((log_weight - log_weight.max()) / math.log(10)).sort()  # likeliest on top
    shown = decades > -DECADES
    points = _mates(view_axes(directions_deg)[order][shown], symmetry)
    n_mates = len(symmetry_rotations(symmetry))
    width_pt = 72 * ax.get_window_extent().width / fig.dpi
    area_pt2 = math.pi / 8 * width_pt**2 / (n_mates * len(order))  # of the ellipse, for each point
    style = {"s": max(5.0, 5 * area_pt2), "vmin": -DECADES, "vmax": 0, "cmap": COLOURS, "lw": 0}
    colours = decades[shown].repeat(n_mates).numpy()
    drawn = ax.scatter(*_longitude_latitude(points), c=colours, **style)
    ring = {"s": 170, "facecolors": "none", "edgecolors": "w", "linewidths": 1.2}
    truth = ax.scatter(*_longitude_latitude(_mates(true_axis[None], symmetry)), **ring)
    truth.set_path_effects([withStroke(linewidth=3, foreground="k")])
    tilts = [150, 120, 90, 60, 30]  # the angles of RELION: rot across, tilt from the top
    ax.set_yticks([math.radians(90 - t) for t in tilts], [f"{t}°" for t in tilts], size=8)
    ax.set_xticks([math.radians(r) for r in range(-120, 121, 60)], [])
    ax.grid(color="w", alpha=0.25, lw=0.6)
    ax.set(xlabel="rot, from −180° to 180°", ylabel="tilt", title=title)
    bar = fig.colorbar(drawn, cax=fig.add_axes((0.2, 0.09, 0.36, 0.03)), orientation="horizontal")
    bar.set_ticks(range(-DECADES, 1), labels=[f"{10.0**d:g}" for d in range(-DECADES, 1)], size=8)
    bar.set_label("weight ÷ largest weight; circles: the truth", size=8, labelpad=1)
    for i, (name, (image, (low, high))) in enumerate(images.items()):
        panel = fig.add_axes((0.76, 0.53 - 0.48 * i, 0.22, 0.4))
        panel.imshow(image.numpy(), vmin=low, vmax=high, cmap="gray")
        panel.set_axis_off()
        panel.set_title(name, size=9)
    return fig


def _mates(axes: torch.Tensor, symmetry: str) -> torch.Tensor:
    """Directions (m, 3) and all that the point group makes alike: (order * m, 3)."""
    return (axes @ symmetry_rotations(symmetry).to(axes).mT).flatten(0, 1)


def _longitude_latitude(axes: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """In radians, as matplotlib's map projections take them."""
    x, y, z = axes.numpy().T
    return np.arctan2(y, x), np.arcsin(z.clip(-1, 1))


def posterior_viewer(
    templates: Templates,
    clean: torch.Tensor,
    noise: torch.Tensor,
    rotation: torch.Tensor,
    snrs: list[float],
    *,
    symmetry: str = "C1",
    title: str,
) -> FrameViewer:
    """Make a viewer of the posterior over directions of one particle, an SNR a frame.

    Every frame has the same molecule, pose and noise; only the strength of the noise differs.

    Templates are the molecule's `volume_templates` with all its directions, `clean` (y, x) the
    particle in units of the standard deviation of clean images, `noise` (y, x) of unit variance,
    `rotation` (3, 3) the true pose.
    """
    directions, true_axis = templates.directions_deg, rotation[:, 2]
    frames, alt = [], []
    for snr in snrs:
        noisy = clean + noise_sigma(snr) * noise
        found = posterior(templates, noisy[None], noise_sigma(snr))
        log_weight, number = found.log_weight[0].cpu(), float(effective_number(found.log_weight)[0])
        best = view_axes(directions[log_weight.argmax()][None])[0]
        cosine = float((_mates(true_axis[None], symmetry) @ best).max().clamp(max=1))
        images = {"the particle": (noisy, grey_limits(noisy))}
        images["posterior mean"] = found.mean[0].cpu(), grey_limits(clean, 99.9)
        words = f"SNR {snr:g}: {number:,.{int(number < 10)}f} of {len(directions):,} directions"
        words += " share the weight"
        off_deg = math.degrees(math.acos(cosine))
        alt.append(f"{words}; the likeliest is {off_deg:.1f}° from the true one.")
        shown = directions, log_weight, true_axis, images
        frames.append(show_sphere(*shown, symmetry=symmetry, title=words))
        plt.close(frames[-1])
    labels = [f"SNR {snr:g}" for snr in snrs]
    return frame_viewer(frames, labels, alt, title=title, pixelated=False, width_px=760)
