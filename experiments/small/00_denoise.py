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
# # Denoise once, small enough to be run many times
#
# One diffusion model and one second stage, trained for as long as the parameters say, on images of
# 32 pixels, and what they reach on test particles. `08_experiments` runs this notebook many times.

# %%
import copy
import json
from functools import partial
from pathlib import Path

import torch

from cryonb.data.volumes import load_volume
from cryonb.denoisers.baselines import linear_filter
from cryonb.evaluation.metrics import mse, psnr
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.refine import Refiner, refine, refine_loss
from cryonb.learning.train import draw_batch, sr3_loss, train
from cryonb.poses.posterior import bayes_limit
from cryonb.simulation.dataset import read_dataset, write_dataset

# %% tags=["parameters"]
snr = 0.1  # variance of the clean images / variance of the white noise
train_images = 1024  # images that the diffusion model sees, each with fresh noise
refine_images = 512  # images that the second stage sees
batch_size = 8  # images per training step; small, so that few images make many steps
learning_rate = 2e-3  # of AdamW, at its highest
steps = 4  # network evaluations of the sampler
counted = [1, 2, 4, 8]  # numbers of steps that are tried besides
n_train = 512  # particles for training; half as many for the second stage
n_test = 128  # particles that no network sees in training
limit_images = 32  # test particles whose Bayes limit is computed; 0 for none
seed = 0  # of the data, the training and the sampler
run_dir = "runs/own"  # everything is written under it

# %%
volume, folder = load_volume("channel", 32, 6.0), Path(run_dir) / "data"
counts = {"train": n_train, "validation": n_train // 2, "test": n_test}
data = read_dataset(write_dataset(folder, volume, counts, source="channel", snr=snr, seed=seed))
learn, held, test, sigma = data.train, data.validation, data.test, data.sigma
noisy, clean = test.noisy.images, test.clean.images


def trained(model, stacks, loss, n_images):
    """Train on stacks of images; returns the moving average of the weights."""
    average, draw = copy.deepcopy(model), partial(draw_batch, stacks)
    options = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    for _ in train(model, average, draw, partial(loss, sigma=sigma), n_images, **options):
        pass
    return average.eval()


# %%
small = {"widths": (48, 96), "blocks": 1, "transformers": 1}
torch.manual_seed(seed)
pairs = learn.clean.images, learn.observed
model = trained(SR3(**small), pairs, sr3_loss, train_images)


def sample(images, k=1):
    """Denoise images in k steps; one step gives the posterior mean."""
    return denoise(model, images, sigma, k, seed=seed)


stacks = held.clean.images, sample(held.noisy.images, steps), held.noisy.images
second = trained(Refiner("sample", **small), stacks, refine_loss, refine_images)

# %%
drawn = sample(noisy, steps)
images = {
    "noisy": noisy,
    "best linear filter": linear_filter(pairs[0], pairs[0], sigma)(noisy),
    "one step": sample(noisy),
    f"{steps}-step sample": drawn,
    "refined, sees sample": refine(second, drawn, noisy, sigma),
}
if limit_images:
    few = noisy[:limit_images]
    *_, (_, best) = bayes_limit(data.volume, few, sigma, volume.symmetry)
    images["Bayes limit"] = best.mean
    limit = mse(best.mean, clean[:limit_images]).mean()

# %%
results = {f"steps {k} psnr_dB": float(psnr(sample(noisy, k), clean).mean()) for k in counted}
for name, stack in images.items():
    truth = clean[: len(stack)]
    results[f"white: {name} psnr_dB"] = float(psnr(stack, truth).mean())
    if limit_images:
        error = mse(stack[:limit_images], truth[:limit_images]).mean()
        results[f"white: {name} over_limit"] = float(error / limit)
(Path(run_dir) / "results").mkdir(parents=True, exist_ok=True)
(Path(run_dir) / "results" / "00_denoise.json").write_text(json.dumps(results, indent=1))
