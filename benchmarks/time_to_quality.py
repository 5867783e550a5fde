"""Time from nothing to a quality: one stage, and SR3 → U-Net as published, at the same budgets.

    python benchmarks/time_to_quality.py --out quality

A budget is CPU time, of all threads together, so that a busy machine changes little; simulating the
training images is part of it. Each budget is a training of its own, with the curriculum of notebook
02, whose schedule ends when the budget does. The PSNR on
test particles stands beside that of the best linear filter, which knows the molecule too.
Results go to OUT/quality.csv one by one; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from cryonb.data.volumes import load_volume
from cryonb.denoisers.baselines import linear_filter
from cryonb.denoisers.methods import SR3_SHARE
from cryonb.evaluation.metrics import psnr
from cryonb.learning import diffusion
from cryonb.learning.diffusion import SR3
from cryonb.learning.pretrain import REFINER, STEPS
from cryonb.learning.refine import Refiner, refine, refine_loss
from cryonb.learning.train import Progress, draw_batch, sr3_loss, train
from cryonb.simulation.simulate import clean_scale, noise_sigma, setting, simulate_images

SIMULATED = 0.1  # of the budget, at most
MOST = 16_000  # images


class Clock:
    """Time since it was made: of all threads together, and of the wall."""

    def __init__(self):
        self.start = time.process_time(), time.perf_counter()

    @property
    def cpu_s(self) -> float:
        return time.process_time() - self.start[0]

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self.start[1]


def simulated(n: int, seed: int, box: int, seconds: float = float("inf")) -> torch.Tensor:
    """Clean images (n, y, x) of the channel, fewer where the time is up before."""
    clock, volume = Clock(), load_volume("channel", box, 192 / box)
    generator, scale, parts = torch.Generator().manual_seed(seed), clean_scale(volume), []
    while sum(map(len, parts)) < n and (not parts or clock.cpu_s < seconds):
        images = simulate_images(volume, min(n, 128), setting("white"), generator, scale=scale)
        parts.append(images.clean)
    return torch.cat(parts)[:n]


def seconds_per_batch(steps: Iterator[Progress], trial_s: float) -> float:
    """CPU seconds a step, found from the first ones; the very first, which sets up, is left out."""
    next(steps)
    clock, k = Clock(), 0
    while k < 4 or clock.cpu_s < trial_s:
        next(steps)
        k += 1
    return clock.cpu_s / k


def trained(model, stacks, loss, seconds: float, args, seed: int):
    """The average of a model that was trained for so much CPU time."""
    average, draw = copy.deepcopy(model), partial(draw_batch, stacks)
    options = {"batch_size": args.batch_size, "seed": seed}

    trial_s = min(3.0, seconds / 8)
    copies = copy.deepcopy((model, average))
    each = seconds_per_batch(train(*copies, draw, loss, 10**7, **options), trial_s)
    n = args.batch_size * max(1, int(max(seconds - trial_s, 0.1) / each))
    for _ in tqdm(train(model, average, draw, loss, n, **options), total=n // args.batch_size):
        pass
    return average.eval()


def one_stage(budget_s: float, seed: int, sigma: float, args):
    """SR3, whose first step is the estimate; returns a denoiser and the images it learnt from."""
    clock, loss = Clock(), partial(sr3_loss, sigma=sigma)
    clean = simulated(MOST, seed, args.box_size, SIMULATED * budget_s)
    model = trained(SR3(), (clean, clean), loss, budget_s - clock.cpu_s, args, seed)
    return partial(diffusion.denoise, model, sigma=sigma), clean


def two_stages(budget_s: float, seed: int, sigma: float, args):
    """SR3 for a share of the budget, then a U-Net that learns from samples alone, as published."""
    clock = Clock()
    first, clean = one_stage(SR3_SHARE * budget_s, seed, sigma, args)
    generator = torch.Generator().manual_seed(seed + 1)
    drawn, noisy = [], []
    while not drawn or clock.cpu_s < (SR3_SHARE + SIMULATED) * budget_s:
        rows = torch.randint(0, len(clean), (32,), generator=generator)
        noisy.append(clean[rows] + sigma * torch.randn(clean[rows].shape, generator=generator))
        drawn.append((rows, first(noisy[-1], steps=STEPS, seed=len(drawn))))
    stacks = (
        clean[torch.cat([r for r, _ in drawn])],
        torch.cat([s for _, s in drawn]),
        torch.cat(noisy),
    )
    loss = partial(refine_loss, sigma=sigma)
    second = Refiner(**REFINER | {"inputs": "sample"})
    second = trained(second, stacks, loss, budget_s - clock.cpu_s, args, seed)
    return lambda x: refine(second, first(x, steps=STEPS), x, sigma), clean


DESIGNS = {"SR3, one step": one_stage, "SR3 → U-Net, published": two_stages}


def longer(frame: pd.DataFrame) -> list[str]:
    """How much longer two stages took for a quality than one, where one reached it."""
    one, two = (
        frame[frame.design == name].groupby("budget_s")[["cpu_s", "gain_dB"]].mean()
        for name in DESIGNS
    )
    order = np.argsort(one.gain_dB.to_numpy())
    quality, log_s = one.gain_dB.to_numpy()[order], np.log(one.cpu_s.to_numpy()[order])
    lines = []
    for _, row in two.iterrows():
        text = f"  {row.gain_dB:+.2f} dB took two stages {row.cpu_s:.0f} CPU-seconds, one stage "
        if quality[0] <= row.gain_dB <= quality[-1]:
            needed = float(np.exp(np.interp(row.gain_dB, quality, log_s)))
            lines.append(text + f"{needed:.0f}: ratio {row.cpu_s / needed:.1f}")
        else:
            side = "less than" if row.gain_dB < quality[0] else "more than"
            lines.append(text + f"{side} any of the budgets")
    return lines


def main() -> None:
    """Train what is not in the table yet, budget by budget, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 10, 30], help="CPU time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--box-size", type=int, default=64, help="pixels, a multiple of 8")
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=256, help="test particles")
    parser.add_argument("--linear", type=int, default=4000, help="images to fit the filter to")
    parser.add_argument("--out", default="quality", help="folder")
    args = parser.parse_args()
    sigma, path = noise_sigma(args.snr), Path(args.out) / "quality.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    clean = simulated(args.images, 12345, args.box_size)
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(54321))

    def dB(denoise) -> float:
        return float(psnr(denoise(noisy), clean).mean())

    clock, learnt = Clock(), simulated(args.linear, 777, args.box_size)
    linear_dB = dB(linear_filter(learnt, learnt, sigma))
    print(f"best linear filter, {args.linear} images: {linear_dB:.2f} dB, {clock.cpu_s:.0f} CPU-s")
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(row["design"], row["budget_s"], row["seed"]) for row in rows}
    for minutes, seed in ((m, s) for m in sorted(args.minutes) for s in args.seeds):
        for name, design in DESIGNS.items():
            if (name, 60 * minutes, seed) in done:
                continue
            torch.manual_seed(seed)
            clock = Clock()
            denoise, learnt = design(60 * minutes, seed, sigma, args)
            row = {"design": name, "budget_s": 60 * minutes, "seed": seed}
            row |= {"cpu_s": clock.cpu_s, "wall_s": clock.wall_s, "images": len(learnt)}
            psnr_dB = dB(denoise)
            rows.append(row | {"psnr_dB": psnr_dB, "gain_dB": psnr_dB - linear_dB})
            pd.DataFrame(rows).to_csv(path, index=False)
    frame = pd.DataFrame(rows)
    print(frame.round(2).to_string(index=False))
    print("\n".join(longer(frame)))


if __name__ == "__main__":
    main()
