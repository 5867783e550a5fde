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
# # Refine what the diffusion model found
#
# ```text
#   noisy particle x ──► diffusion model, a few steps ──► sample ──► U-Net ──► refined particle
#          │                                                           ▲
#          └────────────────────── may look at x again ────────────────┘
# ```
#
# You will train the second stage of the paper, a plain U-Net that turns the diffusion model's samples
# into more accurate images. You will find out *why* that works, and whether the work would be better
# spent on training the diffusion model for longer.
#
# ## You will learn
#
# - to **explain** why a sample has more error than it needs, and how training by squared error removes it;
# - to **train** a network on another network's output without fooling yourself;
# - to **compare** the paper's form (which sees the sample alone) with two that also see the particle;
# - to **weigh** two stages against one at equal cost.
#
# ## Before you start
#
# | concept | need | where |
# |---|---|---|
# | posterior mean and sample, curriculum, kept weights | necessary | `02_train_sr3` |
# | conditional expectation | helpful | any statistics course |
#
# **Inputs**: data and weights of `01_simulate` and `02_train_sr3` in the same `run_dir`. **Outputs**:
# weights `run_dir/models/*-refine.safetensors`, refined test particles in `run_dir/denoised`.
# **Hardware**: two CPU cores; `make tutorial` prints a table of time and memory.

# %% jupyter={"source_hidden": true} tags=["long"]
import copy
import json
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.testing import assert_close

from cryonb.base.parameters import true_or_false
from cryonb.data.volumes import load_volume
from cryonb.denoisers.baselines import linear_filter, over_turns
from cryonb.denoisers.compare import Comparison
from cryonb.evaluation.metrics import mse, psnr
from cryonb.evaluation.resolution import frc
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.refine import Refiner, refine, refine_loss
from cryonb.learning.train import count_flops, draw_batch, flops_per_image, sr3_loss, train
from cryonb.learning.weights import load_kept, load_model, save_model
from cryonb.physics.fourier import radial_mean
from cryonb.showing.plotting import (
    grey_limits,
    say,
    say_table,
    show_rows,
    train_live,
    use_style,
)
from cryonb.simulation.dataset import open_dataset, write_denoised

use_style()

# %% tags=["parameters"]
source = "channel"  # channel, prestin, or a PDB, mmCIF or MRC file
box_size = 64  # pixels
pixel_size_A = 3.0  # Å per pixel
snr = 0.1  # variance of the clean images / variance of the white noise
structural = True  # refine the setting "structural" too, beside "white"
n_train = 2000  # particles that the diffusion model was trained on
n_validation = 1000  # particles it has not seen: the second stage is trained on these
n_test = 512  # particles that no network ever sees in training
refine_images = 6000  # images each U-Net sees
batch_size = 32  # images per training step
learning_rate = 1e-3  # of AdamW, at its highest
steps = 8  # network evaluations of the sampler whose output is refined
use_kept = True  # load weights that come with cryonb, where they fit these parameters
seed = 0  # of the data, the training and the sampler
run_dir = "runs/own"  # everything is written under it

# %%
structural, use_kept = map(true_or_false, (structural, use_kept))
run_dir = Path(run_dir)
volume = load_volume(source, box_size, pixel_size_A)
counts = {"train": n_train, "validation": n_validation, "test": n_test}
settings = ["white", "structural"] if structural else ["white"]
get = partial(open_dataset, volume=volume, counts=counts, source=source, snr=snr, seed=seed)
data = {s: get(run_dir / "data" / s, noise=s) for s in settings}
sigma = data["white"].sigma
options = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
first = {s: load_model(run_dir / "models" / f"{s}-sr3.safetensors", SR3)[0] for s in settings}


def draw_samples(model, split, n_steps, tag):
    """Denoise the noisy particles of a split, with a progress bar."""
    return denoise(model, split.noisy.images, sigma, n_steps, seed=seed, title=tag)


# %% [markdown]
# ## 1. What is left to do
#
# **Question.** The diffusion model's samples look like particles. What is wrong with them?
#
# **Idea.** Let $x$ be the noisy particle, $y_0$ the clean image behind it, $\hat y = E[y_0 \mid x]$ the
# posterior mean and $s$ a sample. Given $x$, the truth $y_0$ and the sample $s$ are two independent draws
# from the same distribution, so their squared distances from the mean add up:
#
# $$ E\lVert s - y_0\rVert^2 = E\lVert s - \hat y\rVert^2 + E\lVert y_0 - \hat y\rVert^2
#    = 2\, E\lVert y_0 - \hat y\rVert^2 . $$
#
# An exact sampler makes twice the smallest possible error, a loss of 3.01 dB. That is the price of
# sharpness, and the most that a second stage can gain if the sampler is exact. If it is not, there may be
# more to gain. First check the identity where everything is known: one Gaussian pixel of unit variance
# in noise of variance $\sigma^2$, whose posterior is Gaussian with mean $x/(1+\sigma^2)$ and variance
# $\sigma^2/(1+\sigma^2)$.

# %%
generator = torch.Generator().manual_seed(seed)
n = 400_000
y0 = torch.randn(n, generator=generator)
x = y0 + sigma * torch.randn(n, generator=generator)
mean, variance = x / (1 + sigma**2), sigma**2 / (1 + sigma**2)
s = mean + variance**0.5 * torch.randn(n, generator=generator)
error_mean, error_sample = (mean - y0).square().mean(), (s - y0).square().mean()
assert_close(error_mean, torch.tensor(variance), rtol=0.01, atol=0.0)  # 1 / sqrt(n) = 0.2 %
assert_close(error_sample, 2 * error_mean, rtol=0.02, atol=0.0)

test = data["white"].test
clean, noisy = test.clean.images, test.noisy.images
outputs = {s: {"noisy": data[s].test.noisy.images} for s in settings}
for setting in settings:
    for name, k in (("one step", 1), (f"{steps}-step sample", steps)):
        outputs[setting][name] = draw_samples(first[setting], data[setting].test, k, name)

error = {name: float(mse(images, clean).mean()) for name, images in outputs["white"].items()}
ratio = error[f"{steps}-step sample"] / error["one step"]
say(f"On our particles the sample has **{ratio:.2f}** times the error of one step.")

# %% [markdown]
# A ratio near 2 means that the sampler behaves as theory says. A smaller ratio means that its few steps
# have not brought back all the variance, and the "sample" is still partly an average. A larger ratio
# means that the first stage was trained too briefly, and every step adds errors of its own.
#
# ### How much of the 3 dB can a second stage have?
#
# Stay with the Gaussian pixel, and let $m = 1/(1+\sigma^2)$. The sample has the law of the truth, so its variance is
# 1; all that it shares with the truth came through the mean, $E[s\,y_0] = E[\hat y^2] = m$. The best answer to a
# sample *alone* is therefore $E[y_0 \mid s] = m\,s$, and its error is
#
# $$ 1 - m^2 = (1+m)(1-m), \qquad \text{that is } 1+m \text{ times the least error, } 1-m. $$
#
# So the paper's form, which sees the sample alone, gains the whole 3 dB only where noise is strong ($m \to 0$): then
# the sample holds hardly anything that the prior does not. Where noise is weak ($m \to 1$) it gains nothing. In an
# image each detail has an $m$ of its own, large for the coarse outline and small for what is fine.
#
# And if it sees the particle *too*? Given $x$, the sample is drawn without another look at the truth, so it adds
# nothing: $E[y_0 \mid s, x] = E[y_0 \mid x]$. With an exact sampler, a second stage that sees the particle **is a
# direct denoiser**, and might as well have been trained as one. We check both on the pixel; the regression on
# $(s, x)$ should give the sample no weight at all.

# %%
m = 1 / (1 + sigma**2)
assert_close((m * s - y0).square().mean(), (1 + m) * error_mean, rtol=0.01, atol=0.0)
weights = torch.linalg.lstsq(torch.stack([s, x], 1), y0[:, None]).solution.flatten()
assert_close(weights, torch.tensor([0.0, m]), rtol=0.0, atol=0.01)  # of the sample, of the particle
low = 0.5  # the same pixel in weaker noise
again = y0 + low * torch.randn(n, generator=generator)
drawn = again / (1 + low**2) + (low**2 / (1 + low**2)) ** 0.5 * torch.randn(n, generator=generator)
for level, sample_of in ((sigma, s), (low, drawn)):
    m, gain = 1 / (1 + level**2), (sample_of - y0).square().mean()
    gain = 10 * torch.log10(gain / (m * sample_of - y0).square().mean())
    print(f"σ = {level:.2f}: the sample alone can be improved by {gain:.2f} dB of 3.01 dB")

# %% [markdown]
# ## 2. The second stage
#
# **Question.** How do you train a network on the output of another?
#
# **Idea.** Give it the sample, ask for the clean image, penalise the squared error. Under squared error
# the best answer is the conditional mean, $E[y_0 \mid s]$: the U-Net averages over all truths for
# which the first stage could have drawn this sample. Two rules keep it honest:
#
# 1. **Held-out images.** On its own training images the diffusion model may do better than it ever will
#    again, and a second stage trained on them would learn to correct errors that are too small.
#    So we draw samples for the `validation` particles, which the first stage has not seen.
# 2. **Let it see everything.** A function of $s$ alone knows no more than $s$. A function of $(s, x)$ can
#    ignore $x$, so once well trained it is never worse: at best it is a direct denoiser, as derived above. The
#    paper describes the form that sees $s$ alone.
#
# Theory suggests a third form: if we want an average, why start from a sample? Feed the U-Net the
# *one-step estimate* and $x$. It starts from the first stage's best guess, and the first stage runs for
# one network evaluation instead of many. We train all three.
#
# The network predicts a *correction* that is added to its input image. Its last layer starts at zero, so
# before training it returns that image unchanged. Here is the loss, written out.

# %%
torch.manual_seed(seed)
tiny = Refiner("sample+noisy", widths=(32, 64), blocks=1, transformers=1)
torch.nn.init.normal_(tiny.unet.exit.weight, std=0.1)  # away from zero, for the sake of the check
sample4, clean4, noisy4 = (
    images[:4] for images in (outputs["white"][f"{steps}-step sample"], clean, noisy)
)
channels = torch.stack([sample4, noisy4 / (1 + sigma**2) ** 0.5], dim=1)  # (b, 2, y, x)
level = torch.full((4, 1), sigma).log()
correction = tiny.unet(channels, level)[:, 0]
mine = (sample4 + correction - clean4).square().mean()
cryonbs = refine_loss(tiny, (clean4, sample4, noisy4), 0.0, None, sigma=sigma)
assert_close(mine, cryonbs, rtol=1e-4, atol=1e-6)


# %%
def train_refiner(setting, inputs, fed):
    """Train a second stage on held-out images, with a live plot."""
    part, tag = data[setting].validation, f"{setting}-refine-{inputs.replace('+', '-')}-{fed}"
    torch.manual_seed(seed)
    return train_live(
        Refiner(inputs, widths=(64, 128), transformers=2),
        partial(draw_batch, (part.clean.images, held_out[setting, fed], part.noisy.images)),
        partial(refine_loss, sigma=sigma),
        refine_images,
        title=tag,
        checkpoint=run_dir / "models" / f"{tag}.checkpoint",
        **options,
    )


# %% mystnb={"image": {"alt": "Loss curves of the second stage, one for each setting and form"}}
held_out, refiners = {}, {}
sampled, both = f"{steps}-step sample", "sample+noisy"
forms = {
    "sample": ("sample", steps),
    "sample + noisy": (both, steps),
    "one step + noisy": (both, 1),
}
for setting in settings:
    for k in (1, steps):
        split = data[setting].validation
        held_out[setting, k] = draw_samples(first[setting], split, k, f"held out, {k} steps")
    for form, (inputs, k) in forms.items():
        model = train_refiner(setting, inputs, k)
        fed = outputs[setting]["one step" if k == 1 else sampled]
        refined = refine(model, fed, data[setting].test.noisy.images, sigma)
        outputs[setting][f"refined, sees {form}"], refiners[setting, form] = refined, model
    manifest = {"source": source, "snr": snr, "setting": setting, "images": refine_images}
    save_model(run_dir / "models" / f"{setting}-refine.safetensors", model, manifest)

# %% [markdown]
# Each curve starts at the error of what the U-Net is fed and should fall from there. A curve that stays
# level has found nothing to correct.
#
# ## 3. The same cost, spent on the first stage
#
# **Question.** Would the work have been better spent on the diffusion model itself?
#
# The paper trains SR3 for 200 epochs and then a U-Net, instead of SR3 alone for 5,000 epochs, and
# states nearly twelve times less training time. It leaves out a control that is easy to add: let the
# diffusion model train on from its own weights at the cost of the second stage (held-out estimates
# included), and take *one step*, which needs no second stage at all. We count cost in floating-point
# operations and not in seconds: a busy machine or a break changes seconds, and would change the result.


# %% mystnb={"image": {"alt": "Loss of the diffusion model while it trains on"}}
def training_cost(model, stacks, loss):
    """Floating-point operations that one image costs in training, forward and back."""
    draw = partial(draw_batch, stacks)
    return flops_per_image(lambda *m: train(*m, draw, loss, 10**6, **options), model, model)


part, held = data["white"].train, data["white"].validation
model, second = copy.deepcopy(first["white"]).train(), refiners["white", "one step + noisy"]
stacks, loss = (part.clean.images, part.observed), partial(sr3_loss, sigma=sigma, snr_start=snr)
fed = held.clean.images, held_out["white", 1], held.noisy.images
one_image = held.noisy.images[:1]
estimates = len(data["white"].validation.clean) * count_flops(
    lambda: denoise(model, one_image, sigma)
)
budget = estimates + refine_images * training_cost(second, fed, partial(refine_loss, sigma=sigma))
n_images = round(budget / training_cost(model, stacks, loss))  # what the budget buys
slower = options | {"learning_rate": learning_rate / 2, "seed": seed + 1}
title, draw = "diffusion model, continued", partial(draw_batch, stacks)
longer = train_live(model, draw, loss, n_images, title=title, every=0.5, **slower)
for name, k in (("one step, trained longer", 1), (f"{steps}-step sample, trained longer", steps)):
    outputs["white"][name] = draw_samples(longer, test, k, name)
print(
    f"second stage: {budget / 1e12:.2f} TFLOP; that buys the diffusion model {n_images} images more"
)

# %% [markdown]
# ## 4. Results
#
# The tables also hold, where they fit, the weights that come with cryonb: both stages, trained by
# `cryonb train` on many more images.
#
# One more row needs no training. Turn or mirror a particle image and it is just as likely as before, so
# the best denoiser $D$ must commute with such a turn $T$: $D(Tx) = T D(x)$. A trained network does so
# only roughly. So we denoise all eight turned and mirrored copies, turn them back, and average
# (`over_turns`): the part of the error that depends on how the particle lies in its box averages out.


# %%
def turned(model, setting):
    """One-step estimate of the test particles, averaged over turns and mirror images."""
    return over_turns(partial(denoise, model, sigma=sigma), data[setting].test.noisy.images)


made = dict(box_size=box_size, pixel_size_A=pixel_size_A, snr=snr)
for setting in settings:
    outputs[setting]["one step over turns"] = turned(first[setting], setting)
    where, part = (Path(source).stem, setting), data[setting].test
    kept = load_kept(*where, "sr3", SR3, **made), load_kept(*where, "refine", Refiner, **made)
    if not use_kept or None in kept:
        continue
    print(f"found pretrained weights for {setting}, loading")
    (model, _), (second, _) = kept
    outputs[setting]["one step, kept"] = draw_samples(model, part, 1, "kept, one step")
    outputs[setting]["one step over turns, kept"] = turned(model, setting)
    images = draw_samples(model, part, steps, "kept, sample")
    outputs[setting][f"{steps}-step sample, kept"] = images
    fed = outputs[setting]["one step, kept"]  # the kept second stage is of the third form
    outputs[setting]["refined, kept"] = refine(second, fed, part.noisy.images, sigma)

# %%
scores = {}
for setting in settings:
    part, train_set = data[setting].test, data[setting].train
    same = train_set.clean.images if setting == "white" else train_set.observed
    filtered = linear_filter(train_set.clean.images, same, sigma)(part.noisy.images)
    first_rows = {"noisy": part.noisy.images, "best linear filter": filtered}
    outputs[setting] = first_rows | outputs[setting]
    table = Comparison(data[setting])
    for name, images in outputs[setting].items():
        table.score(name, images)
    scores[setting] = table.rows
    say(
        f"**{setting}, SNR {snr:g}, {len(data[setting].test.clean)} test particles**\n\n{table.markdown()}"
    )

# %% mystnb={"image": {"alt": "Strips of test particles: noisy, sample, refined, clean"}}
for setting, images in outputs.items():
    refined = [n for n in ("refined, kept", "refined, sees one step + noisy") if n in images][0]
    wanted = ["noisy", "best linear filter", sampled, f"{sampled}, kept", refined]
    wanted = [name for name in wanted if name in images]
    strips = {name: images[name][:6] for name in wanted}
    strips["clean"] = data[setting].test.clean.images[:6]
    limits = {n: grey_limits(strips["clean"]) for n in strips if n != "noisy"}
    figure = show_rows(strips, limits=limits, title=f"Test particles, {setting}, SNR {snr:g}")
    (run_dir / "figures").mkdir(exist_ok=True)
    figure.savefig(run_dir / "figures" / f"denoised-{setting}.png")
    plt.show()

# %%
dB = {name: s["psnr_dB"] for name, s in scores["white"].items()}
sample_dB, one_dB = dB[f"{steps}-step sample"], dB["one step"]
alone_dB, both_dB = dB["refined, sees sample"], dB["refined, sees sample + noisy"]
third_dB, longer_dB = dB["refined, sees one step + noisy"], dB["one step, trained longer"]
gain, even = third_dB - longer_dB, "neither used the work better"
winner = "the second stage" if gain > 0 else "training the first stage longer"
verdict = f"{winner} used the work better, by {abs(gain):.2f} dB" if abs(gain) > 0.05 else even
say(
    f"Refinement takes the sample from {sample_dB:.2f} dB to **{alone_dB:.2f} dB** when it sees the "
    f"sample alone, as in the paper, and to **{both_dB:.2f} dB** when it sees the particle too. One "
    f"step of the same diffusion model, with no second stage, reaches {one_dB:.2f} dB; refined, it "
    f"reaches **{third_dB:.2f} dB**; trained longer, at the cost of that stage, {longer_dB:.2f} dB. In "
    f"this run **{verdict}**."
)

# %% [markdown]
# A lead of a few hundredths of a dB is a tie. Three things stand out in the tables. First, the gain over the
# *sample* is real, as theory promised: a second stage removes variance that sampling added. Second, the
# fair rival is not the sample but *one step* of the same first stage, which adds no such variance;
# compare each refined row with it, and remember this when a paper compares refined images with raw
# samples. Third, the form matters: a second stage starts from the image it is fed, and from a good one it
# may find little to correct.
#
# The pictures agree: a sample is crisp and wrong in detail, the refined image is smoother.
#
# ## 5. What it did to the image
#
# **Question.** Which detail did refinement remove: only wrong detail, or true detail as well?
#
# At each spatial frequency, we compare the power with that of the truth, and measure the correlation with
# the truth (Fourier ring correlation, averaged over 64 test images).

# %% mystnb={"image": {"alt": "Power and correlation with the truth against spatial frequency"}}
names = ["one step", sampled, *(f"refined, sees {form}" for form in forms)]


def power(images):
    """Mean power spectrum by ring."""
    return radial_mean(torch.fft.rfft2(images).abs().square(), box_size, dims=2).mean(0)


fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3))
for name in names:
    images = outputs["white"][name]
    curves = [frc(a, b, pixel_size_A) for a, b in zip(images[:64], clean[:64], strict=True)]
    frequency = curves[0][0]
    left.plot(frequency, power(images) / power(clean), label=name)
    right.plot(frequency, torch.stack([value for _, value in curves]).mean(0), label=name)
left.axhline(1, color="0.6", lw=0.8, ls="--")
left.set(xlabel="spatial frequency (1/Å)", ylabel="power / power of truth", ylim=(0, 1.5))
right.set(xlabel="spatial frequency (1/Å)", ylabel="correlation with truth")
left.set_title("How much detail")
right.set_title("How much of it is true")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# On the left you see how much detail is drawn, on the right how much of it is true. A sample draws as much fine
# detail as the truth has (and far more, off the plot, while the first stage is barely trained), yet at high
# frequency it correlates with the truth no better for it. An image of minimum mean squared error (MMSE), such as
# the one-step estimate, draws less where less is known. When people say that "MMSE images are blurred", this is
# the blur: an honest statement of ignorance. Where a refined curve has power but no correlation, the U-Net still
# lets noise of the sample through; where it hides "one step", the second stage has changed nothing.
#
# ## 6. Try to break it
#
# This second stage was trained on samples of *this* diffusion model with *this* number of steps. Feed it
# something else: a sample drawn in two steps, the one-step mean, the noisy image itself.

# %%
model = refiners["white", "sample + noisy"]
feeds = {
    f"{steps}-step sample (as trained)": outputs["white"][f"{steps}-step sample"],
    "2-step sample": draw_samples(first["white"], test, 2, "2 steps"),
    "one-step mean": outputs["white"]["one step"],
    "noisy image": noisy,
}
broken = {}
for name, images in feeds.items():
    after = float(psnr(refine(model, images, noisy, sigma), clean).mean())
    broken[name] = float(psnr(images, clean).mean()), after
say_table(["fed with", "before (dB)", "after (dB)"], [(name, *dB) for name, dB in broken.items()])

# %% [markdown]
# A second stage is a specialist: it corrects the errors it was trained on. In any row where "after" is below
# "before", it did harm. If you change the sampler, train the refinement again.
#
# ## 7. Exercises
#
# ```{exercise}
# :label: ex-refine-average
# *Easy, 10 minutes.*
# **No training at all.** Average four samples with different seeds and compare them with the refined
# image. How many samples does theory ask for to come within 0.5 dB of the posterior mean?
# ```
#
# ````{solution-start} ex-refine-average
# :class: dropdown
# ````
# The mean of $K$ exact samples has $1 + 1/K$ times the minimum error. Four samples stay 1 dB short of the
# posterior mean; nine come within 0.5 dB. Averaging costs $K$ samplings for every image; a second stage
# costs its training once.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
few = noisy[:64]
draws = [denoise(first["white"], few, sigma, steps, seed=s) for s in range(4)]
averaged = torch.stack(draws).mean(0)
for name, images in {"one sample": draws[0], "mean of four": averaged}.items():
    print(f"{name}: {float(psnr(images, clean[:64]).mean()):.2f} dB")
refined64 = outputs["white"]["refined, sees sample + noisy"][:64]
print(f"refined: {float(psnr(refined64, clean[:64]).mean()):.2f} dB")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-refine-split
# *Easy, 10 minutes.*
# **The held-out rule.** Compare the PSNR of samples on `train` particles (which the first stage has
# seen) with that on `validation` particles. Did the rule matter here?
# ```
#
# ````{solution-start} ex-refine-split
# :class: dropdown
# ````
# A higher PSNR on `train` means that the first stage remembers its training particles. With few epochs,
# fresh noise in every step, and turned and mirrored copies, there should be hardly a gap. Expect one after
# hours of training on a hundred particles.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for name in ("train", "validation"):
    part = getattr(data["white"], name)
    out = denoise(first["white"], part.noisy.images[:256], sigma, steps)
    print(f"{name}: {float(psnr(out, part.clean.images[:256]).mean()):.2f} dB")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-refine-mix
# *Medium, 10 minutes.*
# **Mix them.** Average the one-step estimate and the image refined from the sample, giving the latter a share
# from 0 to 1. Where is the best mix? What does it mean if that is at one of the ends?
# ```
#
# ````{solution-start} ex-refine-mix
# :class: dropdown
# ````
# Along the line between two estimates, the mean squared error is a parabola. Its minimum lies inside if each of
# the two is right about something the other has missed, and at an end if the other estimate has nothing to
# add. Mixing costs no training, so it is one more control to compare a second stage with.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
ends = outputs["white"]["one step"], outputs["white"]["refined, sees sample"]
for share in (0.0, 0.25, 0.5, 0.75, 1.0):
    mixed = (1 - share) * ends[0] + share * ends[1]
    print(f"{share:.2f} refined: MSE {float(mse(mixed, clean).mean()):.4f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** A paper shows that its second stage improves the samples of a diffusion model by 3 dB. That is
#
# ```{dropdown} (a) a proof that the second stage knows more
# **No.** Averaging samples, which knows nothing more, does the same.
# ```
# ```{dropdown} (b) no more than averaging samples would bring
# **Right.** An exact sample has twice the smallest possible error. Any method that brings it back to the mean
# gains 3 dB without adding knowledge; with an inexact sampler there may be more to gain.
# ```
# ```{dropdown} (c) impossible
# **No.** Half the error is 3 dB, and a sample has twice the error of the mean.
# ```
#
# **2.** Why is the second stage trained on particles that the first has not seen?
#
# ```{dropdown} (a) to have more data
# **No.** It has less: what is held out is lost to the first stage.
# ```
# ```{dropdown} (b) because the first stage may err less on its own training particles
# **Right.** Otherwise the second would learn to correct errors smaller than those it will meet.
# ```
# ```{dropdown} (c) to save time
# **No.** Drawing samples of them takes time.
# ```
#
# **3.** A well-trained refined image has less power at high frequency than the truth. This is
#
# ```{dropdown} (a) a defect: the image should be sharpened
# **No.** That raises the power but not the correlation with the truth.
# ```
# ```{dropdown} (b) honest: detail that is not known is left out
# **Right.** The best answer in squared error leaves out what is not known.
# ```
# ```{dropdown} (c) proof that the U-Net is too small
# **No.** Even a perfect network would show the same loss of power.
# ```
#
# ## Recap
#
# - An exact sample has twice the minimum error; a U-Net trained by squared error removes the excess, all of it only
#   where noise is strong or where it sees the particle too, and then it is a direct denoiser.
# - Train it on held-out images, let it see the noisy particle too, and mind which image it starts from.
# - The fair rival of two stages is the first stage's posterior mean at equal cost: always show it.
# - A second stage fits one sampler.
#
# **Next**: [04](04_compare_methods.ipynb) puts every method beside the best possible one.
#
# **References.** Zhang, Zhao, Hu, Zhao, ICASSP 2024, arXiv 2401.01097 · Blau and Michaeli 2018, CVPR,
# 6228 (perception and distortion) · Ronneberger, Fischer, Brox 2015, MICCAI, 234 (U-Net).

# %%
for setting, images in outputs.items():
    name = "refined, kept" if "refined, kept" in images else "refined, sees one step + noisy"
    write_denoised(run_dir / "denoised" / setting, "refined", data[setting], images[name])
for finished in (run_dir / "models").glob("*-refine-*.checkpoint"):
    finished.unlink()
shown = [sampled, "one step", "refined, sees one step + noisy", "refined, kept"]
results = {f"{name} (dB)": round(dB[name], 2) for name in shown if name in dB}
results |= {"refine_tflop": budget / 1e12, "sample_error_ratio": ratio}
for setting, rows in scores.items():
    results |= {f"{setting}: {n} {k}": v for n, s in rows.items() for k, v in s.items()}
(run_dir / "results").mkdir(exist_ok=True)
(run_dir / "results" / "03_refine_unet.json").write_text(json.dumps(results, indent=1))
