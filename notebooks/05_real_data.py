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
# # Denoise real particles, and test the result without a truth
#
# ```text
#  micrograph ─► CTF ─┐
#      └─► picks ─────┼─► noise measured, made white ─► network ─► back
#                     └─► a twin: same CTF, same noise, truth known
# ```
#
# You will go from a micrograph to denoised particles, close the gap between simulation and reality by
# measuring it, and estimate the error of a denoiser on images whose truth nobody knows.
#
# ## You will learn
#
# - to **read** a micrograph: header, histogram, Thon rings;
# - to **fit** its defocus, **pick** particles without a template, and write a STAR file that RELION reads;
# - to **measure** noise spectrum and signal-to-noise ratio, and to undo the first;
# - to **carry** a network from simulation to real images, and to test that on a twin with a known truth;
# - to **estimate** the mean squared error without a truth, and to say when that estimate is wrong.
#
# ## Before you start
#
# | concept | need | where |
# |---|---|---|
# | contrast transfer function (CTF), SNR | necessary | `00_start_here`, `01_simulate` |
# | posterior mean, one step of SR3 | necessary | `02_train_sr3` |
# | linear filter, mean squared error | helpful | `04_compare_methods` |
# | power spectrum | necessary | any course on signals |
#
# **Inputs**: a micrograph that `cryonb fetch` gets through pip, a micrograph or STAR file of your own, or,
# where there is no network, a simulated one. **Outputs**: particles and denoised particles with STAR files
# in `run_dir/real`, figures of merit in `run_dir/results`. **Hardware**: two CPU cores.

# %% tags=["long"]
import json
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from cryonb import micrographs, peers
from cryonb.baselines import linear_filter
from cryonb.ctf import apply_ctf, ctf
from cryonb.diffusion import SR3
from cryonb.families import training_images
from cryonb.fetch import fetch
from cryonb.fourier import radial_mean
from cryonb.geometry import random_rotations
from cryonb.inference import denoise_file
from cryonb.maps import write_map
from cryonb.methods import one_step
from cryonb.metrics import sure
from cryonb.particles import particles_from_arrays, stream_particles, write_particles
from cryonb.plotting import (
    plot_lines,
    say,
    say_table,
    show_micrograph,
    show_rows,
    train_live,
    use_style,
)
from cryonb.projection import project
from cryonb.resolution import frc
from cryonb.train import any_level_loss, draw_batch
from cryonb.volumes import load_volume
from cryonb.weights import KEPT, MANY, load_model
from cryonb.whitening import amplitude, from_network, level, measure_noise, to_network

use_style()

# %% tags=["parameters"]
data = "auto"  # or simulated, micrograph-epu, -fei, EMPIAR-10081, file.mrc, file.star
most_particles = 500  # of EMPIAR or of a STAR file
diameter_A = 110.0  # Å, of the particle
voltage_kv = 300.0  # kV
spherical_aberration_mm = 2.7  # mm; the header of the micrograph does not say
amplitude_contrast = 0.1  # fraction
twin_source = "prestin"  # molecule of the twin, which no network here was trained on
box_size = 64  # pixels of a particle
pixel_size_A = 3.0  # Å per pixel that the micrograph is shrunk to
n_twin = 512  # particles of the twin
like_molecules = 40  # random molecules that are simulated like the measured data
slow_images = 16  # particles for BM3D, which takes a second each
tune_images = 2000  # images that the network is trained on after the transfer
batch_size = 16  # images in each training step
seed = 0  # of every random number
run_dir = "runs/own"  # everything is written under it

# %% [markdown]
# ## 1. What does the camera give?
#
# `auto` takes the micrograph `micrograph-epu`: 300 kV, dense with particles about 110 Å wide, contributed to
# the test data of the package `mrcfile` with permission to distribute it. *What the sample is, is not
# stated*, which makes it an honest example: nobody can tell us whether a denoised particle is right. Without
# a network it simulates a micrograph of the channel instead, and says so.

# %% tags=["long"]
run_dir = Path(run_dir)
(folder := run_dir / "real").mkdir(parents=True, exist_ok=True)
optics = {
    "voltage_kv": voltage_kv,
    "spherical_aberration_mm": spherical_aberration_mm,
    "amplitude_contrast": amplitude_contrast,
}
if data == "auto":
    try:
        path = fetch("micrograph-epu")
        data = "micrograph-epu"
    except (OSError, ValueError) as error:
        say(f"No real micrograph ({error}): a simulated one takes its place.")
        data = "simulated"
elif data.startswith(("micrograph-", "EMPIAR-")):
    path = fetch(data, max_images=most_particles if data.startswith("EMPIAR-") else None)
else:
    path = Path(data)
if data == "simulated":
    scene = load_volume("channel", box_size, pixel_size_A), 80, 14 * box_size
    image = micrographs.simulate_micrograph(*scene, snr=0.5, defocus_um=1.7, seed=seed)[0]
    path = folder / "simulated.mrc"
    write_map(path, image[None], pixel_size_A)
own_particles = path.suffix == ".star"
say(f"Data: **{data}**, `{path.name}`.")

# %% mystnb={"image": {"alt": "Micrograph, grey values, and power spectrum with Thon rings"}}
if not own_particles:
    micrograph, camera_A = micrographs.read_micrograph(path)
    fine, fine_A = micrographs.shrink(micrograph, camera_A, min(1.5, pixel_size_A / 2))
    tile = min(512, fine.shape[0] // 4 * 2)
    power = micrographs.power_spectrum(fine, tile)
    small, small_A = micrographs.shrink(micrograph, camera_A, pixel_size_A)
    say(f"{tuple(micrograph.shape)} px of {camera_A:.4g} Å; grey value {micrograph.mean():.4g} ± {micrograph.std():.3g}")  # fmt: skip
    figure = show_micrograph(small, small_A, power, fine_A, grey_values=micrograph)

# %% [markdown]
# Single particles can hardly be seen, and yet the power spectrum shows rings: many weak particles add up in
# power. The rings are $\mathrm{CTF}^2$. Where a ring is dark the microscope has transferred nothing, and
# beyond it the contrast has turned over.
#
# ## 2. Which defocus?
#
# **Idea.** Take the logarithm, subtract what is smooth, and look for the defocus whose $\mathrm{CTF}^2$
# correlates best with the rest. `fit_ctf` does so on a grid of 10 nm, and then refines with astigmatism.

# %% mystnb={"image": {"alt": "Radial power spectrum with the fitted CTF squared"}}
if not own_particles:
    fit = micrographs.fit_ctf(power, fine_A, **optics)
    profile = radial_mean(power.log(), tile, dims=2)
    frequency = torch.arange(len(profile)) / (tile * fine_A)
    window = max(5, tile // 25)
    smooth = np.convolve(np.pad(profile, window, mode="edge"), np.ones(window) / window, "same")
    seen = profile - torch.from_numpy(smooth)[window:-window]
    model = ctf(tile, fine_A, fit.defocus_um, **optics)[0, 0].square() - 0.5
    shown = (frequency > 1 / 40) & (frequency < min(1 / 5, 0.45 / fine_A))
    curves = {"log power without its smooth part": (frequency[shown], seen[shown])}
    curves["CTF² of the fit, scaled"] = frequency[shown], 2 * seen[shown].std() * model[shown]
    figure = plot_lines(curves, x="spatial frequency (1/Å)", y="log power", theory="CTF² of the fit, scaled")  # fmt: skip
    say(f"Defocus {fit.defocus_um:.2f} µm, astigmatism {fit.astigmatism_um:.3f} µm, correlation {fit.correlation:.2f}.")  # fmt: skip

# %% [markdown]
# ## 3. Where are the particles?
#
# **Idea.** A particle is a dark blob of known size. The difference of two blurred copies of the micrograph,
# one narrow and one wide, answers to blobs of that size and to nothing smoother or finer. Its peaks are the
# picks. No template is used, so nothing can be found because it was looked for, except roundness.
#
# The boxes are turned to bright particles on a dark ground, as everywhere in this book, and written as a
# STAR file with the fitted defocus.

# %%
if own_particles:
    particles = next(stream_particles(path, batch_size=most_particles)).resampled(box_size)
else:
    positions, response = micrographs.pick(small, small_A, diameter_A)
    boxes = micrographs.extract(small, positions, box_size)
    poses = torch.eye(3).expand(len(boxes), 3, 3)  # not known yet
    defocus = torch.full((len(boxes),), fit.defocus_um)
    particles = particles_from_arrays(boxes, poses, small_A, defocus_um=defocus, **optics)
    write_particles(particles, folder / "particles.star")
star = path if own_particles else folder / "particles.star"
say(
    f"**{len(particles)}** particles of {box_size} px at {particles.pixel_size_A:.2f} Å, in `{star}`."
)

# %% mystnb={"image": {"alt": "Picked positions on the micrograph, and picked particles"}}
if not own_particles:
    figure, ax = plt.subplots(figsize=(5.4, 5.4))
    ax.imshow(response, vmin=-3, vmax=4)
    ax.plot(positions[:, 1], positions[:, 0], "o", mfc="none", mec="C1", ms=8)
    ax.set(title="difference of Gaussians, and its peaks", xlabel="x (px)", ylabel="y (px)")
    blurred = [gaussian_filter(particles.images[:8].numpy(), (0, s, s)) for s in (0.01, 1.5)]
    picks = dict(zip(["as picked", "blurred"], map(torch.from_numpy, blurred), strict=True))
    figure = show_rows(picks, title="The eight strongest picks", width_in=1.0)

# %% [markdown]
# ## 4. How far is this from the simulation?
#
# **Question.** The networks of this book were trained on particles in *white* noise of *known* level,
# without a CTF. What is different here?
#
# `measure_noise` looks at the ring outside the particles: the mean power in each shell there is the noise
# spectrum $N(k)$. What the whole boxes have in variance beyond that is signal. Two linear operations then
# close most of the gap, and are undone afterwards:
#
# $$ \tilde x(k) = \frac{\operatorname{sign}\,\mathrm{CTF}(k)}{\sqrt{N(k)}}\; \hat x(k)
#    \qquad\Rightarrow\qquad \tilde x = \tilde y + \text{white noise}, \quad
#    \tilde y(k) = \frac{|\mathrm{CTF}(k)|}{\sqrt{N(k)}}\; \hat y(k). $$
#
# Nothing is amplified but the noise's own colour, no zero of the CTF is divided by, and the noise is white
# again. What is left of the gap is in $\tilde y$: a filtered molecule, which nobody has trained on yet.

# %%
radius_px = min(0.55 * diameter_A / particles.pixel_size_A, 0.4 * box_size)
noise = measure_noise(particles, radius_px)
white, deviation = to_network(particles, noise)
transfer = torch.ones(1, box_size, box_size // 2 + 1) if particles.ctf is None else particles.ctf
sigma = noise.sigma
say(f"SNR after whitening: **{noise.snr:.3g}** (σ = {sigma:.2f} signal deviations). Particles are {'bright' if noise.sign > 0 else 'dark'}.")  # fmt: skip

# %% [markdown]
# ## 5. A twin with a known truth
#
# **Idea.** Nobody knows the truth behind these particles. So simulate another molecule with exactly this
# CTF, this noise spectrum and this SNR: a *twin* of the data. Whatever is claimed about a denoiser can be
# tested there first.

# %%
generator = torch.Generator().manual_seed(seed)
molecule = load_volume(twin_source, box_size, pixel_size_A)
clean = project(molecule.map, random_rotations(n_twin, generator))
carried = transfer[torch.arange(n_twin) % len(transfer)]  # the measured CTFs, in turn
colour = amplitude(noise)
gain = (noise.snr / apply_ctf(clean, carried / colour).var()).sqrt()
grain = torch.randn(clean.shape, generator=generator)
rows = torch.arange(n_twin) % len(particles)
twin = particles.select(rows)
twin = twin.with_images(apply_ctf(gain * clean, carried) + apply_ctf(grain, colour), ctf_applied=twin.ctf_applied)  # fmt: skip
measured = measure_noise(twin, radius_px)
twin_truth = apply_ctf(gain * clean, carried.abs() / colour) * sigma  # as the network is to see it
twin_white = twin_truth + sigma * apply_ctf(grain, carried.sign())
say(f"Measured again on the twin: SNR {measured.snr:.3g} for {noise.snr:.3g}.")

# %% mystnb={"image": {"alt": "Power in each shell of real particles, twin, and white-noise simulation"}}
frequency = torch.arange(box_size // 2 + 1) / (box_size * particles.pixel_size_A)
shells = {"real particles": level(particles.images, radius_px)[0], "the twin": level(twin.images, radius_px)[0]}  # fmt: skip
lines = {k: (frequency, radial_mean(torch.fft.rfft2(v).abs().square().mean(0), box_size, dims=2) / box_size**2) for k, v in shells.items()}  # fmt: skip
lines["measured noise"] = frequency, noise.spectrum
lines["simulation of notebook 02"] = frequency, torch.ones_like(frequency)
figure = plot_lines(lines, x="spatial frequency (1/Å)", y="power (1: background variance)", theory="simulation of notebook 02")  # fmt: skip
figure.axes[0].set(yscale="log", title="The gap between simulation and reality")

# %% [markdown]
# ## 6. Carry a network over
#
# Four denoisers, in order of how much they have been told about these data:
#
# - **one protein, raw**: the network of `02_train_sr3` that comes with cryonb (`channel`, white noise, SNR
#   0.1), on images that were only levelled. This is what happens if one simply tries it.
# - **one protein, transferred**: the same network on whitened, phase-flipped images, scaled to the one noise
#   level that it has met.
# - **many proteins**: a network of the same size, trained on 500 random molecules with all kinds of CTF,
#   whitening filter and SNR. It is what `cryonb denoise` uses.
# - **many proteins, tuned**: the same after a little more training on random molecules of *this* diameter,
#   *this* CTF and *this* noise. It is the idea of Noise-Transfer2Clean (Li et al. 2022) in its simplest form.
#
# The control is the **linear filter** of least squared error for the very same random molecules.

# %% mystnb={"image": {"alt": "Loss curve while the network is tuned to molecules like these"}}
like = training_images(
    like_molecules, 32, box_size, seed,
    pixel_size_A=particles.pixel_size_A, diameter_A=diameter_A, transfer=transfer.abs() / colour,
)  # fmt: skip
one = load_model(KEPT / "channel-white-sr3.safetensors", SR3)[0]
many = load_model(MANY, SR3)[0]
near = noise.snr / 1.5, noise.snr * 1.5
tuned = train_live(
    load_model(MANY, SR3)[0].train(), partial(draw_batch, like),
    partial(any_level_loss, start=0.8, snr=near), tune_images,
    title="many proteins, tuned", batch_size=batch_size, learning_rate=2e-4, seed=seed,
)  # fmt: skip
denoisers = {"linear filter": linear_filter(*like, sigma)}
known = 10**0.5  # the only noise level that this network has met, SNR 0.1
at_known = lambda x, level: one_step(one, x * known / level, known) * level / known  # noqa: E731
denoisers["one protein, transferred"] = partial(at_known, level=sigma)
denoisers["many proteins"] = partial(one_step, many, sigma=sigma)
denoisers["many proteins, tuned"] = partial(one_step, tuned, sigma=sigma)
if not peers.missing("bm3d"):
    denoisers["BM3D"] = partial(peers.bm3d, sigma=sigma)
some = lambda name, stack: stack[:slow_images] if name == "BM3D" else stack  # noqa: E731

# %% [markdown]
# On the twin the truth is known. The error is given as a share of the signal's variance: 1 is what an empty
# image gets, 0 is perfect.

# %% mystnb={"image": {"alt": "Particles of the twin, noisy, denoised by each method, and their truth"}}
flat_real, flat = shells.values()
on_twin = {"one protein, raw": at_known(flat, flat.std())}
on_twin |= {name: denoiser(some(name, twin_white)) for name, denoiser in denoisers.items()}
size = twin_truth.square().mean()
error = {}
for name, images in on_twin.items():
    truth = twin_truth[: len(images)]
    scale = 1.0
    if name.endswith("raw"):  # in no unit, so at the scale that suits it best
        scale = (images * truth).sum() / images.square().sum().clamp_min(1e-9)
    error[name] = float((scale * images - truth).square().mean() / size)
say_table(["on the twin", "error ÷ signal variance"], error.items())
strip = (
    {"noisy": twin_white[:8]} | {k: v[:8] for k, v in on_twin.items()} | {"truth": twin_truth[:8]}
)
figure = show_rows(strip, title="The twin: a molecule that no network has seen", width_in=0.9)

# %% [markdown]
# Every image has its own grey scale, so look at shapes, and at the table for amounts. The linear filter is
# hard to beat on molecules that nobody knows: with so little signal the posterior mean is nearly linear. A
# network trained on one protein answers with that protein. Its row is the prettiest, and its error the proof.
#
# ## 7. The real particles

# %% mystnb={"image": {"alt": "Real particles, noisy and denoised by each method"}}
real = {name: denoiser(some(name, white)) for name, denoiser in denoisers.items()}
strip = {"whitened": white[:8], "blurred": torch.from_numpy(gaussian_filter(white[:8].numpy(), (0, 1.5, 1.5)))}  # fmt: skip
strip |= {k: v[:8] for k, v in real.items()}
strip["one protein, raw (wrong)"] = at_known(flat_real[:8], flat_real.std())
figure = show_rows(strip, title=f"Real particles ({data})", width_in=0.9)

# %% [markdown]
# Which row is right? Prettiness is no argument: the two rows of the network that knows one protein are as
# pretty as any, and this sample is not that protein (unless you simulated it). Three measurements need no truth.
#
# ### The error, estimated (SURE)
#
# Let $f$ be the denoiser and $x = y + \sigma n$. Expand $\lVert f(x) - y \rVert^2 = \lVert f(x) - x + \sigma
# n \rVert^2$ and use Stein's lemma, $\mathbb E[n \cdot f(x)] = \sigma\, \mathbb E[\operatorname{div} f(x)]$:
#
# $$ \mathbb E \lVert f(x) - y \rVert^2 \;=\; \mathbb E\Big[ \lVert x - f(x) \rVert^2 - N\sigma^2 + 2\sigma^2
#    \operatorname{div} f(x) \Big]. $$
#
# The right side holds no $y$. A denoiser that only copies has no residual and divergence $N$; one that
# invents freely has a large residual. The twin tells whether the estimate can be trusted.

# %% mystnb={"image": {"alt": "Estimated against true error on the twin, and estimated error on real data"}}
risk = {}
for name, denoiser in denoisers.items():
    estimates = []
    for stack in (twin_white, white):
        generator = torch.Generator().manual_seed(seed)
        estimates.append(sure(denoiser, some(name, stack), sigma, generator).mean())
    risk[name] = error[name], float(estimates[0] / size), float(estimates[1])
columns = ["error ÷ signal variance", "twin, true", "twin, SURE", "real, SURE"]
say_table(columns, [(name, *values) for name, values in risk.items()])
off = max(abs(true - guess) for true, guess, _ in risk.values())
say(f"On the twin the estimate is off by {off:.3f} at most. If the noise power were known to 1 % only, all of the last column would move by {0.01 / noise.snr:.2f}.")  # fmt: skip

# %% [markdown]
# Where the columns *true* and *SURE* agree, the third column may be believed as far as the twin is like the
# data: white Gaussian noise of known level. That level is the weak point. An error in it shifts the whole
# column by as much ÷ SNR, and in a crowded micrograph the ring around a particle holds others, so the noise
# is overestimated and the column comes out too low. *Differences* between rows hardly feel it: believe the
# order, not the amounts, and not a row of few images (BM3D), which scatters. Structure that is not the
# particle (a neighbour, a carbon edge) counts as signal here, and a denoiser that removes it is blamed.
#
# ### Empty patches must stay empty
#
# Boxes between the picks hold ice and noise. What a denoiser draws there it has made up, or taken from a
# neighbour at the rim; a *false-structure rate*. The measure is the power of the output near the box centre,
# as a share of that on particles.
#
# ### Two networks, one image
#
# Networks trained on disjoint data share no memory, so what they agree on must come from the image. It is
# tempting to conclude that it is true. The Fourier ring correlation of the two, on real data and on the twin,
# stands beside the one with the truth, which only the twin has.

# %% mystnb={"image": {"alt": "Outputs on empty patches; Fourier ring correlation of two networks"}}
pulled = {}
at = torch.arange(box_size) - box_size // 2
middle = at[:, None] ** 2 + at**2 < (0.6 * radius_px) ** 2
if not own_particles:
    quiet = np.argwhere(response < np.quantile(response, 0.6))
    quiet = quiet[((quiet > box_size) & (quiet < len(response) - box_size)).all(1)]
    far = np.linalg.norm(quiet[::7, None] - positions[None], axis=2).min(1)
    chosen = quiet[::7][np.argsort(-far)[:300:10]]  # far from all picks, and not all in one place
    patches = twin.select(torch.zeros(len(chosen), dtype=torch.long))
    patches = patches.with_images(micrographs.extract(small, chosen, box_size), ctf_applied=True)
    empty = to_network(patches, noise)[0]
    for name in [name for name in denoisers if name != "BM3D"]:
        drawn = denoisers[name](empty)[:, middle].square().mean()
        pulled[name] = float(drawn / real[name][:, middle].square().mean())
    say_table(["", "power on empty ÷ on particles"], pulled.items())
pair = "many proteins", "one protein, transferred"
agreement = {
    "the two networks, real": frc(real[pair[0]], real[pair[1]], particles.pixel_size_A),
    "the two networks, twin": frc(on_twin[pair[0]], on_twin[pair[1]], particles.pixel_size_A),
    "many proteins and truth, twin": frc(on_twin[pair[0]], twin_truth, particles.pixel_size_A),
}
curves = {k: (f, v.mean(0)) for k, (f, v) in agreement.items()}
figure = plot_lines(curves, x="spatial frequency (1/Å)", y="mean FRC", title="Who agrees?")

# %% [markdown]
# On the twin the two networks agree with each other far better than with the truth: they were given the *same
# noise*, and both let some of it through. Agreement on one image is no evidence. It would be with two
# exposures of the particle, such as even and odd movie frames, whose noise is independent; a particle stack
# has no second exposure. That real data and twin give the same curve says only that the twin is a good one.
#
# ## 8. One command for all of it
#
# `cryonb denoise` does what sections 4 and 6 did: measures, whitens, flips, denoises by the network for many
# proteins, and undoes the first three, so that the output keeps rows, columns, box, unit and CTF of the
# input. It streams, so 55,000 particles of 256 px need no more memory than these; a run that was cut off
# goes on. The same from Python:

# %%
out = denoise_file(
    star, folder / "denoised.star", diameter_A=2 * radius_px * particles.pixel_size_A
)
back = next(stream_particles(out, batch_size=len(particles))).resampled(box_size)
own = from_network(real["many proteins"], deviation, particles, noise)
both = torch.stack([back.images.flatten(), own.flatten()])
same = float(torch.corrcoef(both)[0, 1])
say(f"Correlation with the images of this notebook: {same:.3f}. Written: `{out}`.")

# %% [markdown]
# The phases are still those of the microscope, so a reconstruction from this file corrects for the CTF as it
# would for the raw images. `06_reconstruct_fsc` and `07_trust` say what such a reconstruction is worth: **look
# and pick with denoised images, reconstruct from the raw ones.**
#
# ## 9. Try to break it
#
# A wrong defocus flips the wrong phases. The whitening does not notice, nor does the network: its output
# looks as crisp as before. Only a truth, the twin's, shows the damage.

# %%
wrong = {}
for shift_um in (0.0, 0.1, 0.3, 1.0):
    table, columns = twin.table, [k for k in ("rlnDefocusU", "rlnDefocusV") if k in twin.table]
    table = table.assign(**{k: table[k] + 1e4 * shift_um for k in columns})
    mistaken = type(twin)(twin.images, twin.optics, table)
    seen = one_step(many, to_network(mistaken, noise)[0], sigma)
    ratio = seen.square().mean() / on_twin["many proteins"].square().mean()
    wrong[f"{shift_um:g} µm off"] = float((seen - twin_truth).square().mean() / size), float(ratio)
say_table(
    ["defocus", "error ÷ signal variance", "power ÷ before"], [(k, *v) for k, v in wrong.items()]
)

# %% [markdown]
# ## 10. Exercises
#
# ```{exercise}
# :label: ex-real-snr
# **Fewer picks, same noise.** How many particles does `measure_noise` need? Measure the SNR from the first
# 10, 30 and all particles.
# ```
#
# ````{solution-start} ex-real-snr
# :class: dropdown
# ````

# %%
for count in (10, 30, len(particles)):
    found = measure_noise(particles.select(slice(0, count)), radius_px)
    print(f"{count:4d} particles: SNR {found.snr:.3f}")

# %% [markdown]
# The strongest picks come first, and they are strong partly by luck: their SNR is an overestimate, the same
# selection by noise that lets Einstein appear in averages.
#
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-real-sign
# **Dark or bright.** Turn the contrast of the particles. What does `measure_noise` say, and how can it know?
# ```
#
# ````{solution-start} ex-real-sign
# :class: dropdown
# ````

# %%
turned = particles.with_images(-particles.images, ctf_applied=particles.ctf_applied)
print(f"sign {measure_noise(turned, radius_px).sign:+d}, as given {noise.sign:+d}")

# %% [markdown]
# The mean of the middle of the box over all particles stands out from its own error: protein is denser than
# ice, even in a single blob. With a handful of weak particles that fails, and `cryonb denoise --contrast` says.
#
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-real-own
# **Your own data.** Run this notebook on a STAR file: `cryonb run 05_real_data -p data my.star -p diameter_A 150`.
# Which of the four measurements of section 7 would you show to a colleague who wants to believe the images?
# ```
#
# ## Quiz
#
# **1.** The denoised images of a real data set look much better than those of a twin with the same noise. You
# conclude that (a) the method works even better on real data (b) something draws what it expects to see (c)
# the twin was made too difficult
#
# ```{dropdown} Answer
# **b** is the first thing to rule out: look at the empty patches. If these stay empty, ask (c): measure noise
# spectrum and SNR of both again.
# ```
#
# **2.** Stein's estimate of the error needs (a) the clean images (b) a second exposure (c) white noise of
# known level
#
# ```{dropdown} Answer
# **c**, which is why the particles are whitened before, and why it is wrong where structural noise is left.
# ```
#
# **3.** Two networks that were trained apart agree on your particles. (a) So they are right (b) they may share
# the noise of the image that both were given (c) they must have seen the same training data
#
# ```{dropdown} Answer
# **b.** What both have in common is the input, noise included. Agreement of two answers to *one* image says
# nothing; agreement of answers to two images of one particle would.
# ```
#
# ## Recap
#
# - Real images differ from simulated ones by noise spectrum, CTF, contrast and SNR. All four can be measured
#   on the images themselves, and the first three undone.
# - A twin with the measured noise tells what a denoiser is worth on data like these, where the truth is known.
# - SURE estimates the error without a truth, if the noise is white and its level known.
# - Empty patches show what is drawn where nothing is. Two networks that agree on one image prove nothing.
#
# **References.** Li et al. 2022, *Bioinformatics* 38, 2022 (Noise-Transfer2Clean) · Rohou and Grigorieff 2015,
# *J. Struct. Biol.* 192, 216 (CTFFIND4) · Stein 1981, *Ann. Statist.* 9, 1135 · Ramani, Blu and Unser 2008,
# *IEEE Trans. Image Process.* 17, 1540 (Monte-Carlo SURE) · Welch 1967, *IEEE Trans. Audio* 15, 70.

# %%
results = {"data": data, "particles": len(particles), "snr": noise.snr, "twin_snr": measured.snr}
results |= (
    {} if own_particles else {"defocus_um": fit.defocus_um, "ctf_correlation": fit.correlation}
)
results |= {f"twin: {name}": value for name, value in error.items()}
for name, (_, guess, guess_real) in risk.items():
    results |= {f"twin SURE: {name}": guess, f"real SURE: {name}": guess_real}
results |= {f"empty: {name}": value for name, value in pulled.items()}
results |= {f"defocus {name}": value for name, (value, _) in wrong.items()}
results["command_correlation"] = same
(run_dir / "results").mkdir(parents=True, exist_ok=True)
(run_dir / "results" / "05_real_data.json").write_text(json.dumps(results, indent=1))
