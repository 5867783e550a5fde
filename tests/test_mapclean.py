"""Masks around models and maps, the learned map cleaner, and `cryonb clean`."""

from __future__ import annotations

import copy
import gzip
import shutil

import mrcfile
import numpy as np
import pytest
import torch
from test_projection import phantom
from torch.testing import assert_close

from cryonb.cli import main
from cryonb.data.maps import read_map, read_placed_map, write_map
from cryonb.data.molecules import Atoms
from cryonb.data.volumes import from_atoms, read_atoms
from cryonb.evaluation.resolution import fsc
from cryonb.learning.mapclean import MapCleaner, apply_cleaner, clean_map, cleaning_loss
from cryonb.learning.pretrain import evaluate_cleaner
from cryonb.learning.train import train
from cryonb.learning.weights import MANY, MAP_CLEANER, load_model
from cryonb.physics.fourier import low_pass
from cryonb.simulation.families import draw_maps, training_volumes
from cryonb.simulation.masks import model_mask, soft_mask
from cryonb.simulation.simulate import map_noise


def network(seed: int = 0) -> MapCleaner:
    """A small network that is not the identity."""
    torch.manual_seed(seed)
    model = MapCleaner(widths=(8, 16), blocks=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


# Masks


def test_a_model_mask_is_a_function_of_the_distance_to_the_nearest_atom():
    """Against brute force, on a grid of unequal sides that does not begin at the origin."""
    rng = np.random.default_rng(0)
    shape, pixel, first = (14, 17, 12), 2.5, (-7.0, 3.0, 11.0)
    xyz = rng.uniform((13, 5, -5), (38, 43, 26), (40, 3))
    mask = model_mask(xyz, shape, pixel, first, extend_A=4, soft_edge_A=6).numpy()
    places = np.stack(np.mgrid[tuple(map(slice, shape))], -1) * pixel + first  # z, y, x in Å
    away = np.linalg.norm(places[..., None, ::-1] - xyz, axis=-1).min(-1)
    np.testing.assert_allclose(mask[away <= 4], 1)
    np.testing.assert_allclose(mask[away >= 10], 0, atol=1e-6)
    assert (away >= 10).any() and (away <= 4).any()
    order = np.argsort(away.ravel())
    assert (np.diff(mask.ravel()[order]) <= 1e-6).all()
    between = (away > 4) & (away < 10)
    expected = 0.5 + 0.5 * np.cos(np.pi * (away[between] - 4) / 6)
    np.testing.assert_allclose(mask[between], expected, atol=1e-5)


def test_a_model_mask_lies_where_its_density_does():
    """The frame is that of `from_atoms`: a box, atoms off its middle, one mask for both."""
    rng = np.random.default_rng(1)
    xyz = rng.normal(size=(60, 3)) * 5 + (20, 30, 40)
    atoms = Atoms(xyz, np.full(60, "C"), np.full(60, 60.0), "blob")
    volume = from_atoms(atoms, 32, 2.0, (0, 0, 0)).map
    mask = model_mask(atoms.xyz_A, (32, 32, 32), 2.0)
    assert float((volume * mask).sum() / volume.sum()) == pytest.approx(1, abs=0.05)
    flipped = volume.permute(2, 1, 0)
    assert float((flipped * mask).sum() / volume.sum()) < 0.6


def test_a_model_elsewhere_is_refused():
    with pytest.raises(ValueError, match="Only 0% of the model's 5 atoms"):
        model_mask(np.full((5, 3), 500.0), (16, 16, 16), 2.0)


# The network


def test_an_untrained_network_leaves_the_map_alone():
    map = phantom(20, width=2.0).float()
    level = map.median()
    assert_close(apply_cleaner(MapCleaner(), map), map - level, atol=1e-5, rtol=1e-5)


def test_it_shifts_with_its_input_by_its_stride():
    model, map = network(), torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(0))
    move, axes, far = (4, -8, 4), (0, 1, 2), model.reach + 8  # from the rim, and what came round it
    with torch.no_grad():
        there, here = model(torch.roll(map, move, axes)[None])[0], model(map[None])[0]
    inside = (slice(far - 8, 8 - far),) * 3
    assert 64 - 2 * (far - 8) >= 16
    expected = torch.roll(here, move, axes)[inside]
    assert_close(there[inside][4:-4, 4:-8, 4:-4], expected[4:-4, 4:-8, 4:-4], atol=1e-5, rtol=1e-4)


def test_nothing_beyond_its_reach_has_a_say():
    model = network()
    maps = torch.zeros(2, 64, 64, 64)
    maps[1, 0, 0, 0] = 5.0
    with torch.no_grad():
        change = (model(maps)[1] - model(maps)[0]).abs()
    assert change[:8].max() > 1e-4 and change[model.reach + 4 :].max() == 0


@pytest.mark.parametrize("size", [40, 53])
def test_tiles_equal_the_whole(size):
    model = network()
    map = torch.randn(size, size, size, generator=torch.Generator().manual_seed(1))
    assert_close(apply_cleaner(model, map, 16), apply_cleaner(model, map), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="multiple of 4"):
        apply_cleaner(model, map, 18)


def test_scale_is_kept_and_level_is_lost():
    model, map = network(), phantom(24, width=2.0).float()
    cleaned = clean_map(model, map, 3.0)
    assert_close(clean_map(model, 1000 * map - 7.0, 3.0), 1000 * cleaned, atol=0.1, rtol=1e-3)


@pytest.mark.parametrize("pixel_A", [1.7, 3.0, 4.4])
def test_other_pixel_sizes_come_back_to_their_own_grid(pixel_A):
    """An untrained network changes nothing, so what is lost was lost by resampling."""
    map = low_pass(phantom(40, width=3.0).float(), 12.0, pixel_A)
    cleaned = clean_map(MapCleaner(), map, pixel_A)
    inside = soft_mask(map, pixel_A) == 1
    assert_close(
        cleaned[inside], (map - map.median())[inside], atol=0.02 * float(map.max()), rtol=0
    )


def test_maps_that_cannot_be_cleaned_are_refused():
    with pytest.raises(ValueError, match="same value everywhere"):
        clean_map(MapCleaner(), torch.ones(16, 16, 16), 3.0)
    with pytest.raises(ValueError, match="not equal"):
        clean_map(MapCleaner(), torch.randn(16, 16, 20), 3.0)
    with pytest.raises(ValueError, match="multiple of 4"):
        MapCleaner()(torch.randn(1, 18, 16, 16))


# Training


@pytest.fixture(scope="module")
def volumes():
    return training_volumes(4, 32, 6.0, seed=5)


def test_noise_has_the_resolution_that_was_asked_for(volumes):
    molecule = volumes[0][0].float()
    generator = torch.Generator().manual_seed(0)
    values = [
        fsc(molecule, molecule + map_noise(molecule, 24.0, 6.0, generator), 6.0)[1][8]
        for _ in range(20)
    ]
    assert float(torch.stack(values).mean()) == pytest.approx(0.5, abs=0.05)  # 800 numbers a shell


def test_drawn_maps_repeat_and_are_scaled(volumes):
    def draw():
        generator = torch.Generator().manual_seed(3)
        return draw_maps(volumes, 6, generator, pixel_size_A=6.0, patch=32)

    target, observed = draw()
    assert target.shape == observed.shape == (6, 32, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(draw(), (target, observed), strict=True))
    assert_close(observed.std((1, 2, 3)), torch.ones(6), atol=1e-3, rtol=0)
    assert observed.flatten(1).median(1).values.abs().max() < 1e-3
    belts = volumes[1].flatten(1).float().std(1)
    assert (belts == 0).any() and (belts > 0.02).any()  # with and without a micelle


@pytest.mark.slow
def test_training_helps_on_molecules_that_were_not_trained_on(volumes):
    torch.manual_seed(0)
    model = MapCleaner(widths=(16, 32), blocks=1, pixel_size_A=6.0)
    held_out = training_volumes(4, 32, 6.0, seed=6)
    options = {"pixel_size_A": 6.0, "patch": 32}
    unseen = draw_maps(held_out, 32, torch.Generator().manual_seed(9), **options)
    with torch.no_grad():
        before = float(cleaning_loss(model, unseen, 0.0, None))
    average = copy.deepcopy(model)

    def draw(n, generator):
        return draw_maps(volumes, n, generator, **options)

    for _ in train(model, average, draw, cleaning_loss, 320, batch_size=4, learning_rate=3e-3):
        pass
    with torch.no_grad():
        after = float(cleaning_loss(average, unseen, 0.0, None))
    assert after < 0.8 * before


@pytest.fixture(scope="module")
def kept():
    return load_model(MAP_CLEANER, MapCleaner)


def test_kept_weights_keep_their_word(kept):
    """On molecules drawn anew it is far nearer to them than the input, and helps a filter."""
    model, manifest = kept
    assert MAP_CLEANER.stat().st_size < 2e6
    assert manifest["made_by"] == "cryonb train map-cleaner"
    said = manifest["test"]
    found = evaluate_cleaner(model, training_volumes(6, seed=1234), 12)
    assert found["cleaned"] > found["input"] + 0.1
    assert found["both"] > found["low_pass"] + 0.03
    assert found["both"] == pytest.approx(said["both"], abs=0.15)  # 12 maps of 6 molecules


def test_on_a_real_map_the_model_mask_lies_right_and_the_network_is_no_help(shared_data, kept):
    """EMD-3488 was masked before it was deposited, and looks like no training map."""
    map, pixel, first = read_placed_map(shared_data / "emd_3488.mrc")
    atoms = read_atoms(shared_data / "5ni1_updated.cif", centre=False)
    mask = model_mask(atoms.xyz_A, tuple(map.shape), pixel, first)
    inside = float((map * mask).square().sum() / map.square().sum())
    assert inside > 0.99
    assert float((map * mask.roll(20, 0)).square().sum() / map.square().sum()) < 0.8
    goal = from_atoms(atoms, len(map), pixel, first).map
    curves = {
        name: fsc(x, goal, pixel)[1][1:30].mean()
        for name, x in {
            "raw": map,
            "masked": map * mask,
            "cleaned": clean_map(kept[0], map, pixel),
            "resampled": clean_map(MapCleaner(), map, pixel),
        }.items()
    }
    assert curves["raw"] > 0.85 and abs(curves["masked"] - curves["raw"]) < 0.02
    assert abs(curves["resampled"] - curves["raw"]) < 0.02
    assert 0.6 < curves["cleaned"] < curves["raw"]  # if this fails upwards: rewrite the README


# The command


@pytest.fixture
def given(tmp_path):
    """A map with a header of its own: place, labels, order of axes; and what it holds."""
    map = phantom(24, width=2.0).float()
    path = tmp_path / "map.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(map.permute(2, 0, 1).contiguous().numpy())  # sections x, rows z, columns y
        mrc.header.maps, mrc.header.mapr, mrc.header.mapc = 1, 3, 2
        mrc.voxel_size = 3.0
        mrc.header.origin = (30.0, -12.0, 6.0)  # x, y, z
        mrc.add_label("from a good home")
    return path, map


def test_clean_keeps_header_place_and_input(given, tmp_path, capsys):
    path, map = given
    before, out = path.read_bytes(), tmp_path / "cleaned.mrc"
    assert main(["clean", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "24 px at 3 Å/px" in said and "not for FSC between half maps" in said
    found, pixel, first_A = read_placed_map(out)
    assert (pixel, first_A) == (3.0, (6.0, -12.0, 30.0))
    model, _ = load_model(MAP_CLEANER, MapCleaner)
    assert_close(found, clean_map(model, map, 3.0), atol=1e-5, rtol=1e-5)
    with mrcfile.open(path) as old, mrcfile.open(out) as new:
        for name in ("mapc", "mapr", "maps", "nxstart", "ispg", "cella", "origin"):
            assert old.header[name] == new.header[name], name
        labels = new.get_labels()
    assert "from a good home" in labels and "not for FSC" in labels[-1]
    assert mrcfile.validate(out)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cleaned.mrc", "map.mrc"]


def test_clean_takes_gzipped_maps_masks_and_weights(given, tmp_path, capsys):
    path, map = given
    zipped = tmp_path / "map.mrc.gz"
    with open(path, "rb") as plain, gzip.open(zipped, "wb") as file:
        shutil.copyfileobj(plain, file)
    mask, out = soft_mask(map, 3.0), str(tmp_path / "out.mrc")
    write_map(tmp_path / "mask.mrc", mask, 3.0)
    kept = ["--weights", str(MAP_CLEANER)]
    assert main(["clean", str(zipped), "--out", out, *kept]) == 0
    bare = read_map(out)[0]
    for name, expected in (
        ("auto", soft_mask(bare, 3.0, largest=True)),
        (str(tmp_path / "mask.mrc"), mask),
    ):
        assert main(["clean", str(path), "--out", out, "--mask", name, "--overwrite"]) == 0
        assert_close(read_map(out)[0], bare * expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how", ["origin", "start"])
def test_a_model_is_laid_where_the_header_says(tmp_path, how):
    """ORIGIN in Å, or NSTART in voxels: the same place, and a mask that keeps the molecule."""
    xyz = np.random.default_rng(0).normal(size=(40, 3)) * 6 + (90.0, 66.0, 120.0)
    lines = [
        f"HETATM{i:5d}  C   UNK A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 60.00           C  "
        for i, (x, y, z) in enumerate(xyz, 1)
    ]
    (tmp_path / "model.pdb").write_text("\n".join([*lines, "END", ""]))
    first = np.array((54.0, 30.0, 84.0))  # x, y, z of the map's first voxel in Å
    atoms = read_atoms(tmp_path / "model.pdb", centre=False)
    map = from_atoms(atoms, 24, 3.0, tuple(first[::-1])).map
    path, out = tmp_path / "map.mrc", tmp_path / "out.mrc"
    write_map(path, map, 3.0)
    with mrcfile.open(path, mode="r+") as mrc:
        if how == "origin":
            mrc.header.origin = tuple(first)
        else:
            mrc.nstart = tuple((first / 3).astype(int))
    asked = ["clean", str(path), "--out", str(out)]
    assert main([*asked, "--mask", str(tmp_path / "model.pdb")]) == 0
    masked = read_map(out)[0]
    assert main([*asked, "--overwrite"]) == 0
    bare = read_map(out)[0]
    expected = model_mask(xyz - first, (24, 24, 24), 3.0)
    assert_close(masked, bare * expected, atol=1e-4 * float(bare.max()), rtol=1e-3)
    assert float((map * expected).sum() / map.sum()) > 0.9


def test_clean_says_what_is_wrong(given, tmp_path, capsys):
    path, map = given

    def complaint(name, *arguments, out="out.mrc"):
        assert main(["clean", str(tmp_path / name), "--out", str(tmp_path / out), *arguments]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("cryonb: ")
        return said

    def write(name, data, pixel=3.0, stack=False):
        with mrcfile.new(tmp_path / name, overwrite=True) as mrc:
            mrc.set_data(data.numpy())
            if stack:
                mrc.set_image_stack()
            if pixel:
                mrc.voxel_size = pixel

    holed = map.clone()
    holed[3, 4, 5] = torch.nan
    write("nan.mrc", holed)
    write("stack.mrc", map, stack=True)
    write("bare.mrc", map, pixel=None)
    write("even.mrc", torch.zeros(16, 16, 16))
    assert "does not exist" in complaint("missing.mrc")
    assert "1 NaN" in complaint("nan.mrc")
    assert "stack of 24 images" in complaint("stack.mrc")
    assert "no pixel size" in complaint("bare.mrc")
    assert "same value everywhere" in complaint("even.mrc")
    assert "never touched" in complaint("map.mrc", out="map.mrc")
    assert "make it first" in complaint("map.mrc", out="nowhere/out.mrc")
    (tmp_path / "there.mrc").write_text("mine")
    assert "there already" in complaint("map.mrc", out="there.mrc")
    assert (tmp_path / "there.mrc").read_text() == "mine"
    (tmp_path / "far.pdb").write_text(
        "HETATM    1  C   UNK A   1     900.000 900.000 900.000  1.00 60.00           C  \nEND\n"
    )
    assert "Only 0%" in complaint("map.mrc", "--mask", str(tmp_path / "far.pdb"))
    assert "another kind of network" in complaint("map.mrc", "--weights", str(MANY))
    (tmp_path / "cut.mrc").write_bytes(path.read_bytes()[:5000])
    assert "damaged or cut short" in complaint("cut.mrc")
    assert not (tmp_path / "out.mrc").exists()
