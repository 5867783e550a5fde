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
# # Compare every method with the limit that none can pass
#
# ```text
#   worse                                                                              better
#   noisy ── blur ── BM3D ── linear, CWF ── networks ── … the gap … ── memory ── │ Bayes limit
#                                                                                │ no denoiser beyond
# ```
#
# You will compute the best denoised image that *any* method could make of each particle, put every
# method of the paper and its rivals into one table beside it, and find out what such a table measures.
#
# ## You will learn
#
# - to **derive** the Bayes limit from nothing but the noise model, and **check** it by its own forecast;
# - to **set** each method at its best, and to **read** a table of denoisers for what it leaves out;
# - to **enter** a denoiser of your own in one line;
# - to **tell** memory of a molecule from skill at denoising;
# - to **answer** with measurements whether two stages are better than one.
#
# ## Before you start
#
# | concept | need | where |
# |---|---|---|
# | posterior mean, sample, steps of a sampler | necessary | `02_train_sr3` |
# | two stages, and their fair rival | necessary | `03_refine_unet` |
# | Bayes' theorem, conditional expectation | necessary | any statistics course |
# | Fourier series | helpful | any course on signals |
#
# **Inputs**: the data sets of `01_simulate` (made here if they are missing). **Outputs**: tables
# `run_dir/tables/compare-*.csv` and `.md`, networks in `run_dir/models`, a figure in
# `run_dir/figures`. **Hardware**: two CPU cores; `train_seconds` sets the length of the run, the time
# and memory that the last run took are in the table `make tutorial` prints. BM3D, CWF and Topaz are
# other people's programs: `pip install 'cryonb[peers]'` brings them, and without them their rows say so.

# %% tags=["long"]
import json
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.testing import assert_close
from tqdm.auto import tqdm

from cryonb.data.volumes import load_volume
from cryonb.denoisers import methods
from cryonb.denoisers.baselines import linear_filter
from cryonb.denoisers.compare import Comparison, errors_by_samples, errors_by_steps
from cryonb.evaluation.metrics import mse, psnr
from cryonb.physics.projection import project
from cryonb.poses.posterior import bayes_limit, posterior
from cryonb.poses.templates import every_pose, pose_of, view_directions, volume_templates
from cryonb.showing.plotting import plot_lines, plot_pairs, say, say_table, show_denoised, use_style
from cryonb.showing.sphere import posterior_viewer
from cryonb.showing.widgets import flip_through
from cryonb.simulation.dataset import read_dataset, write_dataset
from cryonb.simulation.simulate import StructuralNoise

use_style()

# %% tags=["parameters"]
source = "channel"  # channel, prestin, or a PDB, mmCIF or MRC file
other_source = "prestin"  # a molecule that no method was trained on
box_size = 64  # pixels
pixel_size_A = 3.0  # Å per pixel
snr = 0.1  # variance of the clean images / variance of the white noise
structural = True  # compare in the setting "structural" too, beside "white"
n_train = 2000  # particles for training
n_validation = 1000  # particles kept apart for settings and second stages
n_test = 512  # particles that no method ever sees in training
limit_images = 128  # test particles whose Bayes limit is computed
slow_images = 64  # particles given to what takes long for each image; 4 or more
train_seconds = 60.0  # wall time in seconds that each learned row may train
held_out = 300  # validation particles that the second stage learns from
batch_size = 16  # images per training step
samples = 8  # samples averaged in the row "mean of samples"
steps = 8  # network evaluations of the sampler
sweep = [0.3, 0.1, 0.05, 0.02]  # signal-to-noise ratios of the plot of PSNR against SNR
seeds = 1  # runs of each learned row, with different seeds
use_kept = True  # add rows for weights that come with cryonb, where they fit these parameters
seed = 0  # of the data and the training
run_dir = "runs/own"  # everything is written under it

# %% [markdown]
# ## 1. The best image there can be
#
# **Question.** How good can a denoiser be at all?
#
# **Idea.** Suppose we know the molecule, and know that each particle is one of its projections plus
# white noise. What we do not know is *which* projection. Bayes' theorem says how much to believe in
# each candidate $y_j$ when we see $x$:
#
# $$ w_j = \frac{p(x \mid y_j)}{\sum_i p(x \mid y_i)}, \qquad
#    p(x \mid y_j) \propto \exp\Bigl(-\frac{\lVert x - y_j\rVert^2}{2\sigma^2}\Bigr) . $$
#
# If we are judged by squared error, the best answer is the mean of the candidates under these weights,
# $\hat y = \sum_j w_j y_j = E[y \mid x]$, and the error we must expect is their variance about it,
# $\sum_j w_j \lVert y_j\rVert^2 - \lVert\hat y\rVert^2$. No function of $x$ can do better *in the mean*:
# that is what a conditional expectation is. Here it is in six lines, for a few thousand candidates.

# %%
run_dir = Path(run_dir)
volume = load_volume(source, box_size, pixel_size_A)
counts = {"train": n_train, "validation": n_validation, "test": n_test}
made, data = {"source": source, "snr": snr, "seed": seed}, {}
for name in ["white", "structural"] if structural else ["white"]:
    folder = write_dataset(run_dir / "data" / name, volume, counts, noise=name, **made)
    data[name] = read_dataset(folder)
white, molecule, sigma = data["white"].test, data["white"].volume, data["white"].sigma

coarse = volume_templates(molecule, 30.0, volume.symmetry)
y = project(molecule, every_pose(coarse)).flatten(1)  # (candidates, pixels)
x = white.noisy.images[:4].flatten(1)
log_w = (x @ y.T - y.square().sum(1) / 2) / sigma**2  # |x|^2 is the same for all of them
w = log_w.softmax(1)
mine = (w @ y).view_as(white.noisy.images[:4])
mine_mse = w @ y.square().mean(1) - mine.square().mean((1, 2))

cryonbs = posterior(coarse, white.noisy.images[:4], sigma)
assert mse(mine, cryonbs.mean).max() < 0.01  # turned in polar Fourier space: 1 % in amplitude
assert_close(mine_mse, cryonbs.mmse, rtol=0.3, atol=0.01)

# %% [markdown]
# Thirty degrees between the candidates is far too coarse, of course. With a million of them, six lines
# would need a million images in memory. `cryonb.poses.posterior` computes the same sums by one observation: if an image is
# written in polar Fourier space, $X(\rho,\theta) = \sum_k a_k(\rho)\,e^{ik\theta}$, then turning it in
# its plane by $\psi$ multiplies $a_k$ by $e^{ik\psi}$. So *all* turns of a candidate are compared with
# a particle by one short Fourier transform, and only the direction of view is left to be listed.
#
# How fine must the list be? The forecast error is *not* the thing to watch: on a coarse grid the nearest
# candidate gets all the weight, and the posterior is sure of itself and wrong. So the grid is refined,
# near the directions still in question, until the denoised *images* stay where they are.

# %%
noisy, clean, table = white.noisy.images, white.clean.images, []
start, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
few, options = noisy[:limit_images], {"draws": 1, "generator": generator}
for spacing, limit in bayes_limit(molecule, few, sigma, volume.symmetry, **options):
    error = mse(limit.mean, clean[: len(few)])
    standard_error = float(error.std()) / len(error) ** 0.5
    table.append((spacing, float(limit.mmse.mean()), float(error.mean()), standard_error))
limit_seconds, (forecast, measured, standard_error) = time.perf_counter() - start, table[-1][1:]
say_table(["grid (degrees)", "forecast MSE", "measured MSE", "its standard error"], table)

# %% mystnb={"image": {"alt": "Particles in rows: noisy, the Bayes limit, a posterior sample, clean"}}
grid = view_directions(spacing, volume.symmetry)
drawn = project(molecule, pose_of(grid, limit.drawn_index, limit.drawn_psi_deg)[0])
strips = {"noisy": noisy, "E[y | x], the limit": limit.mean, "a posterior sample": drawn}
figure = show_denoised(strips | {"clean": clean}, title=f"The Bayes limit at SNR {snr:g}")
sample_ratio = float(mse(drawn, clean[: len(drawn)]).mean()) / measured
say(f"The limit is **{psnr(limit.mean, clean[:len(few)]).mean():.2f} dB**, found in {limit_seconds:.0f} s for {len(few)} particles. A "
    f"posterior sample has **{sample_ratio:.2f}** times the error of the mean; theory says 2.")  # fmt: skip

# %% [markdown]
# Watch the two columns approach each other. The forecast knows only the noise model and the molecule; the
# measurement knows the hidden truth. That they meet within the standard error is a strong check of the
# whole simulation: had the projector, the noise level or the symmetry been wrong, they would not.
#
# ### What the limit averages over
#
# One particle, one pattern of noise, and the signal growing frame by frame. The map shows the whole sphere of
# directions of view with equal areas, and on it the weight of each direction, all its turns in the plane together.

# %%
templates = volume_templates(molecule, 2.0, volume.symmetry)
unit_noise, snrs = (noisy[0] - clean[0]) / sigma, [0.003, 0.01, 0.03, 0.1, 0.3]
seen = templates, clean[0], unit_noise, white.clean.rotations[0], snrs
posterior_viewer(*seen, symmetry=volume.symmetry, title="Where is this particle seen from?")

# %% [markdown]
# In strong noise much of the sphere stays possible, and the mean over it is a blur: the best answer to squared error,
# and nobody's molecule. With more signal the weight gathers in spots, among them views from the opposite side, whose
# projections are mirror images and at low resolution much alike. In the end one spot is left, with its symmetry
# mates, and the mean is sharp. Noise does not blur the molecule: doubt about the pose does. (A count
# near 1 means that the grid of this run is coarser than the posterior.)
#
# ## 2. One table for all
#
# **Question.** How does one compare denoisers fairly?
#
# Same particles, same metrics, same clock. `Comparison` holds the rows. A method is any function from
# noisy particles `(n, y, x)` to clean ones, and enters in one line: **put your own here.**

# %%
limits = {"white": limit.mean}  # "structural" has no closed form, see section 7
tables = {name: Comparison(part, limits.get(name)) for name, part in data.items()}
trial = Comparison(data["white"], limit.mean)
trial.add("my own: half the image", lambda noisy: noisy / 2)
say(trial.markdown())

# %% [markdown]
# Why not take the numbers from the publications? The paper does not state its SNR, its box or how images
# were scaled, and the columns of its Table 1 do not share one peak value: $\mathrm{MSE}\cdot
# 10^{\mathrm{PSNR}/10}$, which is the squared peak, is 1.06 for CWF and 0.39 for DenoiseGAN. Its
# Noise2Noise was retrained on clean targets, which makes it another method; its BM3D has an MSE of 0.13,
# ten times that of CWF, which looks like a wrong noise level. What can be compared is the ranking. A ratio
# to the Bayes limit needs none of these conventions.
#
# ### Classical methods
#
# Each at its best: what can be chosen is chosen on validation particles, never on the test. Here is how
# that is done, for the simplest of them.

# %% mystnb={"image": {"alt": "Mean squared error on validation particles against the width of the blur"}}
held, widths = data["white"].validation, np.arange(1, 6, 0.25)
pair = held.noisy.images[:128], held.clean.images[:128]
errors = [float(mse(methods.blur(pair[0], width), pair[1]).mean()) for width in widths]
labels = {"x": "width of the blur (px)", "y": "MSE, validation"}
figure = plot_lines({"blur": (widths, errors)}, title="Choose on validation", **labels)

# %% [markdown]
# The *best linear filter* knows the covariance of the clean images; **CWF** (the covariance Wiener filter)
# estimates it from noisy images alone. **K-SVD** learns a dictionary of patches from the noisy images.
# **BM3D** looks for patches that resemble each other within one image. **Topaz** is a network trained on
# real micrographs, so its output is brought to scale by one factor and one offset, fitted on validation
# particles, and both contrasts are tried.
#
# ### Learned methods, each with the same wall time
#
# All see the same training images, turned and mirrored, with fresh noise in each step. "Equal cost" is
# equal *time*: a small network may see more images.
#
# - **U-Net, clean targets**: the control that the paper leaves out. SR3's own network, fed the noisy image
#   and asked for the clean one. (What the paper calls Noise2Noise, retrained on clean targets, is this.)
# - **Noise2Noise**: the same, but the target is a second noisy image. It needs no clean data; in the
#   setting "structural" it must keep the structure, which both of its images share.
# - **DenoiseGAN**: a discriminator looks at patches beside the noisy image; plus 100 L1.
# - **RobustGAN**: the discriminator looks at the image alone, with a score that outliers do not
#   dominate; plus 10 L1.
# - **SR3** alone: one step, one sample, the mean of several samples.
# - **SR3 → U-Net**, whose budget is the sum of both stages, in the paper's form (sees the sample) and in
#   one that sees the noisy image as well.
#
# ### Memory
#
# **The template posterior** is a denoiser with perfect memory and no network. Take the clean training
# images, mirrored and in all turns, as the candidates $y_j$ of section 1, and return their weighted mean.
# Nothing is learnt; it recognises. **Kept** rows are the weights that come with cryonb, trained for longer.
# **SR3 for any molecule** comes with cryonb too, and is the opposite of a memory: trained on hundreds of
# random molecules, at all noise levels, with and without a CTF, and never on this one (`05_real_data`).

# %%
trainings, rows, memories = {}, {}, {}
for name, table in tables.items():
    part, folder = data[name], run_dir / "models" / name
    stacks = part.train.clean.images, part.train.observed
    trainings[name] = methods.Training(part, train_seconds, stacks, folder, batch_size, seed)
    rows[name] = methods.classical(part, slow_images)
    rows[name] |= methods.learned(trainings[name], steps, samples, held_out)
    rows[name] |= methods.kept(part) if use_kept else {}
    rows[name]["template posterior"], memories[name] = methods.memory(part, limit_images)
    for title, method in tqdm(rows[name].items(), desc=name):
        table.add(title, method)
best = methods.Method(lambda noisy: limit.mean, "molecule known; no time given", first=limit_images)
tables["white"].add("Bayes limit", best)

# %% [markdown]
# One run of a network is one draw of chance. With `seeds` above 1 the learned rows are trained again, and
# the table gets a column with the standard deviation between seeds: `-p seeds 3` trains each row three times.

# %%
spread = methods.spread_dB(trainings["white"], seeds, steps, samples, held_out)
for title, value in spread.items():
    tables["white"].rows[title]["psnr_spread_dB"] = value

# %%
for name, table in tables.items():
    table.write(run_dir / "tables", f"compare-{name}")
    say(f"**{name}, SNR {snr:g}, {n_test} test particles** (fewer where \"images\" says so)\n\n"
        f"{table.markdown()}")  # fmt: skip
say_table(["method", "settings, and where they come from"], tables["white"].settings.items())

# %% mystnb={"image": {"alt": "Rows of test particles, each denoised by one method"}}
left_out = "Topaz, contrast -1", "kept SR3, one step", "mean image"
(run_dir / "figures").mkdir(exist_ok=True)
for name, table in tables.items():
    strips = {title: images for title, images in table.images.items() if title not in left_out}
    strips["clean"] = data[name].test.clean.images
    figure = show_denoised(strips, title=f"{name}, SNR {snr:g}")
    figure.savefig(run_dir / "figures" / f"compare-{name}.png")

# %% [markdown]
# The same four particles, one method after another in the same place. Hold the arrow key: what stays is in the
# data, what jumps is the method's own.

# %%
pictures = tables["white"].images | {"noisy": noisy / noisy.std(), "clean": clean}
flip_through(pictures, title="Four particles by every method", limits=(-1, 5))

# %% [markdown]
# ## 3. What the table measures
#
# **Question.** Which row is best, and what does that mean?
#
# Look at the last two rows. A list of training images and a softmax stand far above every network that
# was trained here. With one molecule, in one setting, PSNR measures how well a method *remembers the
# molecule*; a network is a slow and lossy way to remember it. (With many thousand training images the
# memory comes so near to the limit that it may seem to pass it: the limit's own grid is converged to 2 %,
# and its list of poses may then be the coarser one.)
#
# So we repeat the table on a molecule that no method was trained on. The networks, the linear filter and
# the memory are those of the first molecule; blur, K-SVD, BM3D, CWF and Topaz, which learn from the noisy
# images before them or from none of these molecules, do not care.

# %%
other_source = "channel" if other_source == source else other_source
other_volume, part = load_volume(other_source, box_size, pixel_size_A), run_dir / "data" / "other"
few = {"train": max(n_train // 2, 2), "validation": 128, "test": limit_images}
other = read_dataset(write_dataset(part, other_volume, few, **made | {"source": other_source}))
shown = other.volume, other.test.noisy.images, sigma, other_volume.symmetry
*_, (_, other_limit) = bayes_limit(*shown)
table = Comparison(other, other_limit.mean)
unknowing = methods.classical(other, slow_images, knowing=False)
for title, method in (rows["white"] | unknowing).items():
    table.add(title, method)
table.add("Bayes limit", methods.Method(lambda noisy: other_limit.mean, "molecule known"))
table.write(run_dir / "tables", "compare-other")
say(f"**{other_source}, seen by methods made for {Path(source).stem}**\n\n{table.markdown()}")

# %% mystnb={"image": {"alt": "PSNR of each method on the molecule it was trained on and on one it has never seen"}}
dB, other_dB = tables["white"].psnr_dB, table.psnr_dB
pairs = {title: (value, other_dB[title]) for title, value in dB.items() if title in other_dB}
labels = f"{Path(source).stem}, trained on", f"{other_source}, never seen"
figure = plot_pairs(pairs, labels, x="PSNR (dB)", title="The same methods on two molecules")
change = {title: after - before for title, (before, after) in pairs.items()}
three = [change[title] for title in ("template posterior", "best linear filter", "Bayes limit")]
say(
    "From the molecule it knows to one it does not, the template posterior changes by **{:.1f} dB**, the "
    "linear filter by {:.1f} dB, the limit (which knows each) by {:.1f} dB.".format(*three)
)

# %% [markdown]
# Look at the pictures before you look at the numbers: what has the memory of one protein made of the
# other?

# %% mystnb={"image": {"alt": "Particles of the second molecule, denoised by methods of the first"}}
wanted = {"CWF", "best linear filter", "kept SR3, one step", "SR3 for any molecule, one step", "template posterior"}  # fmt: skip
strips = {title: images for title, images in table.images.items() if title in wanted}
strips |= {"Bayes limit": other_limit.mean, "clean": other.test.clean.images}
strips = {"noisy": other.test.noisy.images} | strips
figure = show_denoised(strips, title=f"{other_source}, never seen")

# %% [markdown]
# A denoiser that remembers shows you what it remembers, sharp and wrong. That is why a learned denoiser
# must be judged on molecules it has not seen, where CWF, which needs no clean data, is the one to beat.
#
# ## 4. Quality against the signal-to-noise ratio
#
# The limit, the memory, the linear filter and SR3, from strong signal to weak. Networks are drawn where they were trained: from
# SNR 3 down to the one of this run. Below it they would have to be trained again. (The limit holds in the mean: on
# `slow_images` particles a method may pass it by luck.)

# %%
points, learn = {}, data["white"].train.clean.images
networks = [title for title in ("SR3, one step", "kept SR3, one step") if title in rows["white"]]
for ratio in tqdm(sweep, desc="SNR"):
    generator, level = torch.Generator().manual_seed(seed + 1), ratio**-0.5
    drawn = clean[:slow_images]
    given = drawn + level * torch.randn(drawn.shape, generator=generator)
    *_, (_, best) = bayes_limit(molecule, given, level, volume.symmetry)
    found = {"Bayes limit": best.mean}
    found["template posterior"] = methods.recalled(memories["white"], given, level)
    found["best linear filter"] = linear_filter(learn, learn, level)(given)
    for title in networks if level <= sigma * 1.001 else []:
        found[title] = rows["white"][title].denoise(given, sigma=level)
    for title, images in found.items():
        points.setdefault(title, []).append((ratio, float(psnr(images, drawn).mean())))

# %% mystnb={"image": {"alt": "PSNR against SNR for each method, the Bayes limit on top"}}
lines = {title: list(zip(*values, strict=True)) for title, values in points.items()}
labels = {"x": "SNR", "y": "PSNR (dB)", "title": "PSNR against SNR, and the limit"}
figure = plot_lines(lines, ticks=sweep, theory="Bayes limit", **labels)

# %% [markdown]
# ## 5. Two stages, honestly
#
# **Does SR3 → U-Net beat the direct U-Net at equal cost?** Quality on validation particles against the
# training time, both stages counted.

# %% mystnb={"image": {"alt": "PSNR on validation particles against training time, for each method"}}
ticks = train_seconds * 2.0 ** np.arange(-5, 1)
labels = {"x": "training time (s)", "y": "PSNR (dB), validation", "theory": "best linear filter"}
for name, methods_of in rows.items():
    lines = {t: tuple(zip(*m.curve, strict=True)) for t, m in methods_of.items() if m.curve}
    lines["best linear filter"] = ticks[[0, -1]], [tables[name].psnr_dB["best linear filter"]] * 2
    figure = plot_lines(lines, ticks=ticks, title=name, **labels)
plt.show()
two = [dB[f"SR3 → U-Net, sees {inputs}"] for inputs in ("sample", "sample+noisy")]
direct, most = dB["U-Net, clean targets"], max(two)
winner = "Two stages win" if most > direct else "The direct U-Net wins"
say(f"After {train_seconds:g} s each, on the test particles: direct U-Net **{direct:.2f} dB**; SR3 → U-Net **{two[0]:.2f} dB** in "
    f"the paper's form and **{two[1]:.2f} dB** when it sees the noisy image; SR3 alone, in one step, {dB['SR3, one step']:.2f} dB. "
    f"{winner} by {abs(most - direct):.2f} dB.")  # fmt: skip

# %% [markdown]
# The paper states that 200 epochs of SR3 and a U-Net take nearly twelve times less training time than
# 5,000 epochs of SR3 alone, for the better image. Put a ruler on the figure: go from the end of a two-stage
# curve horizontally to that of a single stage. The comparison depends on *what* the single stage is asked
# for. Its **sample** has up to twice the error of its mean, whatever the training; against that, any
# averaging second stage looks like a miracle of speed. (In the paper's Table 1 the samples have seven
# times the error of the refined images: more than theory grants an exact sampler.) Its **one-step mean**
# costs nothing more.

# %%
curve = rows["white"]["SR3, one step"].curve
when = [f"after {t:.0f} s" for t, quality in curve if quality >= most] + ["not in that time"]
sample_dB = dB[f"SR3, one {steps}-step sample"]
say(f"SR3's one-step mean reaches the best two-stage result ({most:.2f} dB) **{when[0]}**; its sample is at "
    f"{sample_dB:.2f} dB after {train_seconds:g} s.")  # fmt: skip

# %% [markdown]
# **Is a sample's error twice the mean's, and how does the mean of K samples fall?** Theory:
# $\mathrm{MMSE}\,(1 + 1/K)$. We have what nobody has who only owns a network: an *exact* model. The
# sampler of `02_train_sr3` takes any function for its network, so we give it the exact posterior mean,
# and see what the sampler alone does. To make it exact, let the world have no more poses than our grid: the
# truths are drawn from it, at SNR 0.01, where many poses are in question and a handful of particles
# tells enough. **What do steps cost?** Three solvers, 1 to 32 steps.


# %%
small, loud = volume_templates(molecule, 8.0, volume.symmetry), 10.0
n = 4 * max(slow_images // 4, 4)
world, generator = every_pose(small), torch.Generator().manual_seed(seed)
truth = project(molecule, world[torch.randint(len(world), (n,), generator=generator)])
seen = truth + loud * torch.randn(truth.shape, generator=generator)
network = rows["white"]["SR3, one step"].denoise.args[0]
solvers = {"second order": {}, "DDIM": {"second_order": False}}
solvers["ancestral"] = {"second_order": False, "eta": 1.0}
k, counted = 1 + np.arange(samples), [1, 2, 4, 8, 16, 32]
falls, means = {}, {"theory, 1 + 1/K": 1 + 1 / k}
tried = {"network": (network, noisy[: 2 * n], clean[: 2 * n], sigma, counted, samples)}
tried["exact"] = methods.exact_model(small), seen, truth, loud, counted[:4], 4
for name, (*given, some, most_samples) in tried.items():
    for title, solver in solvers.items():
        errors = errors_by_steps(*given, some, **solver)
        falls[f"{name}, {title}"] = some, np.array(errors) / errors[0]
    means[name] = np.array(errors_by_samples(*given, steps, most_samples)) / errors[0]

# %% mystnb={"image": {"alt": "Error of samples against the number of steps, and of the mean of K samples"}}
labels = {"y": "MSE ÷ MSE of one step"}
figure = plot_lines(falls, title="One sample, against steps", ticks=counted, x="network evaluations", **labels)  # fmt: skip
lines = {name: (k[: len(values)], values[:samples]) for name, values in means.items()}
figure = plot_lines(lines, theory="theory, 1 + 1/K", title=f"Mean of K {steps}-step samples", x="samples K that are averaged", ticks=k, **labels)  # fmt: skip
plt.show()
ratios = {name: float(means[name][0]) for name in tried}
say(f"A {steps}-step sample has **{ratios['exact']:.2f}** times the error of the mean with the exact posterior ({n} "
    f"particles), and {ratios['network']:.2f} times with the network of this run.")  # fmt: skip

# %% [markdown]
# Theory's 2 is a mean over many particles; a dozen or two come as near to it as chance lets them.
#
# A network that was trained briefly has a one-step error far above the smallest possible one, so its ratio
# may well lie below 2, or above: what its samples add is *its own* idea of the spread.
#
# ## 6. Outliers in the training set
#
# RobustGAN has its name from an experiment: replace the targets of a share of the training pairs by
# something else (noise, the image of another particle), and look at what is lost.

# %%
lost = {}
for title, method in methods.with_outliers(trainings["white"], 0.2).items():
    after = float(psnr(method.denoise(noisy), clean).mean())
    lost[title] = dB[title], after, dB[title] - after
columns = ["", "clean (dB)", "20 % outliers (dB)", "lost (dB)"]
say_table(columns, [(title, *values) for title, values in lost.items()])

# %% [markdown]
# ## 7. The limit with a micelle
#
# In "structural" the table has no limit: where a neighbour or a carbon edge lies is anybody's guess, and
# their distribution has no closed form. The micelle alone has, because it is fixed to the pose: every
# candidate brings its own. So the limit stays exact if it is told of the micelle. What if it is not?

# %%
belt = StructuralNoise(micelle=1.0, neighbours=0, ice=0, carbon=0)
counts, folder = {"train": 2, "validation": 2, "test": limit_images}, run_dir / "data" / "micelle"
part = read_dataset(write_dataset(folder, volume, counts, noise=belt, **made))
given, with_micelle = (part.volume, part.test.noisy.images, sigma, volume.symmetry), {}
for name, structure in (("told of the micelle", part.micelle), ("not told", None)):
    *_, (_, best) = bayes_limit(*given, structure=structure)
    error = mse(best.mean, part.test.clean.images)
    with_micelle[name] = float(error.mean()), float(best.mmse.mean())
say_table(["limit", "measured MSE", "forecast"], [(n, *v) for n, v in with_micelle.items()])

# %% [markdown]
# Told of the micelle, the limit keeps its promise: forecast and measurement agree, because the micelle
# comes with the pose. Not told, the posterior blames the micelle's density on wrong
# poses; its error grows, and its forecast does not know. A forecast is worth as much as its model.
#
# ## 8. Try to break it
#
# The posterior was given the true $\sigma$. What if the noise level is wrong? We stay in the small world of
# section 5, where nothing else can be.

# %%
wrong = []
for factor in (0.5, 0.8, 1.0, 1.25, 2.0):
    found = posterior(small, seen, factor * loud)
    error = mse(found.mean, truth)
    wrong.append((factor, float(error.mean()), float(found.mmse.mean())))
say_table(["σ assumed ÷ true", "measured MSE", "forecast"], wrong)

# %% [markdown]
# With too small a $\sigma$ the posterior trusts one pose too much: the error grows, and the forecast collapses
# when it should grow too. With too large a $\sigma$ it averages over poses that the data exclude: the error grows
# slowly, and the forecast errs on the cautious side. If you use a posterior for its error bars, measure $\sigma$.
#
# ## 9. Exercises
#
# ```{exercise}
# :label: ex-compare-memory
# **How much memory is enough?** Give the template posterior 1/16, 1/4 and all of its templates.
# What would it take to reach the limit?
# ```
#
# ````{solution-start} ex-compare-memory
# :class: dropdown
# ````

# %%
memory, n = memories["white"], max(slow_images // 4, 4)
for share in (16, 4, 1):
    part = replace(memory, target=memory.target[:, ::share], observed=memory.observed[:, ::share])
    value = psnr(methods.recalled(part, noisy[:n], sigma), clean[:n]).mean()
    print(f"{2 * n_train // share} templates: {value:.2f} dB")
print(f"Bayes limit: {psnr(limit.mean[:n], clean[:n]).mean():.2f} dB")

# %% [markdown]
# Each time their number grows fourfold, the distance to the nearest one halves. Where it has
# become smaller than the width of the posterior, more of them change nothing.
#
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-compare-own
# **A row of your own.** The mean of two denoisers that make different errors is often better than either.
# Enter the mean of the linear filter and SR3's one step.
# ```
#
# ````{solution-start} ex-compare-own
# :class: dropdown
# ````

# %%
pair = [rows["white"][name].denoise for name in ("best linear filter", "SR3, one step")]
mine = Comparison(data["white"], limit.mean)
mine.add("mean of two", lambda noisy: (pair[0](noisy) + pair[1](noisy)) / 2)
say(mine.markdown())

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-compare-symmetry
# **What does symmetry buy?** Compute the posterior mean with the molecule's symmetry and without it (`"C1"`).
# What changes: the images, the number of poses to look at, or both?
# ```
#
# ````{solution-start} ex-compare-symmetry
# :class: dropdown
# ````

# %%
grids = [volume_templates(molecule, 6.0, symmetry) for symmetry in ("C1", volume.symmetry)]
change = mse(*(posterior(grid, noisy[:8], sigma).mean for grid in grids)).mean()
print(" and ".join(f"{len(every_pose(grid)):,}" for grid in grids), "poses; the images")
print(f"differ by {change:.4f} of the signal's variance")

# %% [markdown]
# Only the number of poses. Every candidate now occurs once for each symmetric view of it, and each takes its share of
# the weight, so the sums stay what they were; what difference there is comes from grids of directions that
# do not fall on each other. Symmetry helps a *reconstruction*, where each image counts several times. A
# denoised image gains nothing by it that the templates did not know already.
#
# ````{solution-end}
# ````
#
# ## Quiz
#
# **1.** A new method has a smaller MSE than the Bayes limit on 500 test particles. (a) It is a breakthrough
# (b) it has used knowledge that the limit was not given, or the test is broken (c) the limit is wrong for
# neural networks
#
# ```{dropdown} Answer
# **b.** No function of the image has a smaller expected error under this model. It may have seen the test
# images, or noise is not what it is said to be. On a few particles it may also be luck: ask for the standard
# error.
# ```
#
# **2.** A method stands at 30 dB on the protein that it was trained on and at 21 dB on another. A linear
# filter that knows neither has 24 dB on both. For your new protein you take (a) the first, it has the higher
# score (b) the filter (c) their mean
#
# ```{dropdown} Answer
# **b.** Yours is another protein. The 9 dB between the two are memory.
# ```
#
# **3.** What is a fair budget when one stage is compared with two? (a) the same number of parameters (b) the
# same number of epochs (c) the same time for everything that is trained
#
# ```{dropdown} Answer
# **c.** Epochs of different networks cost differently, and a second stage is not free because it comes later.
# ```
#
# ## Recap
#
# - The Bayes limit needs the molecule, the noise, and patience. Its forecast must agree with its measured
#   error; then MSE ÷ limit is a figure that cannot be gamed.
# - On one molecule PSNR measures memory. Repeat every table on a molecule that no method has seen.
# - An exact sample has twice the error of the mean; averaging K of them leaves $1 + 1/K$.
# - A second stage must be compared with the first stage's mean at equal cost, not with its sample.
#
# **Next**: `06_reconstruct_fsc` asks what all this is worth in three dimensions.
#
# **References.** Zhang, Zhao, Hu, Zhao, ICASSP 2024, arXiv 2401.01097 · Aharon, Elad, Bruckstein 2006, IEEE
# Trans. Signal Process. 54, 4311 (K-SVD) · Dabov et al. 2007, IEEE Trans. Image Process. 16, 2080 (BM3D) ·
# Bhamre, Zhang, Singer 2016, J. Struct. Biol. 195, 72 (CWF) · Lehtinen et al. 2018, ICML (Noise2Noise) ·
# Su et al. 2018 (DenoiseGAN) · Gu et al. 2020, arXiv 2008.07307 (RobustGAN) · Bepler et al. 2020, Nat.
# Commun. 11, 5208 (Topaz-Denoise) · Karras et al. 2022, NeurIPS (solvers).

# %%
results = {"limit_mse": measured, "limit_forecast": forecast, "limit_error": standard_error}
results |= {"limit_grid_deg": spacing, "limit_seconds": limit_seconds, "sample_ratio": sample_ratio}
results |= {f"{name}: sample ÷ mean": value for name, value in ratios.items()}
for name, rows_of in (tables | {"other": table}).items():
    results |= rows_of.results(name)
for title, values in points.items():
    results |= {f"SNR {ratio:g}: {title} (dB)": value for ratio, value in values}
for name, (value, told) in with_micelle.items():
    results |= {f"micelle, {name}: mse": value, f"micelle, {name}: forecast": told}
results |= {f"outliers: {title} loses (dB)": values[2] for title, values in lost.items()}
(run_dir / "results").mkdir(exist_ok=True)
(run_dir / "results" / "04_compare_methods.json").write_text(json.dumps(results, indent=1))
