"""Throughput of denoising and training against the size of the batch, for GPUs above all.

    python benchmarks/batches.py

Denoising is timed with the particles in the host's memory, as `denoise` of
`cryonb.learning.diffusion` takes and gives them, and with particles and noise on the device; of
training the loss, its gradients and the optimiser, without compiling. The kept network, whose box
is 64 px, takes other boxes too.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from timing import SIGMA, in_turn, synchronised

from cryonb.base.draws import generator_on
from cryonb.base.precision import autocast
from cryonb.commands.denoise import best_device
from cryonb.learning.diffusion import SR3, denoise_batches, posterior_mean
from cryonb.learning.train import sr3_loss
from cryonb.learning.weights import KEPT, load_model

ROUNDS = 3  # of training in a timing


def from_host(model: SR3, noisy: torch.Tensor, steps: int, batch: int) -> None:
    """Denoise particles of the host's memory, back into it."""
    for _ in denoise_batches(model, noisy, SIGMA, steps, batch_size=batch):
        pass


def on_device(model: SR3, noisy: torch.Tensor, batch: int) -> None:
    """Estimate posterior means where the particles are."""
    generator = generator_on(noisy.device).manual_seed(0)
    with autocast(noisy.device):
        for part in noisy.split(batch):
            posterior_mean(model, part, SIGMA, generator)


def training_steps(model: SR3, images: torch.Tensor) -> None:
    """Take `ROUNDS` steps too small to change anything."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-9, fused=True)
    generator = generator_on(images.device).manual_seed(0)
    for _ in range(ROUNDS):
        with autocast(images.device):
            loss = sr3_loss(model, (images, images), 1.0, generator, sigma=SIGMA)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def measure(box: int, batch: int, device: str) -> str:
    """One row of the table; batches hold as many pixels in each box."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = load_model(KEPT / "channel-white-sr3.safetensors", SR3)[0].to(device)
    noisy = torch.randn(4 * batch, box, box)
    clean = torch.randn(batch, box, box, device=device)
    calls = {
        "one step": partial(from_host, model, noisy, 1, batch),
        "eight": partial(from_host, model, noisy, 8, batch),
        "there": partial(on_device, model, noisy.to(device), batch),
        "training": partial(training_steps, model, clean),
    }
    images = dict.fromkeys(calls, len(noisy)) | {"training": ROUNDS * batch}
    seconds = in_turn({name: synchronised(call) for name, call in calls.items()}, 1)
    rates = [images[name] / spent for name, (spent,) in seconds.items()]
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    numbers = "".join(f"{rate:12.0f}" for rate in rates)
    return f"{box:5}{batch:7}{numbers}{memory:9.1f}"


def main() -> None:
    """Print images per second for every box and batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--box-sizes", type=int, nargs="+", default=[64, 128], help="multiples of 8")
    add("--batch-sizes", type=int, nargs="+", default=[512, 2048, 8192], help="at 64 px")
    add("--device", default=best_device())
    args = parser.parse_args()
    print(f"{args.device}, torch {torch.__version__}; images per second, GB of the device")
    heads = ("one step", "eight steps", "on device", "training")
    print("  box  batch" + "".join(f"{head:>12}" for head in heads) + f"{'GB':>9}")
    for box in args.box_sizes:
        for batch in args.batch_sizes:
            print(measure(box, max(1, batch * 64**2 // box**2), args.device), flush=True)


if __name__ == "__main__":
    main()
