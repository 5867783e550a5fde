# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,jupyter,-all
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Simulate particles whose truth you know
#
# ```text
#  atoms ──► potential map ──► random poses, sums ──► clean images ────────► the target
#                                                        │
#            detergent belt, neighbours, ice, carbon ──► + ──► (CTF) ──► + ──► the input
#                                                                        ▲
#                                                        white noise, SNR as stated
# ```
#
# In this notebook you build, step by step, the two data sets on which the rest of the book trains and judges its denoisers: noisy images, and for each of them the image that a perfect denoiser would return.

# %% [markdown]
# **You will learn to**
#
# - turn atoms into the map that electrons see, and the map into projections, in two ways that agree;
# - write down the CTF, and know when to leave it out;
# - tell white noise from **structural noise**, and see in a power spectrum why no filter separates the second from the molecule;
# - state an SNR so that somebody else gets the same number;
# - write a data set that RELION can read, and know which of its images a network has seen.
#
# | you should know | | where to read up |
# |---|---|---|
# | the conventions: axes, poses, signs | necessary | [00 start here](00_start_here.ipynb) |
# | variance, correlation | necessary | any first course in statistics |
# | Fourier transform of an image | helpful | [Fourier transform](https://en.wikipedia.org/wiki/Fourier_transform) |
# | projection-slice theorem | helpful | [Projection-slice theorem](https://en.wikipedia.org/wiki/Projection-slice_theorem), and below |
#
# **Inputs**: none by default; `source` may be a PDB, mmCIF or MRC file of yours. **Outputs**: `data/white` and `data/structural` in the run folder, `results/01_simulate.json`. **Hardware**: a laptop; the last cell prints the time that this run took.

# %% [markdown]
# ## What the paper does, and what it leaves open
#
# The book follows Zhang, Zhao, Hu and Zhao, *Robust single-particle cryo-EM image denoising and restoration* (ICASSP 2024). They take a published map, use another network to remove from it, in three dimensions, what is not protein, project it in random directions, add white Gaussian noise, and train on the pairs: first a diffusion model ([02](02_train_sr3.ipynb)), then a small network behind it ([03](03_refine_unet.ipynb)). They use two maps from the public archive, the ion channel HCN1 (EMD-8511, fourfold symmetry) and the motor protein prestin (EMD-24928, twofold), and real HCN1 particles (EMPIAR-10081).
#
# To repeat this, you have to decide what the paper does not say:
#
# | | in the paper | here |
# |---|---|---|
# | SNR | not stated | `snr`, 0.1 by default, with an exact definition |
# | box, pixel size, number of images | not stated | parameters, recorded with the data |
# | CTF | not mentioned, apparently none | off; a switch turns it on |
# | normalisation | not stated | clean images have standard deviation 1, over the data set |
# | structural noise in the input | the idea that motivates the paper; how much of it, and which, is not stated | four kinds, each with an amount, each shown below |
#
# Without these definitions nobody can set the numbers of two papers side by side; [04](04_compare_methods.ipynb) shows it on the paper's own table.

# %% jupyter={"source_hidden": true}
import json
import math
import time
from pathlib import Path

import gemmi
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch.testing import assert_close

from cryonb.base.parameters import true_or_false
from cryonb.data import molecules
from cryonb.data.volumes import VOLT_A2, from_atoms, load_volume
from cryonb.evaluation.metrics import correlation
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import low_pass, radial_mean
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project
from cryonb.showing.plotting import show_rows, use_style
from cryonb.simulation import simulate
from cryonb.simulation.dataset import read_dataset, write_dataset
from cryonb.simulation.masks import micelle, soft_mask

started = time.perf_counter()
use_style()

# %% tags=["parameters"]
source = "channel"  # channel, prestin, or a PDB, mmCIF or MRC file
box_size = 64  # pixels along each edge of an image
pixel_size_A = 3.0  # Å per pixel
snr = 0.1  # variance of the clean images / variance of the white noise
structural = True  # also make the data set "structural" beside "white"
n_train = 2000  # particles to train on
n_validation = 1000  # particles to watch the training with, and to train the refinement on
n_test = 512  # particles to judge with
micelle_amount = 1.0  # density of the detergent belt; 1: head groups about as dense as protein
neighbours_mean = 0.7  # other particles that reach into a box, mean number
ice_slope = 0.5  # ice gradient: root mean square at the box edge, clean standard deviations
carbon_share = 0.15  # share of the images that a carbon edge crosses
use_ctf = False  # apply a CTF; the paper's setting has none
defocus_low_um = 1.0  # µm, underfocus drawn between this ...
defocus_high_um = 2.5  # µm, ... and this, if use_ctf
seed = 0  # of poses and noise
run_dir = "runs/own"  # everything is written under it

# %% [markdown]
# ## From atoms to what electrons see
#
# **Which property of a molecule does the microscope record?** X-rays are scattered by the electron cloud; electrons, being charged, by the **electrostatic potential** of nuclei and cloud together. For one atom the potential is known well, as a sum of five Gaussians fitted to quantum mechanics: in terms of the scattering factor
#
# $$ f(s) = \sum_{i=1}^{5} a_i\, e^{-b_i s^2}, \qquad s = \frac{|k|}{2}, $$
#
# with $k$ the spatial frequency in 1/Å, and $a_i$ and $b_i$ tabulated for each element (Peng and others 1996). A molecule is the sum of its atoms, each smeared by its thermal motion (the B factor). The Fourier transform at $k = 0$ is the integral, so there is an exact law to test the map with: **its integral is the sum of $f(0)$ over the atoms**, times the constant $h^2 / 2 \pi m e = 47.88$ V Å².
#
# One thing is left out. In the microscope the molecule does not stand in vacuum: it has pushed ice aside, which has a potential of its own, 4.5 V on average. `load_volume(..., solvent=True)` subtracts the ice that each atom displaces; that halves the coarse contrast of a protein and leaves the fine detail almost as it is. Here vacuum stays the default, because the weights that come with cryonb were trained in it; you will measure below what it does to the SNR.
#
# The default molecule is written by code: ideal helices and strands, side chains and loops, four times around an axis. It is no real protein, but it has the texture, the symmetry and the handedness of one.

# %%
structural, use_ctf = map(true_or_false, (structural, use_ctf))
atoms = molecules.channel()
channel = from_atoms(atoms, box_size, pixel_size_A)
at_zero = {e: sum(gemmi.Element(e).c4322.a) for e in set(atoms.element)}  # f(0) in Å
integral = sum(at_zero[e] for e in atoms.element) * VOLT_A2
assert_close(float(channel.map.sum()) * pixel_size_A**3, integral, rtol=1e-3, atol=0)
volume = load_volume(source, box_size, pixel_size_A)  # the same, unless you gave another source

# %% mystnb={"image": {"alt": "Left, the atoms of the channel seen from the side; right, the electrostatic potential summed along the same direction, with two dashed lines at the faces of the membrane."}}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 4.0), sharex=True, sharey=True)
extent = (-0.5 * box_size * pixel_size_A, 0.5 * box_size * pixel_size_A) * 2
axes[0].scatter(atoms.xyz_A[:, 0], atoms.xyz_A[:, 2], c=atoms.xyz_A[:, 1], s=0.5, cmap="viridis")
shown = axes[1].imshow(channel.map.sum(1) * pixel_size_A, extent=extent, origin="lower")
fig.colorbar(shown, ax=axes[1], label="potential × length (V Å)", shrink=0.8)
titles = (f"{len(atoms.xyz_A):,} atoms (yellow: far)", "potential, summed along y")
for ax, name in zip(axes, titles, strict=True):
    ax.set(title=name, xlabel="x (Å)", ylabel="z (Å)", aspect="equal")
    ax.hlines(atoms.membrane_z_A, *extent[:2], color="#D55E00", ls="--", lw=1)
_ = fig.suptitle(f"The embedded channel at {pixel_size_A:g} Å per pixel")

# %% [markdown]
# **What to notice.** At this pixel size single atoms are gone, but helices remain, as rods 10 Å thick. The grid can hold nothing finer than two pixels (the *Nyquist* limit). The dashed lines are the faces of the cell membrane's oily core; you will need them for the detergent.
#
# ## From a map to projections
#
# **What does one image show?** The sum of the map along the beam. Take a grid of image coordinates $(x, y, z)$, turn it into the molecule with the pose $R$, read the map there, add up over $z$:
#
# $$ I(x, y) = \sum_z V\bigl(R\,(x, y, z)\bigr) . $$
#
# That is a few lines. It is also slow, and interpolating between voxels blurs. The usual way goes through Fourier space. Set $R = 1$ and look at the two-dimensional transform of the sum over $z$: it equals the plane $k_z = 0$ of the volume's transform, term by term. A rotated volume has a rotated transform, so **every projection is a central slice**. `cryonb.physics.projection.project` reads such slices from a padded transform.


# %%
def project_by_hand(grid, rotation):
    """Rotate by interpolation (cubic splines) and sum along z: (z, y, x) -> (y, x)."""
    n = grid.shape[-1]
    axis = torch.arange(n, dtype=torch.float32) - n // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    at = rotation @ torch.stack([x, y, z]).reshape(3, -1)  # rows x, y, z in the molecule
    index = at.flip(0) + n // 2  # rows z, y, x, counted from 0
    values = ndimage.map_coordinates(grid.numpy(), index.numpy(), order=3)
    return torch.from_numpy(values).reshape(n, n, n).sum(0)


in_plane = torch.fft.rfftn(volume.map)[0]  # kz = 0
assert (torch.fft.rfft2(volume.map.sum(0)) - in_plane).norm() < 1e-5 * in_plane.norm()

# %% mystnb={"image": {"alt": "Four projections made by rotating and summing, the same four from central slices, and their difference, which is weak and fine-grained."}}
poses = random_rotations(4, torch.Generator().manual_seed(seed))
smooth = low_pass(volume.map, 4 * pixel_size_A, pixel_size_A)  # splines are poor near Nyquist
errors = []
for grid in (smooth, volume.map):
    mine, theirs = torch.stack([project_by_hand(grid, R) for R in poses]), project(grid, poses)
    errors.append(float((mine - theirs).norm() / theirs.norm()))
assert errors[0] < 0.02, errors
rows = {"rotate and sum": mine, "central slice": theirs, "|difference|": (mine - theirs).abs()}
limits = (float(theirs.min()), float(theirs.max()))
_ = show_rows(rows, limits=limits, title="Two ways to project, one grey scale", width_in=1.6)
print(f"difference / image: {errors[1]:.1%}, and {errors[0]:.1%} for detail coarser than 4 pixels")

# %% [markdown]
# The two ways share no code, and they agree wherever both are good. The difference that is left sits in the finest detail, where splines blur. From here on you use the package's function; the clean images it makes are the **targets**.
#
# ## The CTF, a switch that stays off
#
# **What do the lenses do?** In [00](00_start_here.ipynb) you saw the contrast transfer function. Here it is in one line. With spatial frequency $k$ in 1/Å, wavelength $\lambda$, underfocus $\Delta z$, spherical aberration $C_s$ and the share $Q$ of the contrast that is there without any defocus,
#
# $$ \mathrm{CTF}(k) = \sin\!\Bigl( \pi \lambda\, \Delta z\, k^2 - \tfrac{\pi}{2}\, C_s \lambda^3 k^4 + \arcsin Q \Bigr) . $$

# %%
volts, defocus_A, Cs_A, Q = 300e3, 15e3, 2.7e7, 0.1  # 300 kV, 1.5 µm, 2.7 mm
wavelength_A = 12.2643 / math.sqrt(volts + 0.978466e-6 * volts**2)  # de Broglie, relativistic
ky, kx = torch.fft.fftfreq(box_size, pixel_size_A), torch.fft.rfftfreq(box_size, pixel_size_A)
k2 = ky[:, None] ** 2 + kx**2  # (y, x // 2 + 1) in 1/Å²
phase = math.pi * wavelength_A * defocus_A * k2 - math.pi / 2 * Cs_A * wavelength_A**3 * k2**2
mine = torch.sin(phase + math.asin(Q))
assert_close(mine, ctf(box_size, pixel_size_A, 1.5)[0], atol=2e-3, rtol=0)  # constants to 6 digits

# %% mystnb={"image": {"alt": "One projection without CTF and at 0.5, 1, 1.5 and 2.5 micrometres underfocus: with growing defocus its outline comes back and wider rings surround it."}}
defocus_um = torch.tensor([0.5, 1.0, 1.5, 2.5])
image = (theirs[:1] - theirs[:1].mean()) / theirs[:1].std()
images = torch.cat([image / 2, apply_ctf(image, ctf(box_size, pixel_size_A, defocus_um))])
columns = ["no CTF, half contrast", *(f"{d:g} µm" for d in defocus_um.tolist())]
_ = show_rows({"": images}, columns=columns, limits=(-2, 2), width_in=1.7, title="Underfocus")

# %% [markdown]
# More defocus brings the outline back, and pays with wider rings. The default data sets have no CTF, as in the paper. With `use_ctf = True` a third data set, `data/own`, is written with a random underfocus for each image. Its target stays the projection *without* CTF, and its STAR file (RELION's text file with one row for each particle) says so in the column `cryonbCtfApplied`, because a denoised image that is already corrected must not be corrected again in the reconstruction.
#
# ## Structural noise
#
# **What else scatters?** White noise is the easy part of a micrograph: it is different in every image and it averages away. The hard part is everything that looks like an object and is not the molecule. The paper's point is that a denoiser should remove this too. Four kinds are built in:
#
# | kind | where it comes from | parameter |
# |---|---|---|
# | micelle | membrane proteins keep a belt of detergent around their oily middle | `micelle_amount` |
# | neighbours | crowded ice: other particles reach into the box | `neighbours_mean` |
# | ice gradient | ice gets thicker towards the edge of a hole | `ice_slope` |
# | carbon edge | the film that carries the ice is thicker, and grainy | `carbon_share` |
#
# All are **in the noisy image and absent from its target**. The micelle, a belt of detergent, and the molecule are one rigid body: the belt turns with the pose and shows up at the same place on the molecule every time. So it does *not* average away, and a reconstruction from such images shows it as if it were protein.
#
# ### The belt, built by hand
#
# Let $s$ be the distance sideways from the outline of the transmembrane part, and $z$ the height above the middle of the membrane. Detergent covers the oily surface, its heads outside in the water and its tails inside, and the belt bulges like half a doughnut:
#
# $$ \Bigl(\frac{s}{w}\Bigr)^2 + \Bigl(\frac{z}{h}\Bigr)^2 < 1, \qquad w = 25\ \text{Å}, \quad h = \tfrac12\,\text{core} + 9\ \text{Å} . $$
#
# Here $w$ is how far the belt reaches sideways, $h$ half its height, and *core* the thickness of the membrane's oily part. The outer 9 Å are head groups, nearly as dense as protein; the tails inside are slightly less dense than water. `cryonb.simulation.masks.micelle` does this with soft edges, and the figure sets the two side by side.

# %%
body = soft_mask(volume.map, pixel_size_A, low_pass_A=10, extend_A=0, soft_edge_A=6).numpy() > 0.5
z_A = (np.arange(box_size) - box_size // 2) * pixel_size_A
low_A, high_A = volume.membrane_z_A or (-15.0, 15.0)
outline = body[(z_A >= low_A) & (z_A <= high_A)].mean(0) > 0.4
outline = ndimage.binary_fill_holes(outline)  # (y, x), the pore closed
s_A = ndimage.distance_transform_edt(~outline) * pixel_size_A
height_A = (z_A - (low_A + high_A) / 2)[:, None, None]  # (z, 1, 1)
width, top, shell = 25.0, (high_A - low_A) / 2 + 9.0, 9.0
filled = (s_A / width) ** 2 + (height_A / top) ** 2 < 1
tails = (s_A / (width - shell)) ** 2 + (height_A / (top - shell)) ** 2 < 1
density = float(volume.map.numpy()[body].mean())
by_hand = density * np.where(tails, -0.1, 0.8) * filled * (s_A > 0) * ~body
belt = micelle(volume)
agreement = float(np.corrcoef(by_hand.ravel(), belt.numpy().ravel())[0, 1])
if volume.membrane_z_A:  # else the package looks for the membrane, and we did not
    assert agreement > 0.8, agreement  # hard edges against soft ones

# %% mystnb={"image": {"alt": "Slices from the side through the belt made by hand and through the package's, which look alike, and through belt and molecule; a slice across the membrane shows the belt as a closed band around the molecule."}}
middle, across = box_size // 2, int(np.abs(height_A).argmin())
both = volume.map + micelle_amount * belt
panels = {
    "by hand": ("z", by_hand[:, middle]),
    "by cryonb": ("z", belt[:, middle]),
    "with the molecule": ("z", both[:, middle]),
    "across the membrane": ("y", both[across]),
}
fig, axes = plt.subplots(1, 4, figsize=(10.5, 3.0))
for ax, (name, (up, cut)) in zip(axes, panels.items(), strict=True):
    ax.imshow(cut, extent=extent, origin="lower", vmin=-0.3 * density, vmax=1.6 * density)
    ax.set(title=name, xlabel="x (Å)", ylabel=f"{up} (Å)")
_ = fig.suptitle(f"The detergent belt, made twice: correlation {agreement:.2f}")

# %% [markdown]
# ### All four, one at a time
#
# `simulate_images` takes the amounts as a `StructuralNoise`. With the same seed the poses are the same, so each column below shows one pose; the six were picked because a neighbour, the ice or carbon is strong in them. (In the last row, the slope of the ice and the place of the carbon are drawn anew.) The unit of intensity is the standard deviation of the clean images, over the data set, as it is for everything from here on.

# %% mystnb={"image": {"alt": "Six columns of the same molecules. Rows: clean, with micelle, with neighbours at the rim, with an ice gradient, with a grainy carbon edge, and with all of them."}}
amounts = (micelle_amount, neighbours_mean, ice_slope, carbon_share)
own = simulate.StructuralNoise(*amounts)
scale = simulate.clean_scale(volume)


def images_with(noise):
    generator = torch.Generator().manual_seed(seed)
    return simulate.simulate_images(volume, 200, noise, generator, scale=scale)


kinds = ("micelle", "neighbours", "ice", "carbon")
simulated = {
    kind: images_with(simulate.StructuralNoise(**dict.fromkeys(kinds, 0.0) | {kind: a}))
    for kind, a in zip(kinds, amounts, strict=True)
}
simulated["all four"] = everything = images_with(own)
clean = everything.clean
strongest = [simulated[kind].structure.var((1, 2)).topk(2).indices for kind in kinds[1:]]
picked = torch.cat(strongest)  # two images to show each kind
rows = {"clean": clean[picked]} | {k: (s.clean + s.structure)[picked] for k, s in simulated.items()}
_ = show_rows(rows, limits=(-2, 6), title="Structural noise, before any white noise")

# %%
variance = {kind: float(s.structure.var() / s.clean.var()) for kind, s in simulated.items()}
against_white = {kind: v * snr for kind, v in variance.items()}
pd.DataFrame({"÷ clean variance": variance, "÷ white noise variance": against_white}).round(3)

# %% [markdown]
# Each amount does what its name says. A factor $a$ on the belt multiplies its variance by $a^2$; the next figure shows five of them. A mean of $m$ neighbours leaves a share $e^{-m}$ of the boxes without any, half of them at the default. `ice_slope` is the root mean square value of the ramp at the edge of the box. With the default amounts, the last row of the table exceeds the sum of the others, because the neighbours then wear belts too.

# %% mystnb={"image": {"alt": "One molecule from the side with detergent amounts 0, 0.5, 1, 2 and 4; the halo around its middle grows brighter."}}
upright = torch.tensor([[[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]])  # looks along y, z upwards
molecule, halo = project(torch.stack([volume.map, belt]), upright)[:, 0] / scale
growing = {f"micelle_amount\n{a:g}": molecule + a * halo for a in (0.0, 0.5, 1.0, 2.0, 4.0)}
stack = torch.stack(list(growing.values()))
_ = show_rows({"": stack}, columns=list(growing), limits=(-1, 8), width_in=1.7, title="Detergent")

# %% [markdown]
# ## White noise, and what SNR means
#
# **How much noise is "SNR 0.1"?** The statement is worthless without saying the variance of *what*, *where*, over *which* images. Here: the variance of the **clean target over the whole box, pooled over the data set**, divided by the variance of the white noise, which has **one** sigma for all images. Neither structural noise nor CTF enters, so the two settings can be compared at the same `snr`. In our unit the clean variance is 1, hence
#
# $$ \sigma = \sqrt{\frac{\operatorname{var}(\text{clean})}{\mathrm{SNR}}} = \frac{1}{\sqrt{\mathrm{SNR}}} . $$
#
# The table gives one and the same data set four numbers: ours, and three others that you will meet under the name of SNR.

# %%
sigma = math.sqrt(1 / snr)
assert_close(sigma, simulate.noise_sigma(snr))
assert_close(float(clean.var()), 1.0, atol=0.1, rtol=0)  # `scale` was measured on other poses
white = sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + 1))
inside = simulate.projected_mask(soft_mask(volume.map, pixel_size_A), everything.rotations)
meanings = {
    "variance, whole box (ours)": clean.var(),
    "variance, inside the particle": clean[inside].var(),
    "mean square, whole box": clean.square().mean(),
    "squared peak of each image": clean.amax((1, 2)).square().mean(),
}
table = pd.DataFrame({"SNR": {name: float(v / white.var()) for name, v in meanings.items()}})
table["in dB"] = 10 * np.log10(table["SNR"])
table.round(3)

# %% [markdown]
# **What does it depend on?** An exposure of $D$ electrons per Å² puts $D\,p^2$ of them into a pixel of $p$ Å, and counting them has the relative variance $1/(D\,p^2)$. The molecule shifts the phase of the wave by $\sigma_e \int V\,dz$, with $\sigma_e = 0.653$ mrad per V Å at 300 kV, and an ideal microscope would show twice that as contrast. So
#
# $$ \mathrm{SNR} = D\,p^2\,(2\sigma_e)^2 \operatorname{var}\Bigl(\int V\,dz\Bigr) . $$
#
# At the same dose, then, the SNR of a pixel falls with its area, and with every margin of empty pixels around the molecule, since the variance is taken over the box. The next cell measures both, on sums along the three axes. When you compare data sets of different boxes or pixels, compare doses, or the SNR shell by shell (below the next figure).


# %%
def snr_of_one_electron(box_size, pixel_size_A, solvent=False):
    """SNR in an ideal image with one electron per Å²: from sums along x, y and z, in V Å."""
    grid = load_volume(source, box_size, pixel_size_A, solvent=solvent).map
    sums = torch.stack([grid.sum(axis) for axis in range(3)]) * pixel_size_A
    return float((2 * 6.526e-4 * sums).var()) * pixel_size_A**2


unit_snr = snr_of_one_electron(box_size, pixel_size_A)
ratios = {
    "half the pixel": snr_of_one_electron(2 * box_size, pixel_size_A / 2) / unit_snr,
    "1.5 times the box": snr_of_one_electron(3 * box_size // 2, pixel_size_A) / unit_snr,
    "in ice, not in vacuum": snr_of_one_electron(box_size, pixel_size_A, solvent=True) / unit_snr,
}
dose = snr / unit_snr
print(f"SNR {snr:g} takes {dose:.2g} electrons per Å² in an ideal image of a molecule in vacuum")
for change, ratio in ratios.items():
    print(f"{change}: {ratio:.2f} of the SNR at the same dose")

# %% [markdown]
# Real exposures have twenty to fifty electrons per Å², and their particles are no clearer than this. What lies between is not in our images: the molecule replaces ice, which costs the last factor above; the CTF takes its share, and so do motion, the camera and electrons that lose energy in the ice. So do not read the dose of a real data set off an SNR in this book. What you can compare is one simulation with another. The profile `paper` has pixels of half the size of those in `workshop`, in the same field of view, and therefore an SNR of 0.026 rather than 0.1: the same dose.

# %% mystnb={"image": {"alt": "Six molecules: clean, with structural noise, and both with white noise added; in the noisy rows the difference between with and without structural noise is hard to see."}}
observed = everything.observed(pixel_size_A)
rows = {"target": clean, "white": clean + white, "target + structure": observed}
rows = {name: images[picked] for name, images in (rows | {"structural": observed + white}).items()}
limits = dict(zip(rows, [(-2, 6), (-3 * sigma, 3 * sigma)] * 2, strict=True))
_ = show_rows(rows, limits=limits, title=f"The two settings at SNR {snr:g}")

# %% [markdown]
# To the eye the two noisy rows differ little, and structural noise has a small fraction of the variance of the white noise. Why then does it deserve so much attention? Ask *at which size of detail* the variances lie. The **radial power spectrum** answers: the squared Fourier transform, averaged over images and over rings of equal frequency. White noise is flat by definition.


# %% mystnb={"image": {"alt": "Power spectra against spatial frequency: clean molecule and structural noise fall together over four orders of magnitude, white noise is a horizontal line that crosses them at low frequency."}}
def power(images):
    """Mean power on rings of frequency, per pixel, in units of the clean variance."""
    centred = images - images.mean((1, 2), keepdim=True)
    mean = torch.fft.rfft2(centred).abs().square().mean(0) / box_size**2
    return radial_mean(mean, box_size, dims=2)[1:]


frequency = torch.arange(1, box_size // 2 + 1) / (box_size * pixel_size_A)
stacks = {"molecule": clean, "structural noise": everything.structure, "white noise": white}
spectra = {name: power(images) for name, images in stacks.items()}
fig, ax = plt.subplots(figsize=(6, 3.6))
for name, value in spectra.items():
    ax.semilogy(frequency, value, label=name)
ax.set(xlabel="spatial frequency (1/Å)", ylabel="power (clean variance per pixel)")
ax.set_title("Where the variance lies")
ax.legend(fontsize=8)
logs = torch.stack([spectra["molecule"].log(), spectra["structural noise"].log()])
overlap = float(torch.corrcoef(logs)[0, 1])
print(f"the two falling curves, on this scale, correlate with r = {overlap:.2f}")
by_shell = spectra["molecule"] / spectra["white noise"]
for shell in [1, *(round(box_size * pixel_size_A / d) for d in (40, 20, 15))]:
    shell_A = box_size * pixel_size_A / shell
    print(f"SNR of the shell at {shell_A:5.1f} Å: {float(by_shell[shell - 1]):.3g}")

# %% [markdown]
# **What to notice.** The SNR of a shell does not depend on the pixel size, at one dose. White noise is spread evenly over all frequencies, so most of its variance lies where the molecule has little, and a filter that keeps low frequencies removes most of it. Structural noise lies *where the molecule lies*: on this logarithmic scale its spectrum follows the molecule's from end to end. No filter that looks at frequencies alone can take one and leave the other. You have to know what a micelle looks like and what a channel looks like, and that is a task for a method that learns.
#
# ## Write the data sets
#
# `write_dataset` simulates three **splits** with poses of their own: *train* for the networks, *validation* to watch them (and to train the second network on images that the first has not learnt by heart), *test* to judge at the end and never before. Every particle belongs to one of two **half sets**, which are reconstructed separately. The data set is written to a temporary folder that is renamed when complete, so a crash leaves nothing half-written. Call the function again with the same arguments and it keeps what is there; with other arguments it refuses. Later notebooks call `open_dataset`, which makes what is missing and else works with as many particles as the folder has: each of them can run alone, or beside a finished run.

# %%
counts = {"train": n_train, "validation": n_validation, "test": n_test}
settings = {"white": ("white", None)}  # folder: noise, defocus
if structural:
    settings["structural"] = ("structural", None)
if own != simulate.setting("structural") or use_ctf:  # your own amounts: a data set of its own
    settings["own"] = (own, (defocus_low_um, defocus_high_um) if use_ctf else None)
data, common = {}, {"source": source, "snr": snr, "seed": seed}
for name, (noise, defocus_um) in settings.items():
    folder, begun = Path(run_dir) / "data" / name, time.perf_counter()
    write_dataset(folder, volume, counts, noise=noise, defocus_um=defocus_um, **common)
    print(f"{folder}: {sum(counts.values()):,} particles, {time.perf_counter() - begun:.1f} s")
    data[name] = read_dataset(folder)

# %%
print("files:", *sorted(f.name for f in folder.iterdir()))
print("manifest:", json.dumps(data["white"].manifest))
data["white"].test.noisy.table.drop(columns=["rlnMicrographName", "rlnOpticsGroup"]).head(4)

# %% [markdown]
# Images are in `.mrcs` stacks and everything about them in `.star` text files, as RELION 3.1 wants them: one row per particle, angles in degrees, the half set in `rlnRandomSubset`. Trust a file only after you have read it back; the next cell does.

# %%
measured, targets = {}, data["white"].test.clean.images
for name, d in data.items():
    noise_only = d.test.noisy.images - d.test.observed
    measured[f"snr_{name}"] = float(d.train.clean.images.var() / noise_only.var())
    assert d.train.noisy.half.unique().tolist() == [1, 2] and len(d.test.noisy) == n_test
    assert_close(d.test.noisy.rotations, d.test.clean.rotations)
    assert_close(d.test.clean.images, targets, rtol=0, atol=1e-3)  # the same poses and targets
print("measured from the files:", ", ".join(f"{k} {v:.4f}" for k, v in measured.items()))

# %% [markdown]
# ## Try to break it
#
# **No signal left.** Adding white noise of variance $1/\mathrm{SNR}$ to an image of variance 1 leaves the correlation $r = \sqrt{\mathrm{SNR} / (1 + \mathrm{SNR})}$ with the truth: an exact law, whatever the molecule. The cell checks it down to SNR 0.01.
#
# **A CTF of the wrong sign.** Somebody took underfocus for overfocus and "corrects" the image by flipping the phases where the *wrong* CTF is negative.


# %%
for one in (1.0, 0.1, 0.01):
    r = float(correlation(clean + simulate.noise_sigma(one) / sigma * white, clean).mean())
    law = math.sqrt(one / (1 + one))
    print(f"SNR {one:<4g}: correlation with the truth {r:.3f}, law {law:.3f}")
    assert abs(r - law) < 0.05  # images differ in their own variance
right, wrong = (ctf(box_size, pixel_size_A, sign * 1.5) for sign in (1, -1))
recorded = apply_ctf(clean, right)
flipped = (apply_ctf(recorded, c.sign()) for c in (right, wrong))
r_right, r_wrong = (float(correlation(images, clean).mean()) for images in flipped)
print(f"after phase flipping: right sign {r_right:+.2f}, wrong sign {r_wrong:+.2f}")
assert r_right > 0.3 > r_wrong

# %% [markdown]
# At SNR 0.01 a single image shares one per cent of its variance with the truth. And the wrong sign does not give a slightly worse image: it gives one that is *anti*correlated with the truth. Do not count on its looks to warn you.
#
# **Nonsense as input.** A tool that others use must fail early and say what to do. Four mistakes, four answers; the cell fails if one goes unnoticed.

# %%
white_folder = Path(run_dir) / "data" / "white"
mistakes = {
    "a box that is too small": lambda: load_volume("channel", 16, pixel_size_A),
    "no SNR at all": lambda: simulate.noise_sigma(0.0),
    "a setting that does not exist": lambda: simulate.setting("structurel"),
    "another seed, same folder": lambda: write_dataset(white_folder, volume, counts, seed=seed + 1),
}
for name, attempt in mistakes.items():
    try:
        attempt()
        raise AssertionError(f"{name}: not noticed")
    except (ValueError, FileExistsError) as error:
        print(f"{name}:\n    {error}")

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Twice the detergent
# :label: ex-simulate-belt
# ```
# *Easy, 10 minutes.*
# Predict by which factor the structural variance grows when the detergent amount goes from 1 to 2, first with the belt alone, then in the full setting. Then measure.
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-simulate-belt
# :class: dropdown
# ```
# Alone: four, since an image that is doubled has four times the variance. In the full setting less, because ice and carbon do not take part (neighbours do: they wear belts, too).

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
belts = {a: images_with(simulate.StructuralNoise(a, 0, 0, 0)).structure.var() for a in (1.0, 2.0)}
full = {a: images_with(simulate.StructuralNoise(a)).structure.var() for a in (1.0, 2.0)}
assert_close(float(belts[2.0] / belts[1.0]), 4.0, rtol=1e-4, atol=0)
print(f"belt alone: {belts[2.0] / belts[1.0]:.2f}, full setting: {full[2.0] / full[1.0]:.2f}")

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Which kind hurts most?
# :label: ex-simulate-kinds
# ```
# *Medium, 15 minutes.*
# For each of the four kinds compute the correlation of `clean + structure` with `clean`, over the whole box and inside the particle's outline only. Which kind could be cut off with a mask, and which one never?
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-simulate-kinds
# :class: dropdown
# ```
# A mask takes away most of what neighbours and carbon do, since they lie at the rim, and of the ice gradient, which is weakest in the middle. The belt lies over and around the molecule: from a random side it covers protein, and no two-dimensional mask removes it. It hurts most, with a mask or without.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for kind in kinds:
    image = clean + simulated[kind].structure
    whole = float(correlation(image, clean).mean())
    masked = float(correlation(image * inside, clean * inside).mean())
    print(f"{kind:10s} whole box {whole:.3f}, inside the outline {masked:.3f}")

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Has the network seen the test set?
# :label: ex-simulate-leak
# ```
# *Hard, 15 minutes.*
# No test image occurs in the training set. But how far is a test pose from the nearest training pose, given the molecule's symmetry? Estimate first: the rotations fill a space in which $n$ random points leave gaps of about $n^{-1/3}$.
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-simulate-leak
# :class: dropdown
# ```
# Eight times the particles should halve the distance. A few thousand poses cover a symmetric molecule every few degrees: the test images are new, but not far from what was seen. With a single molecule, a good score is therefore largely memory; what a denoiser does with a molecule that it has *never* seen is another question.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
seen, unseen = data["white"].train.clean.rotations, data["white"].test.clean.rotations[:64]
for n in (len(seen) // 8, len(seen)):
    apart = angular_distance_deg(unseen[:, None], seen[None, :n], symmetry=volume.symmetry)
    nearest_deg = float(apart.amin(1).median())
    print(f"{n:6,} training poses, {volume.symmetry}: the nearest at {nearest_deg:.1f}° (median)")
measured["nearest_pose_deg"] = nearest_deg

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** Which of these lies in the input and not in the target?
#
# ```{dropdown} (a) the projection of the molecule
# **No.** That is the target.
# ```
# ```{dropdown} (b) the detergent belt
# **Right.** The target is the clean molecule. That the belt has to go is what makes it structural *noise*.
# ```
# ```{dropdown} (c) both
# **No.** The molecule is in the target, too.
# ```
#
# **2.** Two papers report an SNR of 0.05. Their images are equally noisy
#
# ```{dropdown} (a) always
# **No.** The table above gives the same images four different numbers.
# ```
# ```{dropdown} (b) if both define signal variance over the same area and before the same processing
# **Right.** The table above gives the same images four different numbers.
# ```
# ```{dropdown} (c) if they have the same camera
# **No.** One camera at two pixel sizes gives two SNRs for one dose.
# ```
#
# **3.** Why can no filter over frequencies remove the belt?
#
# ```{dropdown} (a) it is too strong
# **No.** A filter can take away any strength, if it knows where.
# ```
# ```{dropdown} (b) its spectrum overlaps the molecule's
# **Right.** A filter tells things apart by frequency, and here there is nothing to tell apart.
# ```
# ```{dropdown} (c) it moves
# **No.** It is fixed to the molecule. Were it not, averaging would help.
# ```

# %% [markdown]
# ## Recap
#
# - Electrons see the electrostatic potential; a projection is a sum along the beam, or a central slice of the transform.
# - The target is the projection of the molecule alone. The input adds structural noise, optionally the CTF, and white noise of standard deviation $1/\sqrt{\mathrm{SNR}}$ in units of the clean images.
# - White noise is flat over frequencies, so a filter can remove most of it; structural noise shares the molecule's spectrum, and the detergent belt even its pose.
# - An SNR needs its definition, a pixel size and a box: at one dose it falls with the area of a pixel. So does every score: see `cryonb.physics.conventions`.
#
# **Next**: [02 train SR3](02_train_sr3.ipynb) teaches a diffusion model to go from these inputs to these targets.
#
# **References**
#
# - Zhang, Zhao, Hu and Zhao, *Robust single-particle cryo-EM image denoising and restoration*, ICASSP 2024, [arXiv 2401.01097](https://arxiv.org/abs/2401.01097).
# - Peng, Ren, Dudarev and Whelan, *Robust parameterization of elastic and absorptive electron atomic scattering factors*, Acta Cryst. A 52, 257 (1996).
# - Rohou and Grigorieff, *CTFFIND4: fast and accurate defocus estimation from electron micrographs*, J. Struct. Biol. 192, 216 (2015).

# %%
results = measured | {
    "sigma": sigma,
    "clean_variance": float(data["white"].train.clean.images.var()),
    "structural_variance": variance["all four"],
    "projection_error": errors[0],
    "micelle_agreement": agreement,
    "spectra_correlation": overlap,
    "wrong_ctf_correlation": r_wrong,
    "particles": sum(counts.values()),
    "dose_per_A2": dose,
    "snr_ratio_half_pixel": ratios["half the pixel"],
    "snr_ratio_larger_box": ratios["1.5 times the box"],
    "snr_ratio_in_ice": ratios["in ice, not in vacuum"],
    "seconds": round(time.perf_counter() - started, 1),
}
path = Path(run_dir) / "results" / "01_simulate.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(results, indent=1))
pd.DataFrame({"result": results})
