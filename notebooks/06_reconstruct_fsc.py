# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
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
# You will build a volume from each kind of image that the earlier notebooks made, measure its resolution in the two ways on the right, and see that for denoised images the two answers come apart.

# %% [markdown]
# **You will learn to**
#
# - explain why a projection is a slice of the volume's Fourier transform, and check it;
# - write a reconstruction by direct Fourier insertion;
# - compute a Fourier shell correlation (FSC), and derive where the thresholds 0.5 and 0.143 come from;
# - correct an FSC for the mask by phase randomisation;
# - tell what the half-map FSC of denoised images measures, and what it does not.
#
# | You need | | Where |
# |---|---|---|
# | poses, white and structural noise, half sets | necessary | [01_simulate](01_simulate.ipynb) |
# | posterior mean, sample, refined image | necessary | [02_train_sr3](02_train_sr3.ipynb), [03_refine_unet](03_refine_unet.ipynb) |
# | Fourier transform of an image | necessary | [00_start_here](00_start_here.ipynb) |
# | complex numbers, correlation | helpful | any first course in statistics |
#
# **Input**: the test particles of `run_dir/data`, and their denoised stacks in `run_dir/denoised`. **Output**: half maps and full maps in `run_dir/maps`, figures of merit in `run_dir/results`. No network runs here, so a laptop is enough; when `cryonb run` executes the notebook it records the time and the peak memory in `run_dir/06_reconstruct_fsc.json`.

# %%
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display
from torch.testing import assert_close
from tqdm.auto import tqdm

from cryonb.dataset import read_dataset, write_dataset
from cryonb.fourier import low_pass, shell_index
from cryonb.geometry import symmetry_rotations
from cryonb.metrics import fsc, fsc_mask_corrected, resolution_at
from cryonb.particles import read_particles
from cryonb.plotting import grey_limits, plot_fsc, show_slices, use_style
from cryonb.projection import project
from cryonb.reconstruct import reconstruct
from cryonb.volumes import load_volume, write_map

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
n_most = 3500  # noisy particles in the largest reconstruction, at most all there are
seed = 0  # of every random number
run_dir = "runs/own"  # folder for everything that is written

# %% [markdown]
# The noisy test particles and the stacks that notebooks 02 and 03 wrote for the same particles. All have the same rows, and so the same true poses. We use the truth twice: the poses as if another program had found them without error, and the volume to judge the result. Real data offer neither.

# %%
STAGES = {"noisy": "", "posterior_mean": "02_train_sr3", "sample": "02_train_sr3", "refined": "03_refine_unet"}  # fmt: skip
counts = {"train": n_train, "validation": n_validation, "test": n_test}
settings = ["white", "structural"] if structural else ["white"]
molecule = load_volume(source, box_size, pixel_size_A)
data, images = {}, {}
for setting in settings:
    folder = Path(run_dir) / "data" / setting
    write_dataset(folder, molecule, counts, source=source, snr=snr, noise=setting, seed=seed)
    data[setting] = read_dataset(folder)
    images[setting] = {"noisy": data[setting].test.noisy}
    for stage, notebook in list(STAGES.items())[1:]:
        star = Path(run_dir) / "denoised" / setting / f"{stage}.star"
        if not star.is_file():
            raise FileNotFoundError(f"There is no {star}: run {notebook} with this run_dir first.")
        images[setting][stage] = read_particles(star)
        assert_close(images[setting][stage].rotations, images[setting]["noisy"].rotations)
truth, mask = data["white"].volume, data["white"].mask
symmetry = data["white"].manifest["symmetry"]
print(f"{n_test} test particles, {box_size} px at {pixel_size_A} Å, symmetry {symmetry}")

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
volume_ft = torch.fft.fftn(truth.double())  # (z, y, x)
projection_ft = torch.fft.fft2(truth.double().sum(0))  # (y, x)
assert_close(projection_ft, volume_ft[0])  # the plane kz = 0

generator = torch.Generator().manual_seed(seed)
pose = data["white"].test.clean.rotations[:1]
centred = torch.fft.ifftshift(project(truth, pose)[0].double())
k = torch.randint(-box_size // 5, box_size // 5, (2, 50), generator=generator)  # kx, ky
from_image = torch.fft.fft2(centred)[k[1], k[0]]

k_volume = pose[0].double() @ torch.cat([k, 0 * k[:1]]).double() / box_size  # (3, points)
position = torch.arange(box_size).double() - box_size // 2
wave = [torch.exp(-2j * math.pi * q[:, None] * position) for q in k_volume]  # x, y, z
from_volume = torch.einsum("zyx,px,py,pz->p", truth.to(wave[0]), *wave)
error = float((from_image - from_volume).norm() / from_volume.norm())
assert error < 0.03  # what is left is the interpolation inside project()
print(f"tilted pose: image and slice differ by {100 * error:.2f} %")

# %% mystnb={"image": {"alt": "A projection of the molecule, the logarithm of its power spectrum, and the same plane cut from the transform of the volume: the two spectra are identical. Right: lines through the centre of a disc, dense in the middle and with gaps at the rim."}}
fig, axes = plt.subplots(1, 4, figsize=(13, 3.4))
half_A, nyquist = box_size * pixel_size_A / 2, 0.5 / pixel_size_A
axes[0].imshow(truth.sum(0), origin="lower", extent=(-half_A, half_A) * 2)
axes[0].set(title="projection along z", xlabel="x (Å)", ylabel="y (Å)")
for ax, plane, title in (
    (axes[1], projection_ft, "transform of the projection"),
    (axes[2], volume_ft[0], "slice of the volume's transform"),
):
    spectrum = torch.fft.fftshift(plane).abs().log()
    ax.imshow(spectrum, origin="lower", extent=(-nyquist, nyquist) * 2, vmin=0)
    ax.set(title=title, xlabel="$k_x$ (1/Å)", ylabel="$k_y$ (1/Å)")
normals = data["white"].test.clean.rotations[:24, :, 2]  # the beam, seen from the molecule
for x, _, z in normals / normals[:, [0, 2]].norm(dim=1, keepdim=True):
    axes[3].plot([-z * nyquist, z * nyquist], [x * nyquist, -x * nyquist], color="C0", lw=0.8)
axes[3].set(title="24 slices cut the plane $k_y = 0$", xlabel="$k_x$ (1/Å)", ylabel="$k_z$ (1/Å)")
axes[3].set_aspect("equal")
plt.show()

# %% [markdown]
# **What to notice.** The two spectra in the middle are the same array. On the right, every image cuts the plane $k_y=0$ in one line through the centre. Near the centre, at low frequency, every image has something to say about every voxel; towards the rim the lines spread, and gaps open. A shell of radius $k$ has about $k^2$ voxels, a slice brings about $k$ samples, so the number of measurements per voxel falls as $1/k$. That is one reason why fine detail needs many particles. (The other is that the signal itself fades with frequency, while white noise does not.)

# %% [markdown]
# ## How do slices become a volume?
#
# Turn the theorem around: transform every image, lay its samples into an empty three-dimensional grid at $R\,(k_x,k_y,0)$, and transform back. A sample falls between eight voxels, so it is shared among them with trilinear weights $w$, and each voxel becomes the weighted mean of what it received:
#
# $$ \hat V(k) = \frac{\sum_i w_i(k)\, \hat I_i}{\sum_i w_i(k)}. $$
#
# This is the least-squares answer when all samples are equally noisy. (With a CTF both sums get it as a further weight, $\sum w\,\mathrm{CTF}\,\hat I / \sum w\,\mathrm{CTF}^2$.) Two details matter. The grid is twice as fine as the images need, because linear interpolation on a coarse grid is poor. And sharing a sample among its neighbours is a convolution with a triangle in Fourier space, so in real space it multiplies the map by $\mathrm{sinc}^2$, which we divide out.


# %%
def insert(images, rotations):
    """Sums of samples and of weights on a grid of twice the box: two tensors (z, y, x)."""
    n = images.shape[-1]
    k = torch.arange(-(n // 2), n // 2 + 1)
    ky, kx = torch.meshgrid(k, k, indexing="ij")
    inside = kx**2 + ky**2 <= (n // 2) ** 2
    kx, ky = kx[inside], ky[inside]
    samples = torch.fft.fft2(torch.fft.ifftshift(images, dim=(1, 2)))[:, ky, kx]  # (b, m)
    at = 2 * rotations @ torch.stack([kx, ky, 0 * kx]).float()  # (b, 3, m): x, y, z
    total, weight = torch.zeros((2 * n) ** 3, dtype=torch.complex64), torch.zeros((2 * n) ** 3)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        voxel = at.floor() + corner[:, None]
        share = (1 - (at - voxel).abs()).prod(1)  # (b, m)
        x, y, z = (voxel.long() % (2 * n)).unbind(1)
        index = ((z * 2 * n + y) * 2 * n + x).flatten()
        total.index_add_(0, index, (share * samples).flatten())
        weight.index_add_(0, index, share.flatten())
    return total.view(2 * n, 2 * n, 2 * n), weight.view(2 * n, 2 * n, 2 * n)


def solve(total, weight, n):
    """Weighted mean, back to real space, sinc² removed, the middle cut out: (z, y, x)."""
    q = torch.fft.fftfreq(2 * n) * 2 * n
    radius = (q[:, None, None] ** 2 + q[:, None] ** 2 + q**2).sqrt().round()
    mean = torch.where(radius <= 2 * (n // 2), total / weight.clamp(min=1e-30), 0)
    volume = torch.fft.fftshift(torch.fft.ifftn(mean).real)
    s = torch.sinc((torch.arange(2 * n) - n) / (2 * n)) ** 2
    keep = slice(n - n // 2, n - n // 2 + n)
    return (volume / (s[:, None, None] * s[:, None] * s))[keep, keep, keep]


few = images["white"]["noisy"].select(slice(0, 32))
mine = solve(*insert(few.images, few.rotations), box_size)
theirs = reconstruct(few.images, few.rotations, weight_floor=0.0)
a, b = (low_pass(v, 2.5 * pixel_size_A, pixel_size_A) for v in (mine, theirs))
assert (a - b).norm() < 5e-3 * b.norm()  # they differ in how the rim at Nyquist is counted
print(f"mine and cryonb.reconstruct differ by {100 * float((a - b).norm() / b.norm()):.2f} %")

# %% [markdown]
# `cryonb.reconstruct` does the same and adds three things: it stores only the half of Fourier space that is needed, it inserts every image once for each symmetry mate, and a small floor on the weights keeps voxels that hardly any image touched from blowing up.
#
# Now every stage of every setting: two **half maps**, each from one half of the particles, and the full map, their mean. The half sets were drawn in 01_simulate, before anything else happened to the images.


# %%
def half_and_full_maps(particles, rotations=None, symmetry=symmetry):
    """Reconstruct each half set; the full map is the mean of the two."""
    rotations = particles.rotations if rotations is None else rotations
    ctf, made = particles.ctf, {}  # no CTF where images carry none, as denoised ones
    for h in (1, 2):
        i = particles.half == h
        of_half = None if ctf is None else ctf[i]
        made[f"half{h}"] = reconstruct(
            particles.images[i], rotations[i], ctf=of_half, symmetry=symmetry
        )
    return made | {"full": (made["half1"] + made["half2"]) / 2}


maps = {setting: {} for setting in settings}
for setting, stage in tqdm([(s, t) for s in settings for t in STAGES], desc="reconstruct"):
    maps[setting][stage] = half_and_full_maps(images[setting][stage])
    folder = Path(run_dir) / "maps" / setting
    folder.mkdir(parents=True, exist_ok=True)
    for name, volume in maps[setting][stage].items():
        write_map(folder / f"{stage}_{name}.mrc", volume, pixel_size_A)

# %% mystnb={"image": {"alt": "Central slices in three directions of the maps from noisy, posterior mean, sample and refined images and of the true volume, one figure for each setting."}}
for setting in settings:
    volumes = {stage: maps[setting][stage]["full"] for stage in STAGES} | {"truth": truth}
    limits = grey_limits(truth)
    show_slices(volumes, pixel_size_A, limits=limits, title=f"{setting}: maps from {n_test} images")
    plt.show()

# %% [markdown]
# **What to notice.** All columns share one grey scale. The map from noisy images is grainy everywhere, inside the molecule and outside, because white noise has no address. The maps from denoised images have a quieter outside, because the network has learnt that nothing is there. Quiet is not yet right: a map that was *invented* is quiet as well, and one that lost its fine detail too. In the setting `structural`, look for the pale belt around the transmembrane part in the first column. It is density that really was in every particle but does not belong to the molecule.
#
# Eyes are easily pleased. We need a number.

# %% [markdown]
# ## How alike are two maps, at each level of detail?
#
# Compare their transforms $A$ and $B$ shell by shell, where shell $s$ holds all frequencies of (rounded) radius $s$:
#
# $$ \mathrm{FSC}(s) = \frac{\mathrm{Re} \sum_{k \in s} A(k)\, B(k)^*}{\sqrt{\sum_{k\in s} |A(k)|^2 \; \sum_{k\in s} |B(k)|^2}}. $$
#
# It is a correlation coefficient: 1 when the two agree in that shell up to a factor, about 0 when they have nothing in common (Harauz & van Heel 1986). The factor drops out, so the FSC cannot see that a map is too weak at high frequency; it looks at phases first of all.


# %%
def my_fsc(a, b):
    """Fourier shell correlation of two cubic maps, shells 0 to Nyquist."""
    n = a.shape[-1]
    a_ft, b_ft = torch.fft.fftn(a.double()), torch.fft.fftn(b.double())
    q = (torch.fft.fftfreq(n) * n).round()
    shell = (q[:, None, None] ** 2 + q[:, None] ** 2 + q**2).sqrt().round().long().flatten()

    def over_shells(values):
        return torch.bincount(shell, values.flatten())[: n // 2 + 1]

    cross = over_shells((a_ft * b_ft.conj()).real)
    return cross / (over_shells(a_ft.abs() ** 2) * over_shells(b_ft.abs() ** 2)).sqrt()


noisy = maps["white"]["noisy"]
frequency, halves = fsc(noisy["half1"], noisy["half2"], pixel_size_A)
assert_close(my_fsc(noisy["half1"], noisy["half2"]), halves)

# %% [markdown]
# ## Why 0.143 between half maps, and 0.5 against the truth?
#
# Write each half map, in one shell, as signal plus noise of its own, with a signal-to-noise ratio $S$ (of powers). In the sum over the shell only the signal survives in the numerator, while the denominator has both:
#
# $$ F = \mathrm{FSC}_\text{half} = \frac{S}{S + 1}. $$
#
# The full map is the mean of the halves, so its noise power is half as large and its ratio $2S$. Against a noise-free truth, only one of the two maps in the denominator has noise:
#
# $$ C = \mathrm{FSC}_\text{truth} = \sqrt{\frac{2S}{2S+1}} = \sqrt{\frac{2F}{1+F}}. $$
#
# A correlation of $C=0.5$ with the truth is the customary limit of what can be interpreted, because the phases are then still right on average to about 60°. Solve for the half maps: $0.25\,(1+F)=2F$, so $F=1/7\approx 0.143$. **The two thresholds are one and the same statement about the full map**, made once with the truth at hand and once without (Rosenthal & Henderson 2003). Other criteria exist, and van Heel & Schatz (2005) argue that no fixed value fits all; but the formula for $C$ gives us something better than a threshold, a *prediction* that we can test, shell by shell.


# %% mystnb={"image": {"alt": "Three FSC curves of the noisy reconstruction in the setting white: between half maps, the correlation with the truth predicted from them, and the measured correlation with the truth. The last two lie on each other."}}
def predicted(half_map_fsc):
    """Correlation of the full map with the truth, if the noise of the half maps is independent."""
    positive = half_map_fsc.clamp(0, 1)
    return (2 * positive / (1 + positive)).sqrt()


assert abs(float(predicted(torch.tensor(1 / 7))) - 0.5) < 1e-6
measured = fsc(noisy["full"], truth)[1]
curves = {
    "half map 1 against half map 2": halves,
    "predicted from them: full map against truth": predicted(halves),
    "measured: full map against truth": measured,
}
plot_fsc({k: (frequency, v) for k, v in curves.items()}, title="noisy images, white: prediction")
plt.show()
trusted = halves > 0.05  # where the root does not merely amplify chance
independent_error = float((predicted(halves) - measured)[trusted].abs().mean())
display(Markdown(f"Prediction and measurement differ by **{independent_error:.3f}** on average (shells with a half-map FSC above 0.05)."))  # fmt: skip

# %% [markdown]
# Keep in mind what made this work: **the errors of the two halves were independent**. White noise in different particles is. Everything that follows is about what happens when they are not.

# %% [markdown]
# ## Why does a mask raise the FSC?
#
# Most of the box is empty. Set it to zero with a mask, and noise is gone that had nothing to do with the molecule: the FSC rises, rightly. But multiplication by a mask in real space is a convolution in Fourier space. It smears every frequency over its neighbours, *in the same way in both maps*, and it gives both the outline of the mask. So part of the rise is false.
#
# How large a part? Chen et al. (2013) destroy what could be real and see what remains: beyond some frequency replace all phases of both half maps by random ones, then mask and correlate. What correlates now, $F_\text{rand}$, comes from the mask alone, and
#
# $$ F_\text{true} = \frac{F_\text{mask} - F_\text{rand}}{1 - F_\text{rand}}. $$

# %% mystnb={"image": {"alt": "FSC between half maps from noisy images: without a mask, with the mask, with the mask after phase randomisation, and corrected."}}
generator = torch.Generator().manual_seed(seed)
result = fsc_mask_corrected(noisy["half1"], noisy["half2"], mask, pixel_size_A, generator)
curves = {
    "whole box": result.unmasked,
    "in the mask": result.masked,
    "in the mask, phases random": result.randomised,
    "corrected": result.corrected,
}
plot_fsc(
    {k: (frequency, v) for k, v in curves.items()},
    thresholds=(0.143,),
    title="noisy images, white: half maps and a soft mask",
)
plt.show()

# %% [markdown]
# The random phases begin where the whole-box curve falls below 0.8; up to there $F_\text{rand}$ means nothing. A wide mask with a soft edge, as here, adds little that is false; we will make a bad one below. Against the truth no such correction is needed: the noise in the mask has nothing in common with the truth, whatever the mask's shape. From here on both curves are taken inside the mask, the half-map one corrected.

# %% [markdown]
# ## Which images give the best map?


# %%
def resolution(curve, threshold):
    """Resolution in Å, at worst the length of the box."""
    return min(resolution_at(frequency, curve, threshold), box_size * pixel_size_A)


def judge(m):
    """FSC inside the mask against the truth and, corrected, between half maps; what they say."""
    generator = torch.Generator().manual_seed(seed)
    half = fsc_mask_corrected(m["half1"], m["half2"], mask, pixel_size_A, generator).corrected
    to_truth = fsc(m["full"] * mask, truth * mask)[1]
    half_A = resolution(half, 0.143)
    claimed = (frequency > 0) & (frequency <= 1 / half_A)  # the shells that pass between halves
    return {
        "truth": to_truth,
        "half": half,
        "truth_A": resolution(to_truth, 0.5),
        "half_A": half_A,
        "mean_fsc": float(to_truth[1:].mean()),
        "gap": float((predicted(half) - to_truth)[claimed].mean()),
    }


scores = {s: {stage: judge(m) for stage, m in maps[s].items()} for s in settings}

# %% mystnb={"image": {"alt": "For each setting, FSC curves of the four stages: on the left against the truth, on the right between half maps."}}
fig, axes = plt.subplots(len(settings), 2, figsize=(11, 4.2 * len(settings)), squeeze=False)
for row, setting in zip(axes, settings, strict=True):
    for ax, kind in zip(row, ("truth", "half"), strict=True):
        title = "against the truth" if kind == "truth" else "between half maps"
        curves = {stage: (frequency, s[kind]) for stage, s in scores[setting].items()}
        threshold = 0.5 if kind == "truth" else 0.143
        plot_fsc(curves, thresholds=(threshold,), title=f"{setting}: {title}", ax=ax)
plt.show()

# %% [markdown]
# ## What does the half-map FSC of denoised images measure?
#
# On the left, the truth is the judge. On the right, the maps judge each other. For the noisy images in the setting `white` the two columns belong together as derived above. For denoised images they need not.
#
# The derivation needs errors that are independent between the halves. But **one network denoised both halves**, and it errs in the same way on both: what it learnt about this molecule it adds to every image, and what it cannot make out it smooths away, everywhere alike. Such errors repeat. The half-map FSC counts everything that repeats as signal, so it measures the *self-consistency of the network*, not the correctness of the map. Henderson (2013) tells what happens to a field that forgets this.
#
# So take the shells that the half maps claim to resolve, and compare what they promise, $\sqrt{2F/(1+F)}$, with the correlation that the truth grants. The difference is agreement which the network itself brought along; its name is **hallucination**. (In the setting `structural` the noisy images have a gap too: the micelle repeats. It is real, but it is not the molecule.)

# %% mystnb={"image": {"alt": "Predicted and measured correlation with the truth for noisy and refined images in each setting, the gap between the two curves shaded."}}
fig, axes = plt.subplots(len(settings), 2, figsize=(11, 4.0 * len(settings)), squeeze=False)
for row, setting in zip(axes, settings, strict=True):
    for ax, stage in zip(row, ("noisy", "refined"), strict=True):
        s = scores[setting][stage]
        curves = {
            "predicted from the half maps": predicted(s["half"]),
            "against the truth": s["truth"],
        }
        plot_fsc({k: (frequency, v) for k, v in curves.items()}, thresholds=(0.5,), ax=ax)
        ax.fill_between(frequency, *curves.values(), color="C3", alpha=0.25, lw=0)
        ax.set_title(f"{setting}, {stage}: gap {s['gap']:+.3f}")
plt.show()


# %%
def show_A(value):
    """Resolution as text; Nyquist and the length of the box are limits, not measurements."""
    if value >= box_size * pixel_size_A:
        return "none"
    return f"≤ {value:.1f} Å" if value <= 2 * pixel_size_A + 1e-6 else f"{value:.1f} Å"


lines = ["| setting | images | truth, 0.5 | half maps, 0.143 | mean FSC with the truth | gap |", "|---|---|---|---|---|---|"]  # fmt: skip
for setting in settings:
    for stage, s in scores[setting].items():
        lines.append(f"| {setting} | {stage} | {show_A(s['truth_A'])} | {show_A(s['half_A'])} | {s['mean_fsc']:.3f} | {s['gap']:+.3f} |")  # fmt: skip
for setting in settings:
    s = scores[setting]
    best = max(s, key=lambda stage: s[stage]["mean_fsc"])
    widest = max(s, key=lambda stage: s[stage]["gap"])
    lines.append(f"\n**{setting}**: the truth agrees best with the map of the *{best}* images (mean FSC {s[best]['mean_fsc']:.3f}; noisy: {s['noisy']['mean_fsc']:.3f}). The widest gap is that of *{widest}* ({s[widest]['gap']:+.3f}; noisy: {s['noisy']['gap']:+.3f}): its half maps claim {show_A(s[widest]['half_A'])}, the truth grants {show_A(s[widest]['truth_A'])}.")  # fmt: skip
display(Markdown("\n".join(lines)))

# %% [markdown]
# Does the noisy row win? It may well: with *known* poses the plain mean of raw images has no bias, and its noise falls with every particle. No denoiser that looks at one image at a time can put back what it smoothed away. Denoising serves the steps before: to see particles, to pick them, to find their poses.
#
# The honest forms, on real data where no truth exists: use denoised images for particles and poses, and reconstruct from the raw ones; or train one network on each half set, on disjoint particles; or use the check of exercise 2, which needs no truth.

# %% [markdown]
# ## Is the micelle gone?
#
# In the setting `structural` the target of the networks is the molecule without its detergent. Fit the known belt $b$ to the error of a map, and the factor says how much of it is left:
#
# $$ \text{left} = \frac{\langle V - V_\text{truth},\, b\rangle}{\langle b, b\rangle} \Big/ \text{the same for the noisy map}. $$
#
# Random errors cancel in the scalar product, so this is a fair question to put to a grainy map as well. (The molecule's own density counts as left-over where a map blurs it into the belt.)

# %% mystnb={"image": {"alt": "Central slices of the error of each map in the setting structural, and of the micelle itself for comparison."}}
left = {}
if structural:
    belt = data["structural"].micelle
    error = {stage: m["full"] - truth for stage, m in maps["structural"].items()}
    amount = {stage: float((e * belt).sum() / belt.square().sum()) for stage, e in error.items()}
    left = {stage: a / amount["noisy"] for stage, a in amount.items()}
    smooth = {stage: low_pass(e, 6 * pixel_size_A, pixel_size_A) for stage, e in error.items()}
    show_slices(
        smooth | {"micelle": belt},
        pixel_size_A,
        limits=grey_limits(belt),
        title=f"structural: map − truth, details below {6 * pixel_size_A:g} Å removed",
    )
    plt.show()
    words = ", ".join(f"{stage} {100 * a:.0f} %" for stage, a in left.items())
    display(Markdown(f"Micelle density left in the map, relative to the noisy one: **{words}**."))

# %% [markdown]
# ## What do more particles buy?
#
# Averaging over particles removes white noise without any prior knowledge, and it goes on doing so for as long as you bring particles. A denoiser gives its help at once, but its errors are shared by all images, and averaging cannot remove those. So one expects two curves: one that starts low and climbs, one that starts high and levels off. We let the noisy series go on beyond the test set, with the particles that the networks were trained on; reconstruction learns nothing, so it may use them.

# %% mystnb={"image": {"alt": "Left: resolution against the truth as the number of particles grows, for noisy and refined images. Right: mean FSC against the truth in the outer half of the shells."}}
setting = "white"
splits = [data[setting].test.noisy, data[setting].validation.noisy, data[setting].train.noisy]
stack, poses = (torch.cat([getattr(p, a) for p in splits]) for a in ("images", "rotations"))
series = {"noisy": (stack[:n_most], poses[:n_most])}
series["refined"] = (images[setting]["refined"].images, poses[:n_test])
outer = slice(box_size // 4, None)
growth = {}
for stage, (pictures, rotations) in series.items():
    numbers = sorted({min(n, len(pictures)) for n in [2 * 4**i for i in range(10)] + [n_test]})
    for n in tqdm(numbers, desc=stage):
        v = reconstruct(pictures[:n], rotations[:n], symmetry=symmetry)
        curve = fsc(v * mask, truth * mask)[1]
        growth[stage, n] = resolution(curve, 0.5), float(curve[outer].mean())
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6))
labels = {"resolution at FSC 0.5": "Å", "mean FSC, outer shells": "FSC"}
for i, (ax, (what, unit)) in enumerate(zip(axes, labels.items(), strict=True)):
    for stage in series:
        numbers = [n for s, n in growth if s == stage]
        ax.semilogx(numbers, [growth[stage, n][i] for n in numbers], "o-", label=stage)
    ax.set(xlabel="particles", ylabel=unit, title=f"{setting}: {what}")
    ax.legend()
axes[0].invert_yaxis()
plt.show()

# %%
numbers = {stage: [n for s, n in growth if s == stage] for stage in series}
few, most = numbers["noisy"][0], numbers["noisy"][-1]
lines = []
for i, what in enumerate(("resolution (Å)", "mean FSC in the outer half of the shells")):
    value = {key: v[i] for key, v in growth.items()}
    wins = [n for n in numbers["noisy"] if (value["noisy", n] - value["refined", n_test]) * (-1, 1)[i] > 0]  # fmt: skip
    text = f"- **{what}** with {few} → {n_test} particles: refined {value['refined', few]:.2f} → {value['refined', n_test]:.2f}, noisy {value['noisy', few]:.2f} → {value['noisy', n_test]:.2f}, and {value['noisy', most]:.2f} with {most}. "  # fmt: skip
    text += f"From {wins[0]} particles on noisy images beat all {n_test} refined ones." if wins else f"Up to {most} noisy images do not beat {n_test} refined ones."  # fmt: skip
    lines.append(text)
display(Markdown("\n".join(lines)))

# %% [markdown]
# Read the right panel beside the left one. Resolution is one point of the curve and stops at Nyquist; the outer shells show who knows anything at all about fine detail.

# %% [markdown]
# ## Try to break it
#
# ### Wrong poses
#
# So far all poses were exact. Take *clean* images and turn every pose by a fixed angle about a random axis.


# %% mystnb={"image": {"alt": "FSC against the truth of maps from clean images whose poses are wrong by 0, 2, 5 and 10 degrees: the larger the error, the earlier the fall."}}
def turned(rotations, degrees, generator):
    """Poses turned by an angle about random axes."""
    axis = torch.nn.functional.normalize(torch.randn(len(rotations), 3, generator=generator), dim=1)
    cross = torch.linalg.cross(axis[:, None].expand(-1, 3, -1), torch.eye(3).expand_as(rotations))
    return rotations @ torch.linalg.matrix_exp(math.radians(degrees) * cross)


clean = data["white"].test.clean
wrong = {}
for degrees in (0, 2, 5, 10):
    rotations = turned(clean.rotations, degrees, torch.Generator().manual_seed(seed))
    wrong[degrees] = judge(half_and_full_maps(clean, rotations))
curves = {f"{d}° wrong": (frequency, s["truth"]) for d, s in wrong.items()}
plot_fsc(curves, thresholds=(0.5,), title="clean images, wrong poses: against the truth")
plt.show()
words = "; ".join(f"{d}°: truth {s['truth_A']:.1f} Å, half maps {s['half_A']:.1f} Å" for d, s in wrong.items())  # fmt: skip
display(Markdown(f"{words}."))

# %% [markdown]
# A pose that is wrong by an angle $\theta$ moves density at a distance $r$ from the centre by $r\theta$: 5° at 50 Å are 4 Å. No denoiser repairs that, the images were perfect. Compare the two numbers of each angle. The errors of the poses are random and independent between the halves, yet each half averages over many of them, and the *average* is the same blur in both. Blur is a shared error, and the half maps hardly see it.
#
# ### The wrong hand
#
# Let $M = \mathrm{diag}(1, 1, -1)$ mirror the beam. Summing along $z$ does not care about its direction, so
#
# $$ I(x,y) = \sum_z V\big(R\,M\,(x,y,z)\big) = \sum_z V'\big(M R M\,(x,y,z)\big), \qquad V'(r) = V(M r). $$
#
# The mirrored molecule $V'$ with the poses $MRM$ explains every image exactly. Images alone cannot tell left from right.

# %%
mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
particles = images["white"]["noisy"]
wrong_hand = half_and_full_maps(particles, mirror @ particles.rotations @ mirror)
odd = (slice(1 - box_size % 2, None),) * 3  # an even box has an outermost plane without a mate
as_before, now = (fsc(m["half1"][odd], m["half2"][odd])[1] for m in (noisy, wrong_hand))
hand_change = float((as_before - now).abs().max())
assert hand_change < 1e-3  # the half maps are as before, only mirrored
mirrored_truth = truth.flip(0).roll(1 - box_size % 2, 0)
to_mirror = resolution(fsc(wrong_hand["full"], mirrored_truth)[1], 0.5)
to_truth = resolution(fsc(wrong_hand["full"], truth)[1], 0.5)
display(Markdown(f"Largest change of the half-map FSC: **{hand_change:.1e}**. Resolution of the whole-box map against the truth: **{to_truth:.1f} Å**, against the mirrored truth: **{to_mirror:.1f} Å**."))  # fmt: skip

# %% [markdown]
# The half maps are as content as before. Only something that knows chirality, such as the sense of an α-helix, can see the error; and a network trained on one hand would pull every image towards it.
#
# ### Two maps of nothing
#
# Reconstruct two half maps from pure white noise and put a tight mask with a hard edge on them, drawn around the densest five percent of the molecule.

# %% mystnb={"image": {"alt": "FSC between two maps made from pure noise: near zero in the whole box, clearly above zero inside a tight hard mask, and near zero again after correction."}}
generator = torch.Generator().manual_seed(seed)
white = torch.randn(particles.images.shape, generator=generator)
nothing = half_and_full_maps(particles.with_images(white, ctf_applied=False))
tight = (truth > truth.flatten().sort().values[-truth.numel() // 20]).float()
result = fsc_mask_corrected(nothing["half1"], nothing["half2"], tight, pixel_size_A, generator)
curves = {
    "whole box": result.unmasked,
    "in the tight mask": result.masked,
    "in the tight mask, phases random": result.randomised,
    "corrected": result.corrected,
}
plot_fsc(
    {k: (frequency, v) for k, v in curves.items()},
    thresholds=(0.143,),
    title="pure noise in a tight mask: half maps",
)
plt.show()

# %% [markdown]
# ## Exercises
#
# ```{exercise} What is symmetry worth?
# :label: fsc-symmetry
#
# Reconstruct the noisy particles of the setting `white` without symmetry (`symmetry="C1"`). How many times more particles would you need to make up for it? Test your answer with the prediction for the half-map FSC: if the ratio $S$ per shell grows in proportion to the number of particles, then $F_m = mF_1 / (1 + (m-1) F_1)$ for $m$ times as many.
# ```

# %% [markdown]
# ```{solution-start} fsc-symmetry
# :class: dropdown
# ```
#
# Every image of a particle with $m$ mates counts $m$ times, in $m$ poses, so it takes $m$ times as many particles. From $F = S/(1+S)$ follows $S = F/(1-F)$; put $mS$ back into the first formula.

# %% mystnb={"image": {"alt": "Half-map FSC without symmetry, the prediction for symmetry from it, and the half-map FSC with symmetry: the last two agree."}}
alone = half_and_full_maps(particles, symmetry="C1")
without = fsc(alone["half1"], alone["half2"])[1]
m = len(symmetry_rotations(symmetry))
curves = {
    "C1": without,
    f"predicted for {m} times as many": m * without / (1 + (m - 1) * without),
    symmetry: halves,
}
plot_fsc({k: (frequency, v) for k, v in curves.items()}, thresholds=(0.143,), title="symmetry")
plt.show()

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Judge a denoiser without the truth
# :label: fsc-cross
#
# The noise in half map 1 of the *noisy* images knows nothing of half set 2, nor of the network. Correlate it with half map 2 of the *refined* images. Show that dividing by $\sqrt{F_\text{noisy}}$ gives the correlation of the refined half map with the truth, and compare with the truth itself.
# ```
#
# ```{solution-start} fsc-cross
# :class: dropdown
# ```
#
# Let the noisy half map be $T+N$ and the refined one $D$. In a shell, $\langle T+N, D\rangle \approx \langle T, D\rangle$, so the cross-FSC is $\mathrm{FSC}(T, D)$ times $|T|/|T+N| = \sqrt{S/(S+1)} = \sqrt{F_\text{noisy}}$. Every error of the network is counted, shared or not. It ends where the noisy half maps stop agreeing: beyond, there is nothing to judge by.

# %% mystnb={"image": {"alt": "FSC of the refined half map with the truth, and its estimate from the noisy half map alone: the two agree; the half-map FSC of the refined images lies above both."}}
refined = maps["white"]["refined"]
cross = fsc(noisy["half1"] * mask, refined["half2"] * mask)[1]
reference = scores["white"]["noisy"]["half"]
estimate = torch.where(reference > 0.1, cross / reference.clamp(min=0.1).sqrt(), math.nan)
actual = fsc(refined["half2"] * mask, truth * mask)[1]
curves = {
    "refined half 2 against the truth": actual,
    "estimated without the truth": estimate,
    "predicted from refined half maps": predicted(scores["white"]["refined"]["half"]),
}
plot_fsc(
    {k: (frequency, v) for k, v in curves.items()}, thresholds=(0.5,), title="a check without truth"
)
plt.show()
known = ~estimate.isnan()
cross_error = float((estimate - actual)[known].abs().mean())
display(Markdown(f"Mean difference between estimate and truth: **{cross_error:.3f}** over {int(known.sum())} of {len(known)} shells."))  # fmt: skip

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Weigh a map by its FSC
# :label: fsc-weight
#
# The Wiener filter multiplies each shell of the noisy full map by $2S/(2S+1) = C^2$. Do it with the $C$ predicted from the half maps. Does the map come closer to the truth, and does its FSC change?
# ```
#
# ```{solution-start} fsc-weight
# :class: dropdown
# ```
#
# The error falls, because shells that are mostly noise are turned down. The FSC stays as it was: each shell is multiplied by one number, and the FSC does not see factors. A good-looking map and a high FSC are different things.

# %%
weight = predicted(halves) ** 2
full_ft = torch.fft.rfftn(noisy["full"])
shells = shell_index(noisy["full"].shape).clamp(max=box_size // 2)
weighted = torch.fft.irfftn(full_ft * weight[shells], s=noisy["full"].shape).float()
before, after = (float((v - truth).norm() / truth.norm()) for v in (noisy["full"], weighted))
display(Markdown(f"Relative error before **{before:.2f}**, after **{after:.2f}**."))

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Recap
#
# - An image is a central slice of the volume's transform; a reconstruction lays slices into a grid and divides by how often each voxel was hit.
# - The FSC compares maps shell by shell. 0.143 between half maps and 0.5 against the truth are the same statement, **if the errors of the half maps are independent**.
# - A mask correlates what it cuts out alike; phase randomisation measures by how much.
# - The half maps of images denoised by one network share its errors. Their FSC measures self-consistency; only the truth, or the raw images of the other half, can judge them.
# - Shared errors of any kind, such as the hand, go unseen by half maps.
#
# **What next.** Go back to [03_refine_unet](03_refine_unet.ipynb) with this notebook's table at hand, change one thing in the training, and see which column of the table it moves.
#
# ## References
#
# - Chen, S. et al. (2013). High-resolution noise substitution to measure overfitting and validate resolution in 3D structure determination by single particle electron cryomicroscopy. *Ultramicroscopy* 135, 24–35.
# - Harauz, G. & van Heel, M. (1986). Exact filters for general geometry three dimensional reconstruction. *Optik* 73, 146–156.
# - Henderson, R. (2013). Avoiding the pitfalls of single particle cryo-electron microscopy: Einstein from noise. *PNAS* 110, 18037–18041.
# - Rosenthal, P. B. & Henderson, R. (2003). Optimal determination of particle orientation, absolute hand, and contrast loss in single-particle electron cryomicroscopy. *J. Mol. Biol.* 333, 721–745.
# - van Heel, M. & Schatz, M. (2005). Fourier shell correlation threshold criteria. *J. Struct. Biol.* 151, 250–262.

# %%
results = {}
for setting in settings:
    for stage, s in scores[setting].items():
        results |= {
            f"{setting}_{stage}_{k}": s[k] for k in ("truth_A", "half_A", "mean_fsc", "gap")
        }
results |= {f"structural_{stage}_micelle_left": a for stage, a in left.items()}
results |= {f"poses_wrong_{d}_deg_truth_A": s["truth_A"] for d, s in wrong.items()}
results |= {
    "independent_error": independent_error,
    "cross_error": cross_error,
    "hand_change": hand_change,
    "hand_truth_A": to_truth,
    "hand_mirror_A": to_mirror,
    "noise_masked_fsc": float(result.masked[1:].mean()),
    "noise_corrected_fsc": float(result.corrected[1:].mean()),
}
path = Path(run_dir) / "results" / "06_reconstruct_fsc.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(results, indent=1))
print(f"maps in {run_dir}/maps, results in {path}")
