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
# # Compare every method with the limit that none can pass
#
# ```text
#   worse                                                                              better
#   noisy ── blur ── BM3D ── linear, CWF ── networks ── … the gap … ── memory ── │ Bayes limit
#                                                                                │ no denoiser beyond
# ```
#
# You will compute the best denoised image that *any* method could make of each particle, compare every
# method of the paper and its rivals with it in one table, and find out what such a table measures.
#
# ## You will learn
#
# - to **derive** the Bayes limit from the molecule and the noise model, and **check** it against its own
#   forecast;
# - to **set** each method at its best, and to **notice** what a table of denoisers leaves out;
# - to **enter** a denoiser of your own in one line;
# - to **tell** memory of a molecule from skill at denoising;
# - to **measure** whether two stages are better than one.
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
# `run_dir/figures`. **Hardware**: two CPU cores; `train_images` sets the length of the run, and
# `make tutorial` prints a table with the time and memory the last run took. BM3D and Topaz are other
# people's programs: `pip install 'cryonb[peers]'` installs them; without them their rows say so.

# %% jupyter={"source_hidden": true} tags=["long"]
import json
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from tqdm.auto import tqdm

from cryonb.base.parameters import true_or_false
from cryonb.data.volumes import load_volume
from cryonb.denoisers import methods
from cryonb.denoisers.baselines import dihedral, linear_filter
from cryonb.denoisers.compare import Comparison
from cryonb.denoisers.direct import Direct
from cryonb.denoisers.gan import beta_score, contaminate, judge_loss, pass_loss
from cryonb.denoisers.published import Published
from cryonb.evaluation.metrics import mse, psnr
from cryonb.learning import diffusion
from cryonb.physics.projection import project
from cryonb.poses.posterior import bayes_limit, posterior
from cryonb.poses.templates import every_pose, pose_of, view_directions, volume_templates
from cryonb.showing.plotting import (
    plot_lines,
    plot_pairs,
    say,
    say_table,
    show_denoised,
    show_rows,
    use_style,
)
from cryonb.showing.sphere import posterior_viewer
from cryonb.showing.widgets import flip_through
from cryonb.simulation.dataset import open_dataset
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
train_images = 2000  # images that SR3 sees; the other learned rows train at its cost
held_out = 300  # validation particles that the second stage learns from
batch_size = 16  # images per training step
samples = 8  # samples averaged in the row "mean of samples"
steps = 8  # network evaluations of the sampler
published_steps = 200  # steps of the sampler as published, whose own number is 2,000
classes = 12  # two-dimensional classes
second_set = True  # train a second set of networks, on the other molecule; double the time
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
# **Idea.** Suppose we know the molecule, and we know that each particle $x$ is one of its projections plus
# white noise of standard deviation $\sigma$. We do not know *which* projection, and every pose (the
# direction of view and the turn in the plane) is equally likely. Bayes' theorem says how much to
# believe in each candidate $y_j$ when we see $x$:
#
# $$ w_j = \frac{p(x \mid y_j)}{\sum_i p(x \mid y_i)}, \qquad
#    p(x \mid y_j) \propto \exp\Bigl(-\frac{\lVert x - y_j\rVert^2}{2\sigma^2}\Bigr) . $$
#
# If we are judged by squared error, the best answer is the mean of the candidates under these weights,
# $\hat y = \sum_j w_j y_j = E[y \mid x]$, and the error we must expect is their variance about it,
# $\sum_j w_j \lVert y_j\rVert^2 - \lVert\hat y\rVert^2$. By definition of the conditional expectation, no
# function of $x$ does better *on average*. Here it is in six lines, on a coarse list of candidates.

# %%
structural, use_kept, second_set = map(true_or_false, (structural, use_kept, second_set))
run_dir = Path(run_dir)
volume = load_volume(source, box_size, pixel_size_A)
counts = {"train": n_train, "validation": n_validation, "test": n_test}
made, data = {"source": source, "snr": snr, "seed": seed}, {}
for name in ["white", "structural"] if structural else ["white"]:
    data[name] = open_dataset(run_dir / "data" / name, volume, counts, noise=name, **made)
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
# Thirty degrees between candidates is far too coarse, of course, and with a million candidates these six
# lines would need a million images in memory. `cryonb.poses.posterior` computes the same sums with a
# trick. Write an image in polar Fourier space, $X(\rho,\theta) = \sum_k a_k(\rho)\,e^{ik\theta}$, with radius
# $\rho$ and angle $\theta$; turning it in its plane by $\psi$ then only multiplies $a_k$ by a phase of
# angle $k\psi$. So one short Fourier transform compares *all* turns of a candidate with a particle, and
# only the directions of view need to be listed.
#
# How fine must the list be? Do *not* judge by the forecast error: on a coarse grid the nearest candidate
# gets all the weight, and the posterior is sure of itself and wrong. Instead we refine the grid near the
# directions still in question until the denoised *images* stop changing.

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
limit_dB = float(psnr(limit.mean, clean[: len(few)]).mean())
say(
    f"The limit is **{limit_dB:.2f} dB**, computed in {limit_seconds:.0f} s for {len(few)} particles. A "
    f"posterior sample has **{sample_ratio:.2f}** times the error of the mean; theory says 2."
)

# %% [markdown]
# Compare the forecast and the measured MSE as the grid gets finer. The forecast uses only the particles, the
# molecule and the noise model; the measurement uses the hidden truth. If they agree within about two standard
# errors, that is a strong check of the whole simulation: a wrong projector, noise level or symmetry would drive
# them apart. With few particles the scatter can be larger: a handful of hard ones make most of the error, and a
# set that happens to miss them looks better, and more certain, than it should. In the strips, the limit is as
# sharp as the clean image wherever the pose is certain.
#
# The limit is also a method: `cryonb denoise particles.star --reference map.mrc` gives real particles this very mean,
# with pose, shift and evidence. It presumes the structure and cannot show anything else. A network is for particles
# whose structure nobody knows yet.
#
# ### What the limit averages over
#
# Here is one particle with one pattern of noise, and a signal that grows from frame to frame. The map shows the
# whole sphere of directions of view with equal areas, and on it the weight of each direction, summed over all turns
# in the plane.

# %%
templates = volume_templates(molecule, 2.0, volume.symmetry)
unit_noise, snrs = (noisy[0] - clean[0]) / sigma, [0.003, 0.01, 0.03, 0.1, 0.3]
seen = templates, clean[0], unit_noise, white.clean.rotations[0], snrs
posterior_viewer(*seen, symmetry=volume.symmetry, title="Where is this particle seen from?")

# %% [markdown]
# In strong noise much of the sphere stays possible, and the mean over it is a blur: the best answer in squared error,
# and no view of the molecule at all. With more signal the weight gathers in spots, some of them views from the
# opposite side, whose projections are mirror images and look alike at low resolution. In the end one spot
# is left, with its symmetry mates, and the mean is sharp. Noise does not blur the molecule; doubt about the pose does.
# (The title of each frame counts the directions that share the weight. A count near 1 means that the grid is
# coarser than the posterior.)
#
# ## 2. One table for all
#
# **Question.** How do you compare denoisers fairly?
#
# Give them the same particles, the same metrics and the same work to train with. `Comparison` holds the rows. A method is any
# function from noisy particles `(n, y, x)` to clean ones, and you enter it in one line: **put your own here.**

# %%
limits = {"white": limit.mean}  # "structural" has no closed form, see section 7
tables = {name: Comparison(part, limits.get(name)) for name, part in data.items()}
trial = Comparison(data["white"], limit.mean)
trial.add("my own: half the image", lambda noisy: noisy / 2)
say(trial.markdown())

# %% [markdown]
# Why not take the numbers from the publications? The paper does not state its SNR, its box size or how
# images were scaled, and the entries of its Table 1 do not share one peak value: the squared peak, $\mathrm{MSE}\cdot
# 10^{\mathrm{PSNR}/10}$, is 1.06 for CWF and 0.39 for DenoiseGAN. Its Noise2Noise was retrained on clean
# targets, which makes it another method. Its BM3D has an MSE of 0.13, ten times that of CWF, which
# looks like a wrong noise level. Only the ranking can be compared. A ratio to the Bayes limit needs none of
# these conventions.
#
# ### Classical methods
#
# Each method runs at its best: any setting that we choose is chosen on validation particles, never on the
# test. Here is the choice for the simplest method, a Gaussian blur, whose best width is at the minimum.

# %% mystnb={"image": {"alt": "Mean squared error on validation particles against the width of the blur"}}
held, widths = data["white"].validation, np.arange(1, 6, 0.25)
pair = held.noisy.images[:128], held.clean.images[:128]
errors = [float(mse(methods.blur(pair[0], width), pair[1]).mean()) for width in widths]
labels = {"x": "width of the blur (px)", "y": "MSE, validation"}
figure = plot_lines({"blur": (widths, errors)}, title="Choose on validation", **labels)

# %% [markdown]
# The *best linear filter* asks: which matrix $W$ and mean $\mu$ make $\hat y = \mu + W(x-\mu)$ best? Put
# $x = y + \sigma n$ into $E\lVert \hat y - y\rVert^2$ and set its derivative by $W$ to zero. With $C$, the covariance of
# the clean images,
#
# $$ W\,(C + \sigma^2 I) = C, \qquad W = C\,(C+\sigma^2 I)^{-1} . $$
#
# Along an eigenvector of $C$ with eigenvalue $\lambda$ it keeps the share $\lambda/(\lambda+\sigma^2)$. Since a particle is
# as likely turned or mirrored, $C$ is taken over all eight copies of each image. Here it is on the middle of our
# images; the whole has the same lines with a larger matrix.

# %%
middle = slice(box_size // 2 - 8, box_size // 2 + 8)
small_clean = data["white"].train.clean.images[:500, middle, middle]
y, x = dihedral(small_clean).flatten(1), white.noisy.images[:32, middle, middle].flatten(1)
mu, covariance = y.mean(0), y.T.cov(correction=0)
gain = torch.linalg.solve(covariance + sigma**2 * torch.eye(len(mu)), covariance)
mine = mu + (x - mu) @ gain
cryonbs = linear_filter(small_clean, small_clean, sigma)
assert_close(mine, cryonbs(x.view(-1, 16, 16)).flatten(1), rtol=1e-3, atol=1e-3)

# %% [markdown]
# The covariance $C$ of the *best linear filter* comes from the clean training images; **CWF** (the covariance Wiener
# filter) estimates it from noisy images alone. (CWF may still come out slightly ahead: it assumes that images
# are equally likely at every turn, and so has less to estimate.) **K-SVD** learns a dictionary of patches from
# the noisy images. **BM3D** looks for similar patches within one image. **Topaz** is a network trained on real
# micrographs, so we bring its output to scale with one factor and one offset, fitted on validation particles,
# and try both contrasts.
#
# ### Learned methods, each at the same cost
#
# All see the same training images, turned and mirrored, with fresh noise in each step. "Equal cost" means
# equal *work*, counted in floating-point operations (1 TFLOP is $10^{12}$): a smaller network may see more
# images. Seconds would depend on what else the machine is doing.
#
# - **U-Net, clean targets**: the control. It is SR3's own network, fed the noisy image and asked for the clean one.
#   (The paper has no such row by name. By its words its Noise2Noise was retrained on clean targets, which makes it a
#   direct denoiser too, but of another network, and at a cost that is not stated.)
# - **Noise2Noise**: the same, but the target is a second noisy image. It needs no clean data; in the
#   setting "structural" it must keep the structure, which both of its images share.
# - **DenoiseGAN**: a generative adversarial network (GAN). A second network, the discriminator, learns to tell
#   denoised patches from clean ones, with the noisy image beside them. The loss adds 100 times the mean absolute
#   error (L1).
# - **RobustGAN**: its discriminator sees only the image and is trained on a score that outliers do not
#   dominate. The loss adds 10 times the L1 error.
# - **SR3** alone: one step, one sample, the mean of several samples.
# - **SR3 as published**: the same network asked for the noise, without a curriculum, and sampled with fresh noise
#   in `published_steps` small steps. It needs long training: at 32 pixels its sample beats the best blur from 16,000
#   images on, our one-step mean from 1,000 (`benchmarks/published_form.py`). Before that the row shows what unlearnt
#   steps add up to.
# - **SR3 → U-Net**: both stages share the budget. We train the paper's form (sees the sample) and one that
#   also sees the noisy image.
#
# **The losses, written out.** For Noise2Noise let $x' = y + \sigma n'$ be a second noisy image. As $n'$ is independent of
# $x$ and has zero mean,
#
# $$ E\lVert f(x) - x'\rVert^2 = E\lVert f(x) - y\rVert^2 + \sigma^2 \quad\text{(for each pixel)}, $$
#
# so both targets have the same best $f$, and a loss that stays near $\sigma^2$ is no fault. A GAN plays two losses
# against each other. Let $D$ be the discriminator's judgement, the sigmoid of its output. In DenoiseGAN it minimises
# $-\tfrac12\log D(\text{clean}) - \tfrac12\log(1 - D(\text{made}))$, and the generator $-\log D(\text{made})$.
# RobustGAN scores by $S(t,1)$ for a clean image and $S(t,0)$ for one that was made, with
# $\partial S(t,1)/\partial t = \sqrt{(1-t)/t}$ and $\partial S(t,0)/\partial t = -\sqrt{t/(1-t)}$. That is a *proper* score:
# where a share $p$ of the images is clean, its mean is greatest at $t = p$. Integrated,
# $S(t,1) = \sqrt{t(1-t)} + \arcsin\sqrt t - \pi/2$ and $S(t,0) = S(1-t,1)$.

# %%
y, f = clean[:64], lambda images: images / (1 + sigma**2)  # any function of x will do
losses = [Direct(sigma, noise2noise, snr_start=snr).loss for noise2noise in (True, False)]
given = [torch.Generator().manual_seed(seed) for _ in losses]
pairs = zip(losses, given, strict=True)
of_noisy, of_clean = (loss(lambda x, _: f(x), (y, y), 1.0, draw) for loss, draw in pairs)
assert_close(of_noisy - of_clean, torch.tensor(sigma**2), rtol=0.05, atol=0.0)

real, fake = torch.linspace(-3, 3, 50), torch.linspace(-2, 1, 50)  # before the sigmoid
wanted = -0.5 * real.sigmoid().log().mean() - 0.5 * (1 - fake.sigmoid()).log().mean()
assert_close(judge_loss("denoise", real, fake), wanted)
assert_close(pass_loss("denoise", fake), -fake.sigmoid().log().mean())
t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
score = (t * (1 - t)).sqrt() + t.sqrt().asin() - np.pi / 2
assert_close(score, beta_score(t, 1))
expected = 0.3 * beta_score(t, 1) + 0.7 * beta_score(t, 0)
assert abs(float(t[expected.argmax()]) - 0.3) < 1e-6  # proper

# %% [markdown]
# ### Memory
#
# **The template posterior** is a denoiser with perfect memory and no network. It takes the clean training
# images, mirrored and in all turns, as the candidates $y_j$ of section 1 and returns their weighted mean.
# It learns nothing; it recognises. **Kept** rows are the weights that come with cryonb, trained for longer.
# **SR3 for any molecule** also comes with cryonb and is the opposite of a memory: it was trained on many
# random molecules, at all noise levels, with and without the microscope's contrast transfer function (CTF),
# and never on this molecule (`05_real_data`).

# %%
trainings, rows, memories = {}, {}, {}
for name, table in tables.items():
    part, folder = data[name], run_dir / "models" / name
    stacks = part.train.clean.images, part.train.observed
    trainings[name] = methods.Training(part, train_images, stacks, folder, batch_size, seed)
    rows[name] = methods.classical(part, slow_images)
    rows[name] |= methods.learned(trainings[name], steps, samples, held_out)
    rows[name] |= methods.pretrained(part) if use_kept else {}
    memory = methods.template_posterior(part, limit_images)
    rows[name]["template posterior"], memories[name] = memory
    own = trainings[name].row("SR3 as published", Published(sigma, published_steps))
    rows[name]["SR3 as published, sample"] = replace(own, first=slow_images)
    for title, method in tqdm(rows[name].items(), desc=name):
        table.add(title, method)
if structural:  # 8,000 images take a gigabyte, and nothing needs them again
    del memories["structural"], rows["structural"]["template posterior"], memory, method
best = methods.Method(lambda noisy: limit.mean, "molecule known; no time given", first=limit_images)
tables["white"].add("Bayes limit", best)

# %% [markdown]
# Training depends on chance, and one run is one draw. With `seeds` above 1 the learned rows are trained again, and
# the table gains a column with the standard deviation between seeds: `-p seeds 3` trains each row three times.

# %%
spread = methods.spread_dB(trainings["white"], seeds, steps, samples, held_out)
for title, value in spread.items():
    tables["white"].rows[title]["psnr_spread_dB"] = value

# %%
for name, table in tables.items():
    table.write(run_dir / "tables", f"compare-{name}")
    title = f'**{name}, SNR {snr:g}, {len(white.clean)} particles** (fewer where "images" says so)'
    say(f"{title}\n\n{table.markdown()}")
say_table(["method", "settings, and where they come from"], tables["white"].settings.items())

# %% mystnb={"image": {"alt": "Rows of test particles, each denoised by one method"}}
left_out = "Topaz, contrast -1", "kept SR3, one step", "mean image", "SR3 as published, sample"
(run_dir / "figures").mkdir(exist_ok=True)
for name, table in tables.items():
    strips = {title: images for title, images in table.images.items() if title not in left_out}
    strips["clean"] = data[name].test.clean.images
    figure = show_denoised(strips, title=f"{name}, SNR {snr:g}")
    figure.savefig(run_dir / "figures" / f"compare-{name}.png")

# %% [markdown]
# Here are the same four particles by one method after another, in the same place. Hold the arrow key down: detail
# that stays is probably in the data, detail that jumps belongs to the method.

# %%
pictures = tables["white"].images | {"noisy": noisy / noisy.std(), "clean": clean}
flip_through(pictures, title="Four particles by every method", limits=(-1, 5))

# %% [markdown]
# ## 3. What the table measures
#
# **Question.** Which row is best, and what does that mean?
#
# Compare the template posterior with the rest of the table `white`. A list of training images and a softmax
# (the weights $w_j$) does far better than every network in it. With one molecule, in one setting, PSNR measures
# how well a method *remembers the molecule*, and a network is a slow and lossy way to remember it. (With many
# thousand training images the memory comes so close to the limit that it may seem to pass it: the limit's
# grid is converged only to 2 %, and its list of poses may then be the coarser one.)
#
# So we repeat the table on a molecule that no method was trained on. The networks, the linear filter and
# the memory are those of the first molecule. Blur, K-SVD, BM3D, CWF and Topaz start afresh: their settings and
# dictionaries come from the new images, or, for Topaz's network, from neither molecule.

# %%
other_source = "channel" if other_source == source else other_source
other_volume, part = load_volume(other_source, box_size, pixel_size_A), run_dir / "data" / "other"
few = {"train": max(n_train // 2, 2), "validation": 128, "test": limit_images}
other = open_dataset(part, other_volume, few, **made | {"source": other_source})
shown = other.volume, other.test.noisy.images, sigma, other_volume.symmetry
*_, (_, other_limit) = bayes_limit(*shown)
table = Comparison(other, other_limit.mean)
unknowing = methods.classical(other, slow_images, trained=False)
for title, method in (rows["white"] | unknowing).items():
    table.add(title, method)
table.add("Bayes limit", methods.Method(lambda noisy: other_limit.mean, "molecule known"))
table.write(run_dir / "tables", "compare-other")
say(f"**{other_source}, seen by methods made for {Path(source).stem}**\n\n{table.markdown()}")

# %% [markdown]
# ### The table again, on a molecule of its own
#
# The paper has two blocks in its Table 1, a channel and a dimer, each with methods made for it. Here is the second:
# the filter, the memory and the networks are now those of the second molecule: the weights that come with cryonb, and
# with `second_set` a full set trained at equal cost. Beside it stands the order of the paper. Only the order can be
# compared, by Spearman's rank correlation: 1 if all methods come in the same order, 0 for chance.

# %%
second = Comparison(other, other_limit.mean)
of_other = {"best linear filter": methods.linear(other)}
if second_set:
    stacks, folder = (other.train.clean.images, other.train.observed), run_dir / "models/other"
    training = methods.Training(other, train_images, stacks, folder, batch_size, seed)
    of_other |= methods.learned(training, steps, samples, held_out)
of_other |= methods.pretrained(other) if use_kept else {}
of_other["template posterior"] = methods.template_posterior(other, limit_images)[0]
second.rows |= {title: table.rows[title] for title in unknowing}  # made for it already
for title, method in of_other.items():
    second.add(title, method)
del of_other, method  # its memory of the other molecule is not needed again
second.write(run_dir / "tables", "compare-second")
say(f"**{other_source}, by methods made for it**\n\n{second.markdown()}")

# %% mystnb={"image": {"alt": "PSNR of each method on the molecule it was trained on and on one it has never seen"}}
dB, other_dB = tables["white"].psnr_dB, table.psnr_dB
pairs = {title: (value, other_dB[title]) for title, value in dB.items() if title in other_dB}
labels = f"{Path(source).stem}, trained on", f"{other_source}, never seen"
figure = plot_pairs(pairs, labels, x="PSNR (dB)", title="The same methods on two molecules")
change = {title: after - before for title, (before, after) in pairs.items()}
three = [change[title] for title in ("template posterior", "best linear filter", "Bayes limit")]
say(
    "From the molecule it knows to one it does not, the template posterior changes by **{:.1f} dB** and "
    "the linear filter by {:.1f} dB; the limit, which knows both, by {:.1f} dB.".format(*three)
)

# %% [markdown]
# A long line with its square far to the left is memory lost. Now look at the pictures: what has the memory of one
# protein made of the other?

# %% mystnb={"image": {"alt": "Particles of the second molecule, denoised by methods of the first"}}
wanted = {"CWF", "best linear filter", "kept SR3, one step", "template posterior"}
wanted |= {"SR3 for any molecule, one step"}
strips = {title: images for title, images in table.images.items() if title in wanted}
strips |= {"Bayes limit": other_limit.mean, "clean": other.test.clean.images}
strips = {"noisy": other.test.noisy.images} | strips
figure = show_denoised(strips, title=f"{other_source}, never seen")

# %% [markdown]
# A denoiser that remembers shows you what it remembers, sharp and wrong. That is why a learned denoiser
# must be judged on molecules it has not seen. With white noise, CWF is the one to beat there: it needs no clean
# data.
#
# ## 4. Quality against the signal-to-noise ratio
#
# We follow the limit, the memory, the linear filter and SR3 from strong signal to weak. Networks are drawn only where
# they were trained, at the SNR of this run and above. A network short of training may not even improve as the signal
# grows. (The limit holds on average: on `slow_images` particles a method may pass it by luck.)

# %%
points, learn = {}, data["white"].train.clean.images
networks = [title for title in ("SR3, one step", "kept SR3, one step") if title in rows["white"]]
for ratio in tqdm(sweep, desc="SNR"):
    generator, level = torch.Generator().manual_seed(seed + 1), ratio**-0.5
    drawn = clean[:slow_images]
    given = drawn + level * torch.randn(drawn.shape, generator=generator)
    *_, (_, best) = bayes_limit(molecule, given, level, volume.symmetry)
    found = {"Bayes limit": best.mean}
    found["template posterior"] = methods.posterior_mean(memories["white"], given, level)
    found["best linear filter"] = linear_filter(learn, learn, level)(given)
    for title in networks if level <= sigma * 1.001 else []:
        found[title] = diffusion.denoise(rows["white"][title].network, given, level)
    for title, images in found.items():
        points.setdefault(title, []).append((ratio, float(psnr(images, drawn).mean())))

# %% mystnb={"image": {"alt": "PSNR against SNR for each method, with the Bayes limit as a dashed line"}}
lines = {title: list(zip(*values, strict=True)) for title, values in points.items()}
labels = {"x": "SNR", "y": "PSNR (dB)", "title": "PSNR against SNR, and the limit"}
figure = plot_lines(lines, ticks=sweep, theory="Bayes limit", **labels)

# %% [markdown]
# ## 5. Two stages, honestly
#
# **Does SR3 → U-Net beat the direct U-Net at equal cost?** We plot the quality on validation particles against
# the cost of training. Two-stage curves start late, because the cost of their first stage counts.

# %% mystnb={"image": {"alt": "PSNR on validation particles against the cost of training, for each method"}}
tflop = trainings["white"].tflop
ticks = tflop * 2.0 ** np.arange(-5, 1)
labels = {"x": "training (TFLOP)", "y": "PSNR (dB), validation", "theory": "best linear filter"}
for name, methods_of in rows.items():
    lines = {t: tuple(zip(*m.curve, strict=True)) for t, m in methods_of.items() if m.curve}
    lines["best linear filter"] = ticks[[0, -1]], [tables[name].psnr_dB["best linear filter"]] * 2
    figure = plot_lines(lines, ticks=ticks, title=name, **labels)
plt.show()
two = [dB[f"SR3 → U-Net, sees {inputs}"] for inputs in ("sample", "sample+noisy")]
direct, most = dB["U-Net, clean targets"], max(two)
winner = "Two stages win" if most > direct else "The direct U-Net wins"
say(
    f"After {tflop:.3g} TFLOP each, on the test particles: direct U-Net **{direct:.2f} dB**; SR3 → U-Net "
    f"**{two[0]:.2f} dB** in the paper's form and **{two[1]:.2f} dB** when it also sees the noisy image; SR3 "
    f"alone, in one step, {dB['SR3, one step']:.2f} dB. {winner} by {abs(most - direct):.2f} dB."
)

# %% [markdown]
# The paper states that 200 epochs of SR3 and a U-Net take nearly twelve times less training time than
# 5,000 epochs of SR3 alone, and give the better image. Put a ruler on the figure: go horizontally from the end of
# a two-stage curve to the curve of a single stage. The answer depends on *what* you ask of the single stage.
# Its **sample** has about twice the error of the posterior mean even after perfect training, and more after a
# short one; beside that, any averaging second stage looks like a miracle of speed. (By the paper's text, samples
# after 5,000 epochs of SR3 alone have 7.1 times the error that its Table 1 gives for the refined images, far more
# than an exact sampler's two.) Its
# **one-step mean** needs no second stage.

# %%
curve = rows["white"]["SR3, one step"].curve
when = [f"after {t:.2g} TFLOP" for t, quality in curve if quality >= most] + ["not at that cost"]
sample_dB = dB[f"SR3, one {steps}-step sample"]
say(
    f"SR3's one-step mean reaches the best two-stage result ({most:.2f} dB) **{when[0]}**; its sample is "
    f"still at {sample_dB:.2f} dB after {tflop:.3g} TFLOP."
)

# %% [markdown]
# **Is a sample's error twice the mean's, and how does the error of the mean of K samples fall?** Theory says
# $\mathrm{MMSE}\,(1 + 1/K)$, where MMSE is the minimum mean squared error. We can test the sampler by itself,
# because we have an *exact* model. The sampler of `02_train_sr3` accepts any function as its network, so we give it
# the exact posterior mean. To make that truly exact, we build a small world with no more poses than our
# grid and draw the truths from it, at SNR 0.01, where many poses stay in question. **And what do more
# steps do?** We try three solvers: the second-order one, DDIM and the ancestral one of the paper.


# %%
def exact_model(y_t, gamma, noisy, level):
    """E[y | y_t, x] of the small world: state and particle are worth one image of less noise."""
    view, noise = diffusion.fuse(y_t, torch.tensor(gamma), noisy, torch.tensor(level))
    return posterior(small, view, float(noise)).mean


def drawn_by(model, noisy, level, n_steps, draw, **solver):
    """One sample of each particle, with random numbers of its own."""
    random = torch.Generator().manual_seed(draw)
    *_, last = diffusion.sample(model, noisy, level, n_steps, generator=random, **solver)
    return last.clean


def error_of(images, truth):
    """Mean squared error over a stack."""
    return float(mse(images, truth).mean())


# %%
small, loud = volume_templates(molecule, 8.0, volume.symmetry), 10.0
n = 4 * max(slow_images // 4, 4)
world, generator = every_pose(small), torch.Generator().manual_seed(seed)
truth = project(molecule, world[torch.randint(len(world), (n,), generator=generator)])
seen = truth + loud * torch.randn(truth.shape, generator=generator)
network = rows["white"]["SR3, one step"].network
solvers = {"second order": {}, "DDIM": {"second_order": False}}
solvers["ancestral"] = {"second_order": False, "eta": 1.0}
k, counted = 1 + np.arange(samples), [n for n in (1, 2, 4, 8, 16, 32) if n <= 4 * steps]
falls, means = {}, {"theory, 1 + 1/K": 1 + 1 / k}
tried = {"network": (network, noisy[: 2 * n], sigma, clean[: 2 * n], counted, samples)}
tried["exact"] = exact_model, seen, loud, truth, counted[:4], 4
for name, (*given, answer, some, most_samples) in tried.items():
    for title, solver in tqdm(solvers.items(), desc=name):
        errors = [error_of(drawn_by(*given, s, 0, **solver), answer) for s in some]
        falls[f"{name}, {title}"] = some, np.array(errors) / errors[0]
    draws = torch.stack([drawn_by(*given, steps, draw) for draw in range(most_samples)])
    averages = draws.cumsum(0) / torch.arange(1, most_samples + 1).view(-1, 1, 1, 1)
    means[name] = np.array([error_of(images, answer) for images in averages]) / errors[0]

# %% mystnb={"image": {"alt": "Error of samples against the number of steps, and of the mean of K samples"}}
labels = {"x": "network evaluations", "y": "MSE ÷ MSE of one step"}
figure = plot_lines(falls, title="One sample, against steps", ticks=counted, **labels)
lines = {name: (k[: len(values)], values[:samples]) for name, values in means.items()}
labels |= {"x": "samples K that are averaged", "theory": "theory, 1 + 1/K"}
figure = plot_lines(lines, title=f"Mean of K {steps}-step samples", ticks=k, **labels)
plt.show()
ratios = {name: float(means[name][0]) for name in tried}
say(
    f"A sample of {steps} steps has **{ratios['exact']:.2f}** times the error of the mean with the exact "
    f"posterior ({n} particles), and {ratios['network']:.2f} times with the network of this run."
)

# %% [markdown]
# First figure: with the exact model, the error grows from that of the mean (one step) towards twice that as steps
# are added, whatever the solver. Theory's 2 is a mean over many particles, so a dozen or two come only near it.
# Second figure: averaging samples brings the error back towards that of the mean.
#
# A network trained only briefly has a one-step error far above the minimum, and its samples spread by *its own*
# idea of the posterior. Its ratio may therefore lie below 2, or far above.
#
# ## 6. Outliers in the training set
#
# RobustGAN owes its name to an experiment: in a share of the training pairs, replace the target by something
# else (noise, or the image of another particle), and see how much is lost. Read the loss beside the first
# column: a network that has hardly been trained has little to lose.

# %%
generator = torch.Generator().manual_seed(seed)
stacks = contaminate(data["white"].train.clean.images, 0.2, generator), data["white"].train.observed
training = replace(trainings["white"], stacks=stacks, folder=run_dir / "models" / "outliers")
lost, recipes = {}, methods.direct_recipes(sigma)
for title in ("U-Net, clean targets", "DenoiseGAN", "RobustGAN"):
    method = training.row(title, recipes[title])
    after = float(psnr(method.denoise(noisy), clean).mean())
    lost[title] = dB[title], after, dB[title] - after
columns = ["", "clean (dB)", "20 % outliers (dB)", "lost (dB)"]
say_table(columns, [(title, *values) for title, values in lost.items()])

# %% [markdown]
# ## 7. The limit with a micelle
#
# The table "structural" has no limit, because a neighbour or a carbon edge may lie anywhere, and their distribution
# has no closed form. The micelle alone is simpler: it is fixed to the pose, so every candidate brings its own. A
# limit that is told of the micelle is therefore still exact. What if it is not told?

# %%
belt = StructuralNoise(micelle=1.0, neighbours=0, ice=0, carbon=0)
counts, folder = {"train": 2, "validation": 2, "test": limit_images}, run_dir / "data" / "micelle"
part = open_dataset(folder, volume, counts, noise=belt, **made)
given, with_micelle = (part.volume, part.test.noisy.images, sigma, volume.symmetry), {}
for name, structure in (("told of the micelle", part.micelle), ("not told", None)):
    *_, (_, best) = bayes_limit(*given, structure=structure)
    error = mse(best.mean, part.test.clean.images)
    with_micelle[name] = float(error.mean()), float(best.mmse.mean())
say_table(["limit", "measured MSE", "forecast"], [(n, *v) for n, v in with_micelle.items()])

# %% [markdown]
# Told of the micelle, the limit should keep its promise: forecast and measurement agree as well as they did in
# section 1. Not told, the posterior has to explain the micelle's density by wrong poses. Its error grows, and nothing
# makes its forecast follow. A forecast is only as good as its model.
#
# ### What takes the micelle away?
#
# The paper claims that its method removes structural noise, yet describes training with *white* noise alone. Take
# that at its word: show these particles to networks that have never met a micelle, and to some that have. "Micelle
# left" is its fitted share in the images (1 in the particles, 0 for a perfect denoiser).

# %%
left = Comparison(part)
left.score("noisy", part.test.noisy.images)
shown = {"SR3 of this run": rows, "SR3, kept weights": {}}
if use_kept:
    shown["SR3, kept weights"] = {
        name: methods.pretrained(replace(part, manifest=part.manifest | {"setting": name}))
        for name in ("white", "structural")
    }
for title, by_setting in shown.items():
    for name, its_rows in by_setting.items():
        row = its_rows.get("kept SR3, one step" if "kept" in title else "SR3, one step")
        if row:
            noise = "white noise alone" if name == "white" else "structure too"
            left.score(
                f"{title}, {noise}", diffusion.denoise(row.network, part.test.noisy.images, sigma)
            )
say(left.markdown())

# %% [markdown]
# Compare the two rows of the kept weights, which are well trained (they are there for the built-in channel at the
# default sizes). The network that has met white noise alone leaves little of the micelle, though nobody ever told it
# that there is such a thing. It has not recognised detergent: it has recognised its molecule, and draws that. **Most of
# the removal is memory**, and training on structure removes most of the rest. What follows: a clean belt is no evidence
# that a denoiser can tell detergent from protein; on a molecule that it does not know, it may keep the one or lose
# the other. (A blurred molecule counts a little as micelle: two hundredths are nothing.)
#
# ## 8. The field's own denoiser: class averages
#
# **Question.** Cryo-EM has denoised for forty years without a network: it averages particles that look alike. The paper
# names two-dimensional class averages as its contrast. What are they worth, on these particles?
#
# **Idea.** Suppose every particle is one of a few images $a_k$, turned in its plane by an angle $\psi$, plus noise. We
# know neither $k$ nor $\psi$, so we go back and forth between two steps (*expectation maximisation*): the weight of each
# class and turn for each particle, as in section 1; then each $a_k$ as the weighted sum of all particles turned back,
# divided by their number plus $\sigma^2$ (the signal has variance 1; this keeps small classes from being noise). No
# clean image is used anywhere.


# %%
def turn(images, degrees):
    """Turn images (n, y, x) about the pixel n // 2, each by its own angle (n,)."""
    c, s = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    middle = 1 / images.shape[-1]  # where that pixel lies, for affine_grid
    rows = [c, -s, middle * (1 - c + s), s, c, middle * (1 - s - c)]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), images[:, None].shape, False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def averaged(w, images):
    """Weighted sums of images (n, y, x), turned back and added up by class: (classes, y, x)."""
    sums = turn((w.T @ images.flatten(1)).view(-1, *images.shape[1:]), -angles)
    return sums.view(-1, classes, *images.shape[1:]).sum(0)


def turned(averages):
    """All classes at all turns: (turns x classes, pixels)."""
    return turn(averages.repeat(len(angles) // classes, 1, 1), angles).flatten(1)


# %% mystnb={"image": {"alt": "Class averages, what they would be of clean images, and particles replaced by them"}}
learn = data["white"].train
stack = torch.cat([noisy, learn.noisy.images])
angles = torch.arange(0, 360, 10.0).repeat_interleave(classes)  # of (turn, class)
averages = torch.stack([part.mean(0) for part in stack.tensor_split(classes)])
for _ in tqdm(range(15), desc="class averages"):
    y = turned(averages)
    w = ((stack.flatten(1) @ y.T - y.square().sum(1) / 2) / sigma**2).softmax(1)
    number = w.sum(0).view(-1, classes).sum(0)[:, None, None]
    averages = averaged(w, stack) / (number + sigma**2)
of_clean = averaged(w, torch.cat([clean, learn.clean.images])) / number.clamp_min(1)
drawn, noiseless = ((w[: len(noisy)] @ turned(a)).view_as(noisy) for a in (averages, of_clean))
tables["white"].score("2D class averages", drawn)
largest = number.flatten().argsort(descending=True)[:8]
strips = {"averages": averages[largest], "of clean images": of_clean[largest]}
strips |= {"noisy": noisy[:8], "its class": drawn[:8], "clean": clean[:8]}
figure = show_rows(strips, title=f"{len(stack)} particles in {classes} classes", width_in=1.0)
class_dB, views = tables["white"].psnr_dB["2D class averages"], error_of(noiseless, clean)
say(
    f"Replaced by its class average, a particle is at **{class_dB:.2f} dB** (CWF: {dB['CWF']:.2f} dB), mean "
    f"squared error {error_of(drawn, clean):.3f}. With averages of clean images it would be {views:.3f}."
)

# %% [markdown]
# Be honest about what an average is. It is made of the data alone, its noise falls with the number of its members,
# and nothing in it is remembered from another molecule. But it is no denoised *particle*: it is the mean over all views
# that fell into the class, and what sets a particle apart from its classmates is gone, be it a view, a conformation,
# or a missing part. The second number says how much that is, with no noise at all. More classes make it smaller and
# each average noisier, since there are fewer members. And a class takes in what it resembles: noise, sorted by
# likeness to an average, resembles it (`00_start_here`).
#
# ## 9. Try to break it
#
# So far the posterior was given the true $\sigma$. What if the stated noise level is wrong? We return to the small
# world of section 5, where nothing else can be wrong.

# %%
wrong = []
for factor in (0.5, 0.8, 1.0, 1.25, 2.0):
    found = posterior(small, seen, factor * loud)
    error = mse(found.mean, truth)
    wrong.append((factor, float(error.mean()), float(found.mmse.mean())))
say_table(["σ assumed ÷ true", "measured MSE", "forecast"], wrong)

# %% [markdown]
# With too small a $\sigma$ the posterior trusts one pose too much: the error grows, and the forecast collapses
# when it should grow too. With too large a $\sigma$ it averages over poses that the data exclude: the error changes
# little at first, and the forecast errs on the cautious side. If you use a posterior for its error bars, measure $\sigma$.
#
# ## 10. Exercises
#
# ```{exercise}
# :label: ex-compare-memory
# *Medium, 15 minutes.*
# **How much memory is enough?** Give the template posterior 1/16, 1/4 and all of its templates.
# What would it take to reach the limit?
# ```
#
# ````{solution-start} ex-compare-memory
# :class: dropdown
# ````
# Each time the number of templates grows fourfold, the distance to the nearest one halves, because directions of
# view fill a surface. Once that distance is smaller than the width of the posterior, more templates change little.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
memory, n = memories["white"], max(slow_images // 4, 4)
for share in (16, 4, 1):
    part = memory.rows(slice(None, None, share))
    value = psnr(methods.posterior_mean(part, noisy[:n], sigma), clean[:n]).mean()
    print(f"{2 * len(data['white'].train.clean) // share} templates: {value:.2f} dB")
print(f"Bayes limit: {psnr(limit.mean[:n], clean[:n]).mean():.2f} dB")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-compare-own
# *Easy, 10 minutes.*
# **A row of your own.** The mean of two denoisers that make different errors can be better than either.
# Enter the mean of the linear filter and SR3's one step. Is it, in this run?
# ```
#
# ````{solution-start} ex-compare-own
# :class: dropdown
# ````
# Compare with the two rows in section 2: a partner that is much worse spoils the mean.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
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
# *Medium, 10 minutes.*
# **What does symmetry buy?** Compute the posterior mean with the molecule's symmetry and without it (`"C1"`).
# What changes: the images, the number of poses to look at, or both?
# ```
#
# ````{solution-start} ex-compare-symmetry
# :class: dropdown
# ````
# In essence, only the number of poses. With C1 every view is listed once for each of its symmetry mates, which share
# its weight, so the sums stay the same. The small difference between the images comes from two grids
# whose directions do not coincide. Symmetry helps a *reconstruction*, where each image counts several times. A
# denoised image gains nothing from it, because the templates are symmetric already.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
grids = [volume_templates(molecule, 6.0, symmetry) for symmetry in ("C1", volume.symmetry)]
change = mse(*(posterior(grid, noisy[:8], sigma).mean for grid in grids)).mean()
print(" and ".join(f"{len(every_pose(grid)):,}" for grid in grids), "poses; the images")
print(f"differ by {change:.4f} of the signal's variance")

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** A new method has a smaller MSE than the Bayes limit on 500 test particles.
#
# ```{dropdown} (a) It is a breakthrough.
# **No.** No function of the image has a smaller expected error under this model.
# ```
# ```{dropdown} (b) It has used knowledge that the limit was not given, or the test is broken.
# **Right.** The method may have seen the test images, or the noise may not be what it is said to be. On a few
# particles it may also be luck: ask for the standard error.
# ```
# ```{dropdown} (c) The limit is wrong for neural networks.
# **No.** It holds for every function of the image, however it was found.
# ```
#
# **2.** A method stands at 30 dB on the protein that it was trained on and at 21 dB on another. A linear filter
# that knows neither has 24 dB on both. For your new protein you take
#
# ```{dropdown} (a) the method, for its higher score
# **No.** Yours is a third protein, so expect 21 dB: the 9 dB were memory.
# ```
# ```{dropdown} (b) the filter
# **Right.** Yours is a third protein: expect 21 dB of the method and 24 dB of the filter. The 9 dB that the
# method loses on the other protein were memory.
# ```
# ```{dropdown} (c) their mean
# **No.** A partner that is much worse spoils a mean, as in the exercise above.
# ```
#
# **3.** What is a fair budget when one stage is compared with two?
#
# ```{dropdown} (a) the same number of parameters
# **No.** Two networks of one size may cost very different amounts of work.
# ```
# ```{dropdown} (b) the same number of epochs
# **No.** An epoch costs a different amount for each network.
# ```
# ```{dropdown} (c) the same work for everything that is trained
# **Right.** And a second stage is not free just because it comes later.
# ```
#
# ## Recap
#
# - The Bayes limit needs the molecule, the noise model and patience. Check that its forecast agrees with its
#   measured error; then MSE ÷ limit depends on no convention of scale.
# - On one molecule PSNR measures memory. Repeat every table on a molecule that no method has seen.
# - An exact sample has twice the error of the mean; the mean of K samples has $1 + 1/K$ times that error.
# - A second stage must be compared with the first stage's mean at equal cost, not with its sample.
#
# **Next**: [05](05_real_data.ipynb) leaves the simulation for a real micrograph, where nobody knows the truth.
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
results |= left.results("micelle") | second.results("second")
results["class averages: error of their views"] = views
results |= {f"outliers: {title} loses (dB)": values[2] for title, values in lost.items()}
(run_dir / "results").mkdir(exist_ok=True)
(run_dir / "results" / "04_compare_methods.json").write_text(json.dumps(results, indent=1))
