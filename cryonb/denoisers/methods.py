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

from cryonb.denoisers.baselines import dihedral, linear_filter, over_turns
from cryonb.denoisers.compare import Method, train_for
from cryonb.denoisers.direct import Denoiser, denoise_direct, noise2noise_loss, supervised_loss
from cryonb.denoisers.gan import Discriminator, Generator, contaminate, train_gan
from cryonb.denoisers.ksvd import ksvd
from cryonb.denoisers.peers import bm3d, cwf, topaz_to_scale
from cryonb.evaluation.metrics import mse, psnr
from cryonb.learning.diffusion import SR3, fuse, one_step
from cryonb.learning.refine import Refiner, refine, refine_loss
from cryonb.learning.train import count_flops, draw_batch, flops_per_image, sr3_loss, train
from cryonb.learning.weights import MANY, load_kept, load_model, save_model
from cryonb.poses.posterior import posterior
from cryonb.poses.templates import Templates, image_templates
from cryonb.simulation.dataset import Dataset
from cryonb.simulation.simulate import noise_sigma

SR3_SHARE = 0.6  # of the cost of two stages that the first gets
LOSSES = {"U-Net, clean targets": supervised_loss, "Noise2Noise": noise2noise_loss}
GANS = {"DenoiseGAN": "denoise", "RobustGAN": "robust"}


def blur(noisy: torch.Tensor, width_px: float) -> torch.Tensor:
    """Gaussian blur of images (n, y, x), standard deviation in pixels."""
    return torch.from_numpy(gaussian_filter(noisy.numpy(), (0, width_px, width_px)))


def classical(data: Dataset, few: int, *, knowing: bool = True) -> dict[str, Method]:
    """Rows that no network is trained for; slow ones are to denoise `few` particles.

    `knowing` False leaves out those that are made from the clean training images.
    """
    held, learn = data.validation, data.train
    rows = {"noisy": Method(lambda noisy: noisy, "as it is")}
    if knowing:
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
    rows["CWF"] = Method(partial(cwf, sigma=sigma), "ASPIRE, its defaults, FFB basis", also=also)
    pair = {"noisy": noisy[:few], "clean": clean[:few]}
    settings = "topaz-em, its pretrained unet; scale and offset by validation"
    for sign in (1, -1):
        to_scale = partial(topaz_to_scale, sigma=sigma, sign=sign, **pair)
        rows[f"Topaz, contrast {sign:+d}"] = Method(to_scale, settings, first=few)
    return rows


def linear(data: Dataset) -> Method:
    """Row of the exact linear filter, from the training images of `data`."""
    fitted = linear_filter(data.train.clean.images, data.train.observed, data.sigma)
    settings = "covariance of the clean training images, in all turns"
    return Method(fitted, settings)


def memory(data: Dataset, first: int, most: int = 16_000) -> tuple[Method, Templates]:
    """Row of the template posterior, whose templates are `most` training images; and these.

    At 64 px a thousand images take 60 MB, and a particle a tenth of a second of two cores.
    """
    clean, seen = data.train.clean.images[:most], data.train.observed[:most]
    templates = image_templates(clean, None if torch.equal(clean, seen) else seen)
    settings = f"{len(clean)} training images, mirrored, {templates.turns} turns"
    recall = partial(recalled, templates, sigma=data.sigma)
    return Method(recall, settings, first=first), templates


def recalled(templates: Templates, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
    """Posterior mean of particles (n, y, x) over templates."""
    return posterior(templates, noisy, sigma).mean


def kept(data: Dataset) -> dict[str, Method]:
    """Rows of the weights that come with cryonb: for any molecule, and those made for such data."""
    many, manifest = load_model(MANY, SR3)
    settings = f"`cryonb train many`: {manifest['options']['images']:,} images of random molecules"
    sigma = data.sigma
    rows = {
        "SR3 for any molecule, one step": Method(partial(one_step, many, sigma=sigma), settings)
    }
    made = {key: data.manifest[key] for key in ("box_size", "pixel_size_A", "snr")}
    where = Path(data.manifest["source"]).stem, data.manifest["setting"]
    found = load_kept(*where, "sr3", SR3, **made), load_kept(*where, "refine", Refiner, **made)
    if None in found:
        return rows
    (first, manifest), (second, _) = found
    once = partial(one_step, first, sigma=sigma)
    options = manifest["options"]
    before = f", after {Path(options['init']).name}" if "init" in options else ""
    settings = f"`cryonb train`: {options['images']:,} images{before}"
    return rows | {
        "kept SR3, one step": Method(once, settings),
        "kept SR3, over turns": Method(partial(over_turns, once), "mean over 8 turns and mirrors"),
        "kept SR3 → U-Net": Method(lambda x: refine(second, once(x), x, sigma), settings),
    }


def ready(data: Dataset, snr: float, most: int = 2000) -> Method:
    """Row of a denoiser for particles of `data`'s molecule in white noise of any SNR, at once.

    The kept weights where they were made for this, else the exact linear filter of the first
    `most` training images.
    """
    sigma, made = noise_sigma(snr), {k: data.manifest[k] for k in ("box_size", "pixel_size_A")}
    found = load_kept(Path(data.manifest["source"]).stem, "white", "sr3", SR3, snr=snr, **made)
    if found:
        once = partial(one_step, found[0], sigma=sigma)
        return Method(once, "SR3 in one step, weights that come with cryonb")
    learn = data.train.clean.images[:most]
    return Method(linear_filter(learn, learn, sigma), "the best linear filter")


@dataclass(frozen=True)
class Training:
    """What all learned rows have in common.

    Attributes
    ----------
    data : Dataset
    images : int
        Training images that SR3 sees; every row trains at the cost of these, in floating-point
        operations, so that the same options give the same networks on every machine.
    stacks : (Tensor, Tensor), each (n, y, x)
        Clean and observed training images.
    folder : Path or None
        Where networks are kept, and found again by a run that was cut off.
    batch_size, seed : int
    """

    data: Dataset
    images: int
    stacks: tuple[torch.Tensor, torch.Tensor]
    folder: Path | None = None
    batch_size: int = 16
    seed: int = 0

    @cached_property
    def tflop(self) -> float:
        """Cost of each row, in 10^12 floating-point operations."""
        start, model = self.plain(self.stacks, sr3_loss), SR3()
        each = flops_per_image(lambda *copies: start(*copies, 10**9), model, model)
        return 1e-12 * self.images * each

    def run(self, tag: str, networks, start, denoise, tflop: float | None = None):
        """Train networks at a cost; returns the moving average of the first, and its curve.

        `start(*networks, average, n_images)` yields Progress; `denoise(average, noisy)`.
        """
        name = f"{tag.replace(' ', '-')}-{self.seed}.safetensors"
        path = self.folder / name if self.folder else None
        asked = {k: v for k, v in self.data.manifest.items() if k != "scale"}
        asked |= {"images": self.images, "batch_size": self.batch_size}
        if path and path.is_file():
            average, manifest = load_model(path, type(networks[0]))
            if manifest["asked"] == asked:
                return average, manifest["curve"]
        average, held = copy.deepcopy(networks[0]), self.data.validation
        noisy, clean = held.noisy.images[-64:], held.clean.images[-64:]

        def evaluate():
            return float(psnr(denoise(average.eval(), noisy), clean).mean())

        tflop = tflop or self.tflop
        curve = train_for(tflop, start, *networks, average, evaluate=evaluate, title=tag)
        if path:
            save_model(path, average, {"asked": asked, "curve": curve})
        return average.eval(), curve

    def plain(self, stacks, loss):
        """How to start `cryonb.learning.train.train` on stacks, with a loss."""
        draw, loss = partial(draw_batch, stacks), partial(loss, sigma=self.data.sigma)
        options = {"batch_size": self.batch_size, "seed": self.seed}
        return lambda model, average, n: train(model, average, draw, loss, n, **options)


def direct(training: Training, name: str = "U-Net, clean targets") -> Method:
    """Row of the direct U-Net, trained on one of the `LOSSES`."""
    torch.manual_seed(training.seed)
    apply = partial(denoise_direct, sigma=training.data.sigma)
    start = training.plain(training.stacks, LOSSES[name])
    model, curve = training.run(name, [Denoiser()], start, apply)
    settings = "SR3's network on the noisy image, SNR 3 down to the data's"
    return Method(partial(apply, model), settings, training.tflop, curve=curve)


def gan(training: Training, kind: str) -> Method:
    """Row of an adversarial network, `kind` as in `cryonb.denoisers.gan`."""
    torch.manual_seed(training.seed)
    draw, sigma = partial(draw_batch, training.stacks), training.data.sigma
    apply = partial(denoise_direct, sigma=sigma)

    def start(generator, discriminator, average, n):
        players = generator, discriminator, average
        return train_gan(*players, draw, n, kind=kind, sigma=sigma, seed=training.seed)

    shrink = {"denoise": 4, "robust": 2}[kind]  # the better ones on validation, for a CPU
    networks = Generator(kind, shrink), Discriminator(kind, shrink)
    model, curve = training.run(f"GAN {kind}", networks, start, apply)
    settings = f"widths 1/{shrink} of the published, SNR 3 down to the data's"
    return Method(partial(apply, model), settings, training.tflop, curve=curve)


def diffusion(training: Training, steps: int, samples: int) -> dict[str, Method]:
    """Rows of SR3 alone: one step, one sample, the mean of `samples`."""
    torch.manual_seed(training.seed)
    once = partial(one_step, sigma=training.data.sigma)
    start = training.plain(training.stacks, sr3_loss)
    model, curve = training.run("SR3", [SR3()], start, once)
    best, sample = partial(once, model), partial(once, model, steps=steps)

    def mean(noisy):
        return torch.stack([sample(noisy, seed=s) for s in range(samples)]).mean(0)

    settings, spent = "clean-image form, SNR 3 down to the data's", training.tflop
    return {
        "SR3, one step": Method(best, settings, spent, curve=curve),
        f"SR3, one {steps}-step sample": Method(sample, "second-order solver", spent),
        f"SR3, mean of {samples} samples": Method(mean, f"{steps} steps each", spent),
    }


def two_stages(training: Training, steps: int, held_out: int) -> dict[str, Method]:
    """Rows of SR3 → U-Net, trained one after the other.

    SR3 gets `SR3_SHARE` of the cost; then its samples of `held_out` validation particles are drawn,
    and a U-Net is trained on these at what is left, a tenth of the cost at least.
    """
    torch.manual_seed(training.seed)
    sigma, tflop, held = training.data.sigma, training.tflop, training.data.validation
    once, start = partial(one_step, sigma=sigma), training.plain(training.stacks, sr3_loss)
    first, _ = training.run("SR3 first", [SR3()], start, once, SR3_SHARE * tflop)
    noisy = held.noisy.images[:held_out]
    drawn = one_step(first, noisy, sigma, steps)
    spent = 1e-12 * len(noisy) * count_flops(lambda: one_step(first, noisy[:1], sigma, steps))
    left = max(0.1 * tflop, (1 - SR3_SHARE) * tflop - spent)
    start = training.plain((held.clean.images[:held_out], drawn, noisy), refine_loss)

    def both(second, noisy):
        return refine(second, one_step(first, noisy, sigma, steps), noisy, sigma)

    rows = {}
    settings = f"{SR3_SHARE:.0%} of the cost SR3; {steps}-step samples of {held_out} held out"
    for inputs in ("sample", "sample+noisy"):
        networks = [Refiner(inputs, widths=(64, 128), transformers=2)]
        tag = f"refine {inputs} {steps} {held_out}"
        second, last = training.run(tag, networks, start, both, left)
        curve = [(tflop - left + t, quality) for t, quality in last]
        method = Method(partial(both, second), settings, tflop, curve=curve)
        rows[f"SR3 → U-Net, sees {inputs}"] = method
    return rows


def learned(training: Training, steps: int, samples: int, held_out: int) -> dict[str, Method]:
    """All learned rows, each trained at the cost `training.tflop`."""
    rows = {name: direct(training, name) for name in LOSSES}
    rows |= {name: gan(training, kind) for name, kind in GANS.items()}
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


def with_outliers(training: Training, share: float) -> dict[str, Method]:
    """Three rows again, with the targets of a share of the training pairs replaced by outliers."""
    generator = torch.Generator().manual_seed(training.seed)
    clean, observed = training.stacks
    dirty = contaminate(clean, share, generator), observed
    folder = training.folder / f"outliers-{share:g}" if training.folder else None
    training = replace(training, stacks=dirty, folder=folder)
    rows = {"U-Net, clean targets": direct(training)}
    return rows | {name: gan(training, kind) for name, kind in GANS.items()}


def exact_model(templates: Templates):
    """The exact posterior mean as the network of `cryonb.learning.diffusion.sample`.

    Of particles without CTF or structure. A state y_t of the diffusion and the particle are worth
    one image of less noise, see `cryonb.learning.diffusion.fuse`.

    Returns
    -------
    callable (y_t, gamma, noisy, sigma) -> Tensor (n, y, x)
    """

    def model(y_t, gamma, noisy, sigma):
        view, level = fuse(y_t, torch.tensor(gamma), noisy, torch.tensor(sigma))
        return posterior(templates, view, float(level)).mean

    return model
