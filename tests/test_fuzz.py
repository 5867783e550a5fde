"""Two thousand damaged files: each is read, or is one clear line; none ends in a traceback."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from cryonb.base.options import AbInitioOptions, DenoiseOptions
from cryonb.commands import abinitio
from cryonb.commands.denoise import denoise_file
from cryonb.data.maps import read_map, write_map
from cryonb.data.particle_file import open_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import load_volume
from cryonb.physics.geometry import random_rotations

WORDS = (
    b"0 -1 nan inf 1e400 99999999999999999999 -999 '' # @ 1@ @x data_ loop_ _rlnImageName".split()
)
NUMBERS = (0, 1, -1, 2, 3, 7, 101, 1146047817, 2**31 - 1, -(2**31), 0x7FC00000, 1000)


def mutated(raw: bytes, g: np.random.Generator, words: list[bytes]) -> bytes:
    """One to three damages: bytes, spans cut out, doubled or put elsewhere, words, an early end."""
    for _ in range(g.integers(1, 4)):
        a, b = sorted(g.integers(0, len(raw) + 1, 2))
        b = min(b, a + int(g.integers(1, 40)))
        kind = g.integers(6)
        span = raw[a:b]
        if kind == 0:
            span = bytes(g.integers(0, 256, len(span), dtype=np.uint8))
        elif kind == 1:
            span = b""
        elif kind == 2:
            span = span * 2
        elif kind == 3:
            span = words[g.integers(len(words))]
        elif kind == 4:
            c = int(g.integers(0, len(raw)))
            span = raw[c : c + len(span)]
        else:
            return raw[:a]
        raw = raw[:a] + span + raw[b:]
    return raw


def ends_well(call) -> bool:
    """Whether a call gives a result; anything but a result or one line raises."""
    try:
        call()
    except (ValueError, OSError) as error:
        assert str(error) and "\n" not in str(error), repr(error)
        return False
    return True


@pytest.fixture
def whole(tmp_path):
    g = torch.Generator().manual_seed(0)
    images, defocus = torch.randn(4, 16, 16, generator=g), torch.tensor([1.0, 1.2, 1.4, 1.6])
    made = particles_from_arrays(images, random_rotations(4, g), 2.0, defocus_um=defocus)
    return write_particles(made, tmp_path / "p.star")


def use(path):
    """All that the commands do with a particle file before they compute."""
    source = open_particles(path)
    source.write_like(path.with_name("out.star"), "out.mrcs")
    particles = source.read()
    assert torch.isfinite(particles.images).all()
    for name in ("rotations", "shifts_px", "half", "ctf"):
        value = getattr(particles, name)
        assert value is None or torch.isfinite(torch.view_as_real(value + 0j)).all(), name


def work(path, monkeypatch):
    """The commands that search for poses, with little to search."""
    short = abinitio.STAGES[0]._replace(passes=1, spacing_deg=40)
    monkeypatch.setattr(abinitio, "STAGES", (short,))
    for old in path.parent.glob("*out*"):
        old.unlink()
    write_map(path.with_name("ref.mrc"), torch.randn(16, 16, 16), 2.0)
    known = DenoiseOptions(reference=str(path.with_name("ref.mrc")), spacing_deg=40, device="cpu")
    done = ends_well(lambda: denoise_file(path, path.with_name("out.star"), known))
    one = AbInitioOptions(starts=1)
    return done + ends_well(lambda: abinitio.abinitio_file(path, path.with_name("out.mrc"), one))


def test_a_thousand_damaged_tables(whole, capsys, monkeypatch):
    g, raw = np.random.default_rng(0), whole.read_bytes()
    path, read, worked = whole.with_name("q.star"), 0, 0
    for _ in range(1000):
        path.write_bytes(mutated(raw, g, WORDS))
        reads = ends_well(lambda: use(path))
        read += reads
        worked += work(path, monkeypatch) if reads and read % 9 == 0 else 0
    assert 50 < read < 950 and worked > 4, "harmless and harmful damages"


def read_both(path):
    """A map on its own grid, and as a reference."""
    read_map(path)
    assert torch.isfinite(load_volume(path, 8, 2.0).map).all()


def test_a_thousand_damaged_headers(whole, tmp_path, capsys):
    """Stacks and maps, damaged in the header, where words are numbers; or anywhere."""
    g, stack, star = np.random.default_rng(1), whole.with_suffix(".mrcs"), whole
    write_map(tmp_path / "m.mrc", torch.randn(8, 8, 8), 2.0)
    files = {stack: lambda: use(star), tmp_path / "m.mrc": lambda: read_both(tmp_path / "m.mrc")}
    read = 0
    for path, call in files.items():
        raw = path.read_bytes()
        for k in range(500):
            if k % 4:
                new = bytearray(raw)
                for _ in range(g.integers(1, 4)):
                    number = NUMBERS[g.integers(len(NUMBERS))]
                    struct.pack_into("<I", new, 4 * int(g.integers(0, 56)), number % 2**32)
            else:
                new = mutated(raw, g, [b"MAP ", b"\x11\x11\0\0", b"\0" * 12])
            path.write_bytes(new)
            read += ends_well(call)
    assert 100 < read < 900, "harmless and harmful damages"
