"""STAR files: read with every check; what is not changed is written as it was, byte for byte.

The lines of a file are kept. Only columns that are computed with become numbers; all others stay
the text that they are (starfile makes 1 of ``001`` and 100000.0 of ``1e5``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import starfile

from cryonb.base.files import beside, existing

ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
ORIGINS = ["rlnOriginYAngst", "rlnOriginXAngst"]  # (y, x), as in shifts_px
DEFOCUS = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"]
MICROSCOPE = ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]
# Our own column of the optics block: 1 if the images carry the CTF (reconstruct with it), 0 if
# they do not (without). RELION keeps columns that it does not know.
CTF_APPLIED = "cryonbCtfApplied"
NUMBERS = {
    *(ANGLES + ORIGINS + DEFOCUS + MICROSCOPE),
    *("rlnOriginY", "rlnOriginX", "rlnOpticsGroup", "rlnRandomSubset", CTF_APPLIED),
    *("rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor", "rlnBeamTiltX", "rlnBeamTiltY"),
    *("rlnImagePixelSize", "rlnPixelSize", "rlnDetectorPixelSize", "rlnMagnification"),
    *("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
    *("rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied", "rlnImageSize"),
    *("rlnImageDimensionality", "rlnParticleSelectionType"),
}
TOKEN = re.compile(rb"""#.*|'(?:[^']|'(?=\S))*'(?=\s|$)|"(?:[^"]|"(?=\S))*"(?=\s|$)|\S+""")
CHUNK = 20_000  # rows that are taken apart at a time


@dataclass
class StarTable:
    """One table of a STAR file: its labels, and the lines that its rows stand on.

    A table without ``loop_`` has one row, each of whose values stands on a line of its own.
    """

    name: str
    loop: bool
    labels: list[str]
    rows: list[int]


class StarFile:
    """A STAR file as lines, and the tables in them.

    Parameters
    ----------
    path : path
        FileNotFoundError if it does not exist; ValueError for tables that cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = existing(path)
        raw = self.path.read_bytes()
        self.lines = raw.split(b"\n")
        try:
            raw.decode()
            self.encoding = "utf-8"
        except UnicodeDecodeError:
            self.encoding = "latin-1"
        self.tables = self._find_tables()
        for table in self.tables:
            twice = [name for name in table.labels if table.labels.count(name) > 1]
            if twice:
                raise ValueError(f"{path}: table {table.name!r} has {twice[0]} twice: remove one")

    def _find_tables(self) -> list[StarTable]:
        tables, block, now = [], "", None
        for number, line in enumerate(self.lines):
            first = line[:80].split(None, 1)[:1]
            if not first or first[0].startswith(b"#"):
                continue
            is_label = first[0].startswith(b"_") and not (now and now.loop and now.rows)
            if first[0].startswith(b"data_") and len(_tokens(line)) == 1:
                block, now = self._text(first[0][5:]), None
            elif first[0] == b"loop_":
                now = StarTable(block, True, [], [])
                tables.append(now)
            elif is_label:
                if now is None:
                    now = StarTable(block, False, [], [])
                    tables.append(now)
                now.labels.append(self._text(_tokens(line)[0][1:]))
                now.rows.extend([] if now.loop else [number])
            elif now is not None and now.loop:
                now.rows.append(number)
        return [table for table in tables if table.labels]

    def _text(self, token: bytes) -> str:
        """Value of a token, without the quotes around it."""
        quoted = len(token) > 1 and token[:1] in b"'\"" and token[:1] == token[-1:]
        return (token[1:-1] if quoted else token).decode(self.encoding)

    def only(self, name: str) -> StarTable | None:
        """Table of a name, or None; ValueError if there are several."""
        found = [table for table in self.tables if table.name == name]
        if len(found) > 1:
            raise ValueError(f"{self.path} has {len(found)} tables {name!r}: keep one of them")
        return found[0] if found else None

    def particles(self) -> StarTable:
        """The table that lists the particles, in RELION 3.1's words or those of 3.0."""
        listing = [table for table in self.tables if "rlnImageName" in table.labels]
        named = [table for table in listing if table.name == "particles"]
        if len(named) == 1 or len(listing) == 1:
            return (named or listing)[0]
        if not listing:
            raise ValueError(f"{self.path} lists no particles (rlnImageName): choose another file")
        names = " and ".join(repr(table.name) for table in listing)
        raise ValueError(f"{self.path} has several tables of particles, {names}: keep one of them")

    def _cells(self, table: StarTable, rows: list[int]) -> list[list[bytes]]:
        """Values of some rows; ValueError that names line and label of a row of another length."""
        cells = [_tokens(self.lines[row]) for row in rows]
        if not table.loop:
            if short := [pair[0] for pair in cells if len(pair) != 2]:
                name = self._text(short[0])
                raise ValueError(f"{self.path}: {name} has not one value: correct it")
            return [[pair[1] for pair in cells]]
        width = len(table.labels)
        for row, values in zip(rows, cells, strict=True):
            if (count := len(values)) != width:
                more, less = values[width:], table.labels[count:]
                odd = f"{self._text(more[0])!r} has no label" if more else f"none for {less[0]}"
                raise ValueError(
                    f"{self.path}, line {row + 1}: {count} values for the {width} labels of "
                    f"table {table.name!r}, {odd}: correct or remove this line"
                )
        return cells

    def frame(self, table: StarTable) -> pd.DataFrame:
        """Table with the columns of `NUMBERS` as numbers (NaN where they are none), others text."""
        pieces: dict[str, list] = {name: [] for name in table.labels}
        size = CHUNK if table.loop else len(table.rows)
        for first in range(0, len(table.rows), size):
            cells = self._cells(table, table.rows[first : first + size])
            for name, values in zip(table.labels, zip(*cells, strict=True), strict=True):
                piece = self._numbers(values) if name in NUMBERS else self._texts(values)
                pieces[name].append(pd.Series(piece, dtype=None if name in NUMBERS else "str"))
        return pd.DataFrame({name: pd.concat(p or [pd.Series()]) for name, p in pieces.items()})

    def _texts(self, values: tuple[bytes, ...]) -> list[str]:
        joined = b"\n".join(values)
        if b"'" in joined or b'"' in joined:
            return [self._text(value) for value in values]
        return joined.decode(self.encoding).split("\n")

    def _numbers(self, values: tuple[bytes, ...]) -> np.ndarray:
        for kind, dtype in ((int, np.int64), (float, np.float64)):
            try:
                return np.fromiter(map(kind, values), dtype, len(values))
            except (ValueError, OverflowError):
                continue
        return pd.to_numeric(np.array([self._text(v) for v in values], object), errors="coerce")

    def write(
        self, path: str | os.PathLike, table: StarTable, columns: dict[str, list[str]]
    ) -> None:
        """Write the file with other values in some columns; all else stays as it was read.

        Columns that the table lacks become its last. With fewer values than the table has rows,
        the rows behind them are left out.
        """
        lines = list(self.lines)
        count = len(next(iter(columns.values())))
        for row in table.rows[count:] if table.loop else []:
            lines[row] = None
        for label, values in columns.items():
            new = [value.encode(self.encoding) for value in values]
            if label not in table.labels:
                self._append(lines, table, label, new)
                continue
            at = table.labels.index(label)
            places = [(row, at) for row in table.rows] if table.loop else [(table.rows[at], 1)]
            for (row, token), value in zip(places[:count], new, strict=True):
                old = list(_token_matches(lines[row]))[token]
                lines[row] = lines[row][: old.start()] + value + lines[row][old.end() :]
        with beside(path) as part:
            part.write_bytes(b"\n".join(line for line in lines if line is not None))

    def _append(self, lines: list, table: StarTable, label: str, values: list[bytes]) -> None:
        """Add a column behind the others, in lines that may have been changed before."""
        name = b"_" + label.encode()
        if not table.loop:
            lines[table.rows[-1]] += b"\n" + name + b" " + values[0]
            return
        for row, value in zip(table.rows[: len(values)], values, strict=True):
            end = _token_matches(lines[row])[-1].end()
            lines[row] = lines[row][:end] + b" " + value + lines[row][end:]
        first = table.rows[0] - 1
        while not self.lines[first].lstrip().startswith(b"_"):
            first -= 1
        lines[first] += b"\n" + name


def _token_matches(line: bytes) -> list[re.Match]:
    """Where the values of a line stand; a comment begins with # after a blank."""
    found = list(TOKEN.finditer(line))
    comment = next((k for k, token in enumerate(found) if token[0].startswith(b"#")), None)
    return found[:comment]


def _tokens(line: bytes) -> list[bytes]:
    """Values of a line, with their quotes if they have any."""
    if b"#" in line or b"'" in line or b'"' in line:
        return [token[0] for token in _token_matches(line)]
    return line.split()


def write_star(path: str | os.PathLike, tables: dict[str, pd.DataFrame]) -> None:
    """Write tables as STAR loops, beside their place first; numbers with all of their digits."""
    with beside(path) as part:
        part.write_bytes(starfile.to_string(tables, float_format=None).encode())


def image_names(n: int, stack: str) -> list[str]:
    """Names of all images of a stack: 000001@stack, 000002@stack, ..."""
    return [f"{i:06d}@{stack}" for i in range(1, n + 1)]
