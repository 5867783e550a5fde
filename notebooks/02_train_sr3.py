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
# # Train a diffusion model that finds the particle
#
# ```text
#   forward, known:      clean particle  ──►  a little noise  ──►  …  ──►  pure noise
#                             y₀                  y_t                          y_T
#   reverse, learnt:     clean particle  ◄──  a little noise  ◄──  …  ◄──  pure noise
#                                                ▲                 ▲
#                                     at every step the network looks at x, the noisy particle
# ```
#
# You will build SR3, a *conditional diffusion model*, train it on pairs of noisy and clean particles,
# and watch it pull particles out of noise with ten times their variance.
#
# ## You will learn
#
# - to **write down** the forward process and jump to any step of it in one line;
# - to **derive** what a network should predict, and to **measure** what happens when it predicts
#   the wrong thing;
# - to **train** a model from high to low signal-to-noise ratio (SNR), and to resume an interrupted run;
# - to **run** the reverse process with many steps, few steps, and one;
# - to **recognise** what the model shows you when there is nothing to see.
#
# ## Before you start
#
# | concept | need | where |
# |---|---|---|
# | what a particle image is, SNR, our units | necessary | `00_start_here`, `01_simulate` |
# | training a neural network by gradient descent | necessary | any deep-learning course |
# | normal distribution, variance, weighted mean | necessary | any statistics course |
# | U-Net, attention | helpful | Ronneberger 2015; Vaswani 2017 |
#
# **Inputs**: the data sets of `01_simulate` (made here if they are missing). **Outputs**: weights in
# `run_dir/models`, denoised test particles in `run_dir/denoised`. **Hardware**: two CPU cores are
# enough at the sizes `quick` and `workshop`; `make tutorial` prints a table with the time and memory
# the last run took.

# %% jupyter={"source_hidden": true} tags=["long"]
import copy
import json
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.testing import assert_close
from tqdm.auto import tqdm

from cryonb.base.parameters import true_or_false
from cryonb.data.fetch import fetch
from cryonb.data.particle_file import stream_particles
from cryonb.data.volumes import load_volume
from cryonb.denoisers.baselines import linear_filter
from cryonb.denoisers.compare import Comparison
from cryonb.evaluation.metrics import mse, psnr
from cryonb.learning import diffusion
from cryonb.learning.diffusion import SR3, denoise, sample
from cryonb.learning.train import draw_batch, sr3_loss, train
from cryonb.learning.unet import ResidualBlock
from cryonb.learning.weights import MANY, load_kept, load_model, save_model
from cryonb.showing.plotting import grey_limits, say, say_table, show_rows, train_live, use_style
from cryonb.showing.widgets import frame_viewer
from cryonb.simulation.dataset import open_dataset, write_denoised
from cryonb.simulation.masks import micelle

use_style()

# %% tags=["parameters"]
source = "channel"  # channel, prestin, or a PDB, mmCIF or MRC file
box_size = 64  # pixels
pixel_size_A = 3.0  # Å per pixel
snr = 0.1  # variance of the clean images / variance of the white noise
structural = True  # train for the setting "structural" too, beside "white"
n_train = 2000  # particles for training
n_validation = 1000  # particles kept apart for the second stage
n_test = 512  # particles that no network ever sees in training
train_images = 10000  # images the model sees, each with fresh noise; half as many for "structural"
compare_images = 1000  # images that each of the six short runs of section 4 sees
batch_size = 32  # images per training step
learning_rate = 1e-3  # of AdamW, at its highest
steps = 8  # network evaluations of the sampler
use_kept = True  # load weights that come with cryonb, where they fit these parameters
real_entries = False  # draw the paper's Fig. 1 from its own entries; needs a network, 100 MB once
seed = 0  # of the data, the training and the sampler
run_dir = "runs/own"  # everything is written under it

# %% [markdown]
# ## 1. The data, and a line to beat
#
# **Question.** How well can you denoise without any deep learning?
#
# We load the particles of `01_simulate`: clean projections $y_0$ of the molecule (unit variance over
# the data set), and the images the detector records, $x = y_0 + \text{structure} + \sigma n$. Here $n$
# is white noise of unit variance and $\sigma = 1/\sqrt{\mathrm{SNR}}$; in the setting `white` there is no
# structure, in `structural` it is micelle, neighbours, ice and carbon. The line to beat is the
# *best linear filter*: given the covariance of the clean images, no other matrix applied to an image
# has a lower mean squared error. The covariance Wiener filter (CWF), a strong classical method,
# estimates it from noisy images (`04_compare_methods`).

# %% mystnb={"image": {"alt": "Six noisy test particles, the output of the best linear filter, and the clean particles"}}
structural, use_kept, real_entries = map(true_or_false, (structural, use_kept, real_entries))
run_dir = Path(run_dir)
volume = load_volume(source, box_size, pixel_size_A)
counts = {"train": n_train, "validation": n_validation, "test": n_test}
settings = ["white", "structural"] if structural else ["white"]
data, linear, scores = {}, {}, {}
for name in settings:
    made = {"source": source, "snr": snr, "seed": seed, "noise": name}
    data[name] = open_dataset(run_dir / "data" / name, volume, counts, **made)
    train_set = data[name].train
    same = train_set.clean.images if name == "white" else train_set.observed
    linear[name] = linear_filter(train_set.clean.images, same, data[name].sigma)
white, sigma = data["white"].test, data["white"].sigma

first = white.noisy.images[:6]
strips = {"noisy x": first, "best linear filter": linear["white"](first)}
strips["clean y₀"] = white.clean.images[:6]
figure = show_rows(strips, title=f"What linear filtering can do at SNR {snr:g}")

# %% [markdown]
# The filter finds the position and the rough outline and blurs everything else, because one matrix
# has to serve every orientation. A better method must first *recognise* the orientation and then
# draw the matching view. That task is non-linear, and it is why we use a network.
#
# ### Where the paper starts (its Fig. 1)
#
# The paper starts from particles in strong noise and from a map that shows more than the protein: EMPIAR-10081 and
# EMD-8511, the channel HCN1, whose atomic model is 5U6O. With `real_entries` the figure is made of these three, otherwise
# of our stand-ins: a simulated particle, the molecule with its micelle, and the molecule.


# %% mystnb={"image": {"alt": "Two noisy particles; a slice and a projection of the map with what is no protein, and of the model alone"}}
def entries():
    """Particles of EMPIAR-10081 (n, y, x), and the maps of EMD-8511 and 5U6O, at our pixel size."""
    star = fetch("EMPIAR-10081", max_images=8)
    particles = next(stream_particles(star, batch_size=8)).resampled(box_size)
    maps = (load_volume(name, box_size, pixel_size_A).map for name in ("EMD-8511", "5U6O"))
    return particles.images, *maps


origin, starts = "stand-ins", (white.noisy.images, volume.map + micelle(volume), volume.map)
if real_entries:
    try:
        starts, origin = entries(), "EMPIAR-10081, EMD-8511 and 5U6O"
    except (OSError, ValueError) as problem:
        say(f"The entries cannot be had ({problem}): stand-ins take their place.")
particles, *maps = starts
images = [*particles[:2], *(v[:, box_size // 2].flip(0) for v in maps), *(v.sum(0) for v in maps)]
columns = ["particle", "particle", "map, y = 0", "model, y = 0", "map, along z", "model, along z"]
strip = torch.stack([x / x.std() for x in images])
figure = show_rows({"": strip}, columns=columns, title=f"Where the paper starts: {origin}")

# %% [markdown]
# From left to right: what a denoiser gets, what a reconstruction shows, and what the network is to answer with. In the
# map there is density around the protein that the model does not have, the belt of detergent. The paper counts it as
# structural noise and removes it from the map before it projects its clean images (`09_clean_a_map`).
#
# ## 2. The forward process
#
# **Question.** How do we turn a particle into pure noise so slowly that each step can be undone?
#
# **Idea.** Shrink the image a little, mix in a little Gaussian noise $\varepsilon_t$ of unit variance,
# and repeat; $\beta_t$ says how much noise step $t$ adds:
#
# $$ y_t = \sqrt{1-\beta_t}\; y_{t-1} + \sqrt{\beta_t}\;\varepsilon_t, \qquad t = 1 \dots T. $$
#
# A sum of Gaussians is Gaussian, so all steps up to $t$ collapse into one. With
# $\gamma_t = \prod_{s\le t} (1-\beta_s)$,
#
# $$ y_t = \sqrt{\gamma_t}\; y_0 + \sqrt{1-\gamma_t}\;\varepsilon . $$
#
# $\gamma$ runs from 1 (clean) to nearly 0 (noise), and it is all you need to know about a step. We use
# the schedule of SR3 (Saharia et al. 2021), $T=2000$ and $\beta$ rising linearly from $10^{-6}$ to
# $10^{-2}$. To check the collapse, follow the variance of the signal and of the noise step by step.

# %% mystnb={"image": {"alt": "One particle at six steps of the forward process, from clean to pure noise"}}
betas = torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)
signal, noise = 1.0, 0.0  # variances carried by y_0 and by noise
for beta in betas:
    signal, noise = (1 - beta) * signal, (1 - beta) * noise + beta
gammas = torch.cumprod(1 - betas, 0)
assert_close(gammas[-1], signal)  # the product of (1 - beta) is the signal that is left ...
assert_close(1 - gammas[-1], noise)  # ... and the rest is noise

generator = torch.Generator().manual_seed(seed)
y0 = white.clean.images[0]
eps = torch.randn(y0.shape, generator=generator)
shown = [1.0, 0.9, 0.5, 0.1, 0.01, float(gammas[-1])]
frames = torch.stack([g**0.5 * y0 + (1 - g) ** 0.5 * eps for g in shown])
figure = show_rows({"y_t": frames}, columns=[f"γ = {g:.2g}" for g in shown], limits=(-3, 5))

# %% [markdown]
# At γ = 0.1 the signal holds a tenth of the variance and the noise nine tenths, which is close to the
# SNR 0.1 of our *data*. A cryo-EM particle looks as if somebody had run the forward process on it and
# left out the shrinking. The next section puts this observation to use.
#
# ## 3. Two noisy views of one particle
#
# **Question.** At step $t$ the network gets two images: the noisy particle $x = y_0 + \sigma n$ and
# the state $y_t$. What do the two tell it together?
#
# **Idea.** Divide the state by $\sqrt\gamma$: $z = y_t/\sqrt\gamma = y_0 + \sigma_t\,\varepsilon$ with
# $\sigma_t^2 = (1-\gamma)/\gamma$. So $x$ and $z$ are two measurements of the same $y_0$ with
# independent Gaussian errors, and we average them as one averages any two measurements, weighted by
# their inverse variances:
#
# $$ c = \frac{x/\sigma^2 + z/\sigma_t^2}{1/\sigma^2 + 1/\sigma_t^2}, \qquad
#    \frac{1}{\sigma_c^2} = \frac{1}{\sigma^2} + \frac{1}{\sigma_t^2}. $$
#
# With white noise nothing is lost: the posterior of $y_0$ (its distribution once $x$ and $y_t$ are
# known) depends on them through $c$ alone. So **the conditional diffusion model of the paper is one
# denoiser, $E[y_0 \mid c]$, for every noise level up to $\sigma$.** We therefore give the network $c$. We
# also give it $x$ again, because with structural noise $x$ holds information that $c$ has averaged away.

# %% mystnb={"image": {"alt": "The noisy particle x, the rescaled state z, their weighted mean c, which is cleaner than both, and the truth"}}
gamma = torch.tensor(0.2)
x = y0 + sigma * torch.randn(y0.shape, generator=generator)
y_t = gamma.sqrt() * y0 + (1 - gamma).sqrt() * eps
z, sigma_t = y_t / gamma.sqrt(), ((1 - gamma) / gamma).sqrt()
precision = 1 / sigma**2 + 1 / sigma_t**2
c, sigma_c = (x / sigma**2 + z / sigma_t**2) / precision, precision**-0.5
mine, cryonbs = (c, sigma_c), diffusion.fuse(y_t, gamma, x, torch.tensor(sigma))
assert_close(mine, cryonbs, rtol=1e-5, atol=1e-5)
names = [f"x, σ = {sigma:.2f}", f"z, σ_t = {sigma_t:.2f}", f"c, σ_c = {sigma_c:.2f}", "y₀"]
figure = show_rows({"": torch.stack([x, z, c, y0])}, columns=names, limits=(-4, 6))

# %% [markdown]
# The fused image $c$ is cleaner than either $x$ or $z$, though here $x$ adds only a little to $z$.
#
# ## 4. What to ask the network for
#
# **Question.** The published model predicts the noise $\varepsilon$ and is trained on
# $\lVert \hat\varepsilon(x, y_t, \gamma) - \varepsilon\rVert^2$ (eq. 3 of the paper). Is noise the right
# thing to ask for? (The paper writes the norm without a square, and calls γ the variance of the added noise; in
# its own eq. 3 that variance is $1-\gamma$. We follow the equation, and square the norm.)
#
# Let $F$ be the output of the network. Whatever we ask for, the clean image is *base + scale · F*:
#
# | asked for | base | scale |
# |---|---|---|
# | the noise $\varepsilon$ | $y_t/\sqrt\gamma$ | $-\sqrt{(1-\gamma)/\gamma}$ |
# | a mixture, $v = \sqrt\gamma\,\varepsilon - \sqrt{1-\gamma}\,y_0$ | $\sqrt\gamma\,y_t$ | $-\sqrt{1-\gamma}$ |
# | the clean image $y_0$, as a correction to $c$ | $c/(1+\sigma_c^2)$ | $\sigma_c/\sqrt{1+\sigma_c^2}$ |
#
# The first row solves the forward equation for $y_0$. Any error of the network is multiplied by the scale; at the
# sampler's first step, γ has the last value of the figure in section 2, and the scale is about 150. The second row
# follows by putting the forward equation into $\sqrt\gamma\,y_t - \sqrt{1-\gamma}\,v$ (Salimans and Ho 2022); its
# scale never exceeds 1. In the third, $c/(1+\sigma_c^2)$ is the best linear guess from *one pixel alone*, with noise
# $\sigma_c$ and a signal of unit variance, and the network fills in the rest (Karras et al. 2022). In all three the
# target of $F$ has unit variance. For $v$ and $y_0$ the very first step, from pure noise, estimates $E[y_0 \mid x]$:
# the *posterior mean*, the best possible answer in mean squared error.
#
# Here are the first two rows as variants of `SR3`, whose own is the third, and its loss, written out once.


# %%
class AskForNoise(SR3):
    """Published: the network predicts eps."""

    def base_and_scale(self, y_t, gamma, noisy, sigma):
        return y_t / gamma.sqrt(), -((1 - gamma) / gamma).sqrt()


class AskForMixture(SR3):
    """The network predicts v."""

    def base_and_scale(self, y_t, gamma, noisy, sigma):
        return gamma.sqrt() * y_t, -(1 - gamma).sqrt()


# %%
torch.manual_seed(seed)
tiny = SR3(widths=(32, 64), blocks=1, transformers=1)
clean, observed = (images[:4] for images in (white.clean.images, white.observed))
level = torch.full((4, 1, 1, 1), sigma)
gamma = diffusion.draw_gamma(4, sigma, torch.Generator().manual_seed(1)).view(-1, 1, 1, 1)

g = torch.Generator().manual_seed(2)
eps, n = (torch.randn(4, 1, box_size, box_size, generator=g) for _ in range(2))
y_t = gamma.sqrt() * clean[:, None] + (1 - gamma).sqrt() * eps  # forward process, one line
noisy = observed[:, None] + level * n
c, sigma_c = diffusion.fuse(y_t, gamma, noisy, level)
inputs = torch.cat([c / (1 + sigma_c**2).sqrt(), noisy / (1 + level**2).sqrt()], dim=1)
F_out = tiny.unet(inputs, torch.cat([sigma_c, level], dim=1).flatten(1).log())
wanted = (clean[:, None] - c / (1 + sigma_c**2)) * (1 + sigma_c**2).sqrt() / sigma_c
mine = (F_out - wanted).square().mean()
g = torch.Generator().manual_seed(2)
assert_close(mine, tiny.loss(clean, observed, gamma.flatten(), sigma, g), rtol=1e-4, atol=1e-5)
v = gamma.sqrt() * eps - (1 - gamma).sqrt() * clean[:, None]
for variant, wanted in ((AskForNoise, eps), (AskForMixture, v)):
    base, scale = variant.base_and_scale(None, y_t, gamma, noisy, level)
    assert_close((clean[:, None] - base) / scale, wanted, rtol=1e-3, atol=1e-3)

# %% [markdown]
# ### The network's block
#
# The network is a U-Net. It folds each 4 × 4 square of pixels into channels, because layers at full
# resolution would take most of the time to look at noise. It works at two
# resolutions with convolutions, and at the coarser one lets all patches attend to each other, since
# every part of the image carries information about the orientation. The network must also know how
# noisy its input is, so each block normalises its channels and then scales and shifts them by numbers
# computed from the noise level. That is all there is to a *conditional* block: look for `scale`.

# %%
block = ResidualBlock(16, 16, embedding=8)
torch.nn.init.normal_(block.conv2.weight, std=0.1)  # it starts at zero, as identity; not for a test
h, embedding = torch.randn(2, 16, 8, 8), torch.randn(2, 8)
silu, norm = torch.nn.functional.silu, torch.nn.functional.group_norm
inner = block.conv1(silu(norm(h, 8, block.norm1.weight, block.norm1.bias)))
scale, shift = block.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
inner = norm(inner, 8, block.norm2.weight, block.norm2.bias) * (1 + scale) + shift
assert_close(h + block.conv2(silu(inner)), block(h, embedding))

# %% [markdown]
# ### From easy to hard
#
# One more thing decides whether minutes of training are enough. At SNR 0.1 a fresh network finds
# nothing to hold on to, and for a long while it learns little more than the average image. At SNR 3 it
# sees the particle at once. So we train with a *curriculum*: over the first 60 % of the run the largest
# noise level grows geometrically from SNR 3 to the target, and the network keeps what it has learnt.
#
# `cryonb.learning.train.train` is a generator: it takes one step and hands control back, and the
# caller decides what to print or plot (here `train_live` draws the loss and an example). It keeps an
# exponential moving average of the weights, which is steadier than the latest weights, and writes a
# checkpoint once a minute: if you interrupt this cell and run it again, it continues where it stopped.
#
# Now we ask in all three ways, with and without the curriculum. Everything else is equal: the network, what it sees
# ($c$, $x$ and their noise levels, scaled to unit variance), the images, the noise and the levels γ that are drawn.

# %%
test_images, clean64 = white.noisy.images[:64], white.clean.images[:64]


def run(model, noisy, k, tag="", **options):
    """Denoise a stack in k steps, with a progress bar if it has a tag."""
    return denoise(model, noisy, sigma, k, title=tag, **options)


def train_sr3(model, setting, n_images, tag, snr_start=3.0, rate=learning_rate):
    """Train on one setting, with a live plot; returns the averaged model."""
    part, one = data[setting].train, data[setting].test
    show = partial(run, noisy=one.noisy.images[:1], k=1)
    return train_live(
        model,
        partial(draw_batch, (part.clean.images, part.observed)),
        partial(sr3_loss, sigma=sigma, snr_start=snr_start),
        n_images,
        title=tag,
        examples=lambda a: {"denoised now": show(a)[0], "clean": one.clean.images[0]},
        checkpoint=run_dir / "models" / f"{tag}.checkpoint",
        **{"batch_size": batch_size, "learning_rate": rate, "seed": seed},
    )


# %%
forms = {"noise": AskForNoise, "mixture": AskForMixture, "clean image": SR3}
few, truth = test_images[:48], clean64[:48]
part = data["white"].train
draw = partial(draw_batch, (part.clean.images, part.observed))
asked = {}
for (name, build), curriculum in tqdm([*product(forms.items(), (False, True))], desc="short runs"):
    torch.manual_seed(seed)
    model = build()
    average = copy.deepcopy(model)
    loss = partial(sr3_loss, sigma=sigma, snr_start=3.0 if curriculum else snr)
    options = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    for _ in train(model, average, draw, loss, compare_images, **options):
        pass
    for k in (1, steps):
        asked[name, curriculum, k] = float(psnr(run(average.eval(), few, k), truth).mean())

# %%
columns = ["asked for", "curriculum", "one step (dB)", f"{steps} steps (dB)"]
rows = [
    (f, "yes" if c else "no", asked[f, c, 1], asked[f, c, steps])
    for f in forms
    for c in (False, True)
]
say_table(
    columns, rows, f"PSNR after {compare_images} images; noisy: {psnr(few, truth).mean():.1f} dB"
)
gain = {f: asked[f, True, 1] - asked[f, False, 1] for f in forms}
over_noise = asked["clean image", True, 1] - asked["noise", True, 1]
over_mixture = asked["clean image", True, 1] - asked["mixture", True, 1]
say(
    f"In one step and with the curriculum, asking for the clean image instead of the noise is worth "
    f"**{over_noise:.1f} dB**, instead of the mixture **{over_mixture:.1f} dB**. The curriculum by itself is "
    f"worth {gain['noise']:.1f}, {gain['mixture']:.1f} and {gain['clean image']:.1f} dB in the three rows."
)

# %% [markdown]
# All six networks have the same size and saw the same images. Losses could not be compared, because each asks for
# another quantity; the denoised images can. Two things make the numbers for the noise so low. One is the scale: at
# the first step, 150 times the network's error swamps the image. The other is that half of each batch trains that
# first step, where the noise *is* the input and there is nothing to learn. (The published schedule spends no such
# share on it. It is kept equal here, and matters less than the scale.) More steps help the noise, since later ones
# have a smaller scale, as long as the first guess has not led too far astray.
#
# ## 5. Train it
#
# Now in earnest, first with white noise. Then the same network moves on to the setting
# `structural`: the target is still the clean molecule, but the input also contains micelle,
# neighbours, ice and carbon. The network has nothing new to learn about the molecule, only what to
# ignore, so it continues from its own weights, and we give it half as many images.

# %% mystnb={"image": {"alt": "Loss curve of each setting, with a denoised test image beside it"}}
models = {}
for setting in settings:
    torch.manual_seed(seed)
    model, n_images, plan = SR3(), train_images, {}
    if setting == "structural":
        model, n_images = copy.deepcopy(models["white"]).train(), train_images // 2
        plan = {"snr_start": snr, "rate": learning_rate / 2}
    models[setting] = train_sr3(model, setting, n_images, f"{setting}-sr3", **plan)
    manifest = {"source": source, "snr": snr, "setting": setting, "images": n_images}
    save_model(run_dir / "models" / f"{setting}-sr3.safetensors", models[setting], manifest)

# %% [markdown]
# ### Found pretrained weights?
#
# Minutes on a CPU show that the idea works, but not how far it goes. For the built-in channel, cryonb
# comes with weights that saw many more images. `cryonb train` made them, and the options are stored in
# the file. If they fit the parameters of this notebook, they are loaded *beside* the weights you just
# trained, never instead of them, and each table below says which is which.

# %%
made = dict(box_size=box_size, pixel_size_A=pixel_size_A, snr=snr)
for setting in settings:
    found = load_kept(Path(source).stem, setting, "sr3", SR3, **made) if use_kept else None
    if found:
        models[f"{setting}, kept"], manifest = found
        own = manifest["test"]["posterior_mean"]
        print(f"found pretrained weights for {setting}, loading: {own:.2f} dB on their own test")

# %% [markdown]
# ## 6. The reverse process
#
# **Question.** How do you get from a network that guesses clean images to a *sample*, one sharp
# image out of all those that agree with the noisy particle?
#
# **Idea.** Start from pure noise. Guess the clean image; work out the noise from the guess; step to a
# state with a little less noise *in the same direction*; repeat. The paper (eqs. 1–2) adds fresh noise
# at each step. You can leave it out (DDIM, Song et al. 2021): then the first draw decides everything,
# and few steps are enough. Fewer still are needed if each step extrapolates from the last two guesses
# (second order, Lu et al. 2022); this costs nothing extra, and cryonb does it by default.

# %%
best = models.get("white, kept", models["white"])
levels = [*diffusion.step_gammas(steps, sigma).tolist(), 1.0]
on_cpu = copy.deepcopy(best).cpu()
generator = torch.Generator().manual_seed(seed)
noisy = test_images[:1]
y_t = (1 - levels[0]) ** 0.5 * torch.randn(noisy.shape, generator=generator)
with torch.no_grad():
    for gamma, after in zip(levels, levels[1:], strict=False):
        guess = on_cpu(y_t, gamma, noisy, sigma)
        eps = (y_t - gamma**0.5 * guess) / (1 - gamma) ** 0.5
        y_t = after**0.5 * guess + (1 - after) ** 0.5 * eps
again = partial(sample, on_cpu, noisy, sigma, steps)
generator = torch.Generator().manual_seed(seed)
*_, plain = again(second_order=False, generator=generator)
assert_close(guess, plain.clean, rtol=1e-3, atol=1e-3)
taken = list(again(generator=torch.Generator().manual_seed(seed)))  # second order, as used below

# %% tags=["front-page"]
truth = white.clean.images[0]
low, high = grey_limits(truth)
pictures = [torch.cat([step.y_t[0].clamp(low, high), step.clean[0], truth], 1) for step in taken]
dB = [psnr(step.clean, truth[None]).item() for step in taken]
pairs = zip(taken, dB, strict=True)
labels = [f"step {step.index + 1}, γ = {step.gamma:.2g}, {value:.1f} dB" for step, value in pairs]
alts = [f"State, guess and truth after {label}" for label in labels]
frame_viewer(pictures, labels, alts, title="state y_t | guess of the clean image | truth")

# %% [markdown]
# Move the slider. In the first steps the guess is blurred: it averages over all orientations that the
# noise leaves open. As the state gets cleaner, the network commits itself and detail appears.
# Whether this detail is *true* is another matter; the next figure tells.
#
# ## 7. One step, few steps, many steps
#
# **Question.** What do more steps buy?
#
# A perfect sampler draws from the posterior. In theory the mean squared error of its samples is then
# exactly **twice** that of the posterior mean, which costs 3 dB. More steps make the image *sharper*
# and *less accurate*, until the curves level off.

# %% mystnb={"image": {"alt": "Left: PSNR falls as the sampler takes more steps. Right: the variance of its output rises towards the truth"}}
by_steps = {}
for k in [k for k in (1, 2, 4, 8, 16, 32) if k <= max(4, train_images // 250)]:
    out = run(best, test_images, k)
    detail = (out - out.mean((1, 2), keepdim=True)).var() / clean64.var()
    by_steps[k] = float(psnr(out, clean64).mean()), float(mse(out, clean64).mean()), float(detail)
dB, error, variance = zip(*by_steps.values(), strict=True)
fig, axes = plt.subplots(1, 2, figsize=(8, 3))
plots = (dB, dB[0] - 3.01, "PSNR (dB)"), (variance, 1, "variance / variance of truth")
for ax, (values, line, label) in zip(axes, plots, strict=True):
    ax.plot(list(by_steps), values, "o-")
    ax.axhline(line, color="0.6", ls="--", lw=0.8)
    ax.set(xscale="log", xlabel="steps (network evaluations)", ylabel=label)
    ax.xaxis.set_major_formatter("{x:g}")
axes[0].set_title("Accuracy falls; dashed: an exact sampler")
axes[1].set_title("The missing variance comes back")
ratio = error[-1] / error[0]
say(f"MSE of a {max(by_steps)}-step sample ÷ MSE of one step: **{ratio:.2f}**")

# %% [markdown]
# The posterior mean (one step) is always too smooth: it has less variance than the truth. The
# sample makes up the difference with detail that is plausible but partly invented. The paper's second
# stage, the U-Net of `03_refine_unet`, turns samples back into means.
#
# ## 8. How good is it?
#
# Here is every method so far, scored on every test particle. MSE is the mean squared error; PSNR (peak
# signal-to-noise ratio, in dB) relates it to the range of each clean image; *in mask* counts only
# pixels inside the particle's outline; SSIM (structural similarity) is 1 for identical images. All are
# defined in `cryonb.physics.conventions`. For `structural`, the last column is the share of the micelle
# that is left: fit the images, blurred to 6 px, as a sum of clean images, projected micelle and a constant.
# The input has 1, a perfect output 0, and noise, which follows neither, does not count.


# %%
outputs = {}
for setting in settings:
    noisy = data[setting].test.noisy.images
    outputs[setting] = {"noisy": noisy, "best linear filter": linear[setting](noisy)}
    for kind in (setting, f"{setting}, kept"):
        if kind in models:
            suffix = ", kept weights" if "kept" in kind else ", trained here"
            for name, k in ((f"one step{suffix}", 1), (f"{steps}-step sample{suffix}", steps)):
                outputs[setting][name] = run(models[kind], noisy, k, name, seed=seed)
for setting, images in outputs.items():
    table = Comparison(data[setting])
    for name, stack in images.items():
        table.score(name, stack)
    scores[setting] = table.rows
    say(f"**{setting}, SNR {snr:g}, {len(white.clean)} test particles**\n\n{table.markdown()}")

# %% mystnb={"image": {"alt": "Strips of test particles: noisy, denoised by each method, clean"}}
for setting, images in outputs.items():
    strips = {name: i[:6] for name, i in images.items()}
    strips["clean"] = data[setting].test.clean.images[:6]
    limits = {n: grey_limits(strips["clean"]) for n in strips if n != "noisy"}
    show_rows(strips, limits=limits, title=f"Test particles, setting {setting}, SNR {snr:g}")
    plt.show()

# %% [markdown]
# Compare each row with the truth. Where the outline of the particle or its pore is in the wrong place,
# the network has mistaken the orientation. Such an image is sharp *and wrong*, and PSNR punishes it
# more than an honest blur. In `structural`, look for the rim of the micelle: it is in the noisy image
# and should not be in the output.
#
# ## 9. Try to break it
#
# We feed the model three inputs it was never made for: noise without any particle, the right particle
# with the wrong noise level, and another protein.

# %% mystnb={"image": {"alt": "Noise, another protein, and a wrongly stated noise level, each denoised"}}
generator = torch.Generator().manual_seed(seed + 1)
n6 = torch.randn(6, box_size, box_size, generator=generator)
other = load_volume("prestin" if source == "channel" else "channel", box_size, pixel_size_A)
tests = {"noise only": (sigma * n6, sigma), "σ stated too low (½)": (test_images[:6], sigma / 2)}
folder, few = run_dir / "data" / f"white-{other.name}", dict.fromkeys(counts, 8)
unseen = open_dataset(folder, other, few, snr=snr, seed=seed).test
tests[f"{other.name}, never seen"] = (unseen.noisy.images[:6], sigma)
strips = {}
for name, (images, told) in tests.items():
    strips[name] = images
    strips[f"denoised: {name}"] = denoise(best, images, told, steps)
strips[f"truth: {other.name}"] = unseen.clean.images[:6]
figure = show_rows(strips, title="What the model makes of things it was not made for")
guessed = strips[f"denoised: {other.name}, never seen"]
unseen_dB = float(psnr(guessed, unseen.clean.images[:6]).mean())
variance_from_noise = float(strips["denoised: noise only"].var())

# %%
say(
    f"From noise alone the model paints an image with **{variance_from_noise:.2f}** of the variance "
    f"of real particles: it finds its molecule where there is none. On {other.name} it reaches "
    f"{unseen_dB:.1f} dB. It has learnt *this* molecule, not denoising."
)

# %% [markdown]
# This is the most important figure of the notebook. A network trained on one molecule is a template,
# and a template matched against noise finds itself ("Einstein from noise", Henderson 2013). Its output
# alone can never tell you whether a particle is there.
#
# ## 10. Exercises
#
# ```{exercise}
# :label: ex-sr3-mean
# *Medium, 10 minutes.*
# **Average samples.** Draw four samples of each test image with different seeds and average them.
# If one sample has twice the minimum error, what error should the mean of K samples have? Check it.
# ```
#
# ````{solution-start} ex-sr3-mean
# :class: dropdown
# ````
# A sample's error is the minimum error plus a share of its own, equal and independent. Averaging K
# samples divides only that second share by K. Differences from theory show how far the sampler is
# from an exact one.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
few_noisy, few = test_images, clean64
draws = [run(best, few_noisy, steps, seed=s) for s in range(4)]
base = float(mse(run(best, few_noisy, 1), few).mean())
for k in (1, 2, 4):
    ratio = float(mse(torch.stack(draws[:k]).mean(0), few).mean()) / base
    print(f"mean of {k}: {ratio:.2f} times the error of one step; theory {1 + 1 / k:.2f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-sr3-ancestral
# *Easy, 5 minutes.*
# **Fresh noise.** Sample with `eta=1` (the paper's ancestral sampler) at the same number of steps.
# Does fresh noise help or hurt?
# ```
#
# ````{solution-start} ex-sr3-ancestral
# :class: dropdown
# ````
# Both draw from the same posterior, so with enough steps their errors should agree; a few hundredths of a dB
# are a tie. With fewer steps each draw of fresh noise is larger, and the two can differ more: try 3 or 4.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for eta in (0.0, 1.0):
    out = run(best, few_noisy, steps, eta=eta)
    print(f"eta = {eta:g}: PSNR {float(psnr(out, few).mean()):.2f} dB in {steps} steps")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-sr3-sigma
# *Medium, 15 minutes.*
# **How well must σ be known?** The model is told the noise level. Tell it half the true level, the true level
# and twice the true level, and denoise in one step. Do the same with the model for any molecule
# (`load_model(MANY, SR3)`), which was trained at SNRs from 0.02 to 1. Is it cheaper to guess too low or too high?
# ```
#
# ````{solution-start} ex-sr3-sigma
# :class: dropdown
# ````
# If you state too little noise, a model takes some of the noise for detail. If you state too much, a model that
# has met such noise in training answers with more of an average, which costs little. The model of this notebook
# has not: its training went no further than the noise of the data, and beyond that nobody taught it what to do. On
# real particles σ has to be measured (`05_real_data`); the numbers below say how carefully.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
told = {"one level": best, "many levels": load_model(MANY, SR3)[0]}
for factor in (0.5, 0.8, 1.0, 1.25, 2.0):
    outs = [denoise(m, few_noisy, factor * sigma) for m in told.values()]
    each = zip(told, (float(psnr(out, few).mean()) for out in outs), strict=True)
    print(f"{factor:g} times the true σ:", ", ".join(f"{name} {dB:.2f} dB" for name, dB in each))

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** Two models have losses of 0.05 (asked for the noise) and 0.9 (asked for the clean image). Which one
# denoises better?
#
# ```{dropdown} (a) the first
# **No.** With strong noise the input is nearly all noise, so it is easy to predict: a small loss says little.
# ```
# ```{dropdown} (b) the second
# **No.** A larger loss says as little as a small one, when it measures something else.
# ```
# ```{dropdown} (c) you cannot tell
# **Right.** The two losses measure different quantities. Only the denoised images can be compared.
# ```
#
# **2.** An exact sampler is given twice as many steps. Its mean squared error
#
# ```{dropdown} (a) halves
# **No.** Steps make the sampler exact; they do not make a sample a mean.
# ```
# ```{dropdown} (b) stays at twice the smallest possible value
# **Right.** A sample is drawn from all the truths that fit the image. It differs from the mean as much as the
# truth does, whatever the number of steps.
# ```
# ```{dropdown} (c) approaches the smallest possible value
# **No.** That is the error of the posterior mean, of which one step is an estimate.
# ```
#
# **3.** The model draws a crisp particle. What do you know now?
#
# ```{dropdown} (a) a particle was there
# **No.** In section 9 it drew one from noise alone.
# ```
# ```{dropdown} (b) the model has seen such particles in training
# **Right.** And nothing more: in section 9 it did the same from noise alone.
# ```
# ```{dropdown} (c) the pose is right
# **No.** A crisp image is sure of a pose, not right about it.
# ```
#
# ## Recap
#
# - The forward process is one line, and γ says all there is to know about a step.
# - For white noise the conditional diffusion model is a denoiser of the fused image $c$ at all noise
#   levels; asked for the clean image, it gives the posterior mean in its first step.
# - A curriculum from high to low SNR makes minutes of training count.
# - One step gives the mean, accurate and smooth; many steps give a sample, sharp and less accurate.
# - The model finds its molecule everywhere, even where there is none.
#
# **Next**: [03](03_refine_unet.ipynb) trains the second stage of the paper on these samples.
#
# **References.** Zhang, Zhao, Hu, Zhao, ICASSP 2024, arXiv 2401.01097 · Saharia et al. 2021, arXiv
# 2104.07636 (SR3) · Salimans and Ho 2022, arXiv 2202.00512 (v) · Song, Meng, Ermon 2021, arXiv 2010.02502 (DDIM) · Karras et al. 2022, arXiv
# 2206.00364 (EDM) · Lu et al. 2022, arXiv 2211.01095 (DPM-Solver++) · Bhamre, Zhang, Singer 2016,
# J. Struct. Biol. 195, 72 (CWF) · Henderson 2013, PNAS 110, 18037.

# %%
for setting, images in outputs.items():
    suffix = "kept weights" if any("kept" in name for name in images) else "trained here"
    folder = run_dir / "denoised" / setting
    write_denoised(folder, "posterior_mean", data[setting], images[f"one step, {suffix}"])
    write_denoised(folder, "sample", data[setting], images[f"{steps}-step sample, {suffix}"])
_ = [finished.unlink() for finished in (run_dir / "models").glob("*.checkpoint")]
dB = {name: row["psnr_dB"] for name, row in scores["white"].items()}
results = {f"{name} (dB)": round(dB[name], 2) for name in dB if "sample" not in name}
results |= {"noise_only_variance": variance_from_noise, "figure 1": origin}
for (name, curriculum, k), value in asked.items():
    results[f"asked for {name}, {'with' if curriculum else 'without'} curriculum, {k} (dB)"] = value
results |= {f"steps {k} psnr_dB": values[0] for k, values in by_steps.items()}
for setting, rows in scores.items():
    results |= {f"{setting}: {n} {k}": v for n, s in rows.items() for k, v in s.items()}
(run_dir / "results").mkdir(exist_ok=True)
(run_dir / "results" / "02_train_sr3.json").write_text(json.dumps(results, indent=1))
