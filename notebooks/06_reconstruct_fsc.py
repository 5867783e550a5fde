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
# # Reconstruct the volume, and ask how far to believe it
#
# ```text
#  noisy particles ───┐                        ┌──►  against the truth    Is it right?
#  posterior means ───┤    one reconstruction  │
#  samples         ───┼──►  each, with the  ───┤
#  refined images  ───┘     same known poses   └──►  half against half    Does it repeat?
# ```
#
# You will build a volume from each kind of image that the earlier notebooks made, measure its resolution in the two ways shown on the right, and see that for denoised images the two answers differ.

# %% [markdown]
# **You will learn to**
#
# - explain why a projection is a slice of the volume's Fourier transform, and check it;
# - write a reconstruction by direct Fourier insertion;
# - compute a Fourier shell correlation (FSC), and derive where the thresholds 0.5 and 0.143 come from;
# - correct an FSC for the mask by phase randomisation;
# - say what the half-map FSC of denoised images measures, and what it does not;
# - find poses by projection matching, and decide which images to use for finding them and which for the reconstruction.
#
# | You need | | Where |
# |---|---|---|
# | poses, white and structural noise, half sets | necessary | [01_simulate](01_simulate.ipynb) |
# | posterior mean, sample, refined image | necessary | [02_train_sr3](02_train_sr3.ipynb), [03_refine_unet](03_refine_unet.ipynb) |
# | Fourier transform of an image | necessary | [00_start_here](00_start_here.ipynb) |
# | complex numbers, correlation | helpful | any first course in statistics |
#
# **Input**: the test particles of `run_dir/data`, and their denoised stacks in `run_dir/denoised`. **Output**: half maps and full maps in `run_dir/maps`, figures of merit in `run_dir/results`. No network is trained here, so a laptop is enough; when `cryonb run` executes the notebook it records the time and the peak memory in `run_dir/06_reconstruct_fsc.json`.

# %% jupyter={"source_hidden": true} tags=["long"]
import json
import shutil
import subprocess
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import starfile
import torch
from torch.testing import assert_close
from tqdm.auto import tqdm

from cryonb.base.parameters import true_or_false
from cryonb.data.maps import read_map, write_map
from cryonb.data.particle_file import read_particles
from cryonb.data.volumes import load_volume
from cryonb.denoisers import methods
from cryonb.denoisers.compare import run_all
from cryonb.evaluation.metrics import fit_parts
from cryonb.evaluation.resolution import figure_of_merit, fsc, fsc_mask_corrected, resolution_at
from cryonb.physics.fourier import low_pass
from cryonb.physics.geometry import angular_distance_deg, euler_to_matrix, random_rotations
from cryonb.physics.projection import project
from cryonb.physics.reconstruct import flatten_corners, reconstruct, reconstruct_halves
from cryonb.poses.search import estimate_poses
from cryonb.showing.plotting import grey_limits, say, say_table, show_rows, use_style
from cryonb.showing.shells import plot_fsc
from cryonb.showing.surface import show_surfaces
from cryonb.showing.widgets import frame_viewer
from cryonb.simulation.dataset import open_dataset

use_style()

# %% tags=["parameters"]
source = "channel"  # channel, prestin, or a PDB, mmCIF or MRC file
box_size = 64  # pixels along each edge of an image
pixel_size_A = 3.0  # Å per pixel
snr = 0.1  # variance of the clean images / variance of the white noise
structural = True  # also the setting "structural": micelle, neighbours, ice, carbon
n_train = 2000  # particles to train on
n_validation = 1000  # particles held out for the refinement
n_test = 512  # particles to denoise and reconstruct from
map_particles = 64  # test particles in the maps of every method, a second each for BM3D
route_particles = [128]  # particles in the maps of the four routes
route_snrs = [0.1]  # their SNRs, variance of the clean images / variance of the white noise
reference_A = 20.0  # Å; resolution of the reference that poses are found with
coarse_references_A = [40.0, 60.0]  # Å; poses are found with these, too
relion = False  # also ask RELION, where it is installed: minutes
seed = 0  # of every random number
run_dir = "runs/own"  # folder for everything that is written

# %% [markdown]
# The next cell loads the noisy test particles and the stacks that notebooks 02 and 03 wrote for them. All have the same rows, and so the same true poses. You use the truth twice: for the poses, as if another program had found them without error, and for the volume that judges the result. Real data offer neither.

# %%
structural, relion = map(true_or_false, (structural, relion))
STAGES = {"noisy": "", "posterior_mean": "02", "sample": "02", "refined": "03"}  # made by notebook
POSES_OF = {"a": "true", "b": "raw", "c": "denoised", "d": "denoised"}  # four routes, see below
IMAGES_OF = {"a": "raw", "b": "raw", "c": "denoised", "d": "raw"}
counts = {"train": n_train, "validation": n_validation, "test": n_test}
molecule = load_volume(source, box_size, pixel_size_A)
run, data, images = Path(run_dir), {}, {}
for setting in ["white", "structural"] if structural else ["white"]:
    folder = run / "data" / setting
    made = {"source": source, "snr": snr, "noise": setting, "seed": seed}
    data[setting] = open_dataset(folder, molecule, counts, **made)
    for stage, notebook in STAGES.items():
        star = run / f"denoised/{setting}/{stage}.star" if notebook else folder / "test_noisy.star"
        if not star.is_file():
            raise FileNotFoundError(f"There is no {star}: run notebook {notebook} first.")
        images[setting, stage] = read_particles(star)
        assert_close(images[setting, stage].rotations, data[setting].test.noisy.rotations)
truth, mask, symmetry = data["white"].volume, data["white"].mask, molecule.symmetry

# %% [markdown]
# ## Where in the volume does an image lie?
#
# An image adds up the density along the beam. In the convention of this book, with pose $R$,
#
# $$ I(x, y) = \sum_z V\big(R\,(x, y, z)\big). $$
#
# Take its Fourier transform at the frequency $(k_x, k_y)$ and write the sum over the beam inside:
#
# $$ \hat I(k_x, k_y) = \sum_{x,y,z} V\big(R\,(x,y,z)\big)\, e^{-2\pi i (k_x x + k_y y + 0 \cdot z)} = \hat V\big(R\,(k_x, k_y, 0)\big). $$
#
# The last step only renames $R\,(x,y,z)$ to a new variable; a rotation keeps lengths and scalar products. So **the transform of an image is the plane through the centre of the volume's transform that is perpendicular to the beam**: the projection–slice theorem. Along the $z$ axis it holds to the last digit, and we can check it with two FFTs. For any other pose the points $R\,(k_x,k_y,0)$ fall between the grid points, so we evaluate the Fourier sum there by hand.

# %%
volume_ft, projection_ft = torch.fft.fftn(truth.double()), torch.fft.fft2(truth.double().sum(0))
assert_close(projection_ft, volume_ft[0])  # the plane kz = 0

poses = data["white"].test.clean.rotations
centred = torch.fft.ifftshift(project(truth, poses[:1])[0].double())
generator, reach = torch.Generator().manual_seed(seed), box_size // 5
k = torch.randint(-reach, reach, (2, 50), generator=generator)
from_image = torch.fft.fft2(centred)[k[1], k[0]]  # at 50 points (kx, ky)
k_volume = poses[0].double() @ torch.cat([k, 0 * k[:1]]).double() / box_size  # (3, 50)
position = torch.arange(box_size) - box_size // 2
wave = [torch.exp(-2j * torch.pi * q[:, None] * position) for q in k_volume]  # along x, y, z
from_volume = torch.einsum("zyx,px,py,pz->p", truth.to(wave[0]), *wave)
error = float((from_image - from_volume).norm() / from_volume.norm())
assert error < 0.03  # from the interpolation inside project()

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "The logarithm of the power spectrum of a projection, and the same plane cut from the transform of the volume: the two spectra are identical. Right: lines through the centre of a disc, dense in the middle and with gaps at the rim."}}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6))
nyquist = 0.5 / pixel_size_A
panels = {"transform of the projection": projection_ft, "slice of the volume": volume_ft[0]}
for ax, (title, plane) in zip(axes, panels.items(), strict=False):
    spectrum = torch.fft.fftshift(plane).abs().log()
    ax.imshow(spectrum, origin="lower", extent=(-nyquist, nyquist) * 2, vmin=0)
    ax.set(title=title, xlabel="$k_x$ (1/Å)", ylabel="$k_y$ (1/Å)")
x, z = nyquist * torch.nn.functional.normalize(poses[:24, [0, 2], 2]).T  # of the beam
axes[2].plot(torch.stack([-z, z]), torch.stack([x, -x]), color="C0", lw=0.8)
axes[2].set(title="24 slices cut the plane $k_y = 0$", aspect="equal")
axes[2].set(xlabel="$k_x$ (1/Å)", ylabel="$k_z$ (1/Å)")
plt.show()

# %% [markdown]
# **What to notice.** The two spectra are the same array. On the right, every image cuts the plane $k_y=0$ in one line through the centre. Near the centre, at low frequency, every image has something to say about every voxel; towards the rim the lines spread and gaps open. A shell of radius $k$ has about $k^2$ voxels and a slice brings about $k$ samples, so the number of measurements per voxel falls as $1/k$. That is one reason why fine detail needs many particles. (The other is that the signal itself fades with frequency, while white noise does not.)

# %% [markdown]
# ## How do slices become a volume?
#
# Turn the theorem around: transform every image, place its samples in an empty three-dimensional grid at $R\,(k_x,k_y,0)$, and transform back. A sample falls between eight voxels, so it is shared among them with trilinear weights $w$, and each voxel becomes the weighted mean of what it received:
#
# $$ \hat V(k) = \frac{\sum_i w_i(k)\, \hat I_i}{\sum_i w_i(k)}. $$
#
# If every sample fell on a voxel, this mean would be the least-squares answer for equally noisy samples. Between voxels it is an approximation: least squares asks that the interpolated volume $\sum_k w_i(k)\hat V(k)$ meet the samples, and its equations couple neighbouring voxels, $\sum_{k'} \sum_i w_i(k)\,w_i(k')\,\hat V(k') = \sum_i w_i(k)\,\hat I_i$. The weighted mean takes the neighbours' $\hat V(k')$ for that of $k$; since the weights of a sample add up to 1, the left side then is $\hat V(k) \sum_i w_i(k)$. (With a CTF both sums get it as a further weight, $\sum w\,\mathrm{CTF}\,\hat I / \sum w\,\mathrm{CTF}^2$.) Two details matter. The grid is twice as fine as the images need, because linear interpolation on a coarse grid is poor. And sharing a sample among its neighbours is a convolution with a triangle in Fourier space, so in real space it multiplies the map by $\mathrm{sinc}^2$, which we divide out.


# %%
def insert(images, rotations):
    """Sums of samples and of weights on a grid of twice the box: two tensors (z, y, x)."""
    n, size = images.shape[-1], 2 * images.shape[-1]
    k = torch.arange(-(n // 2), n // 2 + 1)
    ky, kx = torch.meshgrid(k, k, indexing="ij")
    kx, ky = (q[kx**2 + ky**2 <= (n // 2) ** 2] for q in (kx, ky))
    samples = torch.fft.fft2(torch.fft.ifftshift(images, dim=(1, 2)))[:, ky, kx]  # (b, m)
    at = 2 * rotations @ torch.stack([kx, ky, 0 * kx]).float()  # (b, 3, m): x, y, z
    total, weight = torch.zeros(size**3, dtype=torch.complex64), torch.zeros(size**3)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        voxel = at.floor() + corner[:, None]
        share = (1 - (at - voxel).abs()).prod(1)  # (b, m)
        x, y, z = (voxel.long() % size).unbind(1)
        index = ((z * size + y) * size + x).flatten()
        total.index_add_(0, index, (share * samples).flatten())
        weight.index_add_(0, index, share.flatten())
    return total.view(size, size, size), weight.view(size, size, size)


# %%
few, n = images["white", "noisy"].select(slice(0, 32)), box_size
total, weight = insert(few.images, few.rotations)
q = torch.fft.fftfreq(2 * n) * 2 * n
radius = (q[:, None, None] ** 2 + q[:, None] ** 2 + q**2).sqrt().round()
mean = torch.where(radius <= 2 * (n // 2), total / weight.clamp(min=1e-30), 0)
s = torch.sinc((torch.arange(2 * n) - n) / (2 * n)) ** 2
mine = torch.fft.fftshift(torch.fft.ifftn(mean).real) / (s[:, None, None] * s[:, None] * s)
keep = slice(n - n // 2, n - n // 2 + n)
theirs = reconstruct(few.images, few.rotations, weight_floor=0.0)
both = flatten_corners(mine[keep, keep, keep]), theirs
a, b = (low_pass(v, 2.5 * pixel_size_A, pixel_size_A) for v in both)
assert (a - b).norm() < 5e-3 * b.norm()  # they differ in how the rim at Nyquist is counted

# %% [markdown]
# `cryonb.physics.reconstruct` does the same and adds four things: it stores only the half of Fourier space that is needed; it counts every image once for each of the equivalent views that the symmetry of the molecule gives it; a small floor under the weights keeps voxels that hardly any image touched from blowing up; and it flattens the corners of the box. A molecule that fits the box in every pose lies inside the sphere, so the corners, half of the box, hold nothing but noise, and an FSC of the whole box would count it. (Images that carry a CTF are reconstructed with `ctf=particles.ctf`. Do not do so for images whose CTF the denoiser has already corrected, or it would be corrected twice.)
#
# Now every stage in every setting: two **half maps**, each from one half of the particles, and the full map, their mean. The half sets were drawn in notebook 01, before anything else happened to the images.


# %%
def three_maps(stack, rotations):
    """Map from each half set, every second image, and their mean: the full map."""
    two = reconstruct_halves(stack, rotations, symmetry)
    return {"half1": two[0], "half2": two[1], "full": two.mean(0)}


maps = {}
for (setting, stage), particles in tqdm(images.items(), desc="reconstruct"):
    maps[setting, stage] = three_maps(particles.images, particles.rotations)
    (run / "maps" / setting).mkdir(parents=True, exist_ok=True)
    for name, v in maps[setting, stage].items():
        write_map(run / f"maps/{setting}/{stage}_{name}.mrc", v, pixel_size_A)


# %% jupyter={"source_hidden": true}
def show_slices(volumes, limits, title):
    """Draw the three central slices of each volume (z, y, x), one column a volume."""
    middle = box_size // 2
    cut = lambda axis: torch.stack([v.select(axis, middle) for v in volumes.values()])  # noqa: E731
    rows = {f"{name} = 0": cut(axis) for axis, name in enumerate("zyx")}
    show_rows(rows, columns=list(volumes), limits=limits, title=title, width_in=1.8)
    plt.show()


# %% mystnb={"image": {"alt": "Central slices in three directions of the maps from noisy, posterior mean, sample and refined images and of the true volume, one figure for each setting."}}
for setting in data:
    volumes = {stage: maps[setting, stage]["full"] for stage in STAGES} | {"truth": truth}
    show_slices(volumes, grey_limits(truth), f"{setting}: maps from all test particles")

# %% [markdown]
# **What to notice.** All columns share one grey scale. The map from noisy images is grainy everywhere, inside the molecule and outside, because white noise does not care where it is. The maps from denoised images are quieter outside, because the network has learnt that nothing is there. Quiet is not the same as right: a map that was *invented* is quiet as well, and so is one that lost its fine detail. In the setting `structural`, look for the pale belt around the transmembrane part in the first column. It is density that really was in every particle but does not belong to the molecule.
#
# Eyes are easily pleased. You need a number.

# %% [markdown]
# ## How alike are two maps, detail by detail?
#
# Compare their transforms $A$ and $B$ shell by shell, where shell $s$ holds all frequencies of (rounded) radius $s$:
#
# $$ \mathrm{FSC}(s) = \frac{\mathrm{Re} \sum_{k \in s} A(k)\, B(k)^*}{\sqrt{\sum_{k\in s} |A(k)|^2 \; \sum_{k\in s} |B(k)|^2}}. $$
#
# It is a correlation coefficient: 1 when the two agree in that shell up to a factor, about 0 when they have nothing in common (Harauz & van Heel 1986). Because the factor drops out, the FSC cannot see that a map is too weak at high frequency; it mostly compares phases.


# %%
noisy = maps["white", "noisy"]
a_ft, b_ft = (torch.fft.fftn(noisy[name].double()) for name in ("half1", "half2"))
q = (torch.fft.fftfreq(box_size) * box_size).round()
shell = (q[:, None, None] ** 2 + q[:, None] ** 2 + q**2).sqrt().round().long().flatten()
terms = (a_ft * b_ft.conj()).real, a_ft.abs() ** 2, b_ft.abs() ** 2
cross, aa, bb = (torch.bincount(shell, t.flatten())[: box_size // 2 + 1] for t in terms)

frequency, half_fsc = fsc(noisy["half1"], noisy["half2"], pixel_size_A)
assert_close(cross / (aa * bb).sqrt(), half_fsc)

# %% [markdown]
# ## Why 0.143 between half maps, and 0.5 against the truth?
#
# Write each half map, in one shell, as signal plus noise of its own, with a signal-to-noise ratio $S$ (a ratio of powers). When you sum over the shell, only the signal survives in the numerator, while the denominator has both:
#
# $$ F = \mathrm{FSC}_\text{half} = \frac{S}{S + 1}. $$
#
# The full map is the mean of the halves, so its noise power is half as large and its ratio $2S$. Against a noise-free truth, only one of the two maps in the denominator has noise:
#
# $$ C = \mathrm{FSC}_\text{truth} = \sqrt{\frac{2S}{2S+1}} = \sqrt{\frac{2F}{1+F}}. $$
#
# A correlation of $C=0.5$ with the truth is the customary limit of what can be interpreted: the phases are then still right to about 60° on average. Solve for the half maps: $0.25\,(1+F)=2F$, so $F=1/7\approx 0.143$. **The two thresholds make the same statement about the full map**, once with the truth at hand and once without (Rosenthal & Henderson 2003). Other criteria exist, and van Heel & Schatz (2005) argue that no fixed value fits all cases. But the formula for $C$ gives you something better than a threshold: a *prediction* that you can test, shell by shell.


# %% mystnb={"image": {"alt": "Three FSC curves of the noisy reconstruction in the setting white: between half maps, the correlation with the truth predicted from them, and the measured correlation with the truth. The last two lie on each other."}}
def predicted(half_map_fsc):
    """Correlation of the full map with the truth, if the errors of the halves are independent."""
    return (2 - 2 / (1 + half_map_fsc.clamp(0, 1))).sqrt()


def draw(title, curves, thresholds, ax=None):
    pairs = {k: (frequency, v) for k, v in curves.items()}
    plot_fsc(pairs, thresholds=thresholds, title=title, ax=ax)
    if ax is None:
        plt.show()


assert abs(float(predicted(torch.tensor(1 / 7))) - 0.5) < 1e-6
assert_close(predicted(half_fsc), figure_of_merit(half_fsc))
against_truth = fsc(noisy["full"], truth)[1]
curves = {"half maps": half_fsc, "predicted from them": predicted(half_fsc), "truth": against_truth}
draw("noisy images, white", curves, (0.5, 0.143))
trusted = half_fsc > 0.05  # below, the root only amplifies chance
independent_error = float((predicted(half_fsc) - against_truth)[trusted].abs().mean())
say(
    f"Prediction and measurement differ by **{independent_error:.3f}** on average (shells with a "
    "half-map FSC above 0.05)."
)

# %% [markdown]
# The last two curves should lie on each other. Keep in mind what made this work: **the errors of the two halves were independent**. White noise in different particles is. The rest of this notebook is about what happens when errors are not.

# %% [markdown]
# ## Why does a mask raise the FSC?
#
# Most of the box is empty. Set the empty part to zero with a mask, and you remove noise that had nothing to do with the molecule: the FSC rises, rightly. But multiplication by a mask in real space is a convolution in Fourier space. It smears every frequency over its neighbours, *in the same way in both maps*, and it gives both maps the outline of the mask. So part of the rise is false.
#
# How large a part? Chen et al. (2013) destroy what could be real and see what remains: beyond some frequency, replace all phases of both half maps by random ones, then mask and correlate. Any correlation that is left, $F_\text{rand}$, comes from the mask alone, and
#
# $$ F_\text{true} = \frac{F_\text{mask} - F_\text{rand}}{1 - F_\text{rand}}. $$


# %% mystnb={"image": {"alt": "FSC between half maps from noisy images: without a mask, with the mask, with the mask after phase randomisation, and corrected."}}
def mask_curves(half1, half2, mask):
    """Half-map FSC without mask, with it, with random phases, and corrected."""
    generator = torch.Generator().manual_seed(seed)
    result = fsc_mask_corrected(half1, half2, mask, pixel_size_A, generator)
    names = "whole box", "in the mask", "in the mask, random phases", "corrected"
    return dict(zip(names, result[1:], strict=True))


draw("noisy images, white: half maps", mask_curves(noisy["half1"], noisy["half2"], mask), (0.143,))

# %% [markdown]
# The random phases begin where the whole-box curve falls below 0.8; at lower frequencies $F_\text{rand}$ means nothing. A wide mask with a soft edge, like this one, adds little that is false; a hard edge close to the molecule adds much.
#
# **Is the truth a judge that no mask deceives?** No. Noise in the mask has nothing in common with the truth, but coarse detail has: the mask smears it into the fine shells of both maps alike. To see how far, take a map whose resolution you know, the truth without any detail finer than `reference_A`, and compare it with the truth in the whole box, in the soft mask, and in a tight one with a hard edge, where the blurred map exceeds half of its maximum.

# %%
blurred = low_pass(truth, reference_A, pixel_size_A)
tight = (blurred > 0.5 * blurred.max()).float()
seen_A = {}
for name, m in {"whole box": torch.ones_like(mask), "soft": mask, "tight": tight}.items():
    seen_A[name] = resolution_at(frequency, fsc(blurred * m, truth * m)[1], 0.5)
say_table(["mask", f"FSC 0.5 of the truth cut at {reference_A:g} Å"], seen_A.items())

# %% [markdown]
# The whole box reads about right. In the soft mask the same map looks a little finer, in the tight one as if it held detail that was cut away. So a resolution in a mask is comparable only with one in the *same* mask. From here on both curves are taken inside the soft one, and the half-map one is corrected.

# %% [markdown]
# ## Which images give the best map?
#
# Two questions, two columns of curves: how well does each map agree with the truth (left), and how well do its halves agree with each other (right)? The function `judge` also computes a *gap*, which the next section explains.


# %%
def resolution(curve, threshold):
    """Resolution in Å, at worst the length of the box."""
    return min(resolution_at(frequency, curve, threshold), box_size * pixel_size_A)


def judge(m):
    """FSC inside the mask against the truth and, corrected, between half maps; what they say."""
    half = mask_curves(m["half1"], m["half2"], mask)["corrected"]
    to_truth = fsc(m["full"] * mask, truth * mask)[1]
    half_A = resolution(half, 0.143)
    claimed = (frequency > 0) & (frequency < 1.001 / half_A)  # shells that pass between the halves
    gap = float((predicted(half) - to_truth)[claimed].mean())
    numbers = {"truth_A": resolution(to_truth, 0.5), "half_A": half_A}
    return numbers | {"mean_fsc": float(to_truth[1:].mean()), "gap": gap}, to_truth, half


scores = {key: judge(m) for key, m in maps.items()}

# %% mystnb={"image": {"alt": "For each setting, FSC curves of the four stages: on the left against the truth, on the right between half maps."}}
fig, axes = plt.subplots(len(data), 2, figsize=(11, 4.2 * len(data)), squeeze=False)
for row, setting in zip(axes, data, strict=True):
    for i, title, threshold in ((1, "against the truth", 0.5), (2, "between half maps", 0.143)):
        curves = {stage: scores[setting, stage][i] for stage in STAGES}
        draw(f"{setting}: {title}", curves, (threshold,), row[i - 1])

# %% [markdown]
# ## What does the half-map FSC of denoised images measure?
#
# On the left the truth is the judge; on the right the maps judge each other. (Where you see only three curves, `posterior_mean` lies under `refined`: there the second stage changed next to nothing.) For the noisy images in the setting `white` the two columns belong together as derived above. For denoised images they need not.
#
# The derivation needs errors that are independent between the halves. But **one network denoised both halves**, and it errs in the same way on both: what it learnt about this molecule it adds to every image, and what it cannot make out it smooths away, everywhere alike. Such errors repeat. The half-map FSC counts everything that repeats as signal, so it measures the *self-consistency of the network*, not the correctness of the map. Henderson (2013) describes what can happen to a field that forgets this.
#
# So take the shells that the half maps claim to resolve, and compare the correlation that they predict, $\sqrt{2F/(1+F)}$, with the measured one. The mean difference is the **gap**: error that repeats and so passes for signal, in a wide sense of the word **hallucination**. It need not show in the resolution, which is a single point of the curve. The network's guesses about one image differ from those about the next, which *lowers* the half-map FSC at high frequency, while the shared errors raise it elsewhere. (In the setting `structural` the noisy images can have a gap, too, because the micelle repeats. It is real, but it is not the molecule.)

# %% mystnb={"image": {"alt": "Predicted and measured correlation with the truth for noisy and refined images in each setting, the gap between the two curves shaded."}}
fig, axes = plt.subplots(len(data), 2, figsize=(11, 4.0 * len(data)), squeeze=False)
for row, setting in zip(axes, data, strict=True):
    for ax, stage in zip(row, ("noisy", "refined"), strict=True):
        numbers, to_truth, half = scores[setting, stage]
        curves = {"predicted from the half maps": predicted(half), "against the truth": to_truth}
        draw(f"{setting}, {stage}: gap {numbers['gap']:+.3f}", curves, (0.5,), ax)
        ax.fill_between(frequency, *curves.values(), color="C3", alpha=0.25, lw=0)


# %%
columns = ["setting", "images", "truth (Å)", "half maps (Å)", "mean FSC with truth", "gap"]
say_table(columns, [(*key, *s.values()) for key, (s, *_) in scores.items()])

# %% [markdown]
# A resolution is one point of a curve, so perhaps all this depends on where you read it off? Move the threshold. In each frame the half maps are read at $F$ and the truth at $\sqrt{2F/(1+F)}$, the same statement about the full map, from lax to strict; everybody uses the pair 0.143 and 0.5.

# %% jupyter={"source_hidden": true}
thresholds = (0.1, 0.143, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # between half maps
frames, labels, texts = [], [], []
for half in thresholds:
    true = float(figure_of_merit(torch.tensor(half)))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for ax, stage in zip(axes, ("noisy", "refined"), strict=True):
        _, to_truth, between = scores["white", stage]
        curves = {"half maps": (frequency, between), "truth": (frequency, to_truth)}
        read = {"half maps": half, "truth": true}
        plot_fsc(curves, thresholds=(), read_off=read, title=f"{stage} images", ax=ax)
    plt.close(figure)
    frames.append(figure)
    labels.append(f"half maps {half:g}, truth {true:.2f}")
    texts.append("; ".join(t for ax in axes for t in ax.get_legend_handles_labels()[1]))
title = "Half maps and truth, read off at one threshold after another"
frame_viewer(frames, labels, texts, title=title, index=1, pixelated=False, width_px=900)

# %% [markdown]
# **What to notice.** On the left the two dotted lines that drop to the axis stay together wherever you move them, give or take a few shells of chance: with independent errors the two readings agree at every threshold. On the right ask, frame by frame, which line is farther to the right. Where it is that of the half maps, they claim detail that is not there. No threshold mends that, and a single one may hide it. The network's errors repeat most at medium detail, where strict thresholds read; far out, where 0.143 reads, even its guesses about one molecule differ from image to image.
#
# Do the noisy images give the best map? They may well: with *known* poses the plain mean of raw images has no bias, and its noise falls with every particle. No denoiser that looks at one image at a time can put back what it smoothed away. Denoising helps in the steps before: to see particles, and to pick them.
#
# What can you do honestly with real data, where no truth exists? Look for particles in denoised images, and reconstruct from the raw ones. Or train one network for each half set, on disjoint particles (`07_trust` shows how far that helps). Or use the check of the exercise below, which needs no truth.

# %% [markdown]
# ## The maps of every method
#
# **Question.** The paper reconstructs from the images of each method that it compares (its Figs. 4 and 5), and says: the maps of BM3D and K-SVD failed, CWF is unreliable, only the map of the paper's own method is complete, and its FSC decays monotonically. Does it come out so here?
#
# Each of these words needs a number. *Failed*: the map is farther from the truth (mean FSC) than the one of the noisy images. *Unreliable*: its half maps promise more than the truth grants (the gap above). *Complete*: blur the map to 4 px and draw the surface that encloses as much volume as that of the blurred molecule; the share of the molecule inside it. *Monotonic*: the largest climb of the FSC between half maps above an earlier minimum. Chance alone makes climbs of some hundredths, so we allow 0.1.
#
# All methods get the same first `map_particles` test particles in their true poses. The GANs, Noise2Noise and *SR3 → U-Net* are the networks of `04_compare_methods`, trained in this run at equal cost (where that notebook has not run, they are missing); *refined* is our stage of `03_refine_unet`, with the kept weights where they fit.


# %%
def solid(v):
    """Voxels inside the surface, at 4 px, that encloses half of the mask's volume."""
    blurred, n = low_pass(v, 4 * pixel_size_A, pixel_size_A), int((mask > 0.5).sum()) // 2
    return blurred >= blurred.flatten().topk(n).values[-1]


def climb(curve):
    """Largest climb of a curve above an earlier minimum: 0 if it decays monotonically."""
    curve = curve.clamp(0, 1)  # the corrected one can fall far below zero
    return float((curve - curve.cummin(0).values).max())


white, some = data["white"], images["white", "noisy"].select(slice(0, map_particles))
held = (x.images[:128] for x in (white.validation.noisy, white.validation.clean))
learn = white.train.noisy.images[:500]  # for CWF, besides the particles themselves
every = methods.untrained(*held, white.sigma, map_particles, also=learn)
every |= {"noisy": methods.Method(lambda x: x)}
every |= methods.of_run(run / "models/white", white.sigma)
wanted = "noisy", "BM3D", "K-SVD", "CWF", "DenoiseGAN", "RobustGAN", "Noise2Noise", "SR3 → U-Net"
every = {name: every[name] for name in wanted if name in every}
made = run_all(every, some.images)
made["refined"] = images["white", "refined"].images[: len(some)]
of_method = {name: three_maps(x, some.rotations) for name, x in made.items()}
by_method = {name: judge(m) for name, m in of_method.items()}
for name, (numbers, _, half) in by_method.items():
    enclosed = solid(of_method[name]["full"]) & solid(truth)
    numbers["complete"] = float(enclosed.sum() / solid(truth).sum())
    numbers["climb"] = climb(half)

# %% mystnb={"image": {"alt": "One central slice of the map of each method, and of the true volume, each on a grey scale of its own."}}
full = {name: m["full"] for name, m in of_method.items()} | {"truth": truth}
planes = torch.stack([v[:, box_size // 2].flip(0) / v.std() for v in full.values()])
about = {"columns": list(full), "title": f"Maps of {len(some)} images", "width_in": 1.2}
figure = show_rows({"y = 0": planes}, **about)

# %% mystnb={"image": {"alt": "FSC curves of the maps of every method: on the left against the truth, on the right between half maps."}}
axes = plt.subplots(1, 2, figsize=(11, 4.2))[1]
for i, title, threshold in ((1, "against the truth", 0.5), (2, "between half maps", 0.143)):
    curves = {name: scored[i] for name, scored in by_method.items()}
    axes[i - 1].set_prop_cycle(color=plt.cm.tab10.colors)
    draw(title, curves, (threshold,), axes[i - 1])
columns = ["map of", "truth (Å)", "half maps (Å)", "mean FSC", "gap", "complete", "largest climb"]
say_table(columns, [(name, *numbers.values()) for name, (numbers, *_) in by_method.items()])

# %% [markdown]
# Take the four words one by one; the book's page on the paper does so with the numbers of this run. Keep three things in mind. Compare with the first row, the noisy images: with true poses they need no denoiser to add up, and most methods stay behind them. A network for one molecule has its map in memory, so *complete* may mean no more than *remembered* (`07_trust` shows what it draws without any particle). And a network that was trained for seconds makes a map of its own mistakes: read its rows only after a longer run.

# %% [markdown]
# ## Is the micelle gone?
#
# In the setting `structural` the target of the networks is the molecule without its detergent. How much of the belt is left in each map? Blur the map, the molecule and the belt to 6 px, a detail that every map reaches, and fit the map as a sum of the molecule, the belt and a constant, by least squares over all voxels:
#
# $$ V \approx a\,V_\text{molecule} + m\,b + c. $$
#
# Here $V_\text{molecule}$ and $b$ are the blurred molecule and belt, and $m$ is the share of the belt that the map holds: 1 in the particles as they are, 0 in a perfect map. Noise has no share in it on average, so this is a fair question even for a grainy map, and the factor $a$ absorbs the contrast that a denoiser loses. A blurred molecule that reaches into the belt would still count; the maps of the setting `white`, which hold no belt, show how much that is.


# %% mystnb={"image": {"alt": "Central slices of each map in the setting structural minus its fitted share of the molecule, and of the micelle itself for comparison."}}
left, rest, answers = {}, {}, {}
if structural:
    belt = data["structural"].micelle
    for key, m in maps.items():
        v, body, b = (low_pass(x, 6 * pixel_size_A, pixel_size_A) for x in (m["full"], truth, belt))
        molecule_share, left[key], offset = fit_parts(v, body, b)
        rest[key] = v - molecule_share * body - offset
    shown = {stage: rest["structural", stage] for stage in STAGES} | {"the whole belt": belt}
    show_slices(shown, grey_limits(belt), "structural: map − molecule")
    rows = [(k, *(left[k, stage] for stage in STAGES)) for k in data]
    say_table(["", *STAGES], rows, "Share of the micelle in the map")

# %% mystnb={"image": {"alt": "Isosurfaces of the maps of the last setting and of the true molecule, each enclosing the volume of the molecule's mask."}}
last = list(data)[-1]
solid = {stage: maps[last, stage]["full"] for stage in STAGES} | {"truth": truth}
solid = {k: low_pass(v, 4 * pixel_size_A, pixel_size_A) for k, v in solid.items()}
title = f"{last}: surfaces that enclose half of the mask's volume"
figure = show_surfaces(solid, pixel_size_A, float((mask > 0.5).sum()) / 2, title=title)

# %% [markdown]
# All surfaces enclose the same volume and show the same detail (anything finer than 4 px is removed), so density that a map has in the wrong place is missing in the right one. In the setting `structural` the map of the noisy images wears its belt. The viewer steps through the same maps plane by plane; the first column is the noisy images' map, the last one the truth.

# %%
planes, keep = torch.cat(list(solid.values()), dim=2), slice(box_size // 8, -box_size // 8)
height_A = [f"z = {(i - box_size // 2) * pixel_size_A:+.0f} Å" for i in range(box_size)]
about = {"title": ", ".join(solid), "limits": grey_limits(truth), "index": 3 * box_size // 8}
frame_viewer(planes[keep], height_A[keep], width_px=900, **about)

# %% [markdown]
# ## And when nobody knows the poses?
#
# So far every pose was the true one. In practice you find poses from the images, and a denoiser can enter in several ways:
#
# | route | poses from | map from |
# |---|---|---|
# | a | the truth | raw images: the upper bound |
# | b | raw images | raw images: no denoiser anywhere |
# | c | denoised images | denoised images |
# | d | denoised images | raw images |
#
# Poses are found by **projection matching**: of all poses, take the one whose projection of a *reference* fits the image best. The reference here is the true molecule blurred to `reference_A`, as you would have it from a related structure or an early map. So the search cannot know finer detail, but it does know the overall shape, and that has a price, **reference bias**. Among thousands of poses there is always one that the noise happens to fit. Noise that looks like the reference adds up in the map, so down to the resolution `reference_A` the map resembles the reference whatever was in the images. Only what lies beyond (right of the dotted line below) is news. And since all particles share the reference, so do the half maps.
#
# The particles are new ones, which no denoiser has seen. They are denoised with the weights that come with cryonb where those were made for this molecule and this SNR, and otherwise with the best linear filter; the line above the figure says which. Nobody knows the noise of a denoised image, so there the search assumes a generous deviation of 1 and looks widely.

# %%
routes, errors = {}, {}
generator = torch.Generator().manual_seed(seed + 100)
poses = random_rotations(max(route_particles), generator)
views, known = project(truth, poses), {"true": poses}
reference = low_pass(truth, reference_A, pixel_size_A)
search = {"spacings_deg": (6.0, 3.0), "box_size": box_size // 2}  # pixels enough for it
for one_snr in tqdm(route_snrs, desc="four routes"):
    sigma = one_snr**-0.5
    noisy_views = views + sigma * torch.randn(views.shape, generator=generator)
    denoiser = methods.for_molecule(white, one_snr)
    clean_views = denoiser.denoise(noisy_views)
    say(f"SNR {one_snr:g}: denoised by {denoiser.settings}.")
    known["raw"] = estimate_poses(reference, noisy_views, sigma, symmetry, **search).rotations
    known["denoised"] = estimate_poses(reference, clean_views, 1.0, symmetry, **search).rotations
    errors |= {(one_snr, k): angular_distance_deg(v, poses, symmetry) for k, v in known.items()}
    stacks = {"raw": noisy_views, "denoised": clean_views}
    for n, way in product(route_particles, POSES_OF):
        stack, found = stacks[IMAGES_OF[way]], known[POSES_OF[way]]
        routes[one_snr, n, way] = judge(three_maps(stack[:n], found[:n]))

# %% mystnb={"image": {"alt": "For each SNR, FSC with the truth of the maps of the four routes, with a dotted line at the resolution of the reference; the labels hold the median errors of the poses."}}
fig, axes = plt.subplots(1, len(route_snrs), figsize=(5.6 * len(route_snrs), 4), squeeze=False)
for ax, one_snr in zip(axes[0], route_snrs, strict=True):
    wrong_by = {way: float(errors[one_snr, k].median()) for way, k in POSES_OF.items()}
    most, curves = max(route_particles), {}
    for way, angle in wrong_by.items():
        curves[f"{way}, poses {angle:.1f}° wrong"] = routes[one_snr, most, way][1]
    draw(f"SNR {one_snr:g}, {most} particles: against the truth", curves, (0.5,), ax)
    ax.axvline(1 / reference_A, color="0.4", ls=":")

# %%
columns = ["SNR", "particles", "route", "poses off by (°)"]
columns += ["truth (Å)", "half maps (Å)", "mean FSC"]
rows = []
for (one, n, way), (s, *_) in routes.items():
    off_deg = float(errors[one, POSES_OF[way]][:n].median())
    rows.append((f"{one:g}", f"{n}", way, off_deg, s["truth_A"], s["half_A"], s["mean_fsc"]))
say_table(columns, rows)
for one, n in product(route_snrs, route_particles):
    mean = {way: routes[one, n, way][0]["mean_fsc"] for way in POSES_OF}
    best = max("bcd", key=mean.get)
    nearest = f"**{best}** is nearest to the truth (mean FSC {mean[best]:.3f}; a: {mean['a']:.3f})"
    say(f"- SNR {one:g}, {n} particles: of the routes without true poses, {nearest}.")

# %% [markdown]
# **What to notice.** First compare b with d: the same raw images in poses from two sources. A denoiser cannot put into an image what was not there. Whatever it tells about the pose it has from the raw image, *or from what it knows about the molecule*. If the reference holds the same knowledge, projection matching with the right noise model misses nothing, and poses from denoised images are at best as good. A denoiser that wavers between two poses and draws their mean makes them worse. But what if the reference is poor? Then the denoiser has seen finer detail of the molecule than the search has. The next cell finds poses once more, with coarser references.

# %%
few = min(64, max(route_particles))
noisy_few, clean_few = noisy_views[:few], clean_views[:few]  # of the last SNR
sweep = {reference_A: [float(errors[one_snr, k][:few].median()) for k in ("raw", "denoised")]}
for coarse_A in tqdm(coarse_references_A, desc="references"):
    coarse = low_pass(truth, coarse_A, pixel_size_A)
    both = (noisy_few, one_snr**-0.5), (clean_few, 1.0)
    found = [estimate_poses(coarse, x, s, symmetry, **search).rotations for x, s in both]
    apart = [angular_distance_deg(v, poses[:few], symmetry).median() for v in found]
    sweep[coarse_A] = [float(a) for a in apart]
columns = ["reference cut at (Å)", "poses from raw images off by (°)", "from denoised (°)"]
rows = [(f"{a:g}", *pair) for a, pair in sweep.items()]
say_table(columns, rows, f"SNR {one_snr:g}, {few} particles")

# %% [markdown]
# With the coarser references the raw images lose, and the denoised ones lose less or win: the network was trained on this very molecule and brings to the search what the reference lacks. That is help where its knowledge is right, and a bias towards the training molecule where it is not (`07_trust`). It is no information from the particle. And denoising pays where no noise model is at hand: for picking, for the eye, for programs that match images without knowing their noise.
#
# Then compare c with d: the same poses, with denoised and with raw images. Each denoised image has less noise, but what the denoiser gets wrong, all of them share: raw images improve with every particle, denoised ones only until the shared errors are all that remains. You see this in runs with several particle numbers: follow the last column from few particles to many. And compare the two resolutions of route c. Where its half maps claim finer detail than the truth grants, they share the errors of the denoiser and of the reference.
#
# A pose that is wrong by an angle $\theta$ (in radians) moves density at a distance $r$ from the centre by $r\theta$: 5° at 50 Å makes 4 Å. Averaging over particles does not repair that; it makes a blur, the same blur in both half maps.

# %% [markdown]
# ## What does RELION say?
#
# Put three questions to a program that knows nothing of ours. What does `relion_postprocess` make of our half maps? What does `relion_refine`, which starts from the blurred reference, searches all poses by itself and keeps its halves apart, make of our particles? And what of the refined images of `03_refine_unet`, as the paper hands them to RELION? With the parameter `relion` the next cell asks all three (it takes minutes; RELION is a Debian and Ubuntu package, `sudo apt install relion`).

# %%
REFINE = """mpirun --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1 -n 3
relion_refine_mpi --auto_refine --split_random_halves --norm --scale --flatten_solvent
--zero_mask --low_resol_join_halves 40 --pool 30 --pad 1 --healpix_order 2
--auto_local_healpix_order 4 --oversampling 1 --offset_range 2 --offset_step 2
--dont_combine_weights_via_disc --random_seed 1"""  # three processes: a leader and two halves
job, found = run / "relion", shutil.which("relion_refine_mpi")
asked = {"raw": "data/white/test_noisy.star", "refined": "denoised/white/refined.star"}
if relion and not found:
    say("RELION is not installed. On Debian and Ubuntu: `sudo apt install relion`.")
elif relion and not (job / "refined_data.star").is_file():  # an earlier run may have made it
    job.mkdir(parents=True, exist_ok=True)
    for name, v in {"ref": reference, "mask": mask, **noisy}.items():
        write_map(job / f"{name}.mrc", v, pixel_size_A)
    post = f"relion_postprocess --mask mask.mrc --angpix {pixel_size_A}"
    about = f"--ini_high {reference_A} --sym {symmetry} --particle_diameter"
    about += f" {0.9 * box_size * pixel_size_A} --ref ../../relion/ref.mrc --o ../../relion/"
    calls = [(job, f"{post} --i half1.mrc --i2 half2.mrc --o ./ours")]
    for name, star in asked.items():
        calls += [((run / star).parent, f"{REFINE} {about}{name} --i {Path(star).name}")]
    for folder, call in calls:
        with (job / "log.txt").open("a") as log:
            subprocess.run(call.split(), cwd=folder, check=True, stdout=log, stderr=log)

# %% mystnb={"image": {"alt": "Corrected half-map FSC of the noisy images' map by cryonb and by relion_postprocess, and of RELION's own refinements of raw and of refined images."}}
by_relion = {}
if relion and found:
    post = starfile.read(job / "ours.star")["fsc"]["rlnFourierShellCorrelationCorrected"]
    curves = {"true poses, cryonb": scores["white", "noisy"][2]}
    curves["true poses, relion_postprocess"] = torch.tensor(post.to_numpy(float))
    for name, stage in {"raw": "noisy", "refined": "refined"}.items():
        own = [read_map(job / f"{name}_half{i}_class001_unfil.mrc")[0] for i in (1, 2)]
        own = {"half1": own[0], "half2": own[1], "full": (own[0] + own[1]) / 2}
        by_relion[name], _, curves[f"relion_refine, {name} images"] = judge(own)
        angles = starfile.read(job / f"{name}_data.star")["particles"].set_index("rlnImageName")
        angles = angles.loc[images["white", stage].table["rlnImageName"]]  # in our order
        angles = angles[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy(np.float32)
        theirs = euler_to_matrix(torch.from_numpy(angles))
        apart = angular_distance_deg(theirs, images["white", stage].rotations, symmetry)
        by_relion[name]["poses_deg"] = float(apart.median())
    draw("white: half maps, corrected", curves, (0.143,))
    columns = ["relion_refine of", "truth (Å)", "half maps (Å)", "mean FSC", "gap", "poses off (°)"]
    say_table(columns, [(name, *numbers.values()) for name, numbers in by_relion.items()])

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} How many particles?
# :label: ex-fsc-number
# ```
# *Easy, 10 minutes.*
# In a shell, the signal-to-noise ratio of a map grows with the number of particles, so each half map, with $n/2$ of them, has $S = n\,s/2$ with some constant $s$, and the FSC of the half maps is $F = S/(S+1)$. At some frequency 500 particles give $F = 0.143$. What do 2,000 give there, and how many do you need for $F = 0.5$?
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-fsc-number
# :class: dropdown
# ```
# $F = 0.143$ means $S = 0.143 / 0.857 = 1/6$. Four times the particles give $S = 4/6$, so $F = 0.667/1.667 = 0.40$. For $F = 0.5$ you need $S = 1$, six times as much, so six times the particles: 3,000. None of this holds for denoised images, whose errors do not average away.
# ```{solution-end}
# ```
#
# ```{exercise-start} Judge a denoiser without the truth
# :label: ex-fsc-cross
# ```
# *Hard, 25 minutes.*
# The noise in half map 1 of the *noisy* images knows nothing of half set 2, nor of the network. Correlate this map with half map 2 of the *refined* images. Show that dividing by $\sqrt{F_\text{noisy}}$ (the FSC between the half maps of the noisy images) gives the correlation of the refined half map with the truth, and compare with the truth itself.
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-fsc-cross
# :class: dropdown
# ```
# Let the noisy half map be $T+N$, truth plus noise, and the refined one $D$. In a shell $\langle T+N, D\rangle \approx \langle T, D\rangle$, so the cross-FSC is $\mathrm{FSC}(T, D)$ times $|T|/|T+N| = \sqrt{S/(S+1)} = \sqrt{F_\text{noisy}}$. Every error of the network is counted, shared or not. The method ends where the noisy half maps stop agreeing: beyond that there is nothing to judge by.

# %% jupyter={"outputs_hidden": true, "source_hidden": true} mystnb={"image": {"alt": "FSC of a refined half map with the truth, its estimate by way of the noisy half map, and the square root of the FSC between the refined half maps."}}
refined = maps["white", "refined"]["half2"] * mask
cross, actual = (fsc(v * mask, refined)[1] for v in (noisy["half1"], truth))
reference, own = scores["white", "noisy"][2], scores["white", "refined"][2]
estimate = torch.where(reference > 0.1, cross / reference.clamp(min=0.1).sqrt(), torch.nan)
claim = own.clamp(min=0).sqrt()
curves = {"truth": actual, "without the truth": estimate, "claimed by refined halves": claim}
draw("refined half map 2, white", curves, (0.5,))
answers["cross_error"] = cross_error = float((estimate - actual).abs().nanmean())
claim_error = float((claim - actual).abs()[~estimate.isnan()].mean())
say(
    f"Mean distance from the truth: estimate **{cross_error:.3f}**, claim of the refined half maps "
    f"**{claim_error:.3f}**."
)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise-start} The wrong hand
# :label: ex-fsc-hand
# ```
# *Medium, 10 minutes.*
# A projection does not know whether it shows a molecule or its mirror image: the mirrored molecule, seen from behind, gives the same picture. Mirror both half maps of the noisy images. What do the half-map FSC and the FSC against the truth say?
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-fsc-hand
# :class: dropdown
# ```
# The half maps agree exactly as before: both are wrong in the same way. Against the truth only the coarse shells survive, where the two hands are alike. Nothing in the images decides the hand. What does is the handedness of an α helix, once you see it at some 5 Å or better, or a pair of exposures at two tilts.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for name, hand in {"as it is": lambda v: v, "mirrored": lambda v: v.flip(0).roll(1, 0)}.items():
    one, two, full = (hand(v) for v in noisy.values())  # mirrored: z -> -z
    within, against = resolution(fsc(one, two)[1], 0.143), resolution(fsc(full, truth)[1], 0.5)
    print(f"{name}: {within:.1f} Å between the half maps, {against:.1f} Å against the truth")

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** Why is the threshold 0.143 between half maps and 0.5 against the truth?
#
# ```{dropdown} (a) half maps are better
# **No.** Each has half of the particles, so it is worse.
# ```
# ```{dropdown} (b) each half map has only half of the particles, and noise of its own
# **Right.** A half-map FSC of 0.143 means that the *full* map has a correlation of 0.5 with the truth.
# ```
# ```{dropdown} (c) by convention only
# **No.** Where to cut is a convention, but the two numbers stand for one and the same cut.
# ```
#
# **2.** You have raw particles and their denoised copies, and want the best map. You
#
# ```{dropdown} (a) reconstruct from the denoised ones
# **No.** Averaging cannot remove what a network has put into every one of them.
# ```
# ```{dropdown} (b) use the denoised ones at most to look and to pick, and reconstruct from the raw ones
# **Right.** Averaging thousands of raw images removes their noise; it cannot remove what a network has put into every one of them.
# ```
# ```{dropdown} (c) reconstruct from both
# **No.** Then the same particles count twice, and the network's errors with them.
# ```
#
# **3.** A tight mask raises your FSC. To see how much of the rise is real you
#
# ```{dropdown} (a) take a tighter mask
# **No.** It raises the FSC further, for the same wrong reason.
# ```
# ```{dropdown} (b) randomise the phases beyond some shell and compute the FSC with the same mask
# **Right.** Whatever still agrees although its phases are random comes from the mask, and is subtracted.
# ```
# ```{dropdown} (c) use no mask
# **No.** Then you also give up the part of the rise that is real.
# ```

# %% [markdown]
# ## Recap
#
# - An image is a central slice of the volume's transform; a reconstruction places slices in a grid and divides by how often each voxel was hit.
# - The FSC compares maps shell by shell. 0.143 between half maps and 0.5 against the truth are the same statement, **if the errors of the half maps are independent**.
# - A mask makes what it cuts out alike, against the truth, too; between half maps phase randomisation measures by how much.
# - The half maps of images denoised by one network share its errors. Their FSC measures self-consistency; only the truth, or the raw images of the other half, can judge them.
# - Reconstruct from raw images. Poses from denoised images are at best as good where the reference knows what the denoiser knows; where it knows less, they can be better, by that knowledge.
# - Half maps do not see shared errors of any kind: those of one network, of one reference, of poses that are wrong in the same way.
#
# **Next**: [07_trust](07_trust.ipynb) provokes denoisers into showing what they invent. Or go back to [03_refine_unet](03_refine_unet.ipynb) with this notebook's table at hand, change one thing in the training, and see which column of the table moves.
#
# ## References
#
# - Chen, S. et al. (2013). High-resolution noise substitution to measure overfitting and validate resolution in 3D structure determination by single particle electron cryomicroscopy. *Ultramicroscopy* 135, 24–35.
# - Harauz, G. & van Heel, M. (1986). Exact filters for general geometry three dimensional reconstruction. *Optik* 73, 146–156.
# - Henderson, R. (2013). Avoiding the pitfalls of single particle cryo-electron microscopy: Einstein from noise. *PNAS* 110, 18037–18041.
# - Rosenthal, P. B. & Henderson, R. (2003). Optimal determination of particle orientation, absolute hand, and contrast loss in single-particle electron cryomicroscopy. *J. Mol. Biol.* 333, 721–745.
# - van Heel, M. & Schatz, M. (2005). Fourier shell correlation threshold criteria. *J. Struct. Biol.* 151, 250–262.

# %%
results = {f"{a}_{b}_{k}": v for (a, b), (s, *_) in scores.items() for k, v in s.items()}
results |= {f"{a}_{b}_micelle_left": m for (a, b), m in left.items()}
for (one, n, way), (numbers, *_) in routes.items():
    results |= {f"route_{way}_snr{one:g}_n{n}_{k}": v for k, v in numbers.items()}
poses_wrong = {f"poses_snr{a:g}_{b}_median_deg": float(e.median()) for (a, b), e in errors.items()}
named = {f"map of {name}": numbers for name, (numbers, *_) in by_method.items()}
named |= {f"RELION, {name}": numbers for name, numbers in by_relion.items()}
results |= {f"{name}: {k}": v for name, numbers in named.items() for k, v in numbers.items()}
results["climb_allowed"] = 0.1
results |= {f"mask_{name}_A": value for name, value in seen_A.items()}
for coarse_A, pair in sweep.items():
    names = (f"reference_{coarse_A:g}_{images}_deg" for images in ("raw", "denoised"))
    results |= dict(zip(names, pair, strict=True))
results |= poses_wrong | {"independent_error": independent_error} | answers
(path := run / "results" / "06_reconstruct_fsc.json").parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(results, indent=1))
