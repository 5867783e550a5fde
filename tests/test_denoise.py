"""`cryonb denoise`: what comes out means what went in; every bad input is one clear line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from cryonb.base import files, precision
from cryonb.base.files import sole
from cryonb.base.options import DenoiseOptions
from cryonb.cli import main
from cryonb.commands import denoise as command
from cryonb.commands import shards
from cryonb.commands.shards import Unfinished, split
from cryonb.data.particle_file import open_particles, read_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.learning.diffusion import SR3
from cryonb.learning.weights import save_model
from cryonb.physics.geometry import random_rotations

BOX = 32
BF16 = 3e-2  # of images with a deviation of about 1, where another process has computed them


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    """So that results can be compared; processes of their own may compute in bf16."""
    monkeypatch.setattr(precision, "fast_precision", lambda: "no")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network that has learnt nothing; the mechanics do not care."""
    torch.manual_seed(0)
    model = SR3(widths=(16, 32), transformers=1, embedding=32)
    torch.nn.init.normal_(model.unet.exit.weight, std=0.05)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    return save_model(path, model, {"options": {"box_size": BOX, "snr": 0.1}})


def disc(n: int, box: int = BOX, snr: float = 0.3) -> torch.Tensor:
    """Bright discs in white noise, far from zero."""
    g = torch.Generator().manual_seed(0)
    at = torch.arange(box) - box // 2
    shape = (at[:, None] ** 2 + at**2 < (0.25 * box) ** 2).float()
    return 50 + 3 * (shape * (5 * snr) ** 0.5 + torch.randn(n, box, box, generator=g))


def particle_file(folder, n: int = 10, box: int = BOX, name: str = "p.star", **options):
    g = torch.Generator().manual_seed(1)
    options = {"defocus_um": 1 + torch.rand(n, generator=g)} | options
    particles = particles_from_arrays(disc(n, box), random_rotations(n, g), 2.5, **options)
    return write_particles(particles, folder / name)


def run(*arguments) -> int:
    return main(["denoise", *map(str, arguments)])


def denoise_file(particles, out, **options):
    return command.denoise_file(particles, out, DenoiseOptions(**options))


def test_rows_columns_box_and_pixel_size_are_kept(tmp_path, weights):
    star = particle_file(tmp_path, box=48)
    blocks = starfile.read(star)
    table = blocks["particles"].sample(frac=1, random_state=0)
    table["rlnUserNote"] = [f"note{i}" for i in range(len(table))]
    starfile.write(blocks | {"particles": table}, star)
    before = star.read_bytes(), star.with_suffix(".mrcs").read_bytes()
    out = denoise_file(star, tmp_path / "out.star", checkpoint=weights, batch_size=4)
    assert (star.read_bytes(), star.with_suffix(".mrcs").read_bytes()) == before
    after = starfile.read(out)
    pd.testing.assert_frame_equal(
        after["particles"].drop(columns="rlnImageName"),
        table.drop(columns="rlnImageName").reset_index(drop=True),
    )
    pd.testing.assert_frame_equal(after["optics"], blocks["optics"])
    with mrcfile.open(tmp_path / "out.mrcs") as mrc:
        assert mrc.is_image_stack() and mrc.data.shape == (10, 48, 48)
        assert mrc.voxel_size.x == pytest.approx(2.5) and np.isfinite(mrc.data).all()
    assert mrcfile.validate(tmp_path / "out.mrcs")
    assert read_particles(out).ctf_applied
    assert not list(tmp_path.glob(".*")), "nothing is left beside"


def test_row_order_decides_which_image_a_row_gets(tmp_path, weights):
    """Two stacks in two folders, rows mixed: each row's image is that of its own particle."""
    (tmp_path / "sub").mkdir()
    a, b = particle_file(tmp_path, 5, name="a.star"), particle_file(tmp_path / "sub", 4)
    tables = [starfile.read(path)["particles"] for path in (a, b)]
    tables[1]["rlnImageName"] = tables[1]["rlnImageName"].str.replace("@", "@sub/")
    mixed = pd.concat(tables).sample(frac=1, random_state=1)
    optics = starfile.read(a)["optics"]
    starfile.write({"optics": optics, "particles": mixed}, tmp_path / "mixed.star")
    source = open_particles(tmp_path / "mixed.star")
    for image, name in zip(source.read().images, mixed["rlnImageName"], strict=True):
        number, stack = name.split("@")
        with mrcfile.open(tmp_path / stack) as mrc:
            assert np.array_equal(image.numpy(), mrc.data[int(number) - 1])
    out = read_particles(
        denoise_file(tmp_path / "mixed.star", tmp_path / "o.star", checkpoint=weights)
    )
    assert len(out) == 9 and list(out.table["rlnAngleRot"]) == pytest.approx(
        list(mixed["rlnAngleRot"]), abs=1e-5
    )


def test_a_file_of_relion_3_0_is_read_and_stays_one(tmp_path, weights):
    star = particle_file(tmp_path)
    blocks = starfile.read(star)
    optics, table = blocks["optics"].iloc[0], blocks["particles"]
    old = table.drop(columns=["rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"]).assign(
        rlnVoltage=optics["rlnVoltage"],
        rlnSphericalAberration=2.7,
        rlnAmplitudeContrast=0.1,
        rlnDetectorPixelSize=5.0,
        rlnMagnification=20000.0,
        rlnOriginX=1.0,
        rlnOriginY=-2.0,
    )
    starfile.write({"images": old}, tmp_path / "old.star")
    new = read_particles(tmp_path / "old.star")
    assert new.pixel_size_A == pytest.approx(2.5)
    torch.testing.assert_close(new.shifts_px[0], torch.tensor([2.0, -1.0]))
    out = denoise_file(tmp_path / "old.star", tmp_path / "out.star", checkpoint=weights)
    after = starfile.read(out, always_dict=True)
    assert list(after) == ["images"] and set(after["images"]) == set(old)
    # The same phases are flipped, so the images are those of the newer file.
    again = denoise_file(star, tmp_path / "again.star", checkpoint=weights)
    torch.testing.assert_close(read_particles(out).images, read_particles(again).images)


def test_intensities_offset_and_contrast_do_not_matter(tmp_path, weights):
    """Images in another unit and with another offset give results in that, too."""
    stack = disc(12).numpy()
    results = {}
    for name, given in {"plain": stack, "dark": 1000 - 20 * stack}.items():
        with mrcfile.new(tmp_path / f"{name}.mrcs") as mrc:
            mrc.set_data(given.astype(np.float32))
            mrc.set_image_stack()
        denoise_file(tmp_path / f"{name}.mrcs", tmp_path / f"{name}_out.mrcs", checkpoint=weights)
        results[name] = mrcfile.read(tmp_path / f"{name}_out.mrcs")
    np.testing.assert_allclose(results["dark"], 1000 - 20 * results["plain"], atol=2e-2)


def write_raw(path, images: np.ndarray):
    with mrcfile.new(path) as mrc:
        mrc.set_data(images.astype(np.float32))
        mrc.set_image_stack()
    return path


def test_a_diameter_is_twice_the_radius_in_pixels_of_the_network(tmp_path):
    source = open_particles(particle_file(tmp_path, box=48))  # 2.5 Å, cropped to 3.75 Å
    noise = command.measured_noise(source, BOX, DenoiseOptions(diameter_A=60.0))
    assert noise.radius_px == pytest.approx(8)


def test_blank_images_stay_as_they_are_and_levels_are_kept(tmp_path, weights, capsys):
    given = disc(30, 48).numpy()
    given[20], given[25, :, :20] = 7.0, 0.0  # constant, and cut off by a mask
    given[25, :8] = given[25, -8:] = given[25, :, -8:] = 0.0
    stack = write_raw(tmp_path / "p.mrcs", given)  # no pixel size; the network takes 32 px
    options = {"checkpoint": weights, "batch_size": 8, "diameter_A": None}
    out = mrcfile.read(denoise_file(stack, tmp_path / "o.mrcs", **options))
    assert "unknown Å/px" in (said := capsys.readouterr().out)
    assert "no pixel size is stated, so none is written" in said
    assert "1 images have no noise" in said and "the first is number 21" in said
    assert np.array_equal(out[20], given[20])
    rest = np.delete(np.arange(30), [20, 25])
    np.testing.assert_allclose(out[rest].mean((1, 2)), given[rest].mean((1, 2)), atol=1)
    assert mrcfile.open(tmp_path / "o.mrcs").voxel_size.x == 0, "not invented"
    with pytest.raises(ValueError, match="ixel"):
        denoise_file(stack, tmp_path / "q.mrcs", checkpoint=weights, diameter_A=60)
    denoise_file(stack, tmp_path / "q.mrcs", checkpoint=weights, diameter_A=60, pixel_size_A=2)
    assert mrcfile.open(tmp_path / "q.mrcs").voxel_size.x == 2


def test_the_ctf_can_be_left_out_and_a_bad_row_is_found_before_the_work(tmp_path, weights):
    star = star_with(tmp_path, "particles", rlnDefocusU=[15000.0] * 9 + ["unset"])
    with pytest.raises(ValueError, match="first is 10"):
        denoise_file(star, tmp_path / "o.star", checkpoint=weights)
    assert not list(tmp_path.glob(".*")), "nothing has begun"
    off = denoise_file(star, tmp_path / "off.star", checkpoint=weights, ctf="off")
    bare = denoise_file(star.with_suffix(".mrcs"), tmp_path / "bare.mrcs", checkpoint=weights)
    found = mrcfile.read(off.with_suffix(".mrcs"))
    np.testing.assert_allclose(found, mrcfile.read(bare), atol=1e-4)  # float32 sums, as they lie
    star_with(tmp_path, "optics", rlnImagePixelSize=-4.0)
    with pytest.raises(ValueError, match="of -4 Å"):
        denoise_file(star, tmp_path / "o.star", checkpoint=weights, ctf="off")
    with pytest.raises(ValueError, match="rlnDefocusU"):
        denoise_file(bare, tmp_path / "on.mrcs", checkpoint=weights, ctf="on")


@pytest.mark.parametrize("mode", ["int8", "int16", "uint16", "float16", "big-endian"])
def test_other_modes_give_the_same_result(tmp_path, weights, mode):
    stack = disc(6).round().numpy()
    for name, dtype in {"a": "float32", "b": ">f4" if mode == "big-endian" else mode}.items():
        with mrcfile.new(tmp_path / f"{name}.mrcs") as mrc:
            mrc.set_data(stack.astype(dtype))
            mrc.set_image_stack()
        denoise_file(tmp_path / f"{name}.mrcs", tmp_path / f"{name}o.mrcs", checkpoint=weights)
    a, b = (mrcfile.read(tmp_path / f"{name}o.mrcs") for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-4)  # float32 sums, in another order


def test_samples_have_a_mean_and_a_deviation(tmp_path, weights):
    star = particle_file(tmp_path)
    denoise_file(star, tmp_path / "s.star", checkpoint=weights, samples=3, steps=2, batch_size=4)
    mean, deviation = (mrcfile.read(tmp_path / f"s{end}.mrcs") for end in ("", "_std"))
    assert mean.shape == deviation.shape and (deviation.mean(0) > 0).mean() > 0.9
    with mrcfile.open(tmp_path / "s_std.mrcs") as mrc:
        assert mrc.voxel_size.x == pytest.approx(2.5)


def test_one_sample_has_no_deviation_and_fewer_are_refused(tmp_path, weights, capsys):
    star = particle_file(tmp_path)
    options = {"checkpoint": weights, "steps": 2}
    denoise_file(star, tmp_path / "s.star", samples=1, **options)
    assert mrcfile.validate(tmp_path / "s.mrcs") and not (tmp_path / "s_std.mrcs").exists()
    assert run(star, "--out", tmp_path / "t.star", "--samples", -1) == 2
    assert "samples is -1" in capsys.readouterr().err


def test_deviations_do_not_replace_the_input_either(tmp_path, weights):
    star = particle_file(tmp_path, name="p_std.star")
    with pytest.raises(ValueError, match="would replace the input"):
        denoise_file(star, tmp_path / "p.star", checkpoint=weights, samples=2)


# kill -9 from within, so that it always hits the middle of the stack.
DIES_IN_THE_MIDDLE = """
import os, signal, sys
from cryonb.cli import main
from cryonb.commands.shards import Unfinished
write = Unfinished.write
def until(self, batch, *written):
    if batch >= 25:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, batch, *written)
Unfinished.write = until
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_stack(tmp_path, weights):
    star = particle_file(tmp_path, 400)
    denoise_file(star, tmp_path / "whole.star", checkpoint=weights, batch_size=8)
    arguments = ["denoise", star, "--out", tmp_path / "cut.star", "--checkpoint", weights]
    arguments += ["--batch-size", "8"]
    process = subprocess.run([sys.executable, "-c", DIES_IN_THE_MIDDLE, *map(str, arguments)])
    assert process.returncode == -signal.SIGKILL
    (part,) = tmp_path.glob(".cut.mrcs.*.part")
    assert not (tmp_path / "cut.star").exists()
    assert (tmp_path / ".cut.mrcs.run").read_bytes().endswith(b"x" * 25 + b"." * 25)
    inode = part.stat().st_ino
    assert main([*map(str, arguments[:-1]), "16"]) == 2, "other options do not go on silently"
    assert main([*map(str, arguments)]) == 0
    assert (tmp_path / "cut.mrcs").stat().st_ino == inode, "the file of the first run was used"
    assert_same_stack(tmp_path, "cut", "whole", BF16)
    assert not list(tmp_path.glob(".*"))


def fill_the_disk(monkeypatch, first: int):
    """From this batch on there is no room for images."""
    overwrite = shards._overwrite

    def fills(path, place, data):
        if path.suffix == ".part" and place >= 1024 + first * len(data):
            raise OSError(28, "No space left on device")
        overwrite(path, place, data)

    monkeypatch.setattr(shards, "_overwrite", fills)


def test_a_full_disk_loses_nothing(tmp_path, weights, monkeypatch, capsys):
    star = particle_file(tmp_path)
    arguments = (star, "--out", tmp_path / "o.star", "--checkpoint", weights, "--batch-size", 4)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert run(*arguments) == 2
    assert "free" in capsys.readouterr().err
    monkeypatch.undo()
    fill_the_disk(monkeypatch, 1)
    assert run(*arguments) == 2
    assert "free some space and run the same command again" in capsys.readouterr().err
    assert (tmp_path / ".o.mrcs.run").read_bytes().endswith(b"}\nx..")
    monkeypatch.undo()
    assert run(*arguments) == 0


def bad_stack(folder, data):
    path = folder / "bad.mrcs"
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.set_image_stack()
    return path


def star_with(folder, block: str, **columns):
    star = particle_file(folder)
    blocks = starfile.read(star)
    for name, value in columns.items():
        table = blocks[block]
        blocks[block] = table.drop(columns=name) if value is None else table.assign(**{name: value})
    starfile.write(blocks, star)
    return star


def mixed_boxes(folder):
    star, other = particle_file(folder), particle_file(folder, box=16, name="q.star")
    blocks = starfile.read(star)
    both = pd.concat([blocks["particles"], starfile.read(other)["particles"]])
    starfile.write(blocks | {"particles": both}, star)
    return star


def mixed_pixels(folder):
    star = particle_file(folder)
    blocks = starfile.read(star)
    other = blocks["optics"].assign(rlnOpticsGroup=2, rlnImagePixelSize=1.0)
    blocks["optics"] = pd.concat([blocks["optics"], other])
    blocks["particles"]["rlnOpticsGroup"] = [1, 2] * 5
    starfile.write(blocks, star)
    return star


def truncated(folder):
    star = particle_file(folder)
    stack = star.with_suffix(".mrcs")
    stack.write_bytes(stack.read_bytes()[:-100])
    return star


def volume(folder):
    path = folder / "map.mrc"
    mrcfile.write(path, np.random.default_rng(0).random((16, 16, 16), dtype=np.float32))
    with mrcfile.open(path, "r+") as mrc:
        mrc.set_volume()
    return path


def without_stack(folder):
    star = particle_file(folder)
    star.with_suffix(".mrcs").unlink()
    return star


def garbage(folder):
    path = folder / "g.star"
    path.write_bytes(bytes(range(256)) * 9)
    return path


def one_value(folder, value):
    data = disc(6).numpy()
    data[3] = value
    return bad_stack(folder, data)


BAD = {
    "missing": (lambda f: f / "no.star", "does not exist"),
    "missing stack": (lambda f: f / "no.mrcs", "does not exist"),
    "garbage": (garbage, "star"),
    "truncated": (truncated, "cut short"),
    "lost stack": (without_stack, "say where with --root"),
    "past the end": (lambda f: star_with(f, "particles", rlnImageName="99@p.mrcs"), "holds 10"),
    "no name": (lambda f: star_with(f, "particles", rlnImageName=None), "lists no particles"),
    "unlisted optics": (lambda f: star_with(f, "particles", rlnOpticsGroup=7), "group"),
    "boxes": (mixed_boxes, "mixes box sizes"),
    "pixel sizes": (mixed_pixels, "pixel sizes"),
    "defocus in µm": (lambda f: star_with(f, "particles", rlnDefocusU=1.5, rlnDefocusV=1.5), "Å"),
    "volume": (volume, "is a volume"),
    "complex": (lambda f: bad_stack(f, np.ones((4, 32, 32), np.complex64)), "Fourier transform"),
    "oblong": (lambda f: bad_stack(f, np.ones((4, 32, 24), np.float32)), "square"),
    "constant": (
        lambda f: bad_stack(f, np.full((6, 32, 32), 3, np.float32)),
        "no noise in their background",
    ),
    "NaN": (lambda f: one_value(f, np.nan), "NaN"),
    "tiny": (lambda f: bad_stack(f, np.ones((4, 8, 8), np.float32)), "too small"),
}


def test_two_processes_do_not_write_the_same(tmp_path, weights, capsys):
    words = particle_file(tmp_path), "--out", tmp_path / "out.star", "--checkpoint", weights
    with sole(tmp_path / "out.mrcs"):
        assert run(*words) == 2
        assert "out.mrcs is being written by another process" in capsys.readouterr().err
    assert run(*words) == 0
    assert sorted(p.name for p in tmp_path.glob("*out*")) == ["out.mrcs", "out.star"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(tmp_path, weights, capsys, case):
    make, message = BAD[case]
    given = make(tmp_path)
    out = tmp_path / ("out.star" if given.suffix == ".star" else "out.mrcs")
    before = set(tmp_path.iterdir())
    assert run(given, "--out", out, "--checkpoint", weights) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("cryonb: ") and message in said
    assert set(tmp_path.iterdir()) <= before, "nothing is written"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("p.star", "would replace the input"),
        ("out.mrcs", "end the output's name in .star"),
        ("no/out.star", "no folder"),
        ("a b.star", "blanks"),
    ],
)
def test_bad_outputs_are_refused(tmp_path, weights, capsys, out, message):
    star = particle_file(tmp_path)
    assert run(star, "--out", tmp_path / out, "--checkpoint", weights) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pixel-size 0", "pixel size of 0 Å"),
        ("--pixel-size nan", "pixel size of nan Å"),
        ("--batch-size 0", "batch_size is 0"),
        ("--samples 2 --steps 0", "steps is 0"),
        ("--device banana", "no device 'banana'"),
        ("--root nowhere", "correct --root"),
        ("--passthrough x.cs", "no .cs file"),
    ],
)
def test_bad_options_leave_nothing_behind(tmp_path, weights, capsys, words, message):
    star = particle_file(tmp_path)
    before = set(tmp_path.iterdir())
    assert run(star, "--out", tmp_path / "o.star", "--checkpoint", weights, *words.split()) == 2
    assert message in capsys.readouterr().err and set(tmp_path.iterdir()) == before


def test_a_non_ascii_path_works(tmp_path, weights):
    folder = tmp_path / "Häm-Ω"
    folder.mkdir()
    star = particle_file(folder)
    assert read_particles(denoise_file(star, folder / "ö.star", checkpoint=weights)).box_size == BOX


def test_the_run_record_names_the_input(tmp_path, weights, monkeypatch):
    """An unfinished stack of another input is not gone on with."""
    star = particle_file(tmp_path)
    fill_the_disk(monkeypatch, 0)
    for changed in (star, star.with_suffix(".mrcs")):
        with pytest.raises(OSError, match="No space"):
            denoise_file(star, tmp_path / "o.star", checkpoint=weights)
        os.utime(changed)
        with pytest.raises(ValueError, match="another input"):
            denoise_file(star, tmp_path / "o.star", checkpoint=weights)
        (tmp_path / ".o.mrcs.run").unlink()


def assert_same_stack(tmp_path, one: str, other: str, atol: float = 1e-4):
    """Equal but for the order of float32 sums, which depends on the number of threads."""
    one, other = (mrcfile.read(tmp_path / f"{name}.mrcs") for name in (one, other))
    np.testing.assert_allclose(one, other, atol=atol)


SHARDED = {"batch_size": 8, "samples": 2, "steps": 2}


@pytest.fixture
def in_one_piece(tmp_path, weights):
    star = particle_file(tmp_path, 60)
    denoise_file(star, tmp_path / "whole.star", checkpoint=weights, **SHARDED)
    return tmp_path


def assert_all_the_same(folder, atol: float = 1e-4):
    assert_same_stack(folder, "whole", "parts", atol)
    assert_same_stack(folder, "whole_std", "parts_std", atol)
    whole, parts = ((folder / f"{name}.star").read_text() for name in ("whole", "parts"))
    assert parts.replace("parts", "whole") == whole
    assert not list(folder.glob(".*"))


def test_processes_give_what_one_piece_gives(in_one_piece, weights):
    options = SHARDED | {"checkpoint": weights, "shards": 3}
    denoise_file(in_one_piece / "p.star", in_one_piece / "parts.star", **options)
    assert_all_the_same(in_one_piece, BF16)


def test_shards_fill_one_output_in_any_order_and_go_on(in_one_piece, weights, monkeypatch, capsys):
    """The last of several commands names the stack; one that was cut off is given again."""
    star, out = in_one_piece / "p.star", in_one_piece / "parts.star"
    options = SHARDED | {"checkpoint": weights, "shards": 3}
    denoise_file(star, out, shard=3, **options)
    assert "5 batches are left to others" in capsys.readouterr().out and not out.exists()
    written = []
    write = Unfinished.write
    monkeypatch.setattr(
        Unfinished, "write", lambda self, k, *s: (written.append(k), write(self, k, *s))
    )
    denoise_file(star, out, shard=1, **options)
    denoise_file(star, out, shard=3, **options)  # nothing left to do
    denoise_file(star, out, shard=2, **options)
    assert written == [0, 1, 2, 3, 4]
    assert_all_the_same(in_one_piece)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"shards": 0}, "shards is 0"),
        ({"shards": 3, "shard": 4}, "shard is 4"),
        ({"shard": 1}, "Give --shards"),
    ],
)
def test_impossible_shards_are_refused(tmp_path, weights, asked, message):
    with pytest.raises(ValueError, match=message):
        denoise_file(tmp_path / "p.star", tmp_path / "o.star", checkpoint=weights, **asked)


def test_every_batch_has_noise_of_its_own(tmp_path, weights):
    """Twice the same images: batches of samples differ, and from those of another seed."""
    with mrcfile.new(tmp_path / "p.mrcs") as mrc:
        mrc.set_data(np.concatenate([disc(4).numpy()] * 2))
        mrc.set_image_stack()
    made = []
    for seed in (0, 1):
        out = tmp_path / f"o{seed}.mrcs"
        options = {"samples": 1, "steps": 2, "batch_size": 4, "checkpoint": weights}
        denoise_file(tmp_path / "p.mrcs", out, seed=seed, **options)
        made += list(mrcfile.read(out).reshape(2, -1))
    spread = [np.abs(a - b).max() for k, a in enumerate(made) for b in made[:k]]
    assert min(spread) > 0.1, "some of the four draws are the same"


def test_batches_are_split_evenly():
    assert split(8, 3) == [range(0, 2), range(2, 5), range(5, 8)]
    for count, wanted in [(1, 4), (100, 7), (10_000, 16)]:
        parts = split(count, wanted)
        assert [batch for part in parts for batch in part] == list(range(count))
        assert len(parts) == wanted and max(map(len, parts)) - min(map(len, parts)) <= 1
