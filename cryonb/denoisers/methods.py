"""The denoisers that are compared, each at its best: settings chosen or weights trained here.

Every function returns rows: name to `Method`. Settings are chosen on validation particles, never on
the test. Introduced in: 04_compare_methods.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from cryonb.denoisers.baselines import dihedral, linear_filter, over_turns
from cryonb.denoisers.compare import Method, train_for
from cryonb.denoisers.cwf import cwf
from cryonb.denoisers.direct import Direct
from cryonb.denoisers.gan import Adversarial
from cryonb.denoisers.ksvd import ksvd
from cryonb.denoisers.peers import bm3d, topaz_to_scale
from cryonb.evaluation.metrics import mse, psnr
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.refine import Refiner, refine, refine_loss
from cryonb.learning.train import LossRecipe, Recipe, count_flops, flops_per_image, sr3_loss
from cryonb.learning.weights import MANY, load_kept, load_model, save_model
from cryonb.poses.posterior import posterior
from cryonb.poses.templates import Templates, image_templates
from cryonb.simulation.dataset import Dataset
from cryonb.simulation.simulate import noise_sigma

SR3_SHARE = 0.6  # of the cost of two stages that the first gets


def blur(noisy: torch.Tensor, width_px: float) -> torch.Tensor:
    """Gaussian blur of images (n, y, x), standard deviation in pixels."""
    return torch.from_numpy(gaussian_filter(noisy.numpy(), (0, width_px, width_px)))


def classical(data: Dataset, few: int, *, trained: bool = True) -> dict[str, Method]:
    """Rows that no network is trained for; slow ones are to denoise `few` particles.

    `trained` False leaves out those that are made from the clean training images.
    """
    held, learn = data.validation, data.train
    rows = {"noisy": Method(lambda noisy: noisy, "as it is")}
    if trained:
        mean = dihedral(learn.clean.images.mean(0, keepdim=True)).mean(0)
        rows["mean image"] = Method(mean.expand_as, "of the training images, in all turns")
        rows["best linear filter"] = linear(data)
    pair = held.noisy.images[:128], held.clean.images[:128]
    return rows | untrained(*pair, data.sigma, few, also=learn.noisy.images)


def untrained(noisy, clean, sigma: float, few: int, also=None) -> dict[str, Method]:
    """Rows of blur, K-SVD and peers, set on validation images (n, y, x); slow ones denoise `few`.

    `also` are noisy particles that CWF learns from, besides those that it denoises.
    """
    width = min(np.arange(1, 6, 0.25), key=lambda w: mse(blur(noisy, w), clean).mean())
    rows = {"Gaussian blur": Method(partial(blur, width_px=width), f"{width} px, by validation")}
    learnt = partial(ksvd, sigma=sigma, n_patches=min(20_000, 400 * few))
    rows["K-SVD"] = Method(learnt, "patch 12 px, tolerance 1.08 σ, by validation", first=few)
    rows["BM3D"] = Method(partial(bm3d, sigma=sigma), "bm3d, its default profile", first=few)
    rows["CWF"] = Method(partial(cwf, sigma=sigma), "covariance of these particles", also=also)
    pair = {"noisy": noisy[:few], "clean": clean[:few]}
    settings = "topaz-em, its pretrained unet; scale and offset by validation"
    for sign in (1, -1):
        to_scale = partial(topaz_to_scale, sigma=sigma, sign=sign, **pair)
        rows[f"Topaz, contrast {sign:+d}"] = Method(to_scale, settings, first=few)
    return rows


def linear(data: Dataset) -> Method:
    """Row of the exact linear filter, from the training images of `data`."""
    fitted = linear_filter(data.train.clean.images, data.train.observed, data.sigma)
    return Method(fitted, "covariance of the clean training images, in all turns")


def template_posterior(data: Dataset, first: int, most=16_000) -> tuple[Method, Templates]:
    """Row of the posterior over templates, which are `most` training images; and these.

    At 64 px a thousand images take 60 MB, and a particle a tenth of a second of two cores.
    """
    clean, seen = data.train.clean.images[:most], data.train.observed[:most]
    templates = image_templates(clean, None if torch.equal(clean, seen) else seen)
    settings = f"{len(clean)} training images, mirrored, {templates.turns} turns"
    mean = partial(posterior_mean, templates, sigma=data.sigma)
    return Method(mean, settings, first=first), templates


def posterior_mean(templates: Templates, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
    """Posterior mean of particles (n, y, x) over templates."""
    return posterior(templates, noisy, sigma).mean


def pretrained(data: Dataset) -> dict[str, Method]:
    """Rows of the weights that come with cryonb: for any molecule, and those made for such data."""
    sigma, (many, manifest) = data.sigma, load_model(MANY, SR3)
    settings = f"`cryonb train many`: {manifest['options']['images']:,} images of random molecules"
    any_molecule = Method(partial(denoise, many, sigma=sigma), settings, network=many)
    rows = {"SR3 for any molecule, one step": any_molecule}
    made = {key: data.manifest[key] for key in ("box_size", "pixel_size_A", "snr")}
    where = Path(data.manifest["source"]).stem, data.manifest["setting"]
    found = load_kept(*where, "sr3", SR3, **made), load_kept(*where, "refine", Refiner, **made)
    if None in found:
        return rows
    (first, manifest), (second, _) = found
    once, options = partial(denoise, first, sigma=sigma), manifest["options"]
    before = f", after {Path(options['init']).name}" if "init" in options else ""
    settings = f"`cryonb train`: {options['images']:,} images{before}"
    turned = partial(over_turns, once)
    return rows | {
        "kept SR3, one step": Method(once, settings, network=first),
        "kept SR3, over turns": Method(turned, "mean over 8 turns and mirrors"),
        "kept SR3 → U-Net": Method(lambda x: refine(second, once(x), x, sigma), settings),
    }


def for_molecule(data: Dataset, snr: float, most: int = 2000) -> Method:
    """Row of a denoiser for particles of `data`'s molecule in white noise of any SNR, at once.

    The weights of cryonb where they were made for this, else the exact linear filter of the first
    `most` training images.
    """
    sigma, made = noise_sigma(snr), {k: data.manifest[k] for k in ("box_size", "pixel_size_A")}
    found = load_kept(Path(data.manifest["source"]).stem, "white", "sr3", SR3, snr=snr, **made)
    if found:
        once = partial(denoise, found[0], sigma=sigma)
        return Method(once, "SR3 in one step, weights that come with cryonb")
    learn = data.train.clean.images[:most]
    return Method(linear_filter(learn, learn, sigma), "the best linear filter")


@dataclass(frozen=True)
class Diffusion(LossRecipe):
    """SR3 on clean and observed images, used in one step."""

    sigma: float
    settings = "clean-image form, SNR 3 down to the data's"

    def networks(self) -> list[nn.Module]:
        return [SR3()]

    def loss(self, network, batch, fraction: float, generator) -> torch.Tensor:
        return sr3_loss(network, batch, fraction, generator, sigma=self.sigma)

    def apply(self, network: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
        return denoise(network, noisy, self.sigma)


@dataclass(frozen=True)
class SecondStage(LossRecipe):
    """U-Net on clean images, samples of a first stage and noisy images; `inputs` of `Refiner`."""

    first: SR3
    sigma: float
    steps: int
    inputs: str

    def networks(self) -> list[nn.Module]:
        return [Refiner(self.inputs, widths=(64, 128), transformers=2)]

    def loss(self, network, batch, fraction: float, generator) -> torch.Tensor:
        return refine_loss(network, batch, fraction, generator, sigma=self.sigma)

    def apply(self, network: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
        drawn = denoise(self.first, noisy, self.sigma, self.steps)
        return refine(network, drawn, noisy, self.sigma)


@dataclass(frozen=True)
class Training:
    """What all learned rows have in common.

    Every row trains at the cost of the images that SR3 sees, in floating-point operations, so that
    the same options give the same networks on every machine.
    """

    data: Dataset
    images: int  # that SR3 sees in training
    stacks: tuple[torch.Tensor, torch.Tensor]  # clean and observed images, each (n, y, x)
    folder: Path | None = None  # where networks are kept, and found by a run that was cut off
    batch_size: int = 16
    seed: int = 0

    @cached_property
    def tflop(self) -> float:
        """Cost of each row, in 10^12 floating-point operations."""
        recipe, model = Diffusion(self.data.sigma), SR3()
        steps = partial(recipe.begin, self.stacks, n_images=10**9, batch_size=self.batch_size)
        return 1e-12 * self.images * flops_per_image(steps, model, model)

    def fit(self, tag: str, recipe: Recipe, stacks=None, tflop: float | None = None):
        """Train a recipe at a cost; returns the moving average of its network, and its curve."""
        tflop = tflop or self.tflop
        torch.manual_seed(self.seed)
        networks = recipe.networks()
        path = self.folder and _weights(self.folder, tag, self.seed)
        asked = {k: v for k, v in self.data.manifest.items() if k != "scale"}
        asked |= {"images": self.images, "batch_size": self.batch_size}
        if path and path.is_file():
            average, manifest = load_model(path, type(networks[0]))
            if manifest["asked"] == asked:
                return average, manifest["curve"]
        average, held = copy.deepcopy(networks[0]), self.data.validation
        noisy, clean = (x.images[-recipe.judged :] for x in (held.noisy, held.clean))

        def evaluate():
            return float(psnr(recipe.apply(average.eval(), noisy), clean).mean())

        options = {"batch_size": self.batch_size, "seed": self.seed}
        steps = partial(recipe.begin, stacks or self.stacks, **options)
        curve = train_for(tflop, steps, *networks, average, evaluate=evaluate, title=tag)
        if path:
            save_model(path, average, {"asked": asked, "curve": curve})
        return average.eval(), curve

    def row(self, tag: str, recipe: Recipe) -> Method:
        """Row of a recipe that is trained on `stacks` at the full cost."""
        network, curve = self.fit(tag, recipe)
        return _row(recipe, network, train_tflop=self.tflop, curve=curve)


def _weights(folder: Path, tag: str, seed: int) -> Path:
    return folder / f"{tag.replace(' ', '-')}-{seed}.safetensors"


def _row(recipe: Recipe, network: nn.Module, **more) -> Method:
    options = {"settings": recipe.settings, "network": network} | more
    return Method(partial(recipe.apply, network), **options)


def direct_recipes(sigma: float) -> dict[str, Recipe]:
    """Recipes of the networks that denoise in one step: U-Net, Noise2Noise and the two GANs."""
    return {
        "U-Net, clean targets": Direct(sigma),
        "Noise2Noise": Direct(sigma, noise2noise=True),
        "DenoiseGAN": Adversarial(sigma, "denoise", shrink=4),  # the better widths on validation,
        "RobustGAN": Adversarial(sigma, "robust", shrink=2),  # for a CPU
    }


def diffusion(training: Training, steps: int, samples: int) -> dict[str, Method]:
    """Rows of SR3 alone: one step, one sample, the mean of `samples`."""
    once, spent = training.row("SR3", Diffusion(training.data.sigma)), training.tflop
    sample = partial(denoise, once.network, sigma=training.data.sigma, steps=steps)

    def mean(noisy):
        return torch.stack([sample(noisy, seed=s) for s in range(samples)]).mean(0)

    return {
        "SR3, one step": once,
        f"SR3, one {steps}-step sample": Method(sample, "second-order solver", spent),
        f"SR3, mean of {samples} samples": Method(mean, f"{steps} steps each", spent),
    }


def two_stages(training: Training, steps: int, held_out: int) -> dict[str, Method]:
    """Rows of SR3 → U-Net, trained one after the other.

    SR3 gets `SR3_SHARE` of the cost; then its samples of `held_out` validation particles are drawn,
    and a U-Net is trained on these at what is left, a tenth of the cost at least.
    """
    sigma, tflop, held = training.data.sigma, training.tflop, training.data.validation
    first, _ = training.fit("SR3 first", Diffusion(sigma), tflop=SR3_SHARE * tflop)
    noisy = held.noisy.images[:held_out]
    spent = 1e-12 * len(noisy) * count_flops(lambda: denoise(first, noisy[:1], sigma, steps))
    left = max(0.1 * tflop, (1 - SR3_SHARE) * tflop - spent)
    stacks = held.clean.images[:held_out], denoise(first, noisy, sigma, steps), noisy
    settings = f"{SR3_SHARE:.0%} of the cost SR3; {steps}-step samples of {held_out} held out"
    rows = {}
    for inputs in ("sample", "sample+noisy"):
        recipe = SecondStage(first, sigma, steps, inputs)
        second, last = training.fit(f"refine {inputs} {steps} {held_out}", recipe, stacks, left)
        curve = [(tflop - left + t, quality) for t, quality in last]
        about = {"settings": settings, "train_tflop": tflop, "curve": curve}
        rows[f"SR3 → U-Net, sees {inputs}"] = _row(recipe, second, **about)
    return rows


def learned(training: Training, steps: int, samples: int, held_out: int) -> dict[str, Method]:
    """All learned rows, each trained at the cost `training.tflop`."""
    recipes = direct_recipes(training.data.sigma)
    rows = {name: training.row(name, recipe) for name, recipe in recipes.items()}
    return rows | diffusion(training, steps, samples) | two_stages(training, steps, held_out)


def spread_dB(
    training: Training, seeds: int, steps: int, samples: int, held_out: int
) -> dict[str, float]:
    """Standard deviation of each learned row's PSNR on the test particles over `seeds` trainings.

    The first is that of `training`, read from its folder if it is there. Empty for one seed.
    """
    test, values = training.data.test, {}
    for seed in range(training.seed, training.seed + seeds if seeds > 1 else 0):
        rows = learned(replace(training, seed=seed), steps, samples, held_out)
        for name, method in rows.items():
            value = psnr(method.denoise(test.noisy.images), test.clean.images).mean()
            values.setdefault(name, []).append(float(value))
    return {name: float(np.std(found, ddof=1)) for name, found in values.items()}


def of_run(folder: Path, sigma: float, seed: int = 0, **made) -> dict[str, Method]:
    """Rows of the networks that `Training` left in `folder`, for particles of noise `sigma`.

    Those of `04_compare_methods`, all trained at the same cost. What is not there, or was not made
    for such data (`pixel_size_A`, ...), is left out.
    """
    recipes = direct_recipes(sigma) | {"SR3": Diffusion(sigma)}
    paths = {name: _weights(folder, name, seed) for name in recipes}
    for path in folder.glob(f"refine-sample-*-{seed}.safetensors"):  # refine-sample-STEPS-HELD-SEED
        first = load_model(_weights(folder, "SR3 first", seed), SR3)[0]
        recipe = SecondStage(first, sigma, int(path.name.split("-")[2]), "sample")
        recipes["SR3 → U-Net"], paths["SR3 → U-Net"] = recipe, path
    rows = {}
    for name, path in paths.items():
        if path.is_file():
            network, manifest = load_model(path, type(recipes[name].networks()[0]))
            if made.items() <= manifest["asked"].items():
                rows[name] = _row(recipes[name], network)
    return rows
