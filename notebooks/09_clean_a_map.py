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
# # Clean a map, and ask what was cleaned away
#
# ```text
#                     ┌──►  filter   every shell of frequencies gets a factor    knows the noise
#  molecule           │
#  + micelle   = map ─┼──►  mask     every voxel gets a factor                   knows the place
#  + noise            │
#                     └──►  network  every voxel is guessed anew                 knows molecules
# ```
#
# You will take noise and detergent out of a three-dimensional map in these three ways, judge them by a truth that
# none of them has seen, and find out what each of them throws away that was real.

# %% [markdown]
# **You will learn to**
#
# - weight the shells of a map by their figures of merit, and say what no filter of this kind can do;
# - build a soft mask around an atomic model, and one from the map alone;
# - train a small 3D U-Net on maps of random molecules, to take noise and detergent out of maps of others;
# - measure what a cleaner does to the FSC between half maps, and say why nobody should ever report that number;
# - test whether something that was not among the training molecules survives.
#
# | You need | | Where |
# |---|---|---|
# | reconstruction, half maps, Fourier shell correlation | necessary | [06_reconstruct_fsc](06_reconstruct_fsc.ipynb) |
# | micelle, projections | necessary | [01_simulate](01_simulate.ipynb) |
# | U-Net, training loop | helpful | [02_train_sr3](02_train_sr3.ipynb) |
# | what a denoiser invents | helpful | [07_trust](07_trust.ipynb) |
#
# **Input**: none; with the parameters `real_map` and `model`, also a map of your own and its atomic model.
# **Output**: maps in `run_dir/maps/clean`, a network in `run_dir/models`, figures of merit in `run_dir/results`.
# **Hardware**: two CPU cores; `cryonb run` records the time and the peak memory in `run_dir/09_clean_a_map.json`.

# %% jupyter={"source_hidden": true} tags=["long"]
import json
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.testing import assert_close

from cryonb.base.parameters import true_or_false
from cryonb.commands.maps import clean_file
from cryonb.data import molecules
from cryonb.data.maps import read_placed_map, write_map
from cryonb.data.volumes import MOLECULES, from_atoms, load_volume, read_atoms
from cryonb.evaluation.metrics import correlation, fit_parts
from cryonb.evaluation.resolution import figure_of_merit, fsc, resolution_at
from cryonb.learning.mapclean import (
    MapCleaner,
    apply_cleaner,
    clean_map,
    cleaning_loss,
)
from cryonb.learning.weights import MAP_CLEANER, load_model, save_model
from cryonb.physics.fourier import filter_radially, low_pass, shell_sum
from cryonb.physics.geometry import random_rotations, symmetry_rotations
from cryonb.physics.projection import project
from cryonb.physics.reconstruct import reconstruct, reconstruct_halves
from cryonb.poses.posterior import posterior
from cryonb.poses.templates import volume_templates
from cryonb.showing.plotting import grey_limits, say, say_table, show_rows, train_live, use_style
from cryonb.showing.shells import plot_fsc
from cryonb.showing.surface import show_surfaces
from cryonb.simulation.families import draw_maps, training_volumes
from cryonb.simulation.masks import micelle, model_mask, soft_mask
from cryonb.simulation.simulate import clean_scale

use_style()

# %% tags=["parameters"]
source = "channel"  # the map's molecule: channel or prestin
other_source = "prestin"  # the other one, for the exercise
box_size = 64  # voxels along each edge of a map
pixel_size_A = 3.0  # Å per voxel
n_images = 400  # particles in the map
snr = 0.1  # variance of the clean images / variance of the white noise
train_molecules = 40  # random molecules that the network is trained on here
train_maps = 600  # pieces of their maps that it sees
use_kept = True  # judge the weights that come with cryonb, not only the network trained here
real_map = ""  # an MRC map to clean besides; empty: none
model = ""  # the atomic model in the frame of that map, PDB or mmCIF
seed = 0  # of every random number
run_dir = "runs/own"  # folder for everything that is written

# %% [markdown]
# ## What is in a map besides the molecule?
#
# **Idea.** To find out what a cleaner does, build a map whose parts are known. We project a membrane protein *with*
# its micelle, add white noise, and reconstruct with known poses, one map from each half of the particles:
#
# $$ V = \underbrace{V_\text{molecule}}_{\text{the truth}} + \underbrace{V_\text{micelle}}_{\text{in every particle, so it adds up}} + \underbrace{N}_{\text{different in each half}}. $$
#
# The micelle is the awkward one. It is not noise in the sense of statistics: both half maps show it, and no number of
# particles averages it away. Only knowing what a protein looks like can tell the two apart.

# %%
use_kept = true_or_false(use_kept)
volume, atoms = load_volume(source, box_size, pixel_size_A), MOLECULES[source]()
run, truth, belt, scale = Path(run_dir), volume.map, micelle(volume), clean_scale(volume)
generator = torch.Generator().manual_seed(seed)
views = random_rotations(n_images, generator)
noise = scale * snr**-0.5 * torch.randn(n_images, box_size, box_size, generator=generator)


halves = partial(reconstruct_halves, rotations=views, symmetry=volume.symmetry)


half_maps = halves(project(truth + belt, views) + noise)
raw = half_maps.mean(0)

# %% mystnb={"image": {"alt": "Central slices, with the membrane normal upwards, of the molecule, the micelle, the noise and the map, which is their sum."}}
middle = box_size // 2


def show_side(maps, title=""):
    """Draw the slices side by side on the grey scale of the truth."""
    images = torch.stack([v[:, middle].flip(0) for v in maps.values()])  # z upwards
    show_rows(
        {"y = 0": images},
        columns=list(maps),
        limits=grey_limits(truth + belt),
        title=title,
        width_in=1.7,
    )
    plt.show()


parts = {"molecule": truth, "micelle": belt, "noise": raw - truth - belt, "the map": raw}
show_side(parts, f"{source}, {n_images} particles: what the map is made of")

# %% [markdown]
# **What to notice.** In the map the belt hugs the protein and has much the same grey; where one ends and the other
# begins is hard to say. The noise fills the sphere in which a molecule could turn. It is strongest near the axis,
# where the symmetry lays the same noise over itself.
#
# ## 1. What can a filter do?
#
# **Question.** Noise grows with frequency, signal falls. Can you weaken the shells in which noise wins?
#
# **Idea.** Give each shell of frequencies $s$ one factor. A **low-pass** has factor 1 up to a cut and 0 beyond. A
# gentler choice follows from the noise. Let the map be $T + N$ in this shell, truth and independent noise, with the
# powers $S$ and 1. The squared error of $w\,(T+N)$ is $(1-w)^2 S + w^2$, least for
#
# $$ w = \frac{S}{S+1} = C^2, \qquad C(s) = \sqrt{\frac{S}{S+1}} = \sqrt{\frac{2\,F(s)}{1+F(s)}}, $$
#
# where $C$ is the correlation of the shell with the truth, its **figure of merit**, which the FSC between half maps
# $F$ predicts if their errors are independent (Rosenthal & Henderson 2003; derived in `06_reconstruct_fsc`). So the
# best factor in the sense of least squares, Wiener's, is $C^2$. The factor $C$, which is often used, is another
# choice: it leaves a shell with the power $C^2(S+1) = S$, that of the truth, and therefore with more noise.
#
# To be generous to the low-pass, let it choose its cut *with the truth at hand*, which nobody has. All are judged by
# the **correlation with the truth**, over all voxels of the box. What the half maps share is molecule *and* micelle,
# so $C^2$ is the best factor for that sum: the second number.

# %%
frequency, half_fsc = fsc(*half_maps, pixel_size_A)
merit = figure_of_merit(half_fsc).float()


def weigh(volume, power=2):
    """Multiply each shell by its figure of merit, squared or not."""
    shell = lambda k: (k * box_size).round().long().clamp(max=middle)  # noqa: E731
    return filter_radially(volume, lambda k: merit[shell(k)] ** power * (k <= 0.5))


def likeness(volume, goal):
    """Correlation coefficient of two maps over the whole box."""
    return float(correlation(volume, goal, dims=3))


cuts = [pixel_size_A * c for c in (2.2, 2.6, 3, 3.5, 4, 5, 6, 8)]
best_cut = max(cuts, key=lambda cut: likeness(low_pass(raw, cut, pixel_size_A), truth))
blur = partial(low_pass, resolution_A=best_cut, pixel_size_A=pixel_size_A)
filtered = {"raw": raw, f"low-pass at {best_cut:.1f} Å": blur(raw)}
filtered |= {"figure of merit, C": weigh(raw, 1), "least squares, C²": weigh(raw)}
like_sum = {name: likeness(v, truth + belt) for name, v in filtered.items()}
rows = [(name, likeness(v, truth), like_sum[name]) for name, v in filtered.items()]
say_table(["correlation with", "the molecule", "molecule and micelle"], rows)

# %% [markdown]
# **What no filter of this kind can do.** The FSC compares maps shell by shell, and a factor on a whole shell drops
# out of it. So a filter leaves every FSC as it was, except where its factor is zero. Nor can it tell protein from
# detergent, because they share the same shells. The check:

# %%
trusted = merit[:-1] > 0.05  # the last shell, at Nyquist, is cut in two
before, after = (fsc(v, truth)[1][:-1][trusted] for v in (raw, weigh(raw)))
assert_close(after, before, atol=0.03, rtol=0)

# %% [markdown]
# ## 2. What can a mask do?
#
# **Question.** Noise is everywhere, the molecule is not. Can you cut out the place where the molecule is?
#
# **Idea.** Give each *voxel* a factor. Around an **atomic model**, take the distance $d$ from a voxel to the nearest
# atom: the factor is 1 up to a distance $r$, then falls to 0 along half a cosine of width $w$,
#
# $$ m(d) = \tfrac12\Big(1 + \cos\big(\pi\,\min(1, \max(0, (d-r)/w))\big)\Big). $$
#
# The edge is soft because a hard one would add detail of its own to every shell. Without a model, the **map itself**
# must say where it is dense: blur it, split the voxels into two classes at the density that separates them best (Otsu
# 1979), keep the largest connected piece, grow it a little, and soften the edge.
#
# One trap: a model has its own frame. Its coordinates count from the origin of the *file*, and the map's header says
# where the map's first voxel lies in that frame: in `ORIGIN`, in Å, or, where that is zero, in `NSTART`, in voxels.
# If you forget this, you mask the solvent. (`read_placed_map` returns the place, as z, y, x.)

# %%
xyz_A = atoms.xyz_A + middle * pixel_size_A  # our atoms count from the box's middle


def mask_by_hand(points_A, extend_A=4.0, soft_edge_A=6.0):
    """Mask at points (n, 3) in Å, x, y, z, by the formula above."""
    d = torch.cdist(points_A, torch.from_numpy(xyz_A)).min(1).values
    return 0.5 + 0.5 * torch.cos(torch.pi * ((d - extend_A) / soft_edge_A).clamp(0, 1))


around_model = model_mask(xyz_A, tuple(raw.shape), pixel_size_A)
some = torch.randint(0, box_size, (300, 3), generator=generator)  # z, y, x
by_hand = mask_by_hand(some.flip(1).double() * pixel_size_A).float()
assert_close(by_hand, around_model[tuple(some.T)], atol=1e-4, rtol=0)


def mask_of(volume):
    """Mask from the map alone."""
    return soft_mask(volume, pixel_size_A, largest=True)


# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "The raw map with the outline of the mask around the model, which follows the protein, and of the mask from the map, which also takes in the micelle."}}
fig, ax = plt.subplots(figsize=(5.2, 4.4))
edge = middle * pixel_size_A
extent = (-edge, edge, -edge, edge)
low, high = grey_limits(raw[:, middle])
ax.imshow(raw[:, middle], vmin=low, vmax=high, extent=extent, origin="lower")
for mask, color, name in (
    (around_model, "C1", "around the model"),
    (mask_of(raw), "C5", "from the map"),
):
    ax.contour(mask[:, middle], [0.5], colors=color, extent=extent, linewidths=1.5)
    ax.plot([], [], color=color, label=name)
ax.set(title="Two masks, where they are 0.5", xlabel="x (Å)", ylabel="z (Å)")
ax.legend(loc="lower left", labelcolor="w")
plt.show()

# %% [markdown]
# **What to notice.** The mask from the map goes around the detergent as well, which is dense and attached to the
# protein. The mask around the model leaves it out, but to have that mask you must already know the answer.
#
# ## 3. Can a network learn what a molecule looks like?
#
# **Question.** Is there a cleaner that needs no model of *this* molecule, only experience with others?
#
# **Idea.** Make up proteins, hundreds of them, with helices, strands, domains and symmetries that mean nothing
# (`cryonb.simulation.families`). Put three of five into a micelle, and add noise like that of a reconstruction, whose
# power grows with frequency because the slices thin out. Sharpen, blur and turn everything, and show the network a
# piece $x$ of the result. Ask it for the molecule $y$ in that piece. With squared error,
#
# $$ L(\theta) = E\,\big\lVert f_\theta(x) - y \big\rVert^2, \qquad f_\theta(x) = x - u_\theta(x), $$
#
# it tends to the mean of all molecules that agree with $x$: where it is in doubt, it answers with a blur. $u_\theta$,
# with weights $\theta$, is a small U-Net. It folds blocks of $2^3$ voxels into channels, halves the map once more,
# and joins the two scales. It starts out returning its input, so all it has to learn is what to subtract.
#
# Three properties are built in, not learnt. The map is divided by its standard deviation first, so that a factor on
# the map is a factor on the result. No layer looks at the whole box or at positions, so the output moves with the
# input, and a map too large for memory can be cut into tiles. And each voxel depends on its surroundings only up to a
# known distance, which is the margin that the tiles need. The cell below the loss curve checks the first two.

# %% mystnb={"image": {"alt": "Central slices of six pieces of training maps, and of the molecules that the network is asked to find in them."}}
patch = min(48, box_size)
volumes = training_volumes(train_molecules, box_size, pixel_size_A, seed)
draw = partial(draw_maps, volumes, pixel_size_A=pixel_size_A, patch=patch)
target, seen = draw(6, torch.Generator().manual_seed(seed))
rows = {"shown": seen[:, patch // 2], "asked for": target[:, patch // 2]}
figure = show_rows(rows, title="Pieces of maps of molecules that do not exist")

# %% mystnb={"image": {"alt": "The loss of the network while it trains, falling."}}
torch.manual_seed(seed)
network = MapCleaner(pixel_size_A=pixel_size_A)
network = train_live(network, draw, cleaning_loss, train_maps, title="map cleaner", batch_size=4)
save_model(run / "models/map-cleaner.safetensors", network, {"made_by": "09_clean_a_map"})
cleaners = {"network, trained here": partial(clean_map, network, pixel_size_A=pixel_size_A)}
if use_kept:
    kept, manifest = load_model(MAP_CLEANER, MapCleaner)
    cleaners["network, pretrained"] = partial(clean_map, kept, pixel_size_A=pixel_size_A)
    options = manifest["options"]
    say(
        f"Found pretrained weights: {options['maps']:,} pieces of {options['molecules']} molecules."
    )
best = list(cleaners)[-1]  # the one that is judged from here on

# %%
x = torch.randn(48, 48, 48, generator=generator)
assert_close(apply_cleaner(network, x, tile=16), apply_cleaner(network, x), atol=1e-4, rtol=1e-3)
assert_close(cleaners[best](1000 * raw), 1000 * cleaners[best](raw), atol=1.0, rtol=1e-2)

# %% [markdown]
# ## 4. Which one cleans best?
#
# **Question.** How close does each come to the truth, and what is left of the belt?
#
# No network was trained on this molecule. The table has the correlation with the truth over the whole box; the mean
# FSC with the truth, and where that FSC falls to 0.5; *micelle left*, the share of the micelle relative to the share
# of the molecule, in a least-squares fit of the map by both (blurred to 6 voxels, as in `06_reconstruct_fsc`); and
# *power outside*, the share of the map's power that lies outside the mask around the model.

# %%
coarse = [low_pass(v, 6 * pixel_size_A, pixel_size_A) for v in (truth, belt)]


def judge(v):
    """Likeness, mean FSC, resolution in Å, share of the micelle, share of power outside."""
    curve = fsc(v, truth)[1]
    ours, theirs, _ = fit_parts(low_pass(v, 6 * pixel_size_A, pixel_size_A), *coarse)
    outside = float((v**2 * (1 - around_model)).sum() / (v**2).sum())
    mean = float(curve[1:].mean())
    return likeness(v, truth), mean, resolution_at(frequency, curve, 0.5), theirs / ours, outside


ways = {"raw": lambda v: v, "low-pass, best cut": blur, "least squares": weigh}
ways |= {"mask from the map": lambda v: v * mask_of(v)}
ways |= {"mask around the model": lambda v: v * around_model} | cleaners
ways |= {"both: network, least squares": lambda v: weigh(cleaners[best](v))}
maps = {name: way(raw) for name, way in ways.items()}
scores = {name: judge(v) for name, v in maps.items()}
columns = ["", "correlation", "mean FSC", "FSC 0.5 at (Å)", "micelle left", "power outside"]
say_table(columns, [(name, *values) for name, values in scores.items()])
blind = {name: s[0] for name, s in scores.items() if name not in ("raw", "mask around the model")}
winner = max(blind, key=blind.get)
left = {name: scores[name][3] for name in ("mask from the map", best)}
say(
    f"Nearest to the truth of all that had no model: **{winner}**, correlation "
    f"{blind[winner]:.3f}. Share of the micelle left by the mask from the map "
    f"{left['mask from the map']:.2f}, by the network {left[best]:.2f}."
)

# %% mystnb={"image": {"alt": "Central slices of the raw map, of the map cleaned in each way, and of the truth."}}
shown = "raw", "least squares", "mask from the map", "mask around the model", best
show_side({name: maps[name] for name in shown} | {"truth": truth})

# %% mystnb={"image": {"alt": "FSC with the truth of the raw map and of the map cleaned in each way."}}
shown = "raw", "mask from the map", "mask around the model", *cleaners
curves = {name: (frequency, fsc(maps[name], truth)[1]) for name in shown}
figure = plot_fsc(curves, thresholds=(0.5,), title="Against the truth")

# %% mystnb={"image": {"alt": "Isosurfaces of the raw map, of the map masked by itself, of the cleaned map and of the truth."}}
shown = {name: maps[name] for name in ("raw", "mask from the map", best)} | {"truth": truth}
solid = {name: low_pass(v, 4 * pixel_size_A, pixel_size_A) for name, v in shown.items()}
figure = show_surfaces(solid, pixel_size_A, float((around_model > 0.5).sum()) / 2)
plt.show()
(run / "maps/clean").mkdir(parents=True, exist_ok=True)
write_map(run / "maps/clean/raw.mrc", raw, pixel_size_A)

# %% [markdown]
# **What to notice.** The two filters and the mask from the map leave the micelle where it was: to them it is signal.
# The network was shown many belts and takes most of this one away without a model. You see it at the left end of the
# FSC curves, at the coarse detail that a belt has. At the right end the masks are ahead of it: noise rules there, and
# the pretrained weights, trained for half an hour on one core, are timid with noise and leave part of it outside the
# molecule. So **combine**: network, then the filter. The network that was trained here has seen few pieces
# (`train_maps` of them), so do not judge the method by it. And the mask around the model wins most columns because it
# was made from the answer.
#
# ### What does an imperfect target cost?
#
# **Question.** A denoiser of images is trained on projections of a clean map. The paper cleans a measured map for that;
# our notebooks take the map of an atomic model, which is right by construction. How much do the faults of a cleaned map
# cost?
#
# **Idea.** Do not train at all: take the learner that nothing but its targets can hold back, the posterior mean over
# *all* projections of the target map (`04_compare_methods`). It sees noisy particles of the true molecule and answers
# with what its map says. Each map gets the scale that fits the truth best, which flatters all of them alike.

# %%
draws = torch.Generator().manual_seed(seed + 1)
wanted, sigma = project(truth, random_rotations(48, draws)), float(scale * snr**-0.5)
particles = wanted + sigma * torch.randn(wanted.shape, generator=draws)
cost = {}
for name in ("truth", "raw", "least squares", "mask from the map", best):
    target = {"truth": truth, **maps}[name]
    target = target * (target * truth).sum() / target.square().sum()
    answer = posterior(volume_templates(target, 6.0, volume.symmetry), particles, sigma).mean
    cost[name] = float((answer - wanted).square().mean() / wanted.var())
rows = [(k, v, 10 * np.log10(v / cost["truth"])) for k, v in cost.items()]
say_table(["targets from", "error ÷ signal variance", "lost (dB)"], rows)

# %% [markdown]
# **What to notice.** The first row is the price of noise alone, the others add that of the target. A learner draws the
# faults of its targets into every image, whatever its training: the belt that a map kept, the pieces that a cleaner bit
# off, the noise that it left. So the first thing to ask of a denoised image is what its clean targets were made of.
#
# ## 5. What do half maps say after cleaning?
#
# **Question.** The FSC between half maps measures resolution. What does it measure once both have been cleaned?
#
# **Idea.** Half maps predict $C=\sqrt{2F/(1+F)}$ for their mean, *if what they share is signal*. But now one network,
# or one mask, goes over both. Clean the halves, compute the prediction, and compare it with the correlation with the truth. (For
# raw and for masked halves the prediction includes the micelle, which is in every particle, so there the truth is
# molecule + micelle. For the network it is the molecule alone, because it was never meant to keep the belt.)


# %% mystnb={"image": {"alt": "For raw and for cleaned half maps: the FSC between them, the correlation with the truth predicted from it, and the measured one, with the difference of the last two shaded."}}
def predicted_and_true(pair, goal):
    """FSC of two maps, the correlation with the goal predicted from it, and the measured one."""
    between = fsc(*pair)[1]
    return between, figure_of_merit(between), fsc(pair.mean(0), goal)[1]


own_mask = mask_of(raw)
pairs = {"raw": half_maps, "mask from the map": half_maps * own_mask}
pairs[best] = torch.stack([cleaners[best](half) for half in half_maps])
goals = {name: truth if name == best else truth + belt for name in pairs}
found = {name: predicted_and_true(pair, goals[name]) for name, pair in pairs.items()}
fig, axes = plt.subplots(1, 2, figsize=(11, 4))
for ax, name in zip(axes, ("raw", best), strict=True):
    labels = "between half maps", "predicted from them", "with the truth"
    curves = {k: (frequency, v) for k, v in zip(labels, found[name], strict=True)}
    plot_fsc(curves, thresholds=(0.5, 0.143), title=name, ax=ax)
    ax.fill_between(frequency, found[name][1], found[name][2], color="C3", alpha=0.25, lw=0)
plt.show()

# %%
gaps = {name: float((merit - granted)[1:].mean()) for name, (_, merit, granted) in found.items()}
shells = range(middle // 8, middle + 1, middle // 8)
columns = ["shell at (Å)", *(f"{n}: {k}" for n in ("raw", best) for k in ("predicted", "truth"))]
rows = []
for s in shells:
    values = [float(curve[s]) for n in ("raw", best) for curve in found[n][1:]]
    rows.append((1 / float(frequency[s]), *values))
say_table(columns, rows)
listed = ", ".join(f"{n} **{g:+.3f}**" for n, g in gaps.items())
say(f"Predicted minus true, mean over all shells: {listed}.")

# %% [markdown]
# **What to notice.** The raw half maps predict rightly: what they share is in every particle. After cleaning, the same
# formula predicts more than is true, most of all at low frequency, where the truth's curve hangs below the
# prediction. The network left the same remains of the micelle in both halves and bit the same pieces out of the
# molecule, and what it does twice counts as signal. Compare the curves *between half maps*, too: cleaning lifted
# them, so a resolution read there would look better by something that no particle has paid for. Phase randomisation
# does not repair that, because a network is not a mask that you could apply once more to random phases.
#
# Now the extreme: half maps with **no molecule at all**, made from the noise of our particles alone, in the same
# poses. Their FSC should be zero in every shell, before and after cleaning.

# %% mystnb={"image": {"alt": "First, FSC between half maps of pure noise, raw, both in one mask, and cleaned. Below, slices of one half map of noise and of both half maps cleaned."}}
empty = halves(noise)
nothing = {"raw": empty, "one mask for both": empty * mask_of(empty.mean(0))}
nothing[best] = torch.stack([cleaners[best](half) for half in empty])
curves = {name: (frequency, fsc(*pair)[1]) for name, pair in nothing.items()}
figure = plot_fsc(curves, thresholds=(0.143,), title="Half maps of pure noise")
ones = torch.ones(box_size, box_size, middle + 1)
chance = 2 * (shell_sum(ones, 3, box_size) / len(symmetry_rotations(volume.symmetry))).rsqrt()
figure.axes[0].fill_between(frequency, -chance, chance, color="0.9", lw=0)
figure.axes[0].set_ylim(-1, 1)
plt.show()
show_side(
    {"noise": empty[0], "cleaned": nothing[best][0], "the other half, cleaned": nothing[best][1]},
    "No molecule",
)
power = {
    name: float(pair[0].square().mean() / empty[0].square().mean())
    for name, pair in nothing.items()
}
shared = {name: float(curve[1:].abs().mean()) for name, (_, curve) in curves.items()}
say_table(
    ["pure noise", "power left", "mean size of the FSC"],
    [(n, power[n], shared[n]) for n in nothing],
)

# %% [markdown]
# **What to notice.** The grey band is where about 19 of 20 shells of independent noise fall. Raw noise scatters about
# zero. After the network the lowest shells are all on one side, above zero, and the mean size of the FSC has grown:
# it makes no protein out of noise, but what faint clouds it makes, it makes alike. One mask for both halves, the
# oldest of cleaners, enlarges the FSC too.
#
# ## 6. What vanishes?
#
# **Question.** The network has seen proteins. What happens to a ligand, to DNA, to a helix that lies in the
# detergent?
#
# **Idea.** Add a density $e$ to the map $V$, clean with and without it, and see how much of it arrives. With $f$ for
# the cleaner,
#
# $$ s = \frac{\langle f(V+e) - f(V),\; e\rangle}{\langle e, e \rangle}, $$
#
# which is 1 for a cleaner that keeps $e$ and 0 for one that removes it (both maps have the same noise, so it drops
# out). The two controls come first: a quarter of the molecule that is there (it should stay), and the micelle (it
# should go). For these the map without them is $V - e$.


# %%
low_A, high_A = volume.membrane_z_A
foot, up, side = np.array([41.0, 41.0, low_A]), np.array([0, 0, high_A - low_A]), np.eye(3)[0]
helix = molecules.ideal_backbone("H", foot, foot + up, side)  # 58 Å from the axis
rng = np.random.default_rng(0)
ball = rng.normal(size=(24, 3))  # 24 carbon atoms, up to 3.5 Å from their middle
ball *= np.linspace(1, 3.5, 24)[:, None] / np.linalg.norm(ball, axis=1, keepdims=True)
pair, radius_A = np.arange(18)[:, None, None] - 9, np.arange(2.0, 10)
turn = np.radians(36 * pair + np.array([[0], [150]]))  # ten pairs a turn, two strands
duplex = [radius_A * np.cos(turn), 3.4 * pair, radius_A * np.sin(turn)]  # 3.4 Å a pair, along y
duplex = np.stack(np.broadcast_arrays(*duplex), -1).reshape(-1, 3)
places = {
    "a helix in the micelle": molecules.with_o_and_cb(helix).reshape(-1, 3),
    "a ligand in the pore": ball + [0, 0, (low_A + high_A) / 2],
    "DNA beside it": duplex + [62, 0, -30],
}


def density(xyz_A):
    """Map (z, y, x) of carbon atoms at points (n, 3) in Å, x, y, z."""
    carbon = molecules.Atoms(xyz_A, np.full(len(xyz_A), "C"), np.full(len(xyz_A), 60.0), "extra")
    return from_atoms(carbon, box_size, pixel_size_A).map


# %%
window = torch.sigmoid(torch.arange(box_size) - middle + 0.0)  # a soft step in the middle
quarter = truth * window[:, None] * window  # x > 0 and y > 0
extra = {"a quarter of the molecule": quarter, "the micelle": belt}
there = set(extra)  # in the map already
extra |= {name: density(xyz_A) for name, xyz_A in places.items()}
asked, arrives = ["least squares", "mask from the map", "mask around the model", best], {}
for name, e in extra.items():
    with_e, without = (raw, raw - e) if name in there else (raw + e, raw)
    e = low_pass(e, max(8.0, 2.2 * pixel_size_A), pixel_size_A)  # finer detail does not count
    change = {way: ways[way](with_e) - ways[way](without) for way in asked}
    arrives[name] = {way: float((d * e).sum() / e.square().sum()) for way, d in change.items()}
say_table(["share that arrives", *asked], [(name, *row.values()) for name, row in arrives.items()])

# %% [markdown]
# **What to notice.** A filter weakens everything by its frequencies, dirt included. The mask from the map keeps what is attached to
# the molecule and drops what stands apart, whatever it is made of. The mask around the model drops whatever lies away
# from the model: only the ligand, close to the model on all sides, gets through. The network judges by looks and by
# company. Inside the protein it lets a ligand pass that it has never seen. A helix out in the micelle is protein, but
# it lies where the network expects detergent, and loses part of itself. DNA the network has never met, and takes most
# of it for dirt. **Before you call something absent from a cleaned map, look at the raw one.**
#
# ## 7. A real map
#
# Real maps differ from everything the network has seen: in noise, in solvent, in what was done to them before they
# were deposited. If you have a map and the model that was built into it, in the same frame, the next cell cleans the
# map and compares it with the model:
#
# ```bash
# cryonb run 09 -p real_map emd_3488.map.gz -p model 5ni1.cif
# ```
#
# Such a judge is biased. The model was built into this very map, and says nothing about what its builders left out.

# %% mystnb={"image": {"alt": "If a real map was given: its FSC with the model, raw, masked and cleaned."}}
real = {}
if real_map and model:
    given, pixel_A, first_A = read_placed_map(real_map)
    built = read_atoms(model, centre=False)
    near = model_mask(built.xyz_A, tuple(given.shape), pixel_A, first_A)
    goal = from_atoms(built, len(given), pixel_A, first_A).map
    real = {"raw": given, "mask from the map": given * soft_mask(given, pixel_A, largest=True)}
    real["mask around the model"] = given * near
    real[best] = cleaners[best](given, pixel_size_A=pixel_A)
    curves = {name: fsc(v, goal, pixel_A) for name, v in real.items()}
    figure = plot_fsc(curves, thresholds=(0.5,), title=f"{Path(real_map).name} against its model")
    plt.show()
else:
    say("No map was given: `real_map` and `model` are empty.")

# %%
if real:
    far = {n: float((m**2 * (1 - near)).sum() / (m**2).sum()) for n, m in real.items()}
    fit = {n: (float(c[1:].mean()), resolution_at(k, c, 0.5)) for n, (k, c) in curves.items()}
    better = "nearer to" if fit[best][0] > fit["raw"][0] else "farther from"
    say(
        f"The network's map is **{better}** the model than the raw one. A map that was masked "
        "before it was deposited has little left to clean, and one that looks unlike the training "
        "maps can only lose."
    )
    say_table(
        ["real map", "mean FSC", "FSC 0.5 at (Å)", "power outside the model's mask"],
        [(n, *fit[n], far[n]) for n in real],
    )
    strip = torch.stack([v[:, len(given) // 2].flip(0) for v in real.values()])
    show_rows({"y = middle": strip}, columns=list(real), limits=grey_limits(given), width_in=1.9)
    plt.show()

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Another molecule
# :label: ex-clean-other
# ```
# *Easy, 10 minutes.*
# Repeat the comparison of section 4 for `other_source`. Before you run it: for which methods do you expect different
# numbers, and why?
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-clean-other
# :class: dropdown
# ```
# Filters and masks know nothing of a molecule but its outline and its noise. The network has met neither of the two
# molecules; whether it keeps its rank on both tells you how far its experience carries. Two molecules are few: test
# it on one like yours before you trust it with yours.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
other = load_volume(other_source, box_size, pixel_size_A)
with_belt = project(other.map + micelle(other), views)
hum = noise * clean_scale(other) / scale
theirs = reconstruct(with_belt + hum, views, symmetry=other.symmetry)
for name in ("raw", "mask from the map", *cleaners):
    print(f"{name:24} correlation with the truth {likeness(ways[name](theirs), other.map):.3f}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise-start} From the command line
# :label: ex-clean-command
# ```
# *Easy, 10 minutes.*
# Clean the file `maps/clean/raw.mrc` with `cryonb clean`, read the result, and compare it with the map in the
# notebook. What else does the command tell you? What if you name an output file that exists?
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-clean-command
# :class: dropdown
# ```
# In a terminal: `cryonb clean raw.mrc --out cleaned.mrc --weights ../../models/map-cleaner.safetensors`, or as in the cell
# below.
#
# It is the same map. The command reminds you where not to use it, and it replaces no file unless you add
# `--overwrite`. The header, and with it the place of the map, is that of the input.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
folder = run / "maps/clean"
weights = MAP_CLEANER if use_kept else run / "models/map-cleaner.safetensors"
written = clean_file(folder / "raw.mrc", folder / "cleaned.mrc", weights, overwrite=True)
assert_close(read_placed_map(written)[0], maps[best], atol=1e-3 * float(raw.max()), rtol=1e-2)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise-start} Which first?
# :label: ex-clean-order
# ```
# *Medium, 10 minutes.*
# Section 4 weighted the shells *after* the network. Weight them before, and compare. Why is it not the same?
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-clean-order
# :class: dropdown
# ```
# Two filters may change places, since both are linear. A network is not linear: it decides by looks, and a weighted
# map looks different. Two of three training maps were low-passed, so it has met both kinds. Take the order that works
# better here, but do not take it for a law.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for title, both in {
    "network, then filter": weigh(maps[best]),
    "filter, then network": cleaners[best](weigh(raw)),
}.items():
    print(f"{title:22} correlation with the truth {likeness(both, truth):.3f}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** You multiply the shells of a map by their figure of merit. Its FSC with the truth
#
# ```{dropdown} (a) rises
# **No.** A factor on a whole shell drops out of the correlation of that shell.
# ```
# ```{dropdown} (b) stays the same
# **Right.** A factor on a whole shell drops out of the correlation of that shell. The picture becomes better, the
# curve does not.
# ```
# ```{dropdown} (c) falls
# **No.** A factor on a whole shell drops out of the correlation of that shell.
# ```
#
# **2.** The FSC between cleaned half maps crosses 0.143 at 5 Å, between the raw ones at 6 Å. You report
#
# ```{dropdown} (a) 5 Å
# **No.** One cleaner went over both halves, and what it does twice counts as signal.
# ```
# ```{dropdown} (b) 6 Å
# **Right.** One cleaner went over both halves, and what it does twice counts as signal.
# ```
# ```{dropdown} (c) both
# **No.** A reader will take the better one. Show the cleaned map, report the raw half maps.
# ```
#
# **3.** A ligand is in the raw map and not in the cleaned one. It
#
# ```{dropdown} (a) was noise
# **No.** A network that has never seen ligands says the same of a real one.
# ```
# ```{dropdown} (b) was removed because the network knows that it is not there
# **No.** It knows what training maps looked like, nothing of your sample.
# ```
# ```{dropdown} (c) may be there
# **Right.** The network takes for dirt whatever looks, or lies, like nothing it was trained on. Ask the raw map,
# and its half maps.
# ```
#
# ## Recap
#
# - A filter weights shells. The square of the figure of merit has the least squared error, and no FSC notices.
# - A mask weights places. Made from the map, it keeps what is attached to the molecule; made around a model, it keeps
#   the model.
# - A network weighs experience. It can tell detergent from protein without a model, and takes for dirt what it has
#   not met.
# - Cleaned half maps share a cleaner. Measure resolution on raw halves, and clean only what you look at.
# - Before you call something absent in a cleaned map, look for it in the raw one.
#
# **Next**: this is the last notebook; [00_start_here](00_start_here.ipynb) has the map of the book. Or train a
# cleaner for longer: `cryonb train map-cleaner --projections 1000 --images 100000 --out mine`, and pass it to `cryonb
# clean` with `--weights`.
#
# ## References
#
# - Chen, S. et al. (2013). High-resolution noise substitution to measure overfitting and validate resolution in 3D structure determination by single particle electron cryomicroscopy. *Ultramicroscopy* 135, 24–35.
# - Otsu, N. (1979). A threshold selection method from gray-level histograms. *IEEE Trans. Syst. Man Cybern.* 9, 62–66.
# - Ronneberger, O., Fischer, P. & Brox, T. (2015). U-Net: convolutional networks for biomedical image segmentation. *MICCAI*, 234–241.
# - Rosenthal, P. B. & Henderson, R. (2003). Optimal determination of particle orientation, absolute hand, and contrast loss in single-particle electron cryomicroscopy. *J. Mol. Biol.* 333, 721–745.
# - Sanchez-Garcia, R. et al. (2021). DeepEMhancer: a deep learning solution for cryo-EM volume post-processing. *Commun. Biol.* 4, 874.
# - Zhang, J., Zhao, T., Hu, S. & Zhao, X. (2024). Robust single-particle cryo-EM image denoising and restoration. *ICASSP*, arXiv:2401.01097.

# %%
keys = "correlation", "mean_fsc", "resolution_A", "micelle_left", "power_outside"
results = {f"{n}: {k}": v for n, s in scores.items() for k, v in zip(keys, s, strict=True)}
results |= {"merit C: like sum": like_sum["figure of merit, C"]}
results |= {"merit C²: like sum": like_sum["least squares, C²"]}
results |= {f"targets from {name}: error": value for name, value in cost.items()}
results |= {f"{name}: half-map gap": gap for name, gap in gaps.items()}
results |= {f"{name}: noise power left": value for name, value in power.items()}
results |= {f"{name}: noise FSC": value for name, value in shared.items()}
results |= {
    f"{name} ({way}): arrives": v for name, row in arrives.items() for way, v in row.items()
}
results |= {f"real {name}: mean_fsc": fit[name][0] for name in real}
results |= {f"real {name}: power_outside": far[name] for name in real} | {"judged": best}
(run / "results").mkdir(parents=True, exist_ok=True)
(run / "results" / "09_clean_a_map.json").write_text(json.dumps(results, indent=1))
