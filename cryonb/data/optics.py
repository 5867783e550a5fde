"""What a particle file says about its pixels: the one place where columns become a CTF.

Values stand in a particle's row or in its optics group, and are looked for in this order, as in
RELION. All of it is particle by particle: a file may mix microscopes, and images that were treated
in different ways.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from cryonb.data.star import CTF_APPLIED, DEFOCUS, MICROSCOPE
from cryonb.physics.ctf import beam_tilt_phase, frequencies_A, phase_aberration, zernike_phase

SAME_PIXEL = 1e-4  # relative difference of pixel sizes that are taken as one
FLIPPED, MULTIPLIED = "rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied"
CORRECTED = "rlnCtfDataAreCtfCorrected"
MAGNIFICATION = ["rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"]
TILT = ["rlnBeamTiltX", "rlnBeamTiltY"]
# The least and the most that a number can be, and its unit.
RANGES = {
    "rlnVoltage": (1, 5000, "kV (is it in V?)"),
    "rlnSphericalAberration": (-100, 100, "mm (is it in µm or Å?)"),
    "rlnAmplitudeContrast": (-1, 1, "(is it in per cent?)"),
    "rlnImagePixelSize": (0, 1000, "Å"),
    "rlnCtfBfactor": (-1e4, 1e4, "Å²"),
    "rlnCtfScalefactor": (-1e4, 1e4, ""),
    **dict.fromkeys(DEFOCUS[:2], (-1e6, 1e6, "Å (is it in pm?)")),
    **dict.fromkeys((DEFOCUS[2], "rlnPhaseShift"), (-1e4, 1e4, "degrees")),
    **dict.fromkeys(TILT, (-1e3, 1e3, "mrad")),
}
# States of an image: y is the noise-free image, c its CTF, n noise.
PLAIN = "without CTF"  # y + n
CARRIED = "with CTF"  # c y + n
PHASE_FLIPPED = "phase-flipped"  # |c| y + n
PREMULTIPLIED = "premultiplied"  # c (c y + n)


@dataclass(frozen=True)
class Columns:
    """The two tables of a particle file, and what they mean for each of its n particles.

    Attributes
    ----------
    optics : pandas.DataFrame
        One row per optics group.
    table : pandas.DataFrame
        One row per particle; its index counts the rows of the file.
    """

    optics: pd.DataFrame
    table: pd.DataFrame

    def __post_init__(self):
        volumes = self.has("rlnImageDimensionality")
        volumes = volumes and (self.numbers("rlnImageDimensionality") == 3).any()
        found = [name for name in ("rlnTomoVisibleFrames", "rlnCtfImage") if self.has(name)]
        if volumes or found:
            reason = found[0] if found else "rlnImageDimensionality is 3"
            raise ValueError(
                f"these are particles of tomograms ({reason}): only single images are read"
            )

    def has(self, name: str) -> bool:
        """Whether a column is there."""
        return name in self.table or name in self.optics

    def values(self, name: str, default=None) -> np.ndarray:
        """Values of a column (n,), of each row or of its optics group; ValueError if missing."""
        if name in self.table:
            return self.table[name].to_numpy()
        if name in self.optics:
            groups = self.optics.set_index("rlnOpticsGroup")[name]
            return groups.loc[self.table["rlnOpticsGroup"]].to_numpy()
        if default is None:
            raise ValueError(f"the particle file lacks {name}: add this column")
        return np.broadcast_to(default, len(self.table))

    def numbers(self, *names: str, default=None) -> torch.Tensor:
        """Columns of numbers, float64 (n, number of names).

        ValueError, with the row, if a column is missing or a value is no number, unset (-999) or
        out of its physical range.
        """
        columns = [pd.to_numeric(self.values(name, default), errors="coerce") for name in names]
        numbers = np.stack(columns, axis=1).astype(np.float64)
        bad = ~np.isfinite(numbers) | (numbers == -999)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"{names[column]} is unset (-999) or no number in {int(bad.any(1).sum())} rows, "
                f"the first is {self.table.index[row] + 1}: drop these rows"
            )
        for name, values in zip(names, numbers.T, strict=True):
            low, high, unit = RANGES.get(name, (-1e6, 1e6, ""))
            if len(outside := np.flatnonzero((values < low) | (values > high))):
                row, limits = outside[0], f"{low:g} to {high:g} {unit}".strip()
                raise ValueError(
                    f"{name} is {values[row]:g} in row {self.table.index[row] + 1}, not from "
                    f"{limits}: correct it"
                )
        return torch.from_numpy(numbers)

    def check_ctf(self, ctf: str = "auto") -> None:
        """ValueError, before any work, for a row whose CTF cannot be known; "on", "off", "auto"."""
        if ctf == "on" or (ctf == "auto" and (self.state != PLAIN).any()):
            _ = self.defocus_A, self.numbers(*MICROSCOPE, *filter(self.has, RANGES))
            tilted = any(self.has(n) and self.numbers(n).any() for n in TILT)
            if tilted and self.has("rlnOddZernike") and self._coefficients("rlnOddZernike").any():
                print("note: beam tilt and odd aberrations add up (RELION leaves their coma out)")

    @property
    def pixel_size_A(self) -> float:
        """Å per pixel; ValueError if it is unknown or differs between particles."""
        sizes = self.numbers("rlnImagePixelSize")
        low, high = float(sizes.min()), float(sizes.max())
        if low <= 0:
            raise ValueError(
                "no pixel size is stated, in the table or a header: add rlnImagePixelSize, or give "
                "--pixel-size where a command has it"
            )
        if high > low * (1 + SAME_PIXEL):
            raise ValueError(
                f"particles have pixel sizes of {low:g} to {high:g} Å: select those of one"
            )
        return float(sizes[0])

    @property
    def defocus_A(self) -> torch.Tensor:
        """Defocus U and V in Å, positive for underfocus, and the angle of U in degrees: (n, 3)."""
        u = self.numbers(DEFOCUS[0])
        v = self.numbers(DEFOCUS[1], default=u[:, 0])
        largest = float(u.abs().max())
        if 0 < largest < 20:
            raise ValueError(
                f"rlnDefocusU is {largest:g} at most: RELION has Å, such as 15000; "
                "multiply by 10,000 what is in µm"
            )
        return torch.cat([u, v, self.numbers(DEFOCUS[2], default=0.0)], dim=1)

    @property
    def state(self) -> np.ndarray:
        """State of each image (n,): one of the names at the top of this module.

        A file that does not say so has images with CTF if it lists the defocus.
        """

        def said(name, default=0):
            return self.numbers(name, default=default)[:, 0].numpy() != 0

        multiplied = said(MULTIPLIED, 0)
        carried = said(CTF_APPLIED, multiplied | self.has("rlnDefocusU")) & ~said(CORRECTED)
        kinds = [~carried, multiplied, said(FLIPPED)]
        return np.select(kinds, [PLAIN, PREMULTIPLIED, PHASE_FLIPPED], CARRIED)

    @property
    def magnification(self) -> torch.Tensor | None:
        """Matrices that take frequencies of each image to those of the specimen, or None."""
        if not any(self.has(name) for name in MAGNIFICATION):
            return None
        identity = zip(MAGNIFICATION, (1.0, 0.0, 0.0, 1.0), strict=True)
        values = [self.numbers(name, default=value) for name, value in identity]
        return torch.cat(values, dim=1).reshape(-1, 2, 2).float()

    def check_isotropic(self) -> None:
        """ValueError for a magnification matrix far from 1, where poses are searched without it."""
        matrix = self.magnification
        off = 0.0 if matrix is None else float((matrix - torch.eye(2)).abs().max())
        if off > 0.02:
            raise ValueError(
                f"rlnMagMat00 to 11 are {off:.1%} off 1: poses are searched without them, so "
                "correct the images first, or remove the columns"
            )

    def transfer(self, box_size: int) -> torch.Tensor | None:
        """What the transform of each noise-free image is multiplied by, (n, y, x // 2 + 1).

        By its state: 1, the CTF, ``|CTF|`` or ``CTF^2``; complex if there are odd aberrations. None
        if no image carries a CTF.
        """
        state = self.state
        rows = state != PLAIN
        if not rows.any():
            return None
        carrying = Columns(self.optics, self.table[rows])
        transfer = carrying._transfer(box_size, state[rows])
        if rows.all():
            return transfer
        full = torch.ones(len(rows), *transfer.shape[1:], dtype=transfer.dtype)
        full[torch.from_numpy(rows)] = transfer
        return full

    def _transfer(self, box_size: int, state: np.ndarray) -> torch.Tensor:
        k = frequencies_A(box_size, self.pixel_size_A, self.magnification)
        u, v, angle = self.defocus_A.unbind(1)
        lenses = self.numbers("rlnVoltage", "rlnSphericalAberration").unbind(1)
        phase = phase_aberration(
            k,
            (u + v) / 2 * 1e-4,
            astigmatism_um=(u - v) / 2 * 1e-4,
            astigmatism_angle_deg=angle,
            voltage_kv=lenses[0],
            spherical_aberration_mm=lenses[1],
            amplitude_contrast=self.numbers("rlnAmplitudeContrast"),
            phase_shift_deg=self.numbers("rlnPhaseShift", default=0.0),
        )
        if self.has("rlnEvenZernike"):
            phase = phase - zernike_phase(k, self._coefficients("rlnEvenZernike"), 0)
        b_factor, scale = (
            self.numbers(name, default=value).float()[:, :, None]
            for name, value in (("rlnCtfBfactor", 0.0), ("rlnCtfScalefactor", 1.0))
        )
        ctf = scale * torch.exp(-b_factor / 4 * k.square().sum(-1)) * phase.sin()
        flipped, multiplied = (
            torch.from_numpy(state == name)[:, None, None]
            for name in (PHASE_FLIPPED, PREMULTIPLIED)
        )
        ctf = torch.where(flipped, ctf.abs(), torch.where(multiplied, ctf.square(), ctf))
        odd = self._odd_phase(k, lenses)
        return torch.polar(ctf.abs(), odd + (ctf < 0) * torch.pi) if odd.any() else ctf

    def _odd_phase(self, k: torch.Tensor, lenses: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Phase that odd aberrations give the transform of each image, RELION's sign."""
        phase = torch.zeros(())
        if any(map(self.has, TILT)):
            tilt = self.numbers(*TILT, default=0.0)
            phase = beam_tilt_phase(k, tilt, *lenses)
        if self.has("rlnOddZernike"):
            phase = phase + zernike_phase(k, self._coefficients("rlnOddZernike"), 1)
        return phase

    def _coefficients(self, name: str) -> torch.Tensor:
        """Lists of numbers such as [0,0.1,0], padded with zeros: (n, longest)."""
        texts, rows = np.unique(self.values(name).astype(str), return_inverse=True)
        try:
            lists = [torch.tensor(json.loads(text), dtype=torch.float32) for text in texts]
            return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)[rows]
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{name} holds no lists of numbers such as [0,0.1,0]") from error


def matched_filter(transfer: torch.Tensor, state: np.ndarray) -> torch.Tensor:
    """What images are multiplied by before they are added up, (n, y, x // 2 + 1).

    The conjugate of what they carry; images that were premultiplied have had that, but for the
    phases of odd aberrations.
    """
    multiplied = torch.from_numpy(state == PREMULTIPLIED)[:, None, None]
    return torch.where(multiplied, transfer.sgn(), transfer).conj()
