"""Quality and cost of our networks and of other people's denoisers on the same particles.

    python benchmarks/denoisers.py

Particles are simulated in the largest box and Fourier-cropped, with their white noise, to the
others: in the band that boxes share all images are the same, and the SNR is that at 64 px. Ours
crop to 64 px and go back, as `cryonb denoise` does; the peers get the whole box. The PSNR is
against the clean image in the whole box. Differences are paired, on the particles that both saw.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from threadpoolctl import threadpool_limits
from timing import CLOCKS, in_turn, peak_MB

from cryonb.base.workers import count_cores
from cryonb.data.volumes import load_volume
from cryonb.denoisers.baselines import linear_filter, over_turns
from cryonb.denoisers.peers import affine_fit, bm3d, cwf_denoiser, missing, topaz
from cryonb.evaluation.metrics import mse, psnr
from cryonb.learning.diffusion import SR3, denoise
from cryonb.learning.refine import Refiner, refine
from cryonb.learning.weights import KEPT, MANY, load_model
from cryonb.physics.fourier import fourier_crop
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.simulation.simulate import noise_sigma

BOX = 64  # of the networks, where the SNR is defined
ONE, ANY = "SR3 for the channel, 1 step", "SR3 for any molecule, 1 step"


@dataclass(frozen=True)
class Row:
    """A denoiser, how many particles it gets, and what was spent before it could be used."""

    denoise: Callable[[torch.Tensor], torch.Tensor]
    images: int
    fitted_s: float = 0.0
    ours: bool = True


@dataclass(frozen=True)
class Stacks:
    """Clean and noisy particles in one box: test first, then those to learn from."""

    clean: torch.Tensor
    noisy: torch.Tensor
    sigma: float
    test: int


def simulate(source: str, sizes: list[int], args) -> dict[int, Stacks]:
    """Particles of a molecule in each box."""
    full, count = max(sizes), args.images + args.learn
    volume = load_volume(source, full, 192 / full)
    generator = torch.Generator().manual_seed(args.seed)
    clean = project(volume.map, random_rotations(count, generator), padding=2)
    clean = clean / fourier_crop(clean, BOX, dims=2).std()
    sigma = noise_sigma(args.snr) * full / BOX
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    return {
        size: Stacks(
            *(fourier_crop(x, size, dims=2) for x in (clean, noisy)),
            sigma * size / full,
            args.images,
        )
        for size in sizes
    }


def cropped(denoise: Callable, noisy: torch.Tensor) -> torch.Tensor:
    """Denoise in the box of the networks, and go back to the box of the images."""
    return fourier_crop(denoise(fourier_crop(noisy, BOX, dims=2)), noisy.shape[-1], dims=2)


def our_rows(small: Stacks, device: str, args) -> dict[str, Row]:
    """The networks that come with cryonb, and the linear filter; `small` has the networks' box."""
    first, second, many = (
        load_model(path, kind)[0].to(device)
        for path, kind in (
            (KEPT / "channel-white-sr3.safetensors", SR3),
            (KEPT / "channel-white-refine.safetensors", Refiner),
            (MANY, SR3),
        )
    )
    sigma, clock, n = small.sigma, CLOCKS[args.clock], args.images
    start = clock()
    learn = small.clean[small.test :]
    linear = linear_filter(learn, learn, sigma)
    fitted = clock() - start
    once = partial(denoise, first, sigma=sigma)
    rows = {ONE: once}
    for steps in (2, 4, 8):
        rows[f"SR3 for the channel, {steps} steps"] = partial(once, steps=steps)
    rows["SR3 for the channel, over turns"] = partial(over_turns, once)
    rows["SR3 for the channel → U-Net"] = lambda x: refine(second, once(x), x, sigma)
    rows[ANY] = partial(denoise, many, sigma=sigma)
    rows["SR3 for any molecule, over turns"] = partial(over_turns, rows[ANY])
    found = {name: Row(partial(cropped, call), n) for name, call in rows.items()}
    return found | {"best linear filter": Row(partial(cropped, linear), n, fitted)}


def their_rows(stacks: Stacks, few: int, args) -> dict[str, Row]:
    """Rows of the peers that are installed, in the box of `stacks`."""
    rows, sigma, test = {}, stacks.sigma, stacks.test
    if not missing("topaz"):
        noisy, clean = (x[test : test + few] for x in (stacks.noisy, stacks.clean))
        trials = []
        for sign in (1, -1):
            out = topaz(noisy, sigma, sign)
            scale, offset = affine_fit(out, clean)
            trials.append((float(mse(scale * out + offset, clean).mean()), sign, scale, offset))
        _, sign, scale, offset = min(trials)
        rows["Topaz, U-Net"] = Row(
            lambda x: scale * topaz(x, sigma, sign) + offset, few, ours=False
        )
    if not missing("bm3d"):
        rows["BM3D"] = Row(partial(bm3d, sigma=sigma), few, ours=False)
    if not missing("cwf"):
        start = CLOCKS[args.clock]()
        denoiser, ground = cwf_denoiser(stacks.noisy, sigma)
        denoiser.build_denoiser()
        fitted = CLOCKS[args.clock]() - start
        rows["CWF, fitted on all"] = Row(
            lambda x: torch.tensor(denoiser.denoise[: len(x)].asnumpy()) + ground,
            test,
            fitted,
            ours=False,
        )
    return rows


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch, and the libraries below NumPy, use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    with threadpool_limits(count):
        yield
    torch.set_num_threads(before)


def costs(rows: dict[str, Row], noisy: torch.Tensor, count: int, args) -> dict[str, float]:
    """Milliseconds an image of each row, all in turn."""
    given = {name: noisy[: min(row.images, args.timed)] for name, row in rows.items()}
    calls = {name: partial(row.denoise, given[name]) for name, row in rows.items()}
    with threads(count):
        seconds = in_turn(calls, args.repeats, CLOCKS[args.clock])
    return {name: 1e3 * median(values) / len(given[name]) for name, values in seconds.items()}


def report(rows: dict[str, Row], quality: dict, spent: list[dict]) -> None:
    """Print a table: particles, time to fit, milliseconds an image, PSNR and its standard error."""
    for name, row in rows.items():
        dB = quality[name]
        error = float(dB.std()) / len(dB) ** 0.5
        ms = "".join(f"{times[name]:10.1f}" if name in times else f"{'':10}" for times in spent)
        fitted = f"{row.fitted_s:9.1f}" if row.fitted_s else f"{'':9}"
        print(f"  {name:34}{len(dB):6}{fitted}{ms}{dB.mean():9.2f} ± {error:.2f}")


def versus(rows: dict[str, Row], quality: dict, ms: dict[str, float]) -> None:
    """Print what two of ours gain over each peer, on the same particles, and at what cost."""
    for ours in (ONE, ANY):
        for name in (n for n, row in rows.items() if not row.ours):
            gain = quality[ours][: len(quality[name])] - quality[name]
            error = float(gain.std()) / len(gain) ** 0.5
            cost = f", at {ms[ours] / ms[name]:.3f} of the time" if ms else ""
            print(f"  {ours} against {name}: {gain.mean():+.2f} ± {error:.2f} dB{cost}")


def one_box(source: str, size: int, stacks: Stacks, small: Stacks, args) -> None:
    """Print table and differences for the particles of one molecule in one box."""
    rows = our_rows(small, "cpu", args)
    rows |= their_rows(stacks, max(2, args.few * BOX // size), args)
    test, quality, spent = stacks.noisy[: stacks.test], {}, []
    for name, row in rows.items():
        quality[name] = psnr(row.denoise(test[: row.images]), stacks.clean[: row.images])
    if source == args.sources[0]:
        spent = [costs(rows, test, count, args) for count in args.threads]
        if torch.cuda.is_available():
            there = our_rows(small, "cuda", args)
            spent.append(costs(there, test, args.threads[-1], args))
    print(f"\n{source}, {size} px: particles, s to fit, ms an image for each column, PSNR in dB")
    report(rows, quality, spent)
    versus(rows, quality, spent[len(args.threads) - 1] if spent else {})


def main() -> None:
    """Go through the molecules and boxes; costs are measured for the first molecule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sources", nargs="+", default=["channel", "prestin"])
    add("--box-sizes", type=int, nargs="+", default=[64, 128, 256], help="px")
    add("--snr", type=float, default=0.1, help="at 64 px")
    add("--images", type=int, default=128, help="test particles")
    add("--few", type=int, default=32, help="of them for Topaz and BM3D at 64 px")
    add("--learn", type=int, default=384, help="more, for CWF and the linear filter")
    add("--timed", type=int, default=32, help="particles in a timing, at most")
    add("--threads", type=int, nargs="+", default=[1, count_cores()], help="a column for each")
    add("--repeats", type=int, default=2)
    add("--clock", choices=CLOCKS, default="wall", help="cpu on a busy machine")
    add("--seed", type=int, default=11)
    args = parser.parse_args()
    columns = [f"{count} threads" for count in args.threads] + ["GPU"] * torch.cuda.is_available()
    print(f"torch {torch.__version__}, SNR {args.snr:g}; {args.clock} ms: {', '.join(columns)}")
    for source in args.sources:
        boxes = simulate(source, args.box_sizes, args)
        small = boxes.get(BOX) or simulate(source, [BOX], args)[BOX]
        for size, stacks in boxes.items():
            one_box(source, size, stacks, small, args)
    print(f"\npeak resident memory of the process {peak_MB():.0f} MB")


if __name__ == "__main__":
    main()
