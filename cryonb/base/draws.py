"""Random numbers, drawn where their generator lives: on the CPU, or on the GPU that trains."""

from __future__ import annotations

import torch


def draw_options(generator: torch.Generator | None) -> dict:
    """Keywords for ``torch.rand`` and its like: the generator, and the device it draws on."""
    return {"generator": generator, "device": generator.device if generator else "cpu"}


def generator_on(device: torch.device | str) -> torch.Generator:
    """Generator for data and losses of a training run on `device`: there on CUDA, else the CPU's.

    On a GPU the stream of numbers is another than on a CPU, so a seed repeats on its own kind.
    """
    return torch.Generator(device if torch.device(device).type == "cuda" else "cpu")
