"""Training speed: each optimisation taken away in turn, designs, and where the time of a step goes.

    python benchmarks/training.py

The first row is `cryonb.learning.train` itself, the second the same step written out; each row
after that differs from it in one thing. Rows run in turn in one process. Utilisation is the FLOPs
of the network, forward and backward, in a second ÷ the best rate of a large matrix product on this
machine; the rate of a large 3 × 3 convolution stands beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from timing import (
    CLOCKS,
    FULL_RESOLUTION,
    SIGMA,
    in_turn,
    peak_MB,
    spread,
    synchronised,
    training_step,
)
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import cryonb.base.precision
from cryonb.base.precision import fast_precision, keep_freed_memory
from cryonb.commands.denoise import best_device
from cryonb.data.volumes import load_volume
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.train import draw_batch, sr3_loss, train
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.simulation.simulate import clean_scale

DESIGNS = {  # of as many parameters, for 64 px
    "folded by 2": {"unshuffle": 2, "widths": (64, 96, 240)},
    "full resolution": FULL_RESOLUTION,
}
OURS = "the same step, written out"
KINDS = {  # of operations, by parts of their names, the first that fits
    "optimiser, average, clipping": ("adam", "lerp", "foreach", "vector_norm"),
    "convolutions": ("conv",),
    "attention": ("attention",),
    "matrix products": ("mm",),
    "normalisation": ("norm",),
    "activations": ("silu", "gelu"),
    "random numbers": ("rand", "normal_"),
}


def gigaflop(model: SR3, images: torch.Tensor) -> float:
    """GFLOP of the network for one image, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        sr3_loss(model, (images, images), 1.0, generator, sigma=SIGMA).backward()
    model.zero_grad()
    return counter.get_total_flops() / 1e9 / len(images)


def peaks(device: str, size: int, repeats: int, clock: Callable) -> dict[str, float]:
    """Best GFLOP/s of a large matrix product and a large convolution, in the fast precision."""
    dtype = torch.bfloat16 if fast_precision() == "bf16" else torch.float32
    square = torch.randn(size, size, device=device, dtype=dtype)
    conv = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device, dtype=dtype)
    images = torch.randn(16, 256, size // 64, size // 64, device=device, dtype=dtype)
    conv, images = (x.to(memory_format=torch.channels_last) for x in (conv, images))
    flop = {"matrix product": 2 * size**3, "3 × 3 convolution": 18 * 256 * images.numel()}
    calls = {"matrix product": lambda: square @ square, "3 × 3 convolution": lambda: conv(images)}
    with torch.no_grad():
        calls = {name: synchronised(call) for name, call in calls.items()}
        seconds = in_turn(calls, repeats, clock)
    return {name: flop[name] / 1e9 / min(values) for name, values in seconds.items()}


def alone(given_back: bool, args) -> None:
    """Print the seconds of a training step and of denoising, in a process that does no more."""
    if given_back:
        cryonb.base.precision.keep_freed_memory = lambda: False
    images = torch.randn(2 * args.batch_size, args.box_size, args.box_size)
    step = training_step(SR3(), partial(draw_batch, (images, images)), args.batch_size)
    calls = {"a training step": step, "denoising": partial(denoise, SR3().eval(), images, SIGMA)}
    print(json.dumps(in_turn(calls, args.repeats, CLOCKS[args.clock])))


def freed_memory(rounds: int) -> None:
    """Print what keeping freed memory brings: processes that do and that do not, in turn."""
    command = [sys.executable, __file__, *sys.argv[1:], "--alone"]
    found = {"kept": [], "given-back": []}
    for _ in range(rounds):
        for how, values in found.items():
            done = subprocess.run([*command, how], capture_output=True, text=True, check=True)
            values.append(json.loads(done.stdout.splitlines()[-1]))
    print("\nFreed memory given back to the system ÷ kept, in processes of their own")
    for what in found["kept"][0]:
        ours, theirs = (sum((v[what] for v in values), []) for values in found.values())
        print(f"  {what:34}{spread([b / a for a, b in zip(ours, theirs, strict=True)], 2)}")


def recipes(volume, clean: torch.Tensor, args, folder: Path) -> dict[str, Callable]:
    """Name and call of every row: one step each."""
    np.save(folder / "clean.npy", clean.numpy())
    mapped = torch.from_numpy(np.load(folder / "clean.npy", mmap_mode="c"))
    molecule = (volume.map / clean_scale(volume)).to(args.device)
    there = clean.to(args.device)
    drawn, drawn_from_map = (partial(draw_batch, (stack, stack)) for stack in (there, mapped))

    def projected(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        images = project(molecule, random_rotations(n, generator), batch_size=256)
        return images, images

    def step(draw=drawn, precision=None, model=None, **options) -> Callable[[], None]:
        model = (model or SR3()).to(args.device)
        return training_step(model, draw, args.batch_size, precision, **options)

    model, loss = SR3(), partial(sr3_loss, sigma=SIGMA, snr_start=0.1)
    whole = train(model, copy.deepcopy(model), drawn, loss, 10**9, batch_size=args.batch_size)
    other = {"no": "bf16", "bf16": "no"}[fast_precision()]
    calls = {
        "cryonb.learning.train": lambda: next(whole),
        OURS: step(),
        "channels first": step(channels_last=False),
        "AdamW not fused": step(fused=False),
        "particles from a .npy memory map": step(drawn_from_map),
        "particles projected in every step": step(projected),
        f"gradients of {args.parts} parts added up": step(parts=args.parts),
        other.replace("no", "float32"): step(precision=other),
    }
    if args.device != "cpu":
        calls["particles in the host's memory"] = step(partial(draw_batch, (clean, clean)))
    if args.compile:
        calls["torch.compile"] = step(model=compiled(SR3()))
    return calls | {name: step(model=SR3(**unet)) for name, unet in DESIGNS.items()}


def compiled(model: SR3) -> SR3:
    """The model, whose network is compiled when it is first called."""
    model.unet.compile()
    return model


def table(calls: dict, seconds: dict, flop: dict, peak: float, n: int) -> None:
    """Print images per second, ratio to the second row, and utilisation, of every row."""
    print(f"{'':36}{'images/s':>24}{'time ÷ ours':>24}{'GFLOP/image':>13}{'MFU':>7}")
    for name in calls:
        rates = [n / s for s in seconds[name]]
        ratios = [b / a for a, b in zip(seconds[OURS], seconds[name], strict=True)]
        each = flop.get(name, flop[OURS])
        used = f"{each * median(rates) / peak:7.2f}"
        print(f"{name:36}{spread(rates):>24}{spread(ratios, 2):>24}{each:13.2f}{used}")


def where(step: Callable, device: str, top: int) -> None:
    """Print what a step spends its time on, by kind of operation and by operation."""
    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        step()
    time_of = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in found.key_averages()
    }
    total, kinds = sum(time_of.values()), dict.fromkeys([*KINDS, "all else"], 0.0)
    for key, spent in time_of.items():
        fits = (kind for kind, words in KINDS.items() if any(w in key.lower() for w in words))
        kinds[next(fits, "all else")] += spent
    print("\nShare of a step, by kind, and the slowest operations")
    for name, spent in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"  {name:44}{spent / total:6.1%}")
    for key, spent in islice(sorted(time_of.items(), key=lambda item: -item[1]), top):
        print(f"    {key[:42]:42}{spent / total:6.1%}")


def main() -> None:
    """Measure the peaks, then all rows in turn, then look into one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, compiler = parser.add_argument, bool(shutil.which("c++"))
    add("--box-size", type=int, default=64, help="pixels, a multiple of 8")
    add("--batch-size", type=int, default=32)
    add("--images", type=int, default=4000, help="clean images to draw from")
    add("--parts", type=int, default=4, help="whose gradients are added up")
    add("--steps", type=int, default=3, help="in each timing")
    add("--repeats", type=int, default=5)
    add("--rounds", type=int, default=2, help="of processes that keep freed memory, or do not")
    add("--peak-size", type=int, default=2048, help="of the matrices")
    add("--device", default=best_device())
    add("--clock", choices=CLOCKS, default="wall", help="cpu on a busy machine")
    add("--compile", action=argparse.BooleanOptionalAction, default=compiler)
    add("--alone", choices=("kept", "given-back"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        return alone(args.alone == "given-back", args)
    torch.manual_seed(0)
    volume = load_volume("channel", args.box_size, 192 / args.box_size)
    rotations = random_rotations(args.images, torch.Generator().manual_seed(1))
    clean = project(volume.map / clean_scale(volume), rotations)
    print(
        f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.clock}"
    )
    with tempfile.TemporaryDirectory() as folder:
        rows(recipes(volume, clean, args, Path(folder)), clean, args)
    if args.device == "cpu" and keep_freed_memory():
        freed_memory(args.rounds)
    print(f"\npeak resident memory of the process {peak_MB():.0f} MB")


def rows(calls: dict[str, Callable], clean: torch.Tensor, args) -> None:
    """Print the peaks, the table of all rows, and what a step spends its time on."""
    clock = CLOCKS[args.clock]
    peak = peaks(args.device, args.peak_size, args.repeats, clock)
    for name, rate in peak.items():
        print(f"  {name}, {fast_precision().replace('no', 'float32')}: {rate:.0f} GFLOP/s")
    models = {OURS: SR3()} | {name: SR3(**unet) for name, unet in DESIGNS.items()}
    flop = {name: gigaflop(model, clean[:2]) for name, model in models.items()}
    each = {name: synchronised(call, args.steps) for name, call in calls.items()}
    seconds = in_turn(each, args.repeats, clock)
    print(f"\nTraining at {args.box_size} px, batches of {args.batch_size}")
    table(calls, seconds, flop, peak["matrix product"], args.steps * args.batch_size)
    where(calls[OURS], args.device, 12)


if __name__ == "__main__":
    main()
