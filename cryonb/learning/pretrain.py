"""Make the weights that come with the package: the path of notebooks 01 to 03, without the prose.

``cryonb train channel --setting white --out kept`` writes ``kept/channel-white-sr3.safetensors``
and ``kept/channel-white-refine.safetensors``, whose headers hold the options and the result on test
images that neither network has seen. ``cryonb train many`` trains a first stage for any molecule,
on random ones (`cryonb.simulation.families`), at SNRs from 0.02 to 1; it is what `cryonb denoise`
uses. ``cryonb train map-cleaner`` trains the network that takes noise and detergent out of maps
(`cryonb.learning.mapclean`), the default of `cryonb clean`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from cryonb.base.draws import draw_options, generator_on
from cryonb.base.options import TrainOptions
from cryonb.base.workers import count_cores
from cryonb.data.volumes import load_volume
from cryonb.evaluation.metrics import correlation, psnr
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.mapclean import MapCleaner, cleaning_loss
from cryonb.learning.refine import Refiner, refine, refine_loss
from cryonb.learning.train import any_level_loss, draw_batch, sr3_loss, train
from cryonb.learning.weights import load_model, save_model
from cryonb.physics.fourier import low_pass
from cryonb.simulation.families import draw_maps, training_images, training_volumes
from cryonb.simulation.simulate import clean_scale, noise_sigma, setting, simulate_images

STEPS, TESTED = 8, 512  # of the sampler, and images, in the report
MANY_SNR = (0.02, 1.0)  # range that the model for any molecule is trained in
VIEWS = 32  # of each random molecule
CHUNK = 20_000  # particles that are simulated at a time
REFINER = {"inputs": "sample+noisy", "widths": (64, 128), "transformers": 2}


@dataclass(frozen=True)
class Stage:
    """A network that `cryonb train` makes; `draw` and `loss` are those of `train`."""

    name: str  # of its file
    network: type[nn.Module]
    batches: Callable[..., Callable]  # from the networks before it to `draw`
    loss: Callable[..., torch.Tensor]
    test: Callable[..., dict]  # from all networks so far to their quality on data unseen
    images: int  # length of its training
    batch_size: int
    size: dict = field(default_factory=dict)  # keywords that build the network
    said: dict = field(default_factory=dict)  # more options for the header


def train_weights(source: str, options: TrainOptions) -> None:
    """Train the networks of a source, see `cryonb train`, and write their weights.

    A stage that has its file is done, and one that was cut off goes on from its checkpoint.
    """
    for name in ("images", "projections", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"{name} is {value}: ask for one or more")
    said = {"source": source} | {k: v for k, v in vars(options).items() if v is not None}
    said |= {k: str(v) for k, v in said.items() if isinstance(v, Path)}
    device, networks = own_device(), []
    about = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    for stage in SOURCES.get(source, protein)(source, options):
        path = options.out / f"{stage.name}.safetensors"
        if path.is_file():
            print(f"{path} is there and kept: delete it to train it anew", flush=True)
        else:
            model = _trained(stage, networks, options)
            manifest = {"made_by": "cryonb train", "options": said | stage.said, "device": about}
            manifest["test"] = stage.test(*networks, model)
            save_model(path, model, manifest, half=True)
            print(stage.name, manifest["test"], flush=True)
        networks.append(load_model(path, stage.network)[0].to(device))


def own_device() -> torch.device:
    """Where this process trains, of several GPUs its own."""
    return Accelerator().device


def _trained(stage: Stage, networks: list[nn.Module], args: TrainOptions) -> nn.Module:
    """Train a stage; returns the moving average."""
    draw, init = stage.batches(*networks), args.init if stage.network is SR3 else None
    torch.manual_seed(args.seed)
    model = load_model(init, SR3)[0].train() if init else stage.network(**stage.size)
    average = copy.deepcopy(model)
    if args.compile:
        for network in model.children():
            network.compile()
    rate = args.learning_rate or (5e-4 if args.init else 1e-3)
    options = {"batch_size": stage.batch_size, "learning_rate": rate, "seed": args.seed}
    options["checkpoint"] = args.out / f"{stage.name}.checkpoint"
    with tqdm(total=stage.images, desc=stage.name, unit="image", mininterval=10) as bar:
        for progress in train(model, average, draw, stage.loss, stage.images, **options):
            bar.update(progress.images - bar.n)
            bar.set_postfix(loss=f"{progress.loss:.4f}", refresh=False)
    return average.eval()


def protein(source: str, args: TrainOptions) -> list[Stage]:
    """SR3 for one protein, and the U-Net that refines what it makes of images held out."""
    name, sigma = f"{Path(source).stem}-{args.setting}", noise_sigma(args.snr)
    setting(args.setting)  # a misspelt one is found before the work
    volume = load_volume(source, args.box_size, args.pixel_size_A)
    images = partial(_images, volume, args)

    def clean_and_observed() -> Callable:
        return partial(draw_batch, images(args.projections, 0, own_device()))

    def clean_drawn_noisy(first) -> Callable:
        clean, observed = images(args.projections // 2, 1, own_device())
        generator = generator_on(observed.device).manual_seed(args.seed + 1)
        noisy = observed + sigma * torch.randn(observed.shape, **draw_options(generator))
        options = {"batch_size": max(64, args.batch_size), "title": "first stage"}
        drawn = denoise(first, noisy, sigma, args.refine_steps, **options)
        return partial(draw_batch, (clean, drawn.to(observed.device), noisy))

    def test(first, refiner=None) -> dict:
        return evaluate(first, refiner, *images(TESTED, 2, "cpu"), sigma, args.refine_steps)

    snr_start = args.snr if args.init else 3.0  # no curriculum for what has had it
    levels = {"sigma": sigma, "snr_start": snr_start, "share": args.curriculum}
    first_loss = partial(sr3_loss, **levels, start=args.start)
    second_loss = partial(refine_loss, sigma=sigma)
    said = {"sigma": sigma, "scale": clean_scale(volume)}
    one = partial(Stage, test=test, batch_size=args.batch_size, said=said)
    second = {"images": args.refine_images, "size": REFINER}
    return [
        one(f"{name}-sr3", SR3, clean_and_observed, first_loss, images=args.images),
        one(f"{name}-refine", Refiner, clean_drawn_noisy, second_loss, **second),
    ]


def _images(volume, args: TrainOptions, n: int, part: int, device) -> list[torch.Tensor]:
    """Clean and observed images (n, y, x) of part 0 train, 1 refine, 2 test."""
    generator = generator_on(device).manual_seed(args.seed * 3 + part)
    amounts, scale, made = setting(args.setting), clean_scale(volume), []
    for i in range(0, n, CHUNK):
        images = simulate_images(volume, min(CHUNK, n - i), amounts, generator, scale=scale)
        made.append((images.clean, images.observed(volume.pixel_size_A)))
    return [torch.cat(stack) for stack in zip(*made, strict=True)]


def many(source: str, args: TrainOptions) -> list[Stage]:
    """One SR3 for any molecule; the report is on the two that it has never seen."""

    def batches() -> Callable:
        molecules, workers = args.projections // VIEWS, count_cores()
        stacks = training_images(molecules, VIEWS, args.box_size, args.seed, workers=workers)
        return partial(draw_batch, [images.to(own_device()) for images in stacks])

    def test(model) -> dict:
        found, white = {}, setting("white")
        for name in ("channel", "prestin"):
            volume = load_volume(name, args.box_size, args.pixel_size_A)
            generator, scale = torch.Generator().manual_seed(args.seed + 2), clean_scale(volume)
            clean = simulate_images(volume, TESTED // 2, white, generator, scale=scale).clean
            found[name] = evaluate(model, None, clean, clean, noise_sigma(args.snr))
        return found

    loss = partial(any_level_loss, snr=MANY_SNR, start=args.start)
    options = {"batch_size": args.batch_size, "said": {"snr_range": MANY_SNR}}
    return [Stage("many-sr3", SR3, batches, loss, test, args.images, **options)]


def map_cleaner(source: str, args: TrainOptions) -> list[Stage]:
    """The map cleaner, trained on random molecules; the report is on others, drawn alike."""
    pixel = {"pixel_size_A": args.pixel_size_A}
    molecules = partial(training_volumes, box_size=args.box_size, **pixel)

    def batches() -> Callable:
        volumes = molecules(args.projections, seed=args.seed)
        return partial(draw_maps, volumes, **pixel, patch=min(48, args.box_size))

    def test(model) -> dict:
        return evaluate_cleaner(model, molecules(16, seed=args.seed + 1))

    options = {"size": pixel, "said": {"molecules": args.projections, "maps": args.images}}
    one = Stage("map-cleaner", MapCleaner, batches, cleaning_loss, test, args.images, 4, **options)
    return [one]


SOURCES = {"many": many, "map-cleaner": map_cleaner}  # any other name is a protein


@torch.no_grad()
def evaluate_cleaner(model: MapCleaner, volumes, n: int = 48) -> dict:
    """Mean correlation with the molecule, of maps that the model has not seen.

    "low_pass" and "both" are the best of five cuts of the input and of the cleaned map, chosen for
    each map with the truth at hand.
    """
    pixel_A, generator = model.pixel_size_A, torch.Generator().manual_seed(1)
    options = {"pixel_size_A": pixel_A, "patch": volumes[0].shape[-1]}
    target, given = draw_maps(volumes, n, generator, **options)
    cleaned = torch.cat([model(x) for x in given.split(4)])
    likeness = partial(correlation, target, dims=3)

    def best_cut(maps):
        cuts = (low_pass(maps, pixel_A * c, pixel_A) for c in (2.5, 3, 4, 6, 9))
        return torch.stack([likeness(cut) for cut in cuts]).max(0).values

    found = {"input": likeness(given), "low_pass": best_cut(given)}
    found |= {"cleaned": likeness(cleaned), "both": best_cut(cleaned)}
    return {name: round(float(values.mean()), 4) for name, values in found.items()}


def evaluate(
    model: SR3, refiner: Refiner | None, clean, observed, sigma: float, refine_steps: int = 1
) -> dict:
    """Mean PSNR in dB of each stage on test images (n, y, x) with fresh white noise."""
    white = torch.randn(observed.shape, generator=torch.Generator().manual_seed(2))
    noisy = observed + sigma * white
    made = partial(denoise, model, noisy, sigma)
    images = {"noisy": noisy, "posterior_mean": made(1), "sample": made(STEPS)}
    if refiner is not None:
        images["refined"] = refine(refiner, made(refine_steps), noisy, sigma)
    return {k: round(float(psnr(v, clean).mean()), 3) for k, v in images.items()}
