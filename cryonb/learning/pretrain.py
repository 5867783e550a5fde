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
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
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

STEPS = 8  # of the sampler in the report
MANY_SNR = (0.02, 1.0)  # range that the model for any molecule is trained in
VIEWS = 32  # of each random molecule
CHUNK = 20_000  # particles that are simulated at a time
REFINER = {"inputs": "sample+noisy", "widths": (64, 128), "transformers": 2}


def train_weights(source: str, options: TrainOptions) -> None:
    """Train the networks of a source, see `cryonb train`, and write their weights."""
    for name in ("images", "projections", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"{name} is {value}: ask for one or more")
    {"many": many, "map-cleaner": map_cleaner}.get(source, both_stages)(source, options)


def both_stages(source: str, args: TrainOptions) -> None:
    """Train SR3 and the U-Net for one protein; a run that was cut off goes on where it was."""
    out, name = args.out, f"{Path(source).stem}-{args.setting}"
    sigma, amounts = noise_sigma(args.snr), setting(args.setting)
    volume = load_volume(source, args.box_size, args.pixel_size_A)
    scale = clean_scale(volume)

    def stacks(n: int, part: int, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Clean and observed images (n, y, x) of part 0 train, 1 refine, 2 test."""
        generator = generator_on(device).manual_seed(args.seed * 3 + part)
        made = []
        for i in range(0, n, CHUNK):
            images = simulate_images(volume, min(CHUNK, n - i), amounts, generator, scale=scale)
            made.append((images.clean, images.observed(volume.pixel_size_A)))
        return tuple(torch.cat(stack) for stack in zip(*made, strict=True))

    manifest = _manifest(source, args) | {"scale": scale, "sigma": sigma}
    sr3_path = out / f"{name}-sr3.safetensors"
    if not sr3_path.is_file():
        given = stacks(args.projections, 0, own_device())
        snr_start = args.snr if args.init else 3.0  # no curriculum for what has had it
        levels = {"sigma": sigma, "snr_start": snr_start, "share": args.curriculum}
        loss = partial(sr3_loss, **levels, start=args.start)
        model = first_stage(args, given, loss, out / f"{name}-sr3.checkpoint")
        result = evaluate(model, None, *stacks(512, 2), sigma)
        save_model(sr3_path, model, manifest | {"test": result}, half=True)
        print(name, result, flush=True)
    model = load_model(sr3_path, SR3)[0].to(own_device())
    held_out = stacks(args.projections // 2, 1, own_device())
    refiner = second_stage(args, model, held_out, sigma, out / f"{name}-refine.checkpoint")
    result = evaluate(model, refiner, *stacks(512, 2), sigma, args.refine_steps)
    save_model(out / f"{name}-refine.safetensors", refiner, manifest | {"test": result}, half=True)
    print(name, result, flush=True)


def many(source: str, args: TrainOptions) -> None:
    """Train one model for any molecule; the report is on the two that it has never seen."""
    out = args.out / "many-sr3.safetensors"
    molecules = args.projections // VIEWS
    stacks = training_images(molecules, VIEWS, args.box_size, args.seed, workers=count_cores())
    stacks = [images.to(own_device()) for images in stacks]
    loss = partial(any_level_loss, snr=MANY_SNR, start=args.start)
    model = first_stage(args, stacks, loss, out.with_suffix(".checkpoint"))
    result = {}
    for name in ("channel", "prestin"):
        volume = load_volume(name, args.box_size, args.pixel_size_A)
        generator = torch.Generator().manual_seed(args.seed + 2)
        white = setting("white")
        clean = simulate_images(volume, 256, white, generator, scale=clean_scale(volume)).clean
        result[name] = evaluate(model, None, clean, clean, noise_sigma(args.snr))
    manifest = _manifest(source, args)
    manifest["options"]["snr_range"] = MANY_SNR
    save_model(out, model, manifest | {"test": result}, half=True)
    print("many", result, flush=True)


def own_device() -> torch.device:
    """Where this process trains, of several GPUs its own."""
    return Accelerator().device


def _manifest(source: str, args: TrainOptions) -> dict:
    options = {"source": source} | {k: v for k, v in vars(args).items() if v is not None}
    options |= {k: str(v) for k, v in options.items() if isinstance(v, Path)}
    name = torch.cuda.get_device_name() if own_device().type == "cuda" else own_device().type
    return {"made_by": "cryonb train", "options": options, "device": name}


def first_stage(args, stacks, loss, checkpoint: Path) -> SR3:
    """Train the diffusion model on clean and observed images; returns the moving average."""
    torch.manual_seed(args.seed)
    model = load_model(args.init, SR3)[0].train() if args.init else SR3()
    return _run(args, "SR3", model, partial(draw_batch, stacks), loss, args.images, checkpoint)


def second_stage(args, model: SR3, stacks, sigma: float, checkpoint: Path) -> Refiner:
    """Train the post-processing U-Net on what the diffusion model makes of held-out images."""
    torch.manual_seed(args.seed)
    clean, observed = stacks
    generator = generator_on(observed.device).manual_seed(args.seed + 1)
    noisy = observed + sigma * torch.randn(observed.shape, **draw_options(generator))
    options = {"batch_size": max(64, args.batch_size), "title": "first stage"}
    drawn = denoise(model, noisy, sigma, args.refine_steps, **options).to(observed.device)
    refiner = Refiner(**REFINER)
    loss = partial(refine_loss, sigma=sigma)
    draw = partial(draw_batch, (clean, drawn, noisy))
    return _run(args, "U-Net", refiner, draw, loss, args.refine_images, checkpoint)


def map_cleaner(source: str, args: TrainOptions) -> None:
    """Train the map cleaner on random molecules; the report is on others, drawn alike."""
    out = args.out / "map-cleaner.safetensors"
    grid = {"box_size": args.box_size, "pixel_size_A": args.pixel_size_A}
    volumes = training_volumes(args.projections, **grid, seed=args.seed)
    torch.manual_seed(args.seed)
    model = MapCleaner(pixel_size_A=args.pixel_size_A)
    patch = min(48, args.box_size)
    draw = partial(draw_maps, volumes, pixel_size_A=args.pixel_size_A, patch=patch)
    checkpoint = out.with_suffix(".checkpoint")
    model = _run(args, "map cleaner", model, draw, cleaning_loss, args.images, checkpoint, 4)
    result = evaluate_cleaner(model, training_volumes(16, **grid, seed=args.seed + 1))
    options = grid | {"molecules": args.projections, "maps": args.images, "seed": args.seed}
    manifest = {"made_by": "cryonb train map-cleaner", "options": options, "test": result}
    save_model(out, model, manifest, half=True)
    print("map-cleaner", result, flush=True)


@torch.no_grad()
def evaluate_cleaner(model: MapCleaner, volumes, n: int = 48) -> dict:
    """Mean correlation with the molecule, of maps that the model has not seen.

    "low_pass" and "both" are the best of five cuts of the input and of the cleaned map, chosen for
    each map with the truth at hand.
    """
    pixel_A, generator = model.pixel_size_A, torch.Generator().manual_seed(1)
    target, given = draw_maps(
        volumes, n, generator, pixel_size_A=pixel_A, patch=volumes[0].shape[-1]
    )
    cleaned = torch.cat([model(x) for x in given.split(4)])
    likeness = partial(correlation, target, dims=3)

    def best_cut(maps):
        cuts = (low_pass(maps, pixel_A * c, pixel_A) for c in (2.5, 3, 4, 6, 9))
        return torch.stack([likeness(cut) for cut in cuts]).max(0).values

    found = {"input": likeness(given), "low_pass": best_cut(given)}
    found |= {"cleaned": likeness(cleaned), "both": best_cut(cleaned)}
    return {name: round(float(values.mean()), 4) for name, values in found.items()}


def _run(args, title: str, model, draw, loss, n_images: int, checkpoint: Path, batch_size=None):
    average = copy.deepcopy(model)
    if args.compile:
        for network in model.children():
            network.compile()
    rate = args.learning_rate or (5e-4 if args.init else 1e-3)
    options = {"batch_size": batch_size or args.batch_size, "learning_rate": rate}
    options |= {"seed": args.seed, "checkpoint": checkpoint}
    with tqdm(total=n_images, desc=title, unit="image", mininterval=10) as bar:
        for progress in train(model, average, draw, loss, n_images, **options):
            bar.update(progress.images - bar.n)
            bar.set_postfix(loss=f"{progress.loss:.4f}", refresh=False)
    return average.eval()


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
