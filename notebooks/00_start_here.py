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
# # Start here: find a molecule in the noise
#
# ```text
#    electrons, as few as possible      one box, cut out            what this book is after
#        ↓   ↓   ↓   ↓   ↓   ↓            ▒░▓▒░▒▓░▒▓                    ·  ·  ·  ·  ·
#   ice ─◐───◓─────◒───◑───◓──            ░▓▒▓█▓▒░▓▒                    ·  ▄█▀▄·  ·  ·
#        ↓   ↓   ↓   ↓   ↓   ↓     →      ▒░▓█▓▒▓▒░▒          →         ·  ██▄█·  ·  ·
#   camera ▒░▒▓▒░▓▒░▒▓▒░▒▓▒░▒             ▓▒░▒▓░▒▒▓░                    ·  ·▀▀ ·  ·  ·
#                                          10 parts noise                the same molecule,
#                                          1 part molecule               the same view
# ```
#
# In this notebook you look at what a cryo-EM camera delivers, denoise a particle, move one slider until a molecule drowns, make a molecule out of pure noise, and learn the handful of conventions on which everything later rests. Before each figure you are asked for a **prediction**. Say it aloud or write it down, then look: you will remember what surprised you.

# %% [markdown]
# **You will learn to**
#
# - say what a particle image is, and why it is so noisy;
# - denoise one, and say how near the truth it comes;
# - state what a signal-to-noise ratio (SNR) of 0.1 means, and what averaging does to it;
# - recognise a result that comes from the method and not from the data;
# - read its axes, its centre, its rotation angles, its shifts and its contrast without guessing;
# - find your way through the rest of the book.
#
# | you should know | | where to read up |
# |---|---|---|
# | Python: functions, lists, `for` | necessary | [Python tutorial](https://docs.python.org/3/tutorial/) |
# | arrays: shape, slicing, broadcasting | necessary | [NumPy quickstart](https://numpy.org/doc/stable/user/quickstart.html) |
# | mean, variance, correlation | necessary | any first course in statistics |
# | what a protein is | helpful | [Protein structure](https://en.wikipedia.org/wiki/Protein_structure) |
# | Fourier transform | helpful | explained where it is needed, from [01](01_simulate.ipynb) on |
# | electron microscopy | not needed | [Caltech course](https://cryo-em-course.caltech.edu/), if you want more |
#
# To read it with the code folded you need none of these, up to the conventions.
#
# **Inputs**: none; the molecule is written by code, and the weights of a network come with cryonb. **Output**: `results/00_start_here.json` in the run folder. **Hardware**: any laptop. The last cell prints the time that this run took, and `cryonb run` lists time and peak memory of each notebook.

# %% jupyter={"source_hidden": true}
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown, display
from torch.testing import assert_close

from cryonb.data.particles import particles_from_arrays
from cryonb.data.volumes import load_volume
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.weights import MANY, load_model
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.geometry import euler_to_matrix, random_rotations
from cryonb.physics.projection import project, shift_images
from cryonb.running.check import environment_report
from cryonb.showing.plotting import show_rows, use_style
from cryonb.showing.widgets import frame_viewer
from cryonb.simulation.simulate import noise_sigma

started, answers = time.perf_counter(), {}  # of the exercises, for the results
use_style()

# %% tags=["parameters"]
source = "channel"  # channel, prestin, or a PDB, mmCIF or MRC file
box_size = 64  # pixels along each edge of an image
pixel_size_A = 3.0  # Å per pixel
snr = 0.1  # variance of the clean images / variance of the white noise
seed = 0  # of everything random here
run_dir = "runs/own"  # the results are written under it

# %% [markdown]
# ## Is this machine ready?
#
# Check this first, so that a missing package does not surprise you an hour from now. A line marked ✗ needs attention before you go on, and its last column says what to do. Advice on a line marked ✓ is only good to know.

# %%
Path(run_dir).mkdir(parents=True, exist_ok=True)
report = environment_report(run_dir)
rows = [f"| {'✓' if i.ok else '✗'} | {i.name} | {i.value} | {i.advice} |" for i in report]
display(Markdown("\n".join(["| | what | found | advice |", "|---|---|---|---|", *rows])))

# %% [markdown]
# ## What is a particle image?
#
# A solution with many copies of one molecule is spread into a film thinner than a soap bubble and frozen so fast that the water has no time to crystallise. Electrons pass through it. They are scattered a little by the electric potential of the atoms, and a camera below counts where they arrive. The picture is a **micrograph**. Each molecule lies in the ice the way it happened to be when it froze, so the micrograph shows the same object from hundreds of directions, none of them known.
#
# Three facts make the picture what it is.
#
# - **It is a projection.** The microscope's depth of focus exceeds the thickness of a molecule: like an X-ray image, a pixel holds the sum of everything along the beam. Front and back are on top of each other.
# - **It is faint.** A protein is made of light atoms, in water that is made of light atoms. The contrast is a few per cent.
# - **It is noisy.** Electrons destroy what they show, so only about twenty to fifty of them are allowed per square Ångström (1 Å = 0.1 nm, about the size of an atom). What you see first is the random scatter of that small count.
#
# The next cell makes a toy micrograph: the molecule in random orientations at random places, and white noise of ten times its variance (or whatever you set as `snr`). Software for *particle picking* finds the molecules; we know where we put them. A square cut out around one molecule is a **particle image**, and a pile of such squares is a **stack**, the input of all that follows.
#
# **Predict.** Fifteen molecules lie in three rows. The noise is about three times as strong as they are. How many of them will you still find?

# %%
generator = torch.Generator().manual_seed(seed)
volume = load_volume(source, box_size, pixel_size_A)
clean = project(volume.map, random_rotations(15, generator))  # (15, y, x)
clean = clean / clean.std()  # the unit of intensity: one standard deviation of the clean images

pitch = int(1.15 * box_size)
field = torch.zeros(3 * pitch + 8, 5 * pitch + 8)  # (y, x)
jitter = torch.randint(0, pitch - box_size + 8, (15, 2), generator=generator)
corners = [
    (pitch * (i // 5) + int(j[0]), pitch * (i % 5) + int(j[1])) for i, j in enumerate(jitter)
]
for image, (y, x) in zip(clean, corners, strict=True):
    field[y : y + box_size, x : x + box_size] += image
sigma = noise_sigma(snr)
micrograph = field + sigma * torch.randn(field.shape, generator=generator)
stack = torch.stack([micrograph[y : y + box_size, x : x + box_size] for y, x in corners])

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "A toy micrograph twice: left without noise, fifteen bright molecules in different orientations, two of them in orange squares; right with noise, in which only faint bright patches are left of them."}}
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.4), sharey=True)
edge_A = [n * pixel_size_A for n in field.shape]
for ax, picture, name in zip(
    axes, (field, micrograph), ("without noise", f"SNR {snr:g}"), strict=True
):
    spread = 3 * float(picture.std())
    ax.imshow(picture, vmin=-spread, vmax=spread, extent=(0, edge_A[1], edge_A[0], 0))
    ax.set(title=name, xlabel="x (Å)")
    for y, x in corners[6:8]:
        at, size = (x * pixel_size_A, y * pixel_size_A), box_size * pixel_size_A
        ax.add_patch(plt.Rectangle(at, size, size, fill=False, ec="#E69F00", lw=1.5))
axes[0].set_ylabel("y (Å)")
_ = fig.suptitle("A toy micrograph; two boxes drawn")
# %% [markdown]
# Six of the squares follow, and below each what it would be without noise. **Predict.** Cover the lower row: which two of the upper row show the same view?

# %% mystnb={"image": {"alt": "Six molecules cut out of the micrograph: a noisy row, and the same six without noise below."}}
_ = show_rows({"as recorded": stack[5:11], "the truth": clean[5:11]}, title="Six particle images")
# %% [markdown]
# **What to notice.** All six images in the lower row show the same molecule, and hardly any two look alike. (By default it is an ion channel like HCN1: four equal subunits around a pore, some 120 Å long, written by code.) In the upper row you can say *where* a molecule is and perhaps which way it points; its helices are gone. Everything in this book happens between these two rows. A **denoiser** is a function from the upper to the lower one. Its images must do more than look good: in the end thousands of denoised images are combined into a three-dimensional map ([06](06_reconstruct_fsc.ipynb)), and a detail that was invented counts as much there as one that was found.
#
# A real micrograph has more in it than molecules and white noise: the blur and ringing of the lenses (the CTF, below), detergent around membrane proteins, ice of uneven thickness, the edge of the carbon film that carries the ice, other molecules at the rim of the box. The last four we call **structural noise**, and [01](01_simulate.ipynb) builds each of them.

# %% [markdown]
# ## Denoise one
#
# A network comes with cryonb that was trained on thousands of random molecules, and never on this one. It is given one noisy particle and the strength of its noise, and answers in one step with the image that it expects behind it. [02](02_train_sr3.ipynb) builds such a network; here you only use it. Choose a particle by its number.
#
# **Predict.** What will come back: the outline, the parts that the molecule is made of, single helices?

# %% mystnb={"image": {"alt": "One noisy particle, what the network makes of it, and the truth. The denoised image has the outline and the large parts of the truth, without its fine rods."}}
which = 7  # of the fifteen, 0 to 14: try others
network, _ = load_model(MANY, SR3)
denoised = denoise(network, stack[which : which + 1], sigma)[0]
pictures = torch.stack([stack[which], denoised, clean[which]])
to_truth = torch.corrcoef(pictures.flatten(1))[2]  # correlation of each with the truth
names = ("as recorded", "denoised", "the truth")
columns = [f"{name}\nr = {r:.2f}" for name, r in zip(names, to_truth, strict=True)]
pictures = pictures / pictures.std((1, 2), keepdim=True)
options = {"columns": columns, "limits": (-2, 4), "width_in": 2.2}
_ = show_rows({"": pictures}, title=f"Particle {which}, denoised", **options)
answers["denoised_correlation"] = float(to_truth[1])

# %% [markdown]
# **What to notice.** The number *r* is the correlation with the truth, 1 for the same image. It rises a lot, and the image is smooth where the truth is full of detail: what the network cannot know it leaves out, since every guess at it would be wrong more often than right. Try other particles. Some come back with a part that is not there, or with one missing, and nothing in the denoised image tells you which. You can say so here because you have the truth. What to do where nobody has it is what most of this book is about.

# %% [markdown]
# ## How much noise is SNR 0.1?
#
# The word SNR has many meanings in the field. In this book it has one:
#
# $$ \mathrm{SNR} = \frac{\text{variance of the clean images, over all pixels of all boxes}}{\text{variance of the white noise}} . $$
#
# At SNR 0.1 the noise has ten times the variance of the molecule, so $\sqrt{10} \approx 3.2$ times its standard deviation. The number belongs to one pixel size and one box. A pixel of half the edge collects a quarter of the electrons, so at the same dose its SNR is about four times lower; a larger box adds empty pixels, which dilute the signal's variance. [01](01_simulate.ipynb) measures both and turns an SNR into a dose. Move the slider. It holds precomputed pictures, so it works in JupyterLab as well as on a saved page. Each picture is stretched to its own contrast, as every viewer of micrographs does; the noise pattern is the same in all of them, and only its strength grows.
#
# **Predict.** At which SNR will you no longer swear that there is a molecule? Write the number down before you move the slider.

# %%
pose = euler_to_matrix(torch.tensor([[20.0, 80.0, 10.0]]))  # from the side; angles come later
side_view = project(volume.map, pose)[0]
side_view = side_view / side_view.std()
white = torch.randn(box_size, box_size, generator=generator)
snrs = sorted({10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, snr}, reverse=True)
frames = [side_view + noise_sigma(s) * white for s in snrs]
frames = [(f - f.mean()) / f.std() for f in frames]
frame_viewer(
    frames,
    [f"SNR {s:g}" for s in snrs],
    [f"One molecule from the side with white noise at SNR {s:g}" for s in snrs],
    title="One molecule, more and more noise",
    index=snrs.index(snr),
    limits=(-2.5, 3.5),
)

# %% [markdown]
# Find three places on the slider: where the helices go (single rods), where the domains go, and where you would no longer swear that there is a molecule. For most people the last lies near SNR 0.01. Real particle images are usually put between 0.1 and 0.01, so you have just seen the working range of the field.
#
# How can anybody get atoms from such data? By **averaging**. The mean of $n$ images of the same view keeps the molecule and divides the variance of the noise by $n$, so the SNR grows in proportion to $n$. The cell below does this, and measures the SNR of each mean from its difference to the truth.
#
# **Predict.** How many images does it take until you see single helices: ten, a hundred, a thousand?

# %% mystnb={"image": {"alt": "One noisy image, means of 10, 100 and 1000 noisy images of the same view, and the truth; the molecule emerges as the number grows."}}
counts = [1, 10, 100, 1000]
noise = torch.randn(max(counts), box_size, box_size, generator=generator)
means = torch.stack([side_view + sigma * noise[:n].mean(0) for n in counts])  # (4, y, x)
measured = [float(side_view.var() / (mean - side_view).var()) for mean in means]
columns = [f"n = {n}\nSNR {m:.2g}" for n, m in zip(counts, measured, strict=True)]
assert_close(torch.tensor(measured), snr * torch.tensor(counts), rtol=0.2, atol=0)
_ = show_rows(
    {"": torch.cat([means, side_view[None]])},
    columns=[*columns, "truth"],
    limits=(-2, 5),
    width_in=1.7,
    title="The mean of n images of one view",
)
# %% [markdown]
# That is the whole trick of the field, and its whole difficulty: you may only average images of the *same* view, and to know the view you have to see the molecule. Denoising helps to see. It does not replace the averaging, because no function of one image can bring back what that image never held; it can only supply what is likely, judged by the images it was trained on.

# %% [markdown]
# ## Try to break it: a molecule out of nothing
#
# Here is a mistake that every user of a denoiser should make once, on purpose. We take **pure noise**, no molecule anywhere. We slide each noise image until it agrees best with a template, our side view, and average the aligned images, just as one averages particles.
#
# **Predict.** There is nothing in the data. What will the average look like?

# %% mystnb={"image": {"alt": "The template, one pure noise image, the plain average of noise, which is flat, and the average of aligned noise, which looks like the template."}}
template = side_view - side_view.mean()
noise = torch.randn(2000, box_size, box_size, generator=generator)
match_ft = torch.fft.rfft2(noise) * torch.fft.rfft2(template).conj()
best = (
    torch.fft.irfft2(match_ft, s=(box_size, box_size)).flatten(1).argmax(1)
)  # of all cyclic shifts
found = torch.stack([best // box_size, best % box_size], 1).float()  # (n, 2) as (y, x)
aligned = shift_images(noise, -found).mean(0)
resemblance, control = (
    float(torch.corrcoef(torch.stack([template.flatten(), x.flatten()]))[0, 1])
    for x in (aligned, noise.mean(0))
)
columns = [
    "template",
    "one of 2000",
    f"plain mean\nr = {control:.2f}",
    f"mean of aligned\nr = {resemblance:.2f}",
]
pictures = torch.stack([template, noise[0], noise.mean(0), aligned])
pictures = pictures / pictures.std((1, 2), keepdim=True)
_ = show_rows(
    {"": pictures}, columns=columns, limits=(-2, 4), width_in=1.8, title="Nothing but noise went in"
)
# %%
assert resemblance > 0.5 > abs(control)
text = "The aligned average correlates with the template at **r = {:.2f}**; "
text += "the plain average of the same noise at {:.2f}."
display(Markdown(text.format(resemblance, control)))

# %% [markdown]
# The molecule on the right is not in the data. It came from the template: of all the places where each noise image could go, we chose the one where it looks most like what we expected. The literature calls it *Einstein from noise* (Henderson 2013), after the portrait that was used as the template.
#
# A network trained on one protein **is** a template, a very large one. Given noise, it tends to draw that protein. This is why the book never judges a denoiser by its looks. It uses test images that no network was trained on, compares them with a truth that is known, checks that structural noise is gone, and compares maps from two halves of the data that share nothing. Keep the picture in mind whenever something looks too good.

# %% [markdown]
# ## The conventions, by picture
#
# Many wrong results in this field are sign errors: a map that is the mirror image of the molecule, a shift applied twice, particles that are dark where a program wants them bright. All conventions of this book are stated once, in the docstring of `cryonb.physics.conventions`. Here they are in pictures.
#
# ### Axes and centre
#
# An image is an array `image[y, x]`; a volume is `volume[z, y, x]`. The first index of an image goes **down** the screen. The centre of a box of `n` pixels is index `n // 2`, for even and for odd `n`. For an even box that is *not* the middle of the square: there is one more pixel before it than after it.
#
# **Predict.** Where is the centre of seven pixels, and where of eight? Is `image[1, 5]` above or below it?

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Two pixel grids of 7 and 8 pixels. The centre pixel n // 2 is orange, the pixel at y = 1, x = 5 is blue."}}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.8))
for ax, n in zip(axes, (7, 8), strict=True):
    ax.imshow(torch.ones(n, n), vmin=0, vmax=1.1)
    for (y, x), colour, text in [
        ((n // 2, n // 2), "#E69F00", "centre"),
        ((1, 5), "#56B4E9", "[1, 5]"),
    ]:
        ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec="k"))
        ax.text(x, y, text, ha="center", va="center", size=7)
    ax.set(xticks=range(n), yticks=range(n), xlabel="x (pixel index)", ylabel="y (pixel index)")
    ax.set_title(f"n = {n}: the centre is index {n // 2}")
    ax.hlines([i + 0.5 for i in range(-1, n)], -0.5, n - 0.5, color="0.6", lw=0.5)
    ax.vlines([i + 0.5 for i in range(-1, n)], -0.5, n - 0.5, color="0.6", lw=0.5)
_ = fig.suptitle("image[y, x] and its centre")
# %% [markdown]
# ### Rotation
#
# A pose is a matrix $R$. It carries *image* coordinates to *volume* coordinates,
#
# $$ I(x, y) = \sum_z V\bigl(R\,(x, y, z)\bigr), $$
#
# so a ball at position $p$ in the molecule shows up at the first two components of $R^{\mathsf T} p$. RELION, the program most used in the field, writes a pose as three angles, and $R = R_z(\mathrm{rot})\,R_y(\mathrm{tilt})\,R_z(\mathrm{psi})$. To test such a sentence you need an object without any symmetry. Ours has four balls of different weight: one at the centre, and one along each axis. White circles mark where the formula says the balls must be.
#
# **Predict.** In the first pose you look along z. Which ball is hidden, and in which of the other poses does it come out?

# %%
reach_A = box_size * pixel_size_A
points = (
    torch.tensor([[0.0, 0, 0], [0.36, 0, 0], [0, 0.26, 0], [0, 0, 0.18]]) * reach_A
)  # (x, y, z)


def ball(point):
    """A Gaussian ball of 1.3 pixels at (x, y, z) in Å, as a volume (z, y, x)."""
    axis = (torch.arange(box_size) - box_size // 2) * pixel_size_A
    x, y, z = point
    r2 = (axis[:, None, None] - z) ** 2 + (axis[:, None] - y) ** 2 + (axis - x) ** 2
    return torch.exp(-r2 / (2 * (1.3 * pixel_size_A) ** 2))


phantom = ball(points[0]) + 0.8 * ball(points[1]) + 0.6 * ball(points[2]) + 0.4 * ball(points[3])
angles = torch.tensor([[0.0, 0, 0], [90, 0, 0], [0, 90, 0], [0, 0, 90], [30, 60, 45]])
poses = euler_to_matrix(angles)  # (5, 3, 3)
expected_A = torch.einsum("nji,kj->nki", poses, points)  # R^T p: (5, 4, 3)

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "The four balls in five poses; each ball lies in the white circle that the formula predicts."}}
fig, axes = plt.subplots(1, 5, figsize=(11, 2.9), sharey=True)
half = box_size // 2 * pixel_size_A + pixel_size_A / 2
for ax, image, at, angle in zip(axes, project(phantom, poses), expected_A, angles, strict=True):
    ax.imshow(image, extent=(-half, reach_A - half, reach_A - half, -half))
    for name, p in zip("oxyz", at, strict=True):
        ax.plot(*p[:2], "o", ms=13, mfc="none", mec="w", mew=0.6)
        if p[:2].norm() > 4 * pixel_size_A:  # no letters on top of each other
            place = {"xytext": (7, 6), "textcoords": "offset points", "color": "w"}
            ax.annotate(name, p[:2].tolist(), **place)
    ax.set(title="rot {:.0f}, tilt {:.0f}, psi {:.0f}".format(*angle), xlabel="x (Å)")
axes[0].set_ylabel("y (Å)")
_ = fig.suptitle("Balls on the x, y and z axis, seen in five poses (degrees)")
# %% [markdown]
# **What to notice.** At psi = 90 the whole picture has turned in its plane, and that is all psi ever does. At tilt = 90 you look along another axis of the molecule: the z ball, hidden behind the centre until then, has come out at the side. Rot turns the molecule about its own z axis before anything else, so at tilt = 0 it cannot be told from psi: compare the second picture with the fourth.
#
# A picture convinces, a number proves. The centre of mass of each projected ball must lie at $R^{\mathsf T}p$; we allow a tenth of a pixel for the interpolation.

# %%
offsets = torch.arange(box_size, dtype=torch.float32) - box_size // 2
for k in (1, 2, 3):
    images = project(ball(points[k]), poses)
    total = images.sum((1, 2))
    x_px = (images.sum(1) * offsets).sum(1) / total
    y_px = (images.sum(2) * offsets).sum(1) / total
    assert_close(
        torch.stack([x_px, y_px], 1), expected_A[:, k, :2] / pixel_size_A, atol=0.1, rtol=0
    )

# %% [markdown]
# ### Shifts and contrast
#
# `shifts_px` is `(y, x)` and says **where the particle sits** relative to the box centre: positive means towards larger index, that is down and to the right. RELION stores the opposite, the *origin*: the move in Å that brings the particle back. `cryonb` converts when it reads and writes files, and nowhere else. In the middle picture below, the arrow is the shift; the origin in the title points back.
#
# Particles are **bright**: positive on a background of zero. On the camera they are dark: hardly an electron is lost in a molecule, but it shifts the phase of the electron wave, and underfocus turns that shift into fewer electrons where the molecule is (see the CTF below). So most programs invert the images when they cut them out.
#
# **Predict.** The shift is positive in y and negative in x: which way does the molecule go?

# %% mystnb={"image": {"alt": "A centred molecule, the same moved down and to the left with an arrow from the centre, and the same with dark contrast."}}
shift = (torch.tensor([[0.2, -0.12]]) * box_size).round()  # (y, x) in pixels: down, to the left
moved = shift_images(side_view[None], shift)
table = particles_from_arrays(moved, torch.eye(3)[None], pixel_size_A, shifts_px=shift).table
origin_A = table[["rlnOriginYAngst", "rlnOriginXAngst"]].iloc[0]
(dy, dx), c = shift[0].tolist(), box_size // 2
label = f"shift (y, x) = ({dy:.0f}, {dx:.0f}) pixels\nRELION origin (y, x) = "
label += "({:.0f}, {:.0f}) Å".format(*origin_A)
pictures = {"centred": side_view, label: moved[0], "dark: multiply by -1 first": -side_view}
fig, axes = plt.subplots(1, 3, figsize=(8.8, 3.3))
for ax, (name, image) in zip(axes, pictures.items(), strict=True):
    ax.imshow(image, vmin=-5, vmax=5)
    ax.plot(c, c, "+", color="#E69F00", ms=12)
    ax.set(xlabel="x (pixel)", ylabel="y (pixel)")
    ax.set_title(name, size=9)
arrow = {"arrowstyle": "->", "color": "#E69F00", "lw": 2}
axes[1].annotate("", (c + dx, c + dy), (c, c), arrowprops=arrow)
_ = fig.suptitle("Where the particle sits, and its sign")

# %% [markdown]
# ### The CTF
#
# A thin object in perfect focus is transparent: it changes the phase of the electron wave and not its intensity. To see it at all, you defocus the microscope, and pay with a distortion. The **contrast transfer function** (CTF) says by which factor each spatial frequency (a period $d$ has frequency $1/d$, in 1/Å) reaches the image. It swings between $-1$ and $1$: some details are lost, others come out with reversed contrast.
#
# The sign in this book: `defocus_um` is positive for underfocus, the usual case, and then the CTF is **positive at low frequency**, so that bright particles stay bright. The setting of the paper that this book follows has no CTF; it is here so that you recognise it, and [01](01_simulate.ipynb) has a switch for it.
#
# **Predict.** Two images differ in the sign of the defocus alone. What will that do to the molecule?

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Left, two CTF curves that mirror each other; right, a molecule without CTF, at underfocus, and at overfocus, where bright and dark are swapped."}}
fig, axes = plt.subplots(1, 4, figsize=(11, 2.9), width_ratios=[1.7, 1, 1, 1])
fine = ctf(512, pixel_size_A, torch.tensor([1.5, -1.5]))[:, 0]  # along the x axis of the transform
frequency = torch.fft.rfftfreq(512, pixel_size_A)
pictures = {"no CTF": side_view}
for curve, value, name in zip(fine, (1.5, -1.5), ("underfocus", "overfocus"), strict=True):
    axes[0].plot(frequency, curve, label=f"{name} {value:+.1f} µm")
    pictures[name] = apply_ctf(side_view[None], ctf(box_size, pixel_size_A, value))[0]
axes[0].axhline(0, color="0.6", lw=0.8)
axes[0].set(
    xlabel="spatial frequency (1/Å)",
    ylabel="CTF",
    title="what each frequency is multiplied by",
    ylim=(-1.1, 1.6),
)
axes[0].legend(fontsize=8, loc="upper center", ncols=2)
for ax, (name, image) in zip(axes[1:], pictures.items(), strict=True):
    spread = 5 if name == "no CTF" else 2
    ax.imshow(image, vmin=-spread, vmax=spread)
    ax.set(title=name, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
_ = fig.suptitle("The contrast transfer function at 300 kV")
# %% [markdown]
# **What to notice.** Except at the very lowest frequencies the two curves are mirror images of each other, so the two pictures on the right are nearly each other's negatives. Both have lost the smooth brightness of the molecule and gained rings.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Predict a pose
# :label: ex-start-pose
# ```
# *Medium, 10 minutes.*
# A ball sits 30 Å from the centre on the molecule's z axis, $p = (0, 0, 30)$. Find RELION angles for which it appears on the *right* of the image, at $x = +30$ Å, $y = 0$. Check with `euler_to_matrix`.
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-start-pose
# :class: dropdown
# ```
# Only tilt can bring the z axis into the image plane, so tilt = 90. That alone puts the ball on the left (rot does not move a point of the z axis); a half turn in the plane, psi = 180, carries it to the right.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for rot, tilt, psi in ((0.0, 90.0, 0.0), (0.0, 90.0, 180.0), (57.0, 90.0, 180.0)):
    R = euler_to_matrix(torch.tensor([[rot, tilt, psi]]))[0]
    x, y, z = (R.T @ torch.tensor([0.0, 0.0, 30.0])).tolist()
    print(f"rot {rot:3.0f}, tilt {tilt:.0f}, psi {psi:3.0f}: x = {x:+.1f}, y = {y:+.1f} Å")
assert_close(torch.tensor([x, y]), torch.tensor([30.0, 0.0]), atol=1e-3, rtol=0)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} How many images?
# :label: ex-start-count
# ```
# *Easy, 5 minutes.*
# How many images of one view must you average to reach SNR 10, starting from SNR 0.1, and from SNR 0.01? A data set shows some 3,000 views that differ noticeably. How many particles is that in all?
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-start-count
# :class: dropdown
# ```
# The SNR grows in proportion to $n$, so $n = 10 / \mathrm{SNR}$. That makes hundreds of thousands to millions of particles, and these are indeed the sizes of real data sets. (A reconstruction does better than averaging view by view, because neighbouring views and symmetry mates share information.)

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for one in (0.1, 0.01):
    n = round(10 / one)
    mean_noise = noise_sigma(one) * torch.randn(n, box_size, box_size, generator=generator).mean(0)
    reached = float(side_view.var() / mean_noise.var())
    print(f"SNR {one:g}: n = {n}, measured SNR {reached:.1f}, {3000 * n:,} particles")

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Bright or dark?
# :label: ex-start-sign
# ```
# *Medium, 15 minutes.*
# Somebody sends you a stack and does not say whether particles are bright. You have no truth. Write a function that decides, and try it on `stack` and on `-stack`.
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-start-sign
# :class: dropdown
# ```
# The molecule is in the middle and the corners are mostly empty. The mean over a stack of (middle minus rim) has the sign of the contrast, and its standard error says how sure you may be. With a carbon edge or a steep ice gradient in the corners you can be less sure: see [01](01_simulate.ipynb).


# %% jupyter={"outputs_hidden": true, "source_hidden": true}
def contrast(images):
    """Mean over the stack of middle minus rim, in units of its standard error."""
    radius = torch.hypot(offsets[:, None], offsets) / box_size  # (y, x)
    difference = images[:, radius < 0.2].mean(1) - images[:, radius > 0.45].mean(1)
    return float(difference.mean() / (difference.std() / len(images) ** 0.5))


bright, dark = contrast(stack), contrast(-stack)
print(f"as sent: {bright:+.1f} standard errors, inverted: {dark:+.1f}")
assert bright > 5 and dark < -5
answers["contrast_standard_errors"] = bright

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** At SNR 0.1 the noise has
#
# ```{dropdown} (a) a tenth of the signal's variance
# **No.** It is the other way round: the signal has a tenth of the noise's.
# ```
# ```{dropdown} (b) ten times the signal's variance
# **Right.** So its amplitude is about three times the signal's. SNR is variance over variance, over the whole box.
# ```
# ```{dropdown} (c) ten times the signal's amplitude
# **No.** That would be a hundred times the variance, SNR 0.01.
# ```
#
# **2.** RELION says that a particle has an origin of +6 Å in x. In the image it sits
#
# ```{dropdown} (a) to the right of the centre
# **No.** The origin does not say where it sits, but which move brings it back.
# ```
# ```{dropdown} (b) to the left of the centre
# **Right.** The origin is the move that *brings it back* to the centre. `shifts_px` says where it sits, with the opposite sign.
# ```
# ```{dropdown} (c) where its angles put it
# **No.** A shift is in the plane of the image, after all turns.
# ```
#
# **3.** You average ten thousand noise images, each first turned and moved to where it fits a template best. You get
#
# ```{dropdown} (a) noise, a hundred times weaker
# **No.** You would without the moves. They choose, and what is chosen alike does not average away.
# ```
# ```{dropdown} (b) the template
# **Right.** Faintly: each image was put where its noise happens to look like the template, and that likeness is what adds up.
# ```
# ```{dropdown} (c) a flat image
# **No.** The plain mean tends to that; this is no plain mean.
# ```

# %% [markdown]
# ## The map of the book
#
# | notebook | question | you get |
# |---|---|---|
# | **00 start here** | what am I looking at? | conventions, a feeling for SNR |
# | [01 simulate](01_simulate.ipynb) | how are such images made, with a known truth? | two data sets: `white` and `structural` |
# | [02 train SR3](02_train_sr3.ipynb) | how does a diffusion model learn to denoise? | a trained model and its samples |
# | [03 refine](03_refine_unet.ipynb) | what does a second, simple network add? | the two-stage denoiser of the paper |
# | [04 compare](04_compare_methods.ipynb) | which denoiser is best, and how far from the best possible? | a table of all methods beside the Bayes limit |
# | [05 real data](05_real_data.ipynb) | does it work on a real micrograph, where nobody knows the truth? | picked and denoised particles, and an estimate of the error without a truth |
# | [06 reconstruct](06_reconstruct_fsc.ipynb) | do denoised images give a better map? | volumes, Fourier shell correlation, resolution |
# | [07 trust](07_trust.ipynb) | when may I believe what a denoiser shows? | experiments that provoke it, and an audit of your own |
# | [08 experiments](08_experiments.ipynb) | is that difference more than luck? | many runs, one table, curves with their spread |
# | [09 clean a map](09_clean_a_map.ipynb) | how do I get noise and detergent out of a map, and what else goes? | masks, a 3D network, `cryonb clean` |
#
# The book follows one paper, Zhang, Zhao, Hu and Zhao (2024), and says at every step what the paper states, what it leaves open and what we chose. Two settings run through everything: `white`, molecule plus white noise as in the paper's tables, and `structural`, with all that a real micrograph adds. The target is the clean molecule in both.
#
# Ways to run it:
#
# ```bash
# make tutorial                     # all notebooks, quick sizes; PROFILE=workshop for longer training
# make lab                          # open them in JupyterLab
# .venv/bin/cryonb run 00 -p snr 0.03 --run-dir runs/snr003    # one of them, checked parameters
# papermill notebooks/00_start_here.ipynb out.ipynb -p snr 0.03 -p run_dir runs/snr003
# ```
#
# Every notebook has one cell of parameters near its top; change a value there and run all cells, or pass it from outside as in the last two lines.
#
# ## Recap
#
# - A particle image is a projection of one molecule in an unknown pose, plus noise of some ten to a hundred times its variance.
# - Images are `[y, x]`, the centre is `n // 2`, a point $p$ appears at $R^{\mathsf T}p$, shifts say where the particle sits, particles are bright, underfocus is positive.
# - SNR is variance over variance, over the whole box, at one pixel size and box; averaging $n$ images of one view multiplies it by $n$.
# - Whatever knows the answer in advance will find it in noise.
#
# **Next**: [01 simulate](01_simulate.ipynb) builds these images from atoms, step by step.
#
# **References**
#
# - Zhang, Zhao, Hu and Zhao, *Robust single-particle cryo-EM image denoising and restoration*, ICASSP 2024, [arXiv 2401.01097](https://arxiv.org/abs/2401.01097).
# - Henderson, *Avoiding the pitfalls of single particle cryo-electron microscopy: Einstein from noise*, PNAS 110, 18037 (2013).
# - Scheres, *RELION: implementation of a Bayesian approach to cryo-EM structure determination*, J. Struct. Biol. 180, 519 (2012).

# %%
results = answers | {
    "snr": snr,
    "snr_measured": measured[0],
    "snr_mean_of_1000": measured[-1],
    "noise_only_correlation": resemblance,
    "noise_only_control": control,
    "environment_ok": all(item.ok for item in report),
    "seconds": round(time.perf_counter() - started, 1),
}
path = Path(run_dir) / "results" / "00_start_here.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(results, indent=1))
pd.DataFrame({"result": results})
