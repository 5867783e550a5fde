"""Sources of a volume: laws for atoms, frames of real data, maps on disk, masks, bad input."""

from __future__ import annotations

import gzip
import itertools
import resource

import gemmi
import mrcfile
import numpy as np
import pytest
import torch

from cryonb.data import molecules
from cryonb.data.maps import read_map, resample, write_map
from cryonb.data.molecules import Atoms
from cryonb.data.volumes import (
    DISPLACED_A3,
    ICE_V,
    Volume,
    from_atoms,
    load_volume,
    read_atoms,
)
from cryonb.evaluation.resolution import fsc
from cryonb.physics.fourier import fourier_crop, radial_mean
from cryonb.simulation.masks import micelle, soft_mask

VOLT_A2 = 47.878


@pytest.fixture(scope="module")
def channel():
    return load_volume("channel", 63, 3.0)


def atoms_at(xyz, element="C", b=40.0):
    n = len(xyz)
    return Atoms(np.array(xyz, float), np.array([element] * n), np.full(n, b), "atoms")


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def phantom(*shape):
    """Asymmetric smooth map (z, y, x) that vanishes at the edges."""
    zyx = [torch.linspace(-1, 1, n) for n in shape]
    z, y, x = torch.meshgrid(*zyx, indexing="ij")
    blobs = [(0.1, 0.2, -0.3, 0.02), (-0.3, 0.1, 0.2, 0.03), (0.2, -0.3, 0.1, 0.01)]
    return sum(torch.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / w) for a, b, c, w in blobs)


# --- atoms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, pixel", [(32, 3.0), (33, 3.0), (30, 2.7), (48, 1.1)])
def test_one_atom_is_its_scattering_factor(n, pixel):
    """The transform of an atom at the origin is V0 Σ a exp(-(b + B) s² / 4), real everywhere."""
    volume = from_atoms(atoms_at([[0, 0, 0]]), n, pixel)
    ft = torch.fft.rfftn(torch.fft.ifftshift(volume.map)) * pixel**3
    s2 = torch.fft.rfftfreq(n, pixel) ** 2
    carbon = gemmi.Element("C").c4322
    law = sum(a * torch.exp(-(b + 40) * s2 / 4) for a, b in zip(carbon.a, carbon.b, strict=True))
    row = ft[0, 0, : n // 2]
    # 0.5 %: gemmi cuts each atom's tail where it has fallen to 1e-5 of its maximum
    assert torch.allclose(row.real, VOLT_A2 * law[: n // 2], rtol=5e-3, atol=0.1)
    assert row.imag.abs().max() < 1e-3 * row.real.max()


@pytest.mark.parametrize("n", [40, 41])
def test_axes_and_centre(n):
    """An atom at (+12, -6, +18) Å is found at those voxels from n // 2, in the order z, y, x."""
    volume = from_atoms(atoms_at([[12, -6, 18]]), n, 3.0).map
    peak = np.unravel_index(int(volume.argmax()), volume.shape)
    assert [int(i) - n // 2 for i in peak] == [6, -2, 4]


def test_potential_is_that_of_its_atoms(channel):
    """The integral of the map is the sum of scattering factors at zero angle."""
    total = sum(sum(gemmi.Element(e).c4322.a) for e in molecules.channel().element) * VOLT_A2
    assert float(channel.map.sum()) * 27 == pytest.approx(total, rel=5e-3)  # tails cut at 1e-5


@pytest.mark.parametrize("solvent", [False, True])
def test_occupancies_share_an_atom(tmp_path, solvent):
    """Two conformations at 0.6 and 0.4 in one place are one atom; half an atom is half of it."""
    line = "HETATM{:5d}  C  {}LIG A   1    {:8.3f}{:8.3f}{:8.3f}  {:4.2f} 40.00           C\n"

    def potential(*conformations):
        rows = (line.format(i, alt, 0, 0, 0, q) for i, (alt, q) in enumerate(conformations, 1))
        (tmp_path / "m.pdb").write_text("".join(rows) + "END\n")
        return from_atoms(read_atoms(tmp_path / "m.pdb"), 24, 2.0, solvent=solvent).map

    one = potential((" ", 1))
    assert torch.allclose(potential(("A", 0.6), ("B", 0.4)), one, atol=1e-5 * float(one.max()))
    assert torch.allclose(potential((" ", 0.5)), one / 2, atol=1e-5 * float(one.max()))
    with pytest.raises(ValueError, match="occupancy of 0"):
        potential((" ", 0))


def test_displaced_ice_is_volume_times_the_potential_of_ice():
    water = gemmi.Element("O").c4322, gemmi.Element("H").c4322
    at_zero = sum(water[0].a) + 2 * sum(water[1].a)  # Å
    per_A3 = 0.93 / 18.015 * 0.6022  # molecules, from g/cm³
    assert pytest.approx(at_zero * per_A3 * VOLT_A2, abs=0.01) == ICE_V
    n, pixel = 32, 1.5
    for element, volume_A3 in DISPLACED_A3.items():
        atom = atoms_at([[0, 0, 0]], element)
        vacuum, ice = (from_atoms(atom, n, pixel, solvent=s).map for s in (False, True))
        lost = (vacuum - ice) * pixel**3
        assert float(lost.sum()) == pytest.approx(volume_A3 * ICE_V, rel=2e-3)  # tails are cut
        ft = torch.fft.rfft(torch.fft.ifftshift(lost.sum((0, 1))))
        k2, b = torch.fft.rfftfreq(n, pixel) ** 2, float(atom.b_factor[0])
        law = volume_A3 * ICE_V * torch.exp(-(torch.pi * volume_A3 ** (2 / 3) + b / 4) * k2)
        assert torch.allclose(ft.real[: n // 2], law[: n // 2], atol=2e-3 * float(law[0]))


def test_ice_halves_the_lowest_frequencies_of_a_protein(channel):
    ice = load_volume("channel", 63, 3.0, solvent=True).map
    power = [radial_mean(torch.fft.rfftn(m).abs().square(), 63, dims=3) for m in (ice, channel.map)]
    kept = (power[0] / power[1]).sqrt()
    assert kept[:4] == pytest.approx(0.49, abs=0.02)  # 1 - 4.53 V / 8.8 V
    assert kept[31] == pytest.approx(0.65, abs=0.03)  # at 6 Å


def test_finer_grid_cropped_is_the_coarser_grid():
    atoms = atoms_at([[5, 3, -7], [-11, 4, 2.3], [1, -8, 9]], b=60.0)
    coarse, fine = from_atoms(atoms, 24, 3.0).map, from_atoms(atoms, 36, 2.0).map
    # 1 %: both were computed on other fine grids, with tails cut at other places
    assert (fourier_crop(fine, 24) - coarse).abs().max() < 0.01 * coarse.abs().max()


def test_b_factor_blurs():
    sharp, soft = (from_atoms(atoms_at([[0, 0, 0]], b=b), 32, 2.0).map.max() for b in (0.0, 200.0))
    assert sharp > 3 * soft > 0


@pytest.mark.parametrize("name, n", [("channel", 64), ("prestin", 63)])
def test_embedded_molecules(name, n):
    volume = load_volume(name, n, 3.0)
    assert volume.map.shape == (n, n, n) and volume.map.dtype == torch.float32
    assert volume.map.is_contiguous() and volume.name == name
    zyx = torch.stack(torch.meshgrid(*[torch.arange(n) - n // 2.0] * 3, indexing="ij"))
    centre = (zyx * volume.map).sum((1, 2, 3)) / volume.map.sum()
    assert centre.abs().max() < 0.2  # voxels; mass and scattering power differ a little along z
    assert centre[1:].abs().max() < 0.01  # exact on the symmetry axis


def test_channel_is_fourfold(channel):
    turned = channel.map.rot90(1, (1, 2))  # an odd box turns about its centre voxel
    assert (turned - channel.map).abs().max() < 1e-2 * channel.map.max()
    assert (channel.map.flip(2) - channel.map).abs().max() > 0.5 * channel.map.max()


# --- real structures and maps ------------------------------------------------------------------


@pytest.mark.parametrize("n, pixel", [(100, 1.05), (51, 2.0), (64, 1.7)])
def test_model_and_map_superpose_in_the_files_frame(shared_data, n, pixel):
    """Haemoglobin: map and model agree without a shift, at odd sizes and broken ratios too."""
    pair = [
        load_volume(shared_data / name, n, pixel, first_A=(0, 0, 0)).map
        for name in ("emd_3488.mrc", "5ni1_updated.cif")
    ]
    frequency, value = fsc(*pair, pixel)
    for resolution, least in ((10.0, 0.9), (5.0, 0.8)):  # 0.93 and 0.84 in an outside trial
        assert float(value[(frequency - 1 / resolution).abs().argmin()]) > least
    best = correlation(*pair)
    moved = [correlation(pair[0], pair[1].roll(s, d)) for s in (-1, 1) for d in range(3)]
    orders = [o for o in itertools.permutations(range(3)) if o != (0, 1, 2)]
    moved += [correlation(pair[0], pair[1].permute(o)) for o in orders]
    moved += [correlation(pair[0], pair[1].flip(d)) for d in range(3)]
    assert best > 0.6 and max(moved) < best - 0.1


def test_real_map_in_its_own_grid_is_untouched(shared_data):
    raw, pixel = read_map(shared_data / "emd_3488.mrc")
    assert raw.shape == (100, 100, 100) and pixel == pytest.approx(1.05)
    again = load_volume(shared_data / "emd_3488.mrc", 100, pixel).map
    assert (again - raw).abs().max() < 1e-4 * raw.max()


def test_trpa1(shared_data):
    volume = load_volume(shared_data / "6v9x.pdb", 64, 3.0)
    assert volume.symmetry == "C4" and volume.name == "6v9x"
    low, high = volume.membrane_z_A
    assert -60 < low < high < -15  # the pore domain is at low z in this file
    assert (volume.map.rot90(1, (1, 2)).roll(1, 1) - volume.map).abs().mean() < volume.map.std() / 5


def test_soluble_protein_has_no_membrane(shared_data):
    atoms = read_atoms(shared_data / "5ni1_updated.cif")
    assert atoms.membrane_z_A is None and atoms.symmetry == "C2"
    assert np.abs(np.average(atoms.xyz_A, axis=0)).max() < 0.2
    assert set(atoms.element) == {"C", "N", "O", "S", "Fe"}  # no hydrogen, no water


def test_gzip(shared_data, tmp_path):
    for name in ("6v9x.pdb", "emd_3488.mrc"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((shared_data / name).read_bytes(), 1))
        plain, zipped = (
            load_volume(p / n, 48, 4.0) for p, n in ((shared_data, name), (tmp_path, f"{name}.gz"))
        )
        assert torch.equal(plain.map, zipped.map) and plain.name == zipped.name


# --- maps on disk ------------------------------------------------------------------------------


def test_resample_is_the_fourier_crop():
    x = torch.randn(20, 20, 20, generator=torch.Generator().manual_seed(0))
    for size in (10, 13, 20, 27, 30):
        step = 20 / size
        first = (10 - size // 2 * step,) * 3
        inside = slice(1, size - 1)  # beyond the first and last voxel the input is taken as zero
        ours, crop = resample(x, size, step, first), fourier_crop(x, size)
        assert torch.allclose(ours[(inside,) * 3], crop[(inside,) * 3], atol=1e-4)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_axis_order_and_origin(tmp_path, order):
    """Columns, rows and sections in any order; NSTART along with them."""
    x = phantom(20, 24, 28)
    start_xyz = (3, -2, 5)
    mapc, mapr, maps = order
    data = x.permute([3 - axis for axis in (maps, mapr, mapc)]).numpy()
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(np.ascontiguousarray(data))
        mrc.header.mx, mrc.header.my, mrc.header.mz = 28, 24, 20
        mrc.header.cella = (28 * 2.0, 24 * 2.0, 20 * 2.0)
        mrc.header.mapc, mrc.header.mapr, mrc.header.maps = order
        starts = [start_xyz[axis - 1] for axis in order]
        mrc.header.nxstart, mrc.header.nystart, mrc.header.nzstart = starts
    read, pixel = read_map(tmp_path / "a.mrc")
    assert torch.equal(read, x) and pixel == 2.0
    theirs = gemmi.read_ccp4_map(str(tmp_path / "a.mrc"), setup=True).grid
    for z, y, x_ in ((4, 6, 9), (12, 15, 20)):
        place = gemmi.Position(2.0 * (x_ + 3), 2.0 * (y - 2), 2.0 * (z + 5))
        assert theirs.interpolate_value(place) == pytest.approx(float(x[z, y, x_]), rel=1e-4)
    framed = load_volume(tmp_path / "a.mrc", 36, 2.0, first_A=(0, 0, 0)).map
    assert torch.allclose(framed[5:25, 0:22, 3:31], x[:, 2:, :], atol=1e-4)
    centred = load_volume(tmp_path / "a.mrc", 28, 2.0).map  # padded to a cube about the middle
    assert torch.allclose(centred[4:24, 2:26, :], x, atol=1e-4)
    assert centred[:4].abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 17, 18)])
def test_write_read(tmp_path, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    write_map(tmp_path / "x.mrc", x, 1.37)
    write_map(tmp_path / "x.mrc", x, 1.37)  # again, over the first
    read, pixel = read_map(tmp_path / "x.mrc")
    assert torch.equal(read, x) and pixel == pytest.approx(1.37, rel=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mrc"]
    assert mrcfile.validate(tmp_path / "x.mrc")


def test_full_disk_leaves_the_old_file(tmp_path):
    old = torch.zeros(4, 4, 4)
    write_map(tmp_path / "x.mrc", old, 1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file longer than 20 kB
    try:
        with pytest.raises(OSError, match=r"could not write .*x\.mrc.*free some space"):
            write_map(tmp_path / "x.mrc", torch.ones(32, 32, 32), 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(read_map(tmp_path / "x.mrc")[0], old)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mrc"]


# --- bad input ---------------------------------------------------------------------------------


def test_missing_files(tmp_path):
    for name in ("no.pdb", "no.cif", "no.mrc", "no.map.gz"):
        with pytest.raises(FileNotFoundError, match="does not exist: check the path"):
            load_volume(tmp_path / name)


def test_atoms_without_a_place_are_named(tmp_path):
    """gemmi reads a coordinate of "?" as NaN."""
    names = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id"
    names = [*names.split(), *"label_seq_id Cartn_x Cartn_y Cartn_z B_iso_or_equiv".split()]
    rows = [f"ATOM {i} C CA . ALA A {i} 1.0 {i}.0 {z} 20" for i, z in ((1, 5), (2, "?"), (3, 7))]
    text = "\n".join(["data_x", "loop_", *(f"_atom_site.{name}" for name in names), *rows, ""])
    (tmp_path / "a.cif").write_text(text)
    with pytest.raises(ValueError, match=r"1 of 3 atoms .* the first in 2\(ALA\) of chain A"):
        load_volume(tmp_path / "a.cif")
    (tmp_path / "a.cif").write_text(text.replace("?", "6").split("ATOM 2")[0])
    one = read_atoms(tmp_path / "a.cif")
    assert one.symmetry == "C1" and one.membrane_z_A is None and (one.xyz_A == 0).all()
    assert from_atoms(one, 32, 2.0).map.argmax() == (16 * 32 + 16) * 32 + 16


def test_a_box_beyond_any_memory_is_refused():
    with pytest.raises(ValueError, match="more than 2048: ask for fewer or smaller pixels"):
        load_volume("channel", 64, 1000.0)


def test_unknown_source():
    with pytest.raises(ValueError, match="Unknown source 'chanel': give one of channel, prestin"):
        load_volume("chanel")


def test_models_without_atoms(tmp_path):
    water = "HETATM    1  O   HOH A   1      11.000  10.000  10.000  1.00 20.00           O  \n"
    for name, text in (("a.pdb", "END\n"), ("b.cif", "data_x\n"), ("c.pdb", water)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="lists no atoms"):
            load_volume(tmp_path / name)


def test_damaged_models(tmp_path, shared_data):
    text = (shared_data / "5ni1_updated.cif").read_text()
    (tmp_path / "half.cif").write_text(text[: len(text) // 2])
    packed = gzip.compress((shared_data / "6v9x.pdb").read_bytes(), 1)
    (tmp_path / "half.pdb.gz").write_bytes(packed[: len(packed) // 2])
    for name in ("half.cif", "half.pdb.gz"):
        with pytest.raises(ValueError, match="is not a readable model"):
            load_volume(tmp_path / name)


def test_damaged_maps(tmp_path):
    write_map(tmp_path / "x.mrc", phantom(16, 16, 16), 2.0)
    whole = (tmp_path / "x.mrc").read_bytes()
    (tmp_path / "half.mrc").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "head.mrc").write_bytes(whole[:500])
    (tmp_path / "text.mrc").write_text("not a map")
    (tmp_path / "half.mrc.gz").write_bytes(gzip.compress(whole)[:2000])
    for name in ("half.mrc", "head.mrc", "text.mrc", "half.mrc.gz"):
        with pytest.raises(ValueError, match="is damaged or cut short"):
            load_volume(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_maps_of_the_wrong_kind(tmp_path):
    x = phantom(16, 16, 16)
    x[3, 4, 5] = float("nan")
    with pytest.raises(ValueError, match="not written, 1 of its values"):
        write_map(tmp_path / "nan.mrc", x, 2.0)
    with mrcfile.new(tmp_path / "nan.mrc", data=x.numpy()) as mrc:
        mrc.voxel_size = 2.0
    with mrcfile.new(tmp_path / "image.mrc", data=np.zeros((8, 8), np.float32)):
        pass
    with mrcfile.new(tmp_path / "brick.mrc", data=np.zeros((8, 8, 8), np.float32)) as mrc:
        mrc.voxel_size = (1.0, 1.0, 2.0)
    with mrcfile.new(tmp_path / "scale.mrc", data=np.zeros((8, 8, 8), np.float32)):
        pass
    with mrcfile.new(tmp_path / "hexagon.mrc", data=np.zeros((8, 8, 8), np.float32)) as mrc:
        mrc.voxel_size, mrc.header.cellb.gamma = 1.0, 120
    for name, words in (
        ("nan", "1 NaN or infinite voxels"),
        ("image", "give a real 3D map"),
        ("brick", "1 × 1 × 2 Å .* not cubes"),
        ("scale", "0 × 0 × 0 Å"),
        ("hexagon", "angles of 90, 90 and 120°"),
    ):
        with pytest.raises(ValueError, match=words):
            load_volume(tmp_path / f"{name}.mrc")


def test_box_too_small_names_the_box_that_holds(tmp_path):
    write_map(tmp_path / "x.mrc", phantom(40, 40, 40).roll(10, 2), 3.0)
    for source, box in (("channel", 40), (tmp_path / "x.mrc", 20)):
        with pytest.raises(ValueError, match="does not fit a box of") as error:
            load_volume(source, box, 3.0)
        needed = int(str(error.value).split("box_size=")[1].split()[0])
        assert load_volume(source, needed, 3.0).map.shape == (needed,) * 3
        with pytest.raises(ValueError, match="does not fit"):
            load_volume(source, needed - 2, 3.0)
    for box, pixel in ((0, 3.0), (64, 0.0), (64, -1.0), (64, float("nan"))):
        with pytest.raises(ValueError, match="give positive numbers"):
            load_volume("channel", box, pixel)


def test_model_outside_the_box_in_its_own_frame(shared_data):
    with pytest.raises(ValueError, match="atoms lie in the map's box"):
        load_volume(shared_data / "6v9x.pdb", 64, 3.0, first_A=(0, 0, 0))


# --- mask and micelle --------------------------------------------------------------------------


def test_mask_of_a_ball():
    n, pixel, radius_A = 48, 2.0, 24.0
    g = (torch.arange(n) - n // 2) * pixel
    z, y, x = torch.meshgrid(g, g, g, indexing="ij")
    r = (x**2 + y**2 + z**2).sqrt()
    mask = soft_mask((r < radius_A).float(), pixel, extend_A=4.0, soft_edge_A=8.0)
    assert mask.dtype == torch.float32 and mask.min() == 0 and mask.max() == 1
    assert (mask[r < radius_A + 1] > 0.98).all()  # the ball and its extension, less a voxel's edge
    assert (mask[r > radius_A + 12 + 3] == 0).all()  # + extension + edge, and a voxel and a half
    line = mask[n // 2, n // 2, n // 2 :]
    assert (line.diff() <= 0).all() and ((line > 0.1) & (line < 0.9)).sum() >= 2
    hard = soft_mask((r < radius_A).float(), pixel, soft_edge_A=0.0)
    assert set(hard.unique().tolist()) == {0.0, 1.0}


def test_mask_holds_the_molecule(channel):
    mask = soft_mask(channel.map, channel.pixel_size_A)
    lost = ((1 - mask) * channel.map).square().sum() / channel.map.square().sum()
    assert lost < 0.01  # what remains is the ripple of the Fourier crop
    assert mask.mean() < 0.15  # and it does not simply fill the box
    with pytest.raises(ValueError, match="there is nothing to mask"):
        soft_mask(torch.ones(8, 8, 8), 3.0)


def test_micelle_is_a_bright_shell_around_a_dark_core(channel):
    belt = micelle(channel)
    low, high = channel.membrane_z_A
    z = (torch.arange(63) - 31) * 3.0
    assert belt.shape == channel.map.shape and belt.dtype == torch.float32
    assert belt[(z < low - 12) | (z > high + 12)].abs().max() == 0
    body = soft_mask(channel.map, 3.0, low_pass_A=10, extend_A=0, soft_edge_A=1) > 0.5
    level = float(channel.map[body].mean())
    middle = belt[31 + round((low + high) / 6)]  # along +x: protein, core, head groups, solvent
    profile = middle[31, 31:] / level
    shell = int(profile.argmax())
    assert 0.6 < profile[shell] < 0.9 and profile[:shell].min() < 0 and abs(profile[-1]) < 1e-3
    assert 40 < shell * 3 < 85  # Å from the axis
    assert belt[:, 31, 31].abs().max() < 0.05 * level  # the pore holds no detergent
    assert (belt * body).abs().mean() < 0.05 * belt.abs().mean()  # nor does the protein
    assert (belt.rot90(1, (1, 2)) - belt).abs().mean() < 0.02 * belt.abs().mean()


def test_micelle_follows_its_parameters(channel):
    usual, wide, dim = (
        micelle(channel),
        micelle(channel, width_A=32),
        micelle(channel, head_level=0.4),
    )
    assert (wide > 0).sum() > 1.1 * (usual > 0).sum()
    assert float(dim.max() / usual.max()) == pytest.approx(0.5, rel=0.02)
    moved = micelle(channel, membrane_z_A=(-40.0, -10.0))
    assert moved.abs().sum((1, 2)).argmax() < 31 < usual.abs().sum((1, 2)).argmax()
    with pytest.raises(ValueError, match="give membrane_z_A"):
        micelle(channel, membrane_z_A=(80.0, 90.0))


def test_micelle_guesses_the_widest_slab_of_a_map():
    x = torch.zeros(40, 40, 40)
    x[8:34, 16:24, 16:24] = 1.0
    x[24:34, 10:30, 10:30] = 1.0  # wide from z = +12 to +39 Å
    belt = micelle(Volume(x, 3.0, "map"))
    z = (torch.arange(40) - 20) * 3.0
    weight = belt.clamp(min=0).sum((1, 2))
    assert 15 < float((weight * z).sum() / weight.sum()) < 35
