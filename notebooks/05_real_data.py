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
# # Denoise real particles, and test the result without a truth
#
# ```text
#  micrograph ─► CTF ─┐
#      └─► picks ─────┼─► noise measured, made white ─► network ─► back
#                     └─► a twin: same CTF, same noise, truth known
# ```
#
# You will go from a micrograph to denoised particles, measure how far real images are from simulated ones, close
# most of that gap, and estimate the error of a denoiser on images whose truth nobody knows.
#
# ## You will learn
#
# - to **read** a micrograph: header, histogram, Thon rings;
# - to **fit** the defocus, **pick** particles without a template, and write a STAR file that RELION reads;
# - to **measure** the noise spectrum and the signal-to-noise ratio, and make the noise white;
# - to **carry** a network from simulation to real images, and test it on a *twin* whose truth is known;
# - to **estimate** the mean squared error without a truth, and say when the estimate is wrong;
# - to **find** a truth for particles of known structure, and say what it is worth.
#
# ## Before you start
#
# | concept | need | where |
# |---|---|---|
# | contrast transfer function (CTF), SNR | necessary | `00_start_here`, `01_simulate` |
# | posterior mean, one step of SR3 | necessary | `02_train_sr3` |
# | linear filter, mean squared error, posterior over poses | helpful | `04_compare_methods` |
# | power spectrum | necessary | any course on signals |
#
# **Inputs**: a micrograph that `cryonb fetch` gets through pip, or a micrograph or STAR file of your own, or,
# without a network, a simulated micrograph; also the structure of the particles, if you know it. **Outputs**:
# particles and denoised particles with STAR files in `run_dir/real`, figures of merit in `run_dir/results`.
# **Hardware**: two CPU cores.

# %% jupyter={"source_hidden": true} tags=["long"]
import json
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.feature import peak_local_max
from torch.testing import assert_close

from cryonb.base.options import DenoiseOptions
from cryonb.commands.denoise import denoise_file
from cryonb.data import micrographs
from cryonb.data.optics import PREMULTIPLIED
from cryonb.data.particle_file import stream_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import load_volume
from cryonb.data.whitening import amplitude, from_network, level, measure_noise, to_network
from cryonb.denoisers.baselines import linear_filter
from cryonb.denoisers.compare import Method, run_all
from cryonb.denoisers.methods import blur, of_run, untrained
from cryonb.evaluation.metrics import correlation, psnr, sure
from cryonb.evaluation.resolution import frc
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.refine import Refiner, refine
from cryonb.learning.train import any_level_loss, draw_batch
from cryonb.learning.weights import KEPT, MANY, load_model
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import fourier_crop, radial_mean
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project
from cryonb.poses.closest import closest_projections
from cryonb.showing import plotting
from cryonb.showing.plotting import plot_lines, say, say_table, show_rows
from cryonb.simulation.families import training_images

plotting.use_style()

# %% tags=["parameters"]
data = "auto"  # or simulated, micrograph-epu, -fei, EMPIAR-10081, file.mrc, file.star
most_particles = 500  # of EMPIAR or of a STAR file
structure = ""  # what the particles are, where it is known: channel, prestin, file, EMD-8511, 5U6O
diameter_A = 110.0  # Å, of the particle
voltage_kv = 300.0  # kV
spherical_aberration_mm = 2.7  # mm; the header of the micrograph does not say
amplitude_contrast = 0.1  # fraction
twin_source = "prestin"  # molecule of the twin, which no network here was trained on
box_size = 64  # pixels of a particle
pixel_size_A = 3.0  # Å per pixel that the micrograph is shrunk to
n_twin = 512  # particles of the twin
like_molecules = 40  # random molecules that are simulated like the measured data
slow_images = 16  # particles for K-SVD, BM3D and Topaz, which take up to a second each
truth_images = 32  # particles of the twin whose poses are looked for
most_shift_A = 12.0  # Å, how far off the middle of the box a particle may lie
tune_images = 2000  # images that the network is trained on after the transfer
batch_size = 16  # images in each training step
seed = 0  # of every random number
run_dir = "runs/own"  # everything is written under it

# %% [markdown]
# ## 1. What does the camera give?
#
# `auto` takes the micrograph `micrograph-epu`: recorded at 300 kV, crowded with particles about 110 Å wide, and
# contributed to the test data of the package `mrcfile` with permission to distribute it. *Nobody says what the
# sample is*, which makes it an honest example: no one can tell you whether a denoised particle is right. Without
# a network, `auto` simulates a micrograph of the channel instead, and says so.

# %%
run_dir = Path(run_dir)
(folder := run_dir / "real").mkdir(parents=True, exist_ok=True)
optics = {"voltage_kv": voltage_kv, "amplitude_contrast": amplitude_contrast}
optics["spherical_aberration_mm"] = spherical_aberration_mm
wanted = {"most_images": most_particles, "box_size": box_size, "pixel_size_A": pixel_size_A}
data, path, placed = micrographs.find_data(data, folder, seed=seed, **wanted)
own_particles = path.suffix == ".star"
say(f"Data: **{data}**, `{path.name}`.")

# %% [markdown]
# Two things are measured on it. To see the particles you want few pixels, so the micrograph is shrunk: cut off the
# high frequencies of its transform, and transform back. To see what the microscope did you want the mean power at
# each frequency: cut the micrograph into overlapping tiles, fade each to zero at its rim by a window $h$ so that the
# rim adds nothing, and average $|\mathrm{FT}(h\,x)|^2 / \sum h^2$ (Welch 1967). White noise of variance $v$ then has
# the power $v$ everywhere, which the cell checks.


# %%
def shrink(micrograph, pixel_A, to_A):
    """Fourier-crop the largest square to about `to_A` Å per pixel; and the pixel size reached."""
    side = min(micrograph.shape) // 2 * 2
    size = 2 * round(side * pixel_A / to_A / 2)
    if size >= side:
        return micrograph[:side, :side], pixel_A
    return fourier_crop(micrograph[:side, :side], size, dims=2), side * pixel_A / size


def power_spectrum(micrograph, tile):
    """Mean periodogram of overlapping tiles under a Hann window: (tile, tile // 2 + 1)."""
    window = torch.hann_window(tile)[:, None] * torch.hann_window(tile)
    tiles = micrograph.unfold(0, tile, tile // 2).unfold(1, tile, tile // 2).flatten(0, 1)
    power = sum(torch.fft.rfft2((t - t.mean()) * window).abs().square() for t in tiles)
    return power / len(tiles) / window.square().sum()


nothing = 3 * torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
assert abs(float(power_spectrum(nothing, 128)[4:60, 4:].mean()) - 9) < 0.3

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Micrograph, grey values, and power spectrum with Thon rings"}}
if not own_particles:
    micrograph, camera_A = micrographs.read_micrograph(path)
    fine, fine_A = shrink(micrograph, camera_A, min(1.5, pixel_size_A / 2))
    small, small_A = shrink(micrograph, camera_A, pixel_size_A)
    tile = min(512, fine.shape[0] // 4 * 2)
    power = power_spectrum(fine, tile)
    say(
        f"{tuple(micrograph.shape)} px of {camera_A:.4g} Å; grey value "
        f"{micrograph.mean():.4g} ± {micrograph.std():.3g}"
    )
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6))
    smooth, edge_nm = gaussian_filter(small.numpy(), 7.5 / small_A), len(small) * small_A / 10
    low, high = np.percentile(smooth, [1, 99])
    left.imshow(smooth, vmin=low, vmax=high, extent=(0, edge_nm, edge_nm, 0))
    left.set(title="micrograph, blurred to 15 Å", xlabel="x (nm)", ylabel="y (nm)")
    middle.hist(micrograph[::4, ::4].flatten().numpy(), 200, log=True)
    middle.set(title="grey values", xlabel="grey value", ylabel="pixels")
    half = power.roll(tile // 2, 0).clamp_min(1e-30).log()
    rings, edge = torch.cat([half.flip(0, 1), half], 1), 0.5 / fine_A
    low, high = np.percentile(rings, [5, 99])
    right.imshow(rings, vmin=low, vmax=high, extent=(-edge, edge, -edge, edge))
    right.set(title="log power: Thon rings", xlabel="$k_x$ (1/Å)", ylabel="$k_y$ (1/Å)")
    plt.show()

# %% [markdown]
# Single particles can hardly be seen, yet the power spectrum on the right shows rings, because many weak
# particles add up there. They are called **Thon rings**, and they are $\mathrm{CTF}^2$. Where a ring is dark the
# microscope has transferred nothing; beyond it the contrast is reversed.
#
# ## 2. Which defocus?
#
# **Idea.** Take the logarithm of the power, subtract its smooth part, and look for the defocus whose
# $\mathrm{CTF}^2$ correlates best with what is left. `fit_ctf` tries a grid of 10 nm, then refines, with a little
# astigmatism (a defocus that depends on the direction) allowed.

# %% mystnb={"image": {"alt": "Radial power spectrum with the fitted CTF squared"}}
if not own_particles:
    fit = micrographs.fit_ctf(power, fine_A, **optics)
    seen = micrographs.thon_rings(power)[0]
    frequency = torch.arange(len(seen)) / (tile * fine_A)
    model = ctf(tile, fine_A, fit.defocus_um, **optics)[0, 0].square() - 0.5
    shown = (frequency > 1 / 40) & (frequency < min(1 / 5, 0.45 / fine_A))
    name = "CTF² of the fit, scaled"
    curves = {"log power without its smooth part": (frequency[shown], seen[shown])}
    curves[name] = frequency[shown], 2 * seen[shown].std() * model[shown]
    labels = {"x": "spatial frequency (1/Å)", "y": "log power", "title": "Thon rings and the fit"}
    figure = plot_lines(curves, theory=name, **labels)
    say(
        f"Defocus {fit.defocus_um:.2f} µm, astigmatism {fit.astigmatism_um:.3f} µm, "
        f"correlation {fit.correlation:.2f}."
    )

# %% [markdown]
# Compare where the peaks are, not how high: their positions fix the defocus, while their height falls with
# frequency for reasons that the fit ignores.
#
# ## 3. Where are the particles?
#
# **Idea.** A particle is a dark blob of known size, a disc of radius $r$, say. Blur the inverted micrograph twice, by
# Gaussians of the widths $r/\sqrt2$ and $1.6\,r/\sqrt2$, and take the difference: it responds to blobs of that size,
# and to nothing smoother or finer. Its peaks are the picks, none nearer to another than 0.8 diameters. There is no template, so nothing is found merely because you looked for it, except roundness.
#
# The boxes are inverted, so that particles are bright as everywhere in this book, and written as a STAR file with
# the fitted defocus.


# %%
def pick(micrograph, pixel_A, threshold=2.0):
    """Positions (n, 2) of dark blobs, best first, and the difference in robust deviations."""
    radius_px = diameter_A / pixel_A / 2
    blurred = [gaussian_filter(-micrograph.numpy(), w * radius_px / 2**0.5) for w in (1.0, 1.6)]
    low, middle, high = np.percentile(blurred[0] - blurred[1], [15.9, 50, 84.1])
    response = (blurred[0] - blurred[1] - middle) / ((high - low) / 2)
    apart, rim = int(1.6 * radius_px), int(1.8 * radius_px)
    found = peak_local_max(response, apart, threshold_abs=threshold, exclude_border=rim)
    return found, response


def extract(micrograph, positions):
    """Cut boxes (n, y, x) around positions (n, 2), turned bright; none that leaves the rim."""
    corner = positions - box_size // 2
    inside = (corner >= 0).all(1) & (corner + box_size <= micrograph.shape).all(1)
    assert inside.any(), f"no pick is {box_size // 2} px from the rim: use a smaller box_size"
    boxes = [micrograph[y : y + box_size, x : x + box_size] for y, x in corner[inside]]
    return -torch.stack(boxes)


# %%
picks_right = {}
if own_particles:
    particles = next(stream_particles(path, batch_size=most_particles)).resampled(box_size)
else:
    positions, response = pick(small, small_A)
    boxes = extract(small, positions)
    if placed is not None:  # simulated
        away_px = torch.cdist(torch.from_numpy(positions).float(), placed.float())
        near = away_px < 0.2 * diameter_A / small_A
        picks_right = {"picks_right": float(near.any(1).float().mean())}
        picks_right["particles_found"] = float(near.any(0).float().mean())
        say("Picks at a particle: {:.0%}; particles picked: {:.0%}.".format(*picks_right.values()))
    poses = torch.eye(3).expand(len(boxes), 3, 3)  # not known yet
    defocus = torch.full((len(boxes),), fit.defocus_um)
    particles = particles_from_arrays(boxes, poses, small_A, defocus_um=defocus, **optics)
    write_particles(particles, folder / "particles.star")
known_volume = load_volume(structure, box_size, particles.pixel_size_A) if structure else None
star = path if own_particles else folder / "particles.star"
say(f"**{len(particles)}** particles of {box_size} px at {particles.pixel_size_A:.2f} Å: `{star}`.")

# %% mystnb={"image": {"alt": "Picked positions on the micrograph, and picked particles"}}
if not own_particles:
    figure, ax = plt.subplots(figsize=(5.4, 5.4))
    ax.imshow(response, vmin=-3, vmax=4)
    ax.plot(positions[:, 1], positions[:, 0], "o", mfc="none", mec="C1", ms=8)
    ax.set(title="difference of Gaussians, and its peaks", xlabel="x (px)", ylabel="y (px)")
    picks = {"as picked": boxes[:8], "blurred": blur(boxes[:8], 1.5)}
    figure = show_rows(picks, title="The eight strongest picks", width_in=1.0)

# %% [markdown]
# Look at the circles and at the eight boxes. Would you have picked the same ones? In a crowded micrograph two
# people will disagree about many.
#
# ## 4. How far is this from the simulation?
#
# **Question.** The networks of this book were trained on particles in *white* noise of *known* level, without a
# CTF. How do these differ?
#
# Look at the background outside the particles: with a mask $m$ that is 0 on the particle, $N(k)$, the mean of
# $|\mathrm{FT}(m\,x)|^2 / \sum m^2$ at each spatial frequency $k$, is the noise spectrum. What the whole boxes have beyond that is signal. Two linear operations then close
# most of the gap, and both can be undone afterwards: **phase flipping** (multiply by the sign of the CTF) and
# **whitening** (divide by $\sqrt{N}$). With $\hat x$ for the Fourier transform of the image and $\hat y$ for that
# of the clean projection,
#
# $$ \tilde x(k) = \frac{\operatorname{sign}\,\mathrm{CTF}(k)}{\sqrt{N(k)}}\; \hat x(k)
#    \qquad\Rightarrow\qquad \tilde x = \tilde y + \text{white noise}, \quad
#    \tilde y(k) = \frac{|\mathrm{CTF}(k)|}{\sqrt{N(k)}}\; \hat y(k). $$
#
# Nothing is divided by the CTF, so its zeros do no harm, and the noise is white again. One difference remains:
# $\tilde y$ is a *filtered* molecule, which no network of notebook 02 has been trained on.

# %%
radius_px = min(0.55 * diameter_A / particles.pixel_size_A, 0.4 * box_size)
noise = measure_noise(particles, radius_px)
white, background = to_network(particles, noise)
transfer = torch.ones(1, box_size, box_size // 2 + 1) if particles.ctf is None else particles.ctf
squared = torch.from_numpy(particles.state == PREMULTIPLIED)[:, None, None]  # to_network divides
transfer = torch.where(squared, transfer.abs().sqrt(), transfer)  # such images by |CTF|
sigma = noise.sigma
bright = "bright" if noise.sign > 0 else "dark"
say(
    f"SNR after whitening: **{noise.snr:.3g}** (σ = {sigma:.2f} signal deviations), {bright} particles."
)

# %% [markdown]
# The same by hand: $N(k)$ from the background, then one factor a frequency. (`measure_noise` also smooths $N$, and
# scales it so that the whitened background has exactly the variance 1.)

# %%
at = torch.arange(box_size) - box_size // 2
from_middle = torch.hypot(at[:, None].float(), at.float())  # px
flat = level(particles.images, radius_px)[0]  # background plane and deviation taken off
m = ((from_middle - radius_px) / 3).clamp(0, 1)
power_outside = torch.fft.rfft2(flat * m).abs().square().mean(0) / m.square().sum()
by_hand = radial_mean(power_outside, box_size, dims=2)
assert abs(float((by_hand / noise.spectrum)[3:].mean()) - 1) < 0.2
if not own_particles:  # another file may say that its phases are flipped already
    signs = torch.where(transfer < 0, -1, 1)
    factor = noise.sign * signs / amplitude(noise)  # in every pixel of FT
    by_hand = torch.fft.irfft2(torch.fft.rfft2(flat) * factor, s=(box_size, box_size))
    assert_close(sigma * by_hand, white, rtol=1e-3, atol=1e-3)

# %% [markdown]
# ## 5. A twin with a known truth
#
# **Idea.** Nobody knows the truth behind these particles. So simulate another molecule with exactly this CTF,
# this noise spectrum and this SNR: a **twin** of the data. Whatever anybody claims about a denoiser can be tested
# there first.

# %%
generator = torch.Generator().manual_seed(seed)
molecule = load_volume(twin_source, box_size, pixel_size_A)
rotations = random_rotations(n_twin, generator)
places = torch.rand(n_twin, 2, generator=torch.Generator().manual_seed(seed + 1)) - 0.5
clean = project(molecule.map, rotations, places)  # off centre as picks are, in whole pixels
carried = transfer[torch.arange(n_twin) % len(transfer)]  # the measured CTFs, in turn
colour = amplitude(noise)
gain = (noise.snr / apply_ctf(clean, carried / colour).var()).sqrt()
grain = torch.randn(clean.shape, generator=generator)
rows = torch.arange(n_twin) % len(particles)
twin = particles.select(rows)
recorded = apply_ctf(gain * clean, carried) + apply_ctf(grain, colour)
twin = twin.with_images(recorded)
measured = measure_noise(twin, radius_px)
twin_truth = apply_ctf(gain * clean, carried.abs() / colour) * sigma  # as the network is to see it
twin_white = twin_truth + sigma * apply_ctf(grain, carried.sgn())
say(f"Measured again on the twin: SNR {measured.snr:.3g} for {noise.snr:.3g}.")

# %% mystnb={"image": {"alt": "Power in each shell of real particles, twin, and white-noise simulation"}}
frequency = torch.arange(box_size // 2 + 1) / (box_size * particles.pixel_size_A)
stacks = {"real particles": flat, "the twin": level(twin.images, radius_px)[0]}
lines = {}
for name, stack in stacks.items():
    power_ft = torch.fft.rfft2(stack).abs().square().mean(0) / box_size**2
    lines[name] = frequency, radial_mean(power_ft, box_size, dims=2)
lines["measured noise"] = frequency, noise.spectrum
lines["simulation of notebook 02"] = frequency, torch.ones_like(frequency)
labels = {"x": "spatial frequency (1/Å)", "y": "power (1: background variance)"}
figure = plot_lines(lines, theory="simulation of notebook 02", **labels)
_ = figure.axes[0].set(yscale="log", title="The gap between simulation and reality")

# %% [markdown]
# ## 6. Carry a network over
#
# The dashed line is what the networks were trained on; the noise of real particles is far from it at low
# frequency. The twin follows the real particles much more closely. Where they differ, the real background is not
# quite what the twin takes it for: ice and neighbours carry the CTF, too.
#
# These are the networks, in order of how much they have been told about the data:
#
# - **one protein, raw**: the network of `02_train_sr3` that comes with cryonb (`channel`, white noise, SNR 0.1),
#   on images that had only their background levelled to mean 0 and deviation 1. This is what you get if you
#   simply try it.
# - **one protein, transferred**: the same network on whitened, phase-flipped images, scaled to the one noise
#   level it has met. **SR3 → U-Net** adds the second stage of `03_refine_unet`, as the paper does.
# - **many proteins**: a network of the same size, trained on 3,200 random molecules with all kinds of CTF,
#   whitening filters and SNRs. `cryonb denoise` uses this one.
# - **many proteins, tuned**: the same, after a little more training on random molecules of *this* diameter, with
#   *this* CTF and *this* noise. The idea is that of Noise-Transfer2Clean (Li et al. 2022), and less: that method cuts
#   patches of real noise out of the micrographs and mixes them into clean images, weighted by contrast. Ours draws
#   Gaussian noise that shares nothing with the real one but its power at each frequency: no ice, no carbon, no
#   neighbours, no pixels that depend on each other in any other way.
#
# The controls are those methods of `04_compare_methods` that were trained on no particle like these: a blur,
# K-SVD, the covariance Wiener filter (CWF), BM3D and Topaz-Denoise, as far as they are installed, with their
# settings chosen on the same random molecules; and the **linear filter** that has the least squared error on
# these random molecules.

# %% mystnb={"image": {"alt": "Loss curve while the network is tuned to molecules like these"}}
about = {"pixel_size_A": particles.pixel_size_A, "diameter_A": diameter_A}
about["transfer"] = transfer.abs() / colour
like = training_images(like_molecules, 32, box_size, seed, **about)
one, many = (load_model(path, SR3)[0] for path in (KEPT / "channel-white-sr3.safetensors", MANY))
second = load_model(KEPT / "channel-white-refine.safetensors", Refiner)[0]
many_to_tune = load_model(MANY, SR3)[0].train()
loss = partial(any_level_loss, start=0.8, snr=(noise.snr / 1.5, noise.snr * 1.5))
options = {"batch_size": batch_size, "learning_rate": 2e-4, "seed": seed}
draw, title = partial(draw_batch, like), "many proteins, tuned"
tuned = plotting.train_live(many_to_tune, draw, loss, tune_images, title=title, **options)

# %%
known = 10**0.5  # the only noise level that the network for one protein has met, SNR 0.1


def both_stages(x, sigma):
    """SR3's one step, then the U-Net behind it."""
    return refine(second, denoise(one, x, sigma), x, sigma)


def at_known(denoise, x, sigma):
    """Scale images to the noise that the network knows, denoise, and scale back."""
    return denoise(x * known / sigma, known) * sigma / known


grain = sigma * torch.randn(like[1].shape, generator=generator)
denoisers = untrained(like[1] + grain, like[0], sigma, slow_images)
del denoisers["Topaz, contrast -1"]  # ours are bright, which it does better on, see notebook 04
for name, denoiser in {
    "linear filter": linear_filter(*like, sigma),
    "one protein, transferred": partial(at_known, partial(denoise, one), sigma=sigma),
    "one protein, SR3 → U-Net": partial(at_known, both_stages, sigma=sigma),
    "many proteins": partial(denoise, many, sigma=sigma),
    "many proteins, tuned": partial(denoise, tuned, sigma=sigma),
}.items():
    denoisers[name] = Method(denoiser)

# %% [markdown]
# On the twin you know the truth. The error is a share of the signal's variance: 0 is perfect, and 1 is what you
# get for an empty image.

# %% mystnb={"image": {"alt": "Particles of the twin, noisy, denoised by each method, and their truth"}}
flat_real, flat_twin = stacks.values()
raw = at_known(partial(denoise, one), flat_twin, flat_twin.std())
raw = raw * (raw * twin_truth).sum() / raw.square().sum()  # at the scale that suits it: no unit
on_twin = {"one protein, raw": raw} | run_all(denoisers, twin_white)
denoisers = {name: denoiser for name, denoiser in denoisers.items() if name in on_twin}
size = twin_truth.square().mean()
error = {k: float((v - twin_truth[: len(v)]).square().mean() / size) for k, v in on_twin.items()}
say_table(["on the twin", "error ÷ signal variance"], error.items())
strip = {"noisy": twin_white} | on_twin | {"truth": twin_truth}
strip = {k: v[:8] for k, v in strip.items()}
figure = show_rows(strip, title="The twin: a molecule that no network has seen", width_in=0.9)

# %% [markdown]
# Each image has its own grey scale, so look at the figure for shapes and at the table for amounts. (Slow methods
# have done only the first few particles.) Methods that know nothing of proteins gain little over an empty image,
# or nothing. CWF learns what signal looks like from these very images, and there are few of them. The linear
# filter is hard to beat on molecules that nobody knows: with so little signal the posterior mean is nearly
# linear. A network trained on one protein answers with that protein. Its rows look the prettiest; the table shows
# what they are worth.
#
# ### Who generalises?
#
# **Question.** The paper shows Noise2Noise and the two GANs on real particles (its Fig. 3, third row) and finds that they
# generalise very poorly. Do they, and does SR3?
#
# **Idea.** Three sets of particles that no network has seen: *as trained*, the channel in white noise of SNR 0.1;
# *like real*, the channel again, with the CTF, the noise and the SNR that were measured here; and the twin, *another*
# molecule. The rivals are the networks that `04_compare_methods` trained in this run, all at the same cost (where it
# has not run, only the kept rows are there); the network for many proteins is the one to compare with. Each image is
# judged at the scale and offset that suit it best, since a wrong contrast is easily mended: one minus the squared
# correlation with the truth is then the error as a share of the signal's variance, 1 for an empty image.

# %% mystnb={"image": {"alt": "Real particles, noisy and denoised by the networks of notebook 04"}}
rows_04 = of_run(run_dir / "models/white", known, pixel_size_A=pixel_size_A, snr=0.1)
rivals = {k: partial(at_known, lambda x, _, m=m: m(x)) for k, m in rows_04.items()}
rivals["kept SR3, one step"] = partial(at_known, partial(denoise, one))
rivals["kept SR3 → U-Net"] = partial(at_known, both_stages)
rivals["many proteins"] = partial(denoise, many)
own, n = load_volume("channel", box_size, pixel_size_A).map, min(64, n_twin)
views, like_real = project(own, rotations[:n]), project(own, rotations[:n], places[:n])
like_real = apply_ctf(like_real, carried[:n].abs() / colour)
like_real *= sigma * noise.snr**0.5 / like_real.std()  # as strong as the measured signal
cases = {"as trained": (views / views.std(), known), "like real": (like_real, sigma)}
cases["like real, another"], generalise = (twin_truth[:n], sigma), {}
for truth, level_of in cases.values():
    x = truth + level_of * torch.randn(truth.shape, generator=generator)
    for name, rival in rivals.items():
        alike = correlation(rival(x, sigma=level_of), truth)
        generalise.setdefault(name, []).append(float(1 - alike.square().mean()))
say_table(["error at the best scale", *cases], [(k, *v) for k, v in generalise.items()])
strip = {"whitened": white[:8]} | {k: v(white[:8], sigma=sigma) for k, v in rivals.items()}
figure = show_rows(strip, title="Real particles", width_in=0.9)

# %% [markdown]
# Read each row from left to right: how much is lost on the way from the simulation to the data? Then compare the last two
# columns. Where they are alike, it is not the molecule that a network does not know but the data: their CTF, and noise
# that is stronger than what it was trained on. And compare each column with its last row, a network that was trained for
# all kinds of data. (One that has learnt little has little to lose.) The pictures cannot tell you: nobody knows their
# truth.
#
# ## 7. What would a known structure be worth?
#
# **Question.** For some real particles the structure is known, such as those of EMPIAR-10081, which the paper
# denoises. Does that give you a truth for each image?
#
# **Idea.** Take the projection of the structure that is **closest** to the particle: of all poses and positions
# the one that fits best, CTF included. `closest_projections` searches directions from coarse to fine, with all
# turns and shifts, in the whitened images, where least squares are the right measure, and then scales the
# projections. With the parameter `structure` it does so for every particle of the data. What such a truth is
# worth you can find out on the twin: look for the pose as if nobody knew it, and compare with the real truth.
#
# Two new rows know the molecule: the closest projection itself, and the mean over all poses by their weight (the
# Bayes limit of `04_compare_methods`, at the position that was found). FRC is the Fourier ring correlation of
# notebook 03: how well two images agree at each frequency, here averaged over all of them.

# %% mystnb={"image": {"alt": "Particles of the twin, their closest projections with and without CTF, and the truth"}}
sought = {"twin": (molecule, twin_white[:truth_images], carried[:truth_images].abs() / colour)}
if structure:
    sought["real"] = known_volume, white, transfer.abs() / colour
shift = {"most_shift_px": most_shift_A / particles.pixel_size_A}
closest = {
    k: closest_projections(v.map, x, sigma, v.symmetry, ctf=c, **shift)
    for k, (v, x, c) in sought.items()
}
found = closest["twin"]
knowing = {"closest projection": found.observed, "mean over poses": found.mean}
strip = {"noisy": twin_white} | knowing | {"truth": twin_truth}
strip |= {"closest, no CTF": found.clean, "truth, no CTF": clean}
strip = {k: v[:8] for k, v in strip.items()}
figure = show_rows(strip, title="The twin: closest projections", width_in=0.9)

# %%


def likeness(images, clean):
    """Correlation, PSNR in dB and FRC over all rings from the first to Nyquist; means over images."""
    rings = frc(images, clean)[1][:, 1:]
    return tuple(float(x.mean()) for x in (correlation(images, clean), psnr(images, clean), rings))


alike = {}
for name, images in (knowing | on_twin).items():
    n = min(truth_images, len(images))
    alike[name] = [likeness(images[:n], x[:n]) for x in (twin_truth, found.observed)]
what = "correlation", "PSNR (dB)", "FRC"
columns = [f"{name}, {whose}" for name in what for whose in ("truth", "closest")]
rows = [(k, *sum(zip(*pair, strict=True), ())) for k, pair in alike.items()]
say_table(["on the twin", *columns], rows)
right = rotations[:truth_images], places[:truth_images]
angle = angular_distance_deg(found.poses.rotations, right[0], molecule.symmetry).median()
off_px = (found.poses.shifts_px - right[1]).norm(dim=1).median()
say(
    f"The closest projections correlate with the truth by **{alike['closest projection'][0][0]:.3f}**."
    f" Their poses are off by {angle:.1f}°, their places by {off_px:.2f} px (medians)."
)

# %% [markdown]
# Compare each pair of columns. Where the search finds the pose, the closest projection is far nearer to the truth
# than any denoiser's image, because it knows the structure: it makes a good stand-in for the truth. Where noise
# chooses the pose, the error of the closest projection depends on the noise in the image, and so does the error
# of a denoiser. A row whose second number is clearly the better one is **flattered**, and most of all the mean
# over poses: the noise that misled the search misleads it, too. A network trained on this very structure would
# gain in the same way. *Never judge by the closest projection a method that knows the structure.*
#
# The twin is also a best case. Its structure is exactly that of its particles, its CTF and noise are known, and
# nothing else is in the box. A real particle may have a detergent belt that no model shows, another conformation,
# and neighbours; whatever the structure lacks counts as an error of the denoiser that shows it.
#
# ## 8. The real particles

# %% mystnb={"image": {"alt": "Real particles, noisy and denoised by each method"}}
real = run_all(denoisers, white)
strip = {"whitened": white} | real
strip["one protein, raw"] = at_known(partial(denoise, one), flat_real[:8], flat_real.std())
if structure:
    found_real = closest["real"]
    strip |= {"closest projection": found_real.observed}
    strip["closest, no CTF"] = found_real.clean
strip = {k: v[:8] for k, v in strip.items()}
figure = show_rows(strip, title=f"Real particles ({data})", width_in=0.9)
if structure:
    fits = (correlation(closest[k].observed, sought[k][1]).mean() for k in ("real", "twin"))
    say("Particle and closest projection correlate by {:.3f}, on the twin by {:.3f}.".format(*fits))
    shown = {"mean over poses": found_real.mean} | real
    judged = {k: likeness(v, found_real.observed[: len(v)]) for k, v in shown.items()}
    columns = ["to the closest projection", "correlation", "PSNR (dB)", "FRC"]
    say_table(columns, [(k, *v) for k, v in judged.items()])

# %% [markdown]
# Which row is right? Looks are no argument: the rows of the network that knows one protein are as pretty as any,
# and this sample is not that protein (unless you simulated it). Three tests need no truth.
#
# ### The error, estimated (SURE)
#
# Let $f$ be the denoiser and $x = y + \sigma n$ an image of $M$ pixels, with $n$ white noise of unit variance.
# Expand $\lVert f(x) - y \rVert^2 = \lVert f(x) - x + \sigma n \rVert^2$ and use Stein's lemma, $\mathbb E[n
# \cdot f(x)] = \sigma\, \mathbb E[\operatorname{div} f(x)]$. The divergence, $\operatorname{div} f = \sum_i
# \partial f_i / \partial x_i$, says how strongly each output pixel follows its own input pixel:
#
# $$ \mathbb E \lVert f(x) - y \rVert^2 \;=\; \mathbb E\Big[ \lVert x - f(x) \rVert^2 - M\sigma^2 + 2\sigma^2
#    \operatorname{div} f(x) \Big]. $$
#
# There is no $y$ on the right. This is Stein's unbiased risk estimate, **SURE**. A denoiser that only copies its
# input has no residual and divergence $M$; one that invents freely has a large residual. (The divergence is
# measured by moving the input a little in one random direction.) The twin tells you whether the estimate can be
# trusted.

# %%
risk = {}
for name, denoiser in ((k, v) for k, v in denoisers.items() if not v.first):
    estimates = []
    for stack in (twin_white, white):
        generator = torch.Generator().manual_seed(seed)
        estimates.append(sure(denoiser, stack, sigma, generator).mean())
    risk[name] = error[name], float(estimates[0] / size), float(estimates[1])
columns = ["error ÷ signal variance", "twin, true", "twin, SURE", "real, SURE"]
say_table(columns, [(name, *values) for name, values in risk.items()])
off = max(abs(true - guess) for true, guess, _ in risk.values())
say(
    f"On the twin the estimate is off by {off:.3f} at most. If the noise power "
    f"were known to 1 % only, all of the last column would move by {0.01 / noise.snr:.2f}."
)

# %% [markdown]
# Where *true* and *SURE* agree on the twin, you may believe the last column as far as the twin resembles the
# data: white Gaussian noise of known level. The level is the weak point. An error in it, divided by the SNR,
# shifts the whole column, and in a crowded micrograph the background around one particle holds others, so that
# the noise is overestimated and the column comes out too low. *Differences* between rows hardly feel this:
# believe the order, not the amounts.
#
# The slow methods are left out (K-SVD, BM3D, Topaz): an estimate from few images scatters. Besides, K-SVD and BM3D
# decide by thresholds what to keep; their output jumps, and Stein's lemma needs one that does not. And structure that is
# not the particle (a neighbour, a carbon edge) counts as signal here, so a denoiser that removes it is blamed for
# it.
#
# ### Empty patches must stay empty
#
# Boxes between the picks hold ice and noise. Whatever a denoiser draws there it has made up, or taken from a
# neighbour at the rim. We measure the power of its output near the box centre as a share of that on particles: 0
# would be right, and near 1 means that the output hardly depends on whether there is a particle.
#
# ### Two networks, one image
#
# Networks trained on disjoint data share no memory, so what they agree on must come from the image. It is
# tempting to conclude that it is true. The figure shows the Fourier ring correlation of the two networks, on real
# data and on the twin, beside the one with the truth, which only the twin has.

# %%
drawn_on_empty, middle = {}, from_middle < 0.6 * radius_px
if not own_particles:  # where `pick` found least, far from its picks
    quiet = np.argwhere(response < np.quantile(response, 0.6))
    quiet = quiet[((quiet > box_size) & (quiet < len(response) - box_size)).all(1)][::7]
    far = np.linalg.norm(quiet[:, None] - positions[None], axis=2).min(1)
    chosen = quiet[np.argsort(-far)[:300:10]]  # thirty, not all in one place
    patches = twin.select(torch.zeros(len(chosen), dtype=torch.long))
    patches = patches.with_images(extract(small, chosen), ctf_applied=True)
    empty = to_network(patches, noise)[0]
    for name in [k for k, v in denoisers.items() if not v.first and k != "CWF"]:  # it learns anew
        drawn = denoisers[name](empty)[:, middle].square().mean()
        drawn_on_empty[name] = float(drawn / real[name][:, middle].square().mean())
    say_table(["", "power on empty ÷ on particles"], drawn_on_empty.items())

# %% mystnb={"image": {"alt": "Fourier ring correlation against spatial frequency: of the two networks on real particles and on the twin, and of one network with the truth of the twin"}}
ours, other = "many proteins", "one protein, transferred"
agreement = {
    "the two networks, real": frc(real[ours], real[other], particles.pixel_size_A),
    "the two networks, twin": frc(on_twin[ours], on_twin[other], particles.pixel_size_A),
    "many proteins and truth, twin": frc(on_twin[ours], twin_truth, particles.pixel_size_A),
}
curves = {k: (f, v.mean(0)) for k, (f, v) in agreement.items()}
figure = plot_lines(curves, x="spatial frequency (1/Å)", y="mean FRC", title="Who agrees?")

# %% [markdown]
# First the table: which of the rows goes on drawing when there is nothing to draw?
#
# Then the figure. At fine detail (on the right) the two networks agree with each other far better than with the
# truth: they were given the *same noise*, and both let some of it through. (At coarse detail it is the other way
# round, because one of them draws the outline of a protein of its own.) So agreement on one image is no evidence.
# It would be evidence with two exposures of the particle, such as even and odd movie frames, whose noise is
# independent, but a particle stack has no second exposure. That the curves of real data and twin lie close
# together says only that the twin is a good one.
#
# ## 9. One command for all of it
#
# `cryonb denoise` does what sections 4 and 6 did: it measures the noise, whitens, flips phases, denoises with the
# network for many proteins, and undoes whitening and flipping, so that the output keeps the rows, columns, box,
# unit and CTF of the input. It streams the images, so 55,000 particles of 256 px need no more memory than these
# do, and an interrupted run picks up where it stopped. From Python:

# %%
width_A = 2 * radius_px * particles.pixel_size_A
out = denoise_file(star, folder / "denoised.star", DenoiseOptions(diameter_A=width_A))
back = next(stream_particles(out, batch_size=len(particles))).resampled(box_size)
own = from_network(real["many proteins"], background, particles, noise)
both = torch.stack([back.images.flatten(), own.flatten()])
same = float(torch.corrcoef(both)[0, 1])
say(f"Correlation with the images of this notebook: {same:.3f}. Written: `{out}`.")

# %% [markdown]
# The phases are still those of the microscope, so a reconstruction from this file corrects for the CTF just as it
# would for the raw images. `06_reconstruct_fsc` and `07_trust` show what such a reconstruction is worth: **look
# and pick with denoised images, reconstruct from the raw ones.**
#
# ## 10. Try to break it
#
# A wrong defocus flips the wrong phases. The whitening does not notice, and neither does the network: it goes on
# drawing (how strongly, the last column says). Only a truth, the twin's, shows the damage.

# %%
wrong = {}
for shift_um in (0.0, 0.1, 0.3, 1.0):
    table, columns = twin.table, [k for k in ("rlnDefocusU", "rlnDefocusV") if k in twin.table]
    table = table.assign(**{k: table[k] + 1e4 * shift_um for k in columns})
    mistaken = type(twin)(twin.images, twin.optics, table)
    seen = denoise(many, to_network(mistaken, noise)[0], sigma)
    ratio = seen.square().mean() / on_twin["many proteins"].square().mean()
    wrong[f"{shift_um:g} µm off"] = float((seen - twin_truth).square().mean() / size), float(ratio)
columns = ["defocus", "error ÷ signal variance", "power ÷ before"]
say_table(columns, [(k, *v) for k, v in wrong.items()])

# %% [markdown]
# ## 11. Exercises
#
# ```{exercise}
# :label: ex-real-snr
# *Easy, 5 minutes.*
# **Fewer picks, same noise.** How many particles does `measure_noise` need? Measure the SNR from the first 10,
# the first 30 and all particles.
# ```
#
# ````{solution-start} ex-real-snr
# :class: dropdown
# ````
# The strongest picks come first, and they are strong partly by luck, so their SNR is likely to be overestimated:
# the same selection by noise that makes Einstein appear in averages (`00_start_here`).

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for count in (10, 30, len(particles)):
    found = measure_noise(particles.select(slice(0, count)), radius_px)
    print(f"{count:4d} particles: SNR {found.snr:.3f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-real-sign
# *Easy, 5 minutes.*
# **Dark or bright.** Invert the contrast of the particles. What does `measure_noise` say, and how can it know?
# ```
#
# ````{solution-start} ex-real-sign
# :class: dropdown
# ````
# Averaged over all particles, the middle of the box differs from the background by far more than chance, because
# protein is denser than ice, even as a mere blob. With a handful of weak particles this fails; then tell `cryonb
# denoise` with `--contrast`.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
turned = particles.with_images(-particles.images)
print(f"sign {measure_noise(turned, radius_px).sign:+d}, as given {noise.sign:+d}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-real-structure
# *Medium, 15 minutes.*
# **The wrong structure.** The search finds a closest projection for any structure you give it. How would you
# notice that the particles are of another molecule? Compare each particle with its projection.
# ```
#
# ````{solution-start} ex-real-structure
# :class: dropdown
# ````
# Neither fits well, because most of each image is noise. The right structure fits better, but you only know that
# because you have a second one to compare with; no single number tells. A structure that fits no better than
# another one is no truth.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
name = "channel" if twin_source == "prestin" else "prestin"
wrong_one = load_volume(name, box_size, pixel_size_A)
_, stack, filters = sought["twin"]
given = wrong_one.map, stack, sigma, wrong_one.symmetry
mistaken = closest_projections(*given, ctf=filters, **shift)
for name, images in {"right": closest["twin"], "wrong": mistaken}.items():
    fits = correlation(images.observed, stack).mean()
    print(f"{name} structure: particle and closest projection correlate by {fits:.3f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-real-own
# *Hard, 45 minutes.*
# **Your own data.** Run this notebook on a STAR file: `cryonb run 05_real_data -p data my.star -p diameter_A
# 150`, and add `-p structure my.pdb` if you know what the particles are. What does the twin say about that truth?
# Which of the tests of section 8 would you show to a colleague who wants to believe the images?
# ```
#
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** The denoised images of a real data set look much better than those of a twin with the same noise. First
# you suspect that
#
# ```{dropdown} (a) the method works even better on real data
# **No.** Nothing in real data is easier than in its twin.
# ```
# ```{dropdown} (b) something draws what it expects to see
# **Right.** Rule that out first: look at the empty patches. If they stay empty, measure the noise spectrum and
# SNR of both again.
# ```
# ```{dropdown} (c) the twin was made too difficult
# **No.** Possible, but second: look at the empty patches before you measure its noise again.
# ```
#
# **2.** Stein's estimate of the error needs
#
# ```{dropdown} (a) the clean images
# **No.** That is its point: it needs none.
# ```
# ```{dropdown} (b) a second exposure
# **No.** Noise2Noise needs one, this does not.
# ```
# ```{dropdown} (c) white noise of known level
# **Right.** That is why the particles are whitened first, and why the estimate is wrong where structural noise is
# left.
# ```
#
# **3.** Two networks that were trained separately agree on your particles.
#
# ```{dropdown} (a) So they are right.
# **No.** What they have in common is the input, noise included.
# ```
# ```{dropdown} (b) They may share the noise of the image that both were given.
# **Right.** Agreement of two answers to *one* image says nothing; agreement of answers to two images of the same
# particle would.
# ```
# ```{dropdown} (c) They must have seen the same training data.
# **No.** They need share nothing but the image in front of them.
# ```
#
# ## Recap
#
# - Real images differ from simulated ones in noise spectrum, CTF, contrast and SNR. All four can be measured on
#   the images themselves, and the first three undone.
# - A twin with the measured noise and a known truth tells you what a denoiser is worth on data like these.
# - SURE estimates the error without a truth, if the noise is white and its level known.
# - Where the structure is known, the closest projection is a truth with an error of its own, and it favours
#   whoever knows the structure.
# - Empty patches show what is drawn where nothing is. Two networks that agree on one image prove nothing.
#
# **Next**: `06_reconstruct_fsc` asks what denoised particles are worth in three dimensions.
#
# **References.** Li et al. 2022, *Bioinformatics* 38, 2022 (Noise-Transfer2Clean) · Rohou and Grigorieff 2015,
# *J. Struct. Biol.* 192, 216 (CTFFIND4) · Stein 1981, *Ann. Statist.* 9, 1135 · Ramani, Blu and Unser 2008,
# *IEEE Trans. Image Process.* 17, 1540 (Monte-Carlo SURE) · Welch 1967, *IEEE Trans. Audio* 15, 70.

# %%
results = {"data": data, "particles": len(particles), "snr": noise.snr, "twin_snr": measured.snr}
if not own_particles:
    results |= {"defocus_um": fit.defocus_um, "ctf_correlation": fit.correlation}
results |= {f"twin: {name}": value for name, value in error.items()}
for name, (_, guess, guess_real) in risk.items():
    results |= {f"twin SURE: {name}": guess, f"real SURE: {name}": guess_real}
for name, values in generalise.items():
    results |= {f"generalise, {case}: {name}": v for case, v in zip(cases, values, strict=True)}
results |= {"closest: angle_deg": float(angle)} | picks_right
results["closest: correlation"] = alike["closest projection"][0][0]
for name, (to_truth, to_closest) in alike.items():
    results[f"correlation with truth: {name}"] = to_truth[0]
    results[f"correlation with closest: {name}"] = to_closest[0]
if structure:
    results |= {f"real, closest: {name}": values[0] for name, values in judged.items()}
results |= {f"empty: {name}": value for name, value in drawn_on_empty.items()}
results |= {f"defocus {name}": value for name, (value, _) in wrong.items()}
results["command_correlation"] = same
(run_dir / "results").mkdir(parents=True, exist_ok=True)
(run_dir / "results" / "05_real_data.json").write_text(json.dumps(results, indent=1))
