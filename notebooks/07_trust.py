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
# # Find out when to believe a denoiser
#
# ```text
#   what the image says          what the denoiser knows
#            └───────────┬───────────┘
#                 denoised image        which of the two do you see in it?
# ```
#
# You will give denoisers input that holds nothing, or the wrong thing, or less than it should, and measure what
# they draw all the same.
#
# ## You will learn
#
# - to **provoke** a denoiser into showing what it knows instead of what it sees;
# - to **choose** a control for each such number, without which it means nothing;
# - to **test** whether error bars made from posterior samples are right;
# - to **decide** what denoised particles may be used for, and what they may not;
# - to **audit** a denoiser of your own with one command.
#
# ## Before you start
#
# | concept | need | where |
# |---|---|---|
# | posterior mean, sample, template posterior | necessary | `02_train_sr3`, `04_compare_methods` |
# | reconstruction, Fourier shell correlation | necessary | `06_reconstruct_fsc` |
# | correlation, histogram | necessary | any statistics course |
#
# **Inputs**: the data set `white` of `01_simulate` (made here if it is missing), the network of
# `02_train_sr3` or the weights that come with cryonb. **Outputs**: figures of merit in
# `run_dir/results`. **Hardware**: two CPU cores; section 2 trains two small networks.

# %% jupyter={"source_hidden": true} tags=["long"]
import json
from functools import partial
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.testing import assert_close

from cryonb.base.parameters import true_or_false
from cryonb.data.volumes import load_volume
from cryonb.denoisers import methods
from cryonb.denoisers.direct import Direct
from cryonb.evaluation import audit
from cryonb.evaluation.metrics import mse
from cryonb.evaluation.resolution import fsc, resolution_at
from cryonb.learning import diffusion
from cryonb.learning.diffusion import SR3, sample
from cryonb.learning.weights import load_kept, load_model
from cryonb.physics.fourier import radial_mean
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.physics.reconstruct import reconstruct_halves
from cryonb.poses.posterior import bayes_limit
from cryonb.poses.templates import image_templates, pose_of, view_directions
from cryonb.showing.plotting import (
    grey_limits,
    plot_lines,
    say,
    say_table,
    show_denoised,
    use_style,
)
from cryonb.showing.shells import plot_fsc
from cryonb.showing.widgets import frame_viewer, live_viewer
from cryonb.simulation.dataset import open_dataset
from cryonb.simulation.simulate import clean_scale, projected_mask

use_style()

# %% tags=["parameters"]
source = "channel"  # channel, prestin, or a PDB, mmCIF or MRC file
other_source = "prestin"  # a molecule that no denoiser knows
box_size = 64  # pixels
pixel_size_A = 3.0  # Å per pixel
snr = 0.1  # variance of the clean images / variance of the white noise
n_train = 2000  # particles for training
n_validation = 1000  # particles kept apart
n_test = 512  # particles that no denoiser ever sees in training
trust_images = 128  # particles, or images of noise, in each experiment
samples = 8  # posterior samples for each particle
steps = 8  # network evaluations of each
half_images = 1000  # images that each of the two networks of section 2 sees
cutoff_A = 20.0  # Å; finer detail is taken away in section 5
use_kept = True  # prefer the weights that come with cryonb, where they fit these parameters
seed = 0  # of the data and of all noise
run_dir = "runs/own"  # everything is written under it

# %% [markdown]
# Four denoisers stand trial. The **best linear filter** knows the mean and the covariance of the molecule's
# projections and nothing else. **SR3** gives its posterior mean (one step) and a sample. The **template
# posterior** (`04_compare_methods`) remembers its training images and knows nothing but them. From the first to
# the last they know more and more about the molecule. Watch which troubles grow with that knowledge, and which
# do not.

# %%
use_kept = true_or_false(use_kept)
run_dir = Path(run_dir)
volume = load_volume(source, box_size, pixel_size_A)
counts = {"train": n_train, "validation": n_validation, "test": n_test}
folder = run_dir / "data" / "white"
data = open_dataset(folder, volume, counts, source=source, snr=snr, seed=seed)
n, middle = min(trust_images, len(data.test.clean)), len(data.train.clean) // 2
molecule, sigma, symmetry = data.volume, data.sigma, volume.symmetry
noisy, clean = data.test.noisy.images[:n], data.test.clean.images[:n]
made = {"box_size": box_size, "pixel_size_A": pixel_size_A, "snr": snr}
kept = load_kept(Path(source).stem, "white", "sr3", SR3, **made) if use_kept else None
network = (kept or load_model(run_dir / "models" / "white-sr3.safetensors", SR3))[0]
denoisers = {"best linear filter": methods.linear(data).denoise}
denoisers["SR3, one step"] = partial(diffusion.denoise, network, sigma=sigma)
denoisers["SR3, sample"] = partial(diffusion.denoise, network, sigma=sigma, steps=steps)
denoisers["template posterior"] = methods.template_posterior(data, n)[0].denoise
say(f"SR3: {'weights that come with cryonb' if kept else 'the network of 02_train_sr3'}.")

# %% [markdown]
# ## 1. Noise alone
#
# **Question.** What comes out when there is no particle at all?
#
# **Idea.** Average a thousand images of pure noise, each aligned to a portrait of Einstein as well as it can
# be, and Einstein appears (Henderson 2013). A denoiser that knows a molecule is such a portrait. We measure
# three things, each with a control:
#
# - *Variation*: how much do the outputs differ from each other, as a share of how much true particles differ?
# - *Resemblance*: how well does each output correlate with the projection of the molecule that it resembles
#   most? The control gives random phases to everything in which the outputs differ, because even a mere blob
#   resembles every projection a little.
# - *The map*: reconstruct the outputs in those poses. What is the FSC of that map with the molecule? The
#   control is the noise itself, reconstructed in the same poses.

# %%
options = {"symmetry": symmetry, "pixel_size_A": pixel_size_A, "seed": seed}
alone = {
    name: audit.noise_only(denoise, molecule, sigma, n, **options)
    for name, denoise in denoisers.items()
}
resolved = {name: resolution_at(*found.fsc, 0.5) for name, found in alone.items()}
columns = ["", "variation", "resemblance", "its control", "map: FSC 0.5 at (Å)", "its control (Å)"]
rows = [
    (
        name,
        r.variation,
        r.resemblance,
        r.control,
        resolved[name],
        resolution_at(*r.fsc_control, 0.5),
    )
    for name, r in alone.items()
]
say_table(columns, rows)

# %% mystnb={"image": {"alt": "What each denoiser makes of pure noise, in rows"}}
noise = sigma * torch.randn(6, box_size, box_size, generator=torch.Generator().manual_seed(seed))
strips = {"noisy": noise} | {name: found.images for name, found in alone.items()}
figure = show_denoised(strips | {"clean": clean}, title="Noise alone (last row: true particles)")

# %% mystnb={"image": {"alt": "FSC with the molecule of maps made from pure noise"}}
curves = {name: found.fsc for name, found in alone.items()}
curves["noise itself, same poses"] = alone["template posterior"].fsc_control
figure = plot_fsc(curves, thresholds=(0.5,), title="Maps from pure noise, against the molecule")

# %% [markdown]
# There was nothing in the images. Read each resemblance against its control: what exceeds it was put there by
# the denoiser. Where a curve stands high, the map is a portrait of what it knows. But look at the curve of the noise
# itself, too: choosing poses is enough to make noise look like the molecule at low resolution. (A ragged curve
# crosses 0.5 more than once, so trust the figure more than the column in Å; `inf` means that it never rises
# above 0.5.) The mean (one step) is tame, because it answers doubt with a blur; a *sample* must always show a
# particle, so it shows one.
#
# ## 2. Half maps that agree with each other
#
# **Question.** Two half sets, denoised by the same denoiser: what does their FSC measure?
#
# Half maps of raw images have independent noise, so what they share is signal. Half maps denoised by one
# network share the network too. If the halves were independent and the full map had a correlation of $C$ with
# the truth, the halves would have an FSC of $F = C^2/(2-C^2)$ (solve $C = \sqrt{2F/(1+F)}$ of
# `06_reconstruct_fsc` for $F$). Whatever their FSC shows beyond that is shared error.

# %%
poses = data.test.clean.rotations[:n]


def fsc_gap(first, second):
    """Frequencies, and what the FSC of half maps shows beyond what the truth justifies.

    The first denoiser is given half set 1, every second image, and the second half set 2.
    """
    images = torch.empty_like(noisy)
    images[::2], images[1::2] = first(noisy[::2]), second(noisy[1::2])
    maps = reconstruct_halves(images, poses, symmetry)
    frequency, between = fsc(*maps, pixel_size_A)
    with_truth = fsc(maps.mean(0), molecule, pixel_size_A)[1]
    return frequency, between - with_truth**2 / (2 - with_truth**2)


both = {"raw images": lambda images: images} | denoisers
gaps = {name: fsc_gap(denoise, denoise) for name, denoise in both.items()}

# %% mystnb={"image": {"alt": "Gap between what half maps predict and what is true, by frequency"}}
labels = {"x": "spatial frequency (1/Å)", "y": "FSC of halves − justified"}
figure = plot_lines(gaps, title="FSC of half maps beyond what the truth justifies", **labels)
invented = {name: float(gap[1:].mean()) for name, (_, gap) in gaps.items()}
say_table(["", "mean gap"], invented.items())

# %% [markdown]
# For raw images the gap scatters about zero: what they predict is true. (How widely it scatters depends on the
# number of images.) For the denoisers the gap need not grow with knowledge: the linear filter treats every
# image with the same matrix, and what that distorts repeats in both halves. Nor does a small gap acquit a
# denoiser. The template posterior knows this very molecule, so what it makes up happens to be true here; of any
# other molecule it would not be.
#
# **The remedy, and how far it reaches.** Give each half set a denoiser of its own. We train two U-Nets
# separately, on disjoint halves of the training particles, and split the images of the template posterior in
# the same way. Then the half maps share nothing: no particle, no noise, no network. All they have in common is
# the molecule that both denoisers were taught.

# %%
apart = {"U-Net": [], "template posterior": []}
for k, share in enumerate((slice(0, middle), slice(middle, None))):
    stacks = data.train.clean.images[share], data.train.observed[share]
    training = methods.Training(data, half_images, stacks, run_dir / "models/halves", seed=seed + k)
    apart["U-Net"].append(training.row("U-Net", Direct(sigma)).denoise)
    recall = partial(methods.posterior_mean, image_templates(stacks[0]), sigma=sigma)
    apart["template posterior"].append(recall)
for name, (first, second) in apart.items():
    gaps[f"{name}, one for both"] = fsc_gap(first, first)
    gaps[f"{name}, one for each"] = fsc_gap(first, second)

# %% mystnb={"image": {"alt": "The gap of half maps for one denoiser of both half sets, and for one denoiser of each"}}
split = {name: gap for name, gap in gaps.items() if "one for" in name}
split["raw images"] = gaps["raw images"]
figure = plot_lines(split, title="One denoiser for both half sets, or one for each", **labels)
invented |= {name: float(gap[1:].mean()) for name, (_, gap) in split.items()}
say_table(["", "mean gap"], [(name, invented[name]) for name in split])

# %% [markdown]
# Compare each pair in the table. The difference is what *this* network, with its random start and its training
# images, had put into both halves; where it is no larger than the scatter of the raw images, you cannot tell it
# from zero. What is left in the second row of a pair is what both denoisers were taught or both cannot do, and
# no splitting of data removes that: two students of one teacher agree where the teacher was wrong. On a real
# data set the teacher is the model that the training images were made from. So even with two networks, do not
# judge by half maps of denoised particles alone: keep the raw ones.
#
# ## 3. The wrong protein
#
# **Question.** What does a denoiser make of a molecule it has never seen?

# %% mystnb={"image": {"alt": "Particles of a molecule that the denoisers do not know: noisy, denoised by each, clean"}}
other_source = "channel" if other_source == source else other_source
unknown = load_volume(other_source, box_size, pixel_size_A)
generator = torch.Generator().manual_seed(seed + 1)
truth = project(unknown.map / clean_scale(unknown), random_rotations(n, generator))
given = truth + sigma * torch.randn(truth.shape, generator=generator)
bias = {
    name: audit.model_bias(denoise, given, truth, molecule, symmetry)
    for name, denoise in denoisers.items()
}
columns = ["", "with the truth", "with the known molecule", "truth with the known"]
say_table(columns, [(name, p.with_truth, p.with_known, p.control) for name, p in bias.items()])
strips = {"noisy": given} | {name: found.images for name, found in bias.items()}
figure = show_denoised(
    strips | {"clean": truth}, title=f"{other_source}, denoised by those who know {source}"
)

# %% [markdown]
# Compare the second column with the third. If the output resembles the known molecule more than the truth
# itself does, the denoiser has biased it: **model bias**. Part of this is mere blur, which makes things alike: the row of
# the linear filter shows how much. And compare the second column with the first: where it is larger, the output
# looks more like the molecule it knows than like the one in the image.
#
# **See for yourself.** If you run this notebook, the next cell is a test bench: choose a molecule, or nothing
# at all, an SNR and the number of sampler steps, and a fresh particle is denoised. (On a saved page there is no
# Python to do it.)


# %%
cases = {source: clean, other_source: truth, "nothing": torch.zeros_like(clean)}


def bench(molecule, snr, steps, particle):
    """Frames, one a step of the sampler: noisy particle, guess and truth, and their labels."""
    y, sigma = cases[molecule][particle], snr**-0.5
    draw = torch.Generator().manual_seed(particle)
    x = y + sigma * torch.randn(y.shape, generator=draw)
    guesses = [step.clean[0] for step in sample(network, x[None], sigma, steps, generator=draw)]
    labels = [f"step {k + 1}: MSE {(g - y).square().mean():.2f}" for k, g in enumerate(guesses)]
    return [torch.cat([x / x.std(), guess, y], 1) for guess in guesses], labels


controls = {
    "molecule": ipywidgets.Dropdown(options=list(cases), value=other_source),
    "snr": ipywidgets.FloatLogSlider(value=snr, min=-2, max=0.5),
    "steps": ipywidgets.IntSlider(value=steps, min=1, max=16),
    "particle": ipywidgets.IntSlider(max=min(n, 16) - 1),
}
live_viewer(bench, controls, title="noisy | denoised | truth", limits=grey_limits(clean))

# %% [markdown]
# Go from strong signal to weak on the unknown molecule. At which SNR does the network stop showing what it
# sees, and start to show the molecule it knows?
#
# ## 4. A missing subunit
#
# **Question.** A biologist's question: one quarter of the molecule is missing. Would you notice?
#
# We cut away all density in one quadrant around the axis. Projection is linear, so a particle of what is left,
# $y$, lacks exactly the projection $q$ of what was taken. Denoise $y$ with noise, and see how much of $q$ is in
# the error, over all particles:
#
# $$ s = \frac{\sum \langle f(y + \sigma n) - y,\; q\rangle}{\sum \lVert q \rVert^2}, $$
#
# which is 0 for an honest denoiser, and 1 for one that completes the molecule.

# %%
axis = torch.arange(box_size) - box_size // 2
away = torch.sigmoid(axis / 1.0)  # a soft step, one pixel wide
quarter = molecule * (away[:, None] * away)  # the quadrant x > 0, y > 0
cut, missing = project(torch.stack([molecule - quarter, quarter]), poses)  # two (n, y, x)


def share_drawn(denoise, sigma, n=None):
    """Images of the first n particles that lack a quarter, and the share of it that is drawn."""
    generator = torch.Generator().manual_seed(seed)
    images = denoise(cut[:n] + sigma * torch.randn(cut[:n].shape, generator=generator))
    drawn = ((images - cut[:n]) * missing[:n]).sum() / missing[:n].square().sum()
    return images, float(drawn)


assert abs(share_drawn(lambda x: cut, sigma)[1]) < 1e-6  # honest
assert abs(share_drawn(lambda x: cut + missing, sigma)[1] - 1) < 1e-4  # completes all

# %% mystnb={"image": {"alt": "Particles that lack one quarter, denoised by each denoiser; below them the whole molecule, and the particles as they really are"}}
found = {name: share_drawn(denoise, sigma) for name, denoise in denoisers.items()}
strips, share = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
say_table(["", "share of the missing density that was drawn"], share.items())
figure = show_denoised(strips | {"whole": clean, "clean": cut}, title="One quarter is missing")

# %% [markdown]
# Compare the last two rows of the figure: the whole molecule, and (`clean`) what was really there. Which of
# them does each denoiser resemble? The linear filter is the control in the table: it knows no quarters, and yet
# its blur fills the hole from both sides. What the others draw beyond that, they complete from what they know.
#
# ## 5. Detail that returns
#
# **Question.** Is the fine detail in the output taken from the image?
#
# Keep each particle's coarse shape, and give all detail finer than `cutoff_A` random phases. Whatever
# correlates with the *true* detail afterwards cannot come from the image.

# %% mystnb={"image": {"alt": "Ring correlation with the removed detail, for each denoiser"}}
back = {
    name: audit.reappearance(denoise, clean, sigma, pixel_size_A, cutoff_A, seed)
    for name, denoise in denoisers.items()
}
lines = {name: (found.frequency_per_A, found.with_removed) for name, found in back.items()}
labels = {"x": "spatial frequency (1/Å)", "y": "correlation with the true detail"}
figure = plot_lines(lines, title=f"Random phases beyond {cutoff_A:g} Å", **labels)
figure.axes[0].axvline(back["SR3, one step"].cutoff_per_A, color="0.5", ls="--", lw=0.8)
columns = ["", "beyond the cutoff: with what was removed", "with what was given"]
say_table(columns, [(name, *found.beyond) for name, found in back.items()])

# %% [markdown]
# Right of the dashed line all correlation with the true detail comes from what the denoiser knows (but for the first shell or two, into
# which the coarse shape spills over; the linear filter shows how far). Is that bad? If the molecule in the
# image *is* the one it was trained on, the detail is right, as a textbook is right. But it is no evidence.
#
# ## 6. Error bars
#
# **Question.** Several samples of one particle differ. Is their spread as large as their error?
#
# Given a particle, the truth $y$ and an exact sample $s$ are draws from the same distribution. Three things
# follow. Two samples differ as much as a sample and the truth, $E\lVert s_1-s_2\rVert^2 = E\lVert s-y\rVert^2$.
# The truth lies between the lowest and the highest of $K$ samples in $(K-1)/(K+1)$ of the pixels. And its rank
# among them is uniform: it is as often the lowest as the third or the highest. Samples that pass are called
# **calibrated**. The exact posterior of `04_compare_methods` is the control; it must pass.

# %%
options = {"draws": samples, "generator": torch.Generator().manual_seed(seed)}
*_, (spacing, exact) = bayes_limit(molecule, noisy, sigma, symmetry, **options)
directions = view_directions(spacing, symmetry)
drawn = {"exact posterior": [], "SR3": []}
for k in range(samples):
    rotations = pose_of(directions, exact.drawn_index[k], exact.drawn_psi_deg[k])
    drawn["exact posterior"].append(project(molecule, rotations))
    drawn["SR3"].append(diffusion.denoise(network, noisy, sigma, steps, seed=seed + k))
drawn = {name: torch.stack(images) for name, images in drawn.items()}  # (K, n, y, x)

# %% [markdown]
# All three can be read off in a few lines. Count, in each pixel of the particle, how many samples lie below the
# truth: that is its rank. The shares of the ranks 1 to $K-1$ add up to the coverage.

# %%
inside = projected_mask(data.mask, poses)


def spread_coverage_ranks(samples):
    """E|s1 - s2|^2 / E|s - y|^2, share of truths among the samples, share of each rank."""
    rank = (samples < clean).sum(0)[inside]
    ranks = torch.bincount(rank, minlength=len(samples) + 1) / len(rank)
    apart = (samples[1:] - samples[:-1]).square().mean() / (samples - clean).square().mean()
    return apart, ranks[1:-1].sum(), ranks


judged = {name: audit.calibration(images, clean, inside) for name, images in drawn.items()}
for name, mine in {name: spread_coverage_ranks(images) for name, images in drawn.items()}.items():
    theirs = torch.tensor(judged[name].between_to_truth), judged[name].coverage[0]
    assert_close(mine, (*theirs, judged[name].ranks), rtol=1e-4, atol=1e-5)
columns = ["", "between samples ÷ to the truth", "truth among the samples", "should be"]
rows = [(n, j.between_to_truth, j.coverage[0], j.nominal[0]) for n, j in judged.items()]
say_table(columns, rows)

# %%
draws = zip(*drawn.values(), strict=True)
frames = [torch.cat([exactly[0], network_s[0], clean[0]], 1) for exactly, network_s in draws]
title = "One particle, draw after draw: exact posterior | SR3 | truth"
labels = [f"sample {k + 1}" for k in range(samples)]
frame_viewer(frames, labels, title=title, limits=grey_limits(clean), width_px=640)

# %% [markdown]
# What moves from draw to draw is what the image leaves open. On the left it is exactly as much as it should be.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Left: coverage against nominal. Right: ranks of the truth"}}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
lines = {name: (found.nominal, found.coverage) for name, found in judged.items()}
lines["exact"] = ([0, 1], [0, 1])
labels = {"x": "nominal share", "y": "share of pixels", "title": "Coverage", "theory": "exact"}
plot_lines(lines, ax=left, **labels)
lines = {name: (range(samples + 1), found.ranks) for name, found in judged.items()}
lines["exact"] = ([0, samples], [1 / (samples + 1)] * 2)
labels = {"x": "samples below the truth", "y": "share of pixels", "theory": "exact"}
plot_lines(lines, ax=right, title="Rank of the truth", **labels)
right.set(ylim=(0, 1.15 * right.get_ylim()[1]), xticks=range(samples + 1))
plt.show()

# %% [markdown]
# If the curve lies below the diagonal, or the ranks turn up at both ends, the samples are too sure of
# themselves: the truth lies outside more often than they admit. Passing does not mean that the samples are
# good. A network can be honest about a large error: see how far its errors are from those of the exact
# posterior in the next figure.
#
# ## 7. Sharp or right
#
# **Question.** A sample looks like a particle; the mean looks blurred. Which is better?
#
# Go from the mean $\hat y$ to a sample $s$ in steps, $\hat y + a\,(s - \hat y)$ with $a$ from 0 to 1, and watch
# two things: the squared error (distortion), and the power of detail finer than `cutoff_A` relative to the
# truth's (a measure of how real it looks; the literature says perception). No denoiser can have both at their
# best (Blau and Michaeli 2018).

# %% mystnb={"image": {"alt": "Squared error against power of fine detail between mean and sample"}}
amounts, shown = np.linspace(0, 1, 6), {}


def fine_power(images):
    """Power of detail finer than `cutoff_A`, mean over its rings, divided by the truth's."""
    power = [torch.fft.rfft2(x.double()).abs().square().mean(0) for x in (images, clean)]
    first = int(box_size * pixel_size_A / cutoff_A)  # ring
    ours, true = (radial_mean(p, box_size, dims=2)[first:] for p in power)
    return (ours / true).mean()


for name, mean in {"exact posterior": exact.mean, "SR3": denoisers["SR3, one step"](noisy)}.items():
    between = [mean + float(a) * (drawn[name][0] - mean) for a in amounts]
    power = torch.tensor([fine_power(images) for images in between])
    shown[name] = power, [float(mse(images, clean).mean()) for images in between]
labels = {"x": "power of fine detail ÷ the truth's", "y": "mean squared error"}
figure = plot_lines(shown, title="From the mean (left) to a sample (right)", **labels)

# %% [markdown]
# The mean's missing power is honest: it says "I do not know". The sample has about the right amount of fine
# detail, partly in the wrong place, and pays with about twice the error. Show a sample together with others,
# never alone.
#
# ## 8. A checklist
#
# | before you … | ask | and do |
# |---|---|---|
# | look at denoised particles | does noise alone come out flat? | section 1 |
# | pick or classify with them | was my molecule among those it was trained on? | section 3 |
# | estimate poses from them | are they better than from raw images? | measure (`06`); **reconstruct from the raw images** |
# | reconstruct from them | did one network denoise both halves? | section 2; report the FSC of raw halves |
# | believe a new detail | does it survive random phases, another network, other training data? | section 5 |
# | report an error bar | is the coverage right? | section 6 |
# | call something absent or present | would the denoiser complete it? | section 4 |
#
# You can run most of this on a denoiser of your own, be it SR3 weights or any function `(n, y, x) → (n, y, x)`:
#
# ```bash
# cryonb audit runs/quick/models/white-sr3.safetensors --data runs/quick/data/white --out audit.md
# cryonb audit my_module:denoise --data runs/quick/data/white
# ```
#
# ## 9. Exercises
#
# ```{exercise}
# :label: ex-trust-shrink
# *Easy, 10 minutes.*
# **An honest liar.** Multiply the template posterior's output by 0.2. Which tests of this notebook does it now
# do better in than before, and is it more honest?
# ```
#
# ````{solution-start} ex-trust-shrink
# :class: dropdown
# ````
# The variation fell to a twenty-fifth ($0.2^2$), the resemblance did not fall at all: correlations do not care
# about scale. The image lies as before, only more quietly. Always look at both numbers.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
shy = lambda images: 0.2 * denoisers["template posterior"](images)  # noqa: E731
found = audit.noise_only(shy, molecule, sigma, n, symmetry=symmetry, seed=seed)
print(f"variation {found.variation:.3f}, resemblance {found.resemblance:.2f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-trust-snr
# *Medium, 15 minutes.*
# **Less to see, more to invent?** Repeat the missing quarter of section 4 at SNR 1 and 0.03. How does the share
# that the template posterior draws change?
# ```
#
# ````{solution-start} ex-trust-snr
# :class: dropdown
# ````
# Most of it is drawn at *every* SNR: a set of training images without the case cannot show it, however good the
# image. At low SNR the share can even be smaller, but not from honesty: in doubt about the pose, the mean blurs
# everything it draws. More signal helps a denoiser only where its knowledge leaves room for what is there.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
remembered = methods.template_posterior(data, n)[1]
for ratio in (1.0, 0.1, 0.03):
    recall = partial(methods.posterior_mean, remembered, sigma=ratio**-0.5)
    value = share_drawn(recall, ratio**-0.5, 32)[1]
    print(f"SNR {ratio:g}: {value:.2f} of the missing density is drawn")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-trust-nothing
# *Easy, 10 minutes.*
# **Two that invent nothing.** Audit a denoiser that returns its input, and one that blurs it until hardly
# anything is left. Both pass the first test. Why would you use neither?
# ```
#
# ````{solution-start} ex-trust-nothing
# :class: dropdown
# ````
# A denoiser that invents nothing need not denoise anything. A verdict has two sides, how much better the images
# become and how much of that is invented, and either one alone is easy to make perfect. (Even pure noise
# resembles its best projection a little: among thousands of projections one always fits best. That is why each
# number has a control.)

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
harmless = {"returns its input": lambda x: x, "a wide blur": lambda x: methods.blur(x, 8.0)}
for name, denoise in (harmless | {"SR3, one step": denoisers["SR3, one step"]}).items():
    found = audit.noise_only(denoise, molecule, sigma, n, symmetry=symmetry, seed=seed)
    away = float(mse(denoise(noisy), clean).mean())
    print(
        f"{name}: resemblance {found.resemblance:.2f} (control {found.control:.2f}), MSE {away:.2f}"
    )

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** The half maps of denoised particles agree to 4 Å, those of the raw ones to 7 Å. The resolution is
#
# ```{dropdown} (a) 4 Å
# **No.** Half sets that went through one network share its errors, and the FSC counts them as signal.
# ```
# ```{dropdown} (b) 7 Å, as far as these data show
# **Right.** Half sets that went through one network share its errors, and the FSC counts them as signal.
# ```
# ```{dropdown} (c) between the two
# **No.** Nothing in the data speaks for more than the raw half maps show.
# ```
#
# **2.** Which experiment can show that a denoiser would hide a missing subunit?
#
# ```{dropdown} (a) PSNR on test particles
# **No.** All of them have the subunit: the case does not occur.
# ```
# ```{dropdown} (b) half-map FSC
# **No.** Both halves may be completed in the same way, and agree.
# ```
# ```{dropdown} (c) denoising particles whose subunit was taken away, with the whole molecule as a control
# **Right.** It is the one in which the case occurs.
# ```
#
# **3.** Of a hundred truths, eighty lie within the 95 % interval of the samples. The sampler is
#
# ```{dropdown} (a) too sure of itself
# **Right.** Its samples spread less than its errors are large.
# ```
# ```{dropdown} (b) not sure enough
# **No.** Then more than 95 of them would lie within.
# ```
# ```{dropdown} (c) calibrated
# **No.** Then about 95 of them would.
# ```
#
# ## Recap
#
# - A denoiser answers from the image and from what it knows. Only a control tells you which.
# - Outputs that look like particles prove nothing: pure noise gives them, too.
# - Half maps that share a network agree better than either agrees with the truth.
# - Use denoised particles to look and to pick; reconstruct from the raw ones.
#
# **Next**: `08_experiments` asks when a difference between two methods is more than luck.
#
# **References.** Henderson 2013, PNAS 110, 18037 (Einstein from noise) · Chen et al. 2013, Ultramicroscopy
# 135, 24 (random phases) · Rosenthal and Henderson 2003, J. Mol. Biol. 333, 721 (FSC) · Blau and Michaeli
# 2018, CVPR, 6228 (perception and distortion) · Talagrand, Vautard, Strauss 1997, ECMWF (rank histogram).

# %%
results = {}
for name in denoisers:
    results |= {f"{name}: noise variation": alone[name].variation}
    results |= {f"{name}: noise resemblance": alone[name].resemblance}
    results |= {f"{name}: noise control": alone[name].control, f"{name}: gap": invented[name]}
    results |= {
        f"{name}: with known": bias[name].with_known,
        f"{name}: truth": bias[name].with_truth,
    }
    results |= {
        f"{name}: missing part drawn": share[name],
        f"{name}: returned": back[name].beyond[0],
    }
results |= {f"{name}: gap": invented[name] for name in split}
results |= {"truth with known": bias[name].control}
results |= {f"{name}: spread": found.between_to_truth for name, found in judged.items()}
results |= {f"{name}: coverage": float(found.coverage[0]) for name, found in judged.items()}
(run_dir / "results").mkdir(parents=True, exist_ok=True)
(run_dir / "results" / "07_trust.json").write_text(json.dumps(results, indent=1))
