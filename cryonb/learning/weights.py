"""Weights and checkpoints: safetensors files whose header says what they are. Never pickles."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cryonb.base.files import beside

KEPT = Path(__file__).parents[1] / "kept"
MANY = KEPT / "many-sr3.safetensors"  # an SR3 for any molecule, see `cryonb.simulation.families`
MAP_CLEANER = KEPT / "map-cleaner.safetensors"  # see `cryonb.learning.mapclean`


def _write(path: Path, tensors: dict, header: dict) -> None:
    """Write a safetensors file beside and rename it; a clear OSError if that cannot be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        with beside(path) as part:
            save_file(tensors, part, {"cryonb": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Could not write {path} ({error}): make room or choose another folder; an older file "
            "of this name is untouched."
        ) from error


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and header of a file that `_write` wrote; ValueError if it is something else."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["cryonb"])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole weights file of cryonb ({error}): delete it and train again."
        ) from error


def save_model(path: str | os.PathLike, model: nn.Module, manifest: dict, *, half=False) -> Path:
    """Write a network's weights with its `config`, the keywords that build it, and a manifest.

    The manifest says in JSON values what it was trained on, with which command and result. `half`
    stores bfloat16, half the size; the images change by less than a thousandth.
    """
    dtype = torch.bfloat16 if half else torch.float32
    tensors = {k: v.to(dtype) for k, v in model.state_dict().items()}
    _write(Path(path), tensors, {"config": model.config, "manifest": manifest})
    return Path(path)


def load_model(path: str | os.PathLike, build) -> tuple[nn.Module, dict]:
    """Read model and manifest that `save_model` wrote; `build`, usually a class, makes the network.

    FileNotFoundError if there is no such file, ValueError if it is damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No weights {path}: run the notebook that trains them first, or check the path."
        )
    tensors, header = _read(path)
    try:
        model = build(**header["config"])
        model.load_state_dict({k: v.float() for k, v in tensors.items()})
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} holds another kind of network than asked for: {error}") from error
    return model.eval(), header["manifest"]


def load_kept(source, setting: str, stage: str, build, **made) -> tuple[nn.Module, dict] | None:
    """Load weights that come with the package; None if there are none made for these parameters.

    Parameters
    ----------
    source, setting, stage : str
        Such as "channel", "white" and "sr3" or "refine".
    **made
        Options of `cryonb train` that must agree, such as box_size, pixel_size_A and snr.
    """
    path = KEPT / f"{source}-{setting}-{stage}.safetensors"
    if not path.is_file():
        return None
    model, manifest = load_model(path, build)
    options = manifest["options"]
    return (model, manifest) if all(options.get(k) == v for k, v in made.items()) else None


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a training run in a file: networks, optimiser, position."""

    path: str | os.PathLike | None  # None for a run that keeps nothing
    run: dict  # what must agree for a run to go on from the file
    modules: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer

    def write(self, step: int) -> None:
        """Write the state after so many steps."""
        states = {name: module.state_dict() for name, module in self.modules.items()}
        states |= {f"optimiser/{i}": v for i, v in self.optimiser.state_dict()["state"].items()}
        tensors = {f"{name}/{k}": v for name, state in states.items() for k, v in state.items()}
        _write(Path(self.path), tensors, {"run": self.run, "step": step})

    def read(self) -> int:
        """Restore the state; returns the number of steps done, 0 if there is no file.

        ValueError if it is damaged or belongs to a run with other parameters.
        """
        if not self.path or not Path(self.path).is_file():
            return 0
        tensors, header = _read(Path(self.path))
        other = [k for k in self.run if header.get("run", {}).get(k) != self.run[k]]
        if other:
            raise ValueError(
                f"The checkpoint {self.path} is of a run with another {', '.join(other)}: delete "
                "it to start anew, or choose another run folder."
            )
        states: dict[str, dict] = {}
        for key, value in tensors.items():
            name, k = key.rsplit("/", 1)
            states.setdefault(name, {})[k] = value
        for name, module in self.modules.items():
            module.load_state_dict(states.pop(name))
        groups = self.optimiser.state_dict()["param_groups"]
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        moments = {}
        for name, state in states.items():
            i = int(name.removeprefix("optimiser/"))
            moments[i] = {k: _laid_out(v, parameters[i]) for k, v in state.items()}
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        return header["step"]


def _laid_out(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A moment in its parameter's own memory layout, as fused AdamW needs it; a count as it is."""
    if value.shape != like.shape:
        return value
    return torch.empty_like(like, requires_grad=False).copy_(value)
