"""A map from the particles alone: what it is worth, what it is not, and that noise gives none."""

import json
import shutil

import pytest
import torch

import cryonb.commands.abinitio as command
from cryonb.base.files import sole
from cryonb.base.options import AbInitioOptions
from cryonb.data.maps import read_map
from cryonb.data.particle_file import read_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import load_volume
from cryonb.denoisers.abinitio import (
    STAGES,
    Sums,
    _centred,
    ab_initio,
    expect,
    maximise,
    posterior_mean,
)
from cryonb.denoisers.cwf import cwf
from cryonb.evaluation.metrics import psnr
from cryonb.evaluation.resolution import fsc
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import low_pass
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project, shift_images
from cryonb.poses.templates import volume_templates
from cryonb.simulation.simulate import clean_scale, noise_sigma, setting, simulate_images

SIGMA = noise_sigma(0.4)  # at 6 Å a pixel the dose of 0.1 at 3 Å


def particles(source, n, seed=0):
    volume = load_volume(source, 32, 6.0)
    molecule = volume.map / clean_scale(volume)
    generator = torch.Generator().manual_seed(seed)
    clean = project(molecule, random_rotations(n, generator))
    return molecule, clean, clean + SIGMA * torch.randn(clean.shape, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "symmetry", "least_dB"),
    [("channel", "C1", 0.7), ("prestin", "C1", 0.7), ("channel", "C4", 2.0)],
)
def test_the_map_denoises_better_than_what_sees_no_third_dimension(source, symmetry, least_dB):
    _, clean, noisy = particles(source, 300)
    *_, last = ab_initio(noisy, SIGMA, symmetry)
    own, filtered = posterior_mean(last, noisy, SIGMA, symmetry), cwf(noisy, SIGMA)
    assert float((psnr(own, clean) - psnr(filtered, clean)).mean()) > least_dB


def test_noise_alone_gives_no_map():
    noise = SIGMA * torch.randn(200, 32, 32, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="no map explains these particles better than noise"):
        list(ab_initio(noise, SIGMA))


def test_a_seed_is_a_result_and_another_seed_another():
    noisy = particles("channel", 60)[2]
    short = (STAGES[0]._replace(passes=3, batch=32),)
    first, again, other = (list(ab_initio(noisy, SIGMA, stages=short, seed=s)) for s in (0, 0, 1))
    assert len(first) == 3 and torch.equal(first[-1].volume, again[-1].volume)
    assert not torch.equal(first[-1].volume, other[-1].volume)


@pytest.mark.parametrize("defocus_um", [None, 1.5])
def test_one_pass_from_the_truth_keeps_it(defocus_um):
    """With the true map before and little noise, the map of the particles is the truth."""
    molecule, clean, _ = particles("channel", 400)
    transfer = None if defocus_um is None else ctf(32, 6.0, defocus_um).expand(400, -1, -1)
    noisy = clean if transfer is None else apply_ctf(clean, transfer)
    noisy = noisy + 0.5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    stage = STAGES[-1]
    templates = volume_templates(molecule, stage.spacing_deg)
    sums, evidence = expect(templates, noisy, 0.5, transfer, 1.0)
    flat = torch.full((17,), 1e6)
    volume = maximise(sums, templates.directions_deg, 0.5, flat, "C1", stage)
    curve = fsc(low_pass(molecule, 18.0, 6.0), volume, 6.0)[1][1:9]
    assert float(curve.min()) > 0.95 and float(evidence.min()) > 0
    low, truth = (low_pass(v - v.mean(), 40.0, 6.0) for v in (volume, molecule))
    size = float((low * truth).sum() / truth.square().sum())
    assert 0.9 < size < 1.02, size  # in the particles' unit, not only in shape


def test_a_map_goes_to_its_centre_of_mass():
    molecule = low_pass(load_volume("channel", 32, 6.0).map, 30.0, 6.0)
    there = _centred(molecule)
    assert torch.equal(_centred(molecule.roll((2, -3, 1), (0, 1, 2))), there)
    assert torch.equal(_centred(there), there)
    empty = torch.zeros(8, 8, 8)
    assert torch.equal(_centred(empty), empty)


@pytest.mark.slow
def test_particles_beside_the_centre_are_found():
    _, clean, _ = particles("channel", 200)
    generator = torch.Generator().manual_seed(4)
    clean = shift_images(clean, 4 * torch.rand(200, 2, generator=generator) - 2)
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=generator)
    quality = []
    for most_shift_px in (0.0, 2.0):
        *_, last = ab_initio(noisy, SIGMA, most_shift_px=most_shift_px)
        own = posterior_mean(last, noisy, SIGMA, most_shift_px=most_shift_px)
        quality.append(float(psnr(own, clean).mean()))
    assert quality[1] - quality[0] > 0.5, quality  # dB


def test_sums_blend_by_shares():
    zero, one = (Sums(torch.full((2, 4, 4), x), torch.full((2, 3), x)) for x in (0.0, 1.0))
    blended = zero.blend(one, 0.25)
    assert blended.images.unique().tolist() == blended.weights.unique().tolist() == [0.25]


@pytest.fixture(scope="module")
def a_file(tmp_path_factory):
    """RELION's file of 100 particles with CTF, poses left out of account."""
    folder = tmp_path_factory.mktemp("abinitio")
    volume, generator = load_volume("channel", 32, 6.0), torch.Generator().manual_seed(3)
    options = {"scale": clean_scale(volume), "defocus_um": (1.0, 2.0)}
    made = simulate_images(volume, 100, setting("white"), generator, **options)
    images = made.observed(6.0)
    images = images + SIGMA * torch.randn(images.shape, generator=generator)
    found = particles_from_arrays(images, made.rotations, 6.0, defocus_um=made.defocus_um)
    return write_particles(found, folder / "particles.star")


def test_the_command_writes_a_map_and_keeps_finished_starts(a_file, monkeypatch, capsys):
    short = (STAGES[0]._replace(passes=3, batch=64), STAGES[2]._replace(passes=1))
    monkeypatch.setattr(command, "STAGES", short)
    out, options = a_file.with_name("map.mrc"), AbInitioOptions(starts=2)
    assert command.abinitio_file(a_file, out, options) == out
    volume, pixel_A = read_map(out)
    assert volume.shape == (32, 32, 32) and pixel_A == 6.0 and volume.std() > 0
    starts = [read_map(out.with_name(f"map_start{k}.mrc"))[0] for k in (0, 1)]
    evidence = json.loads(out.with_suffix(".json").read_text())["evidence"]
    best = int(evidence["1"] > evidence["0"])
    assert torch.equal(volume, starts[best]) and not torch.equal(*starts)
    assert f"start {best}: log evidence" in capsys.readouterr().out
    out.unlink()
    out.with_name("map_start1.mrc").unlink()  # as if it had been stopped there
    asked = []
    whole = command.ab_initio
    monkeypatch.setattr(
        command, "ab_initio", lambda *a, **k: asked.append(k["seed"]) or whole(*a, **k)
    )
    command.abinitio_file(a_file, out, options)
    assert asked == [1] and torch.equal(read_map(out)[0], volume)


def test_neither_the_input_nor_another_run_is_replaced(a_file, tmp_path):
    stack = tmp_path / "stack.mrc"
    shutil.copy(a_file.with_suffix(".mrcs"), stack)
    shutil.copy(stack, tmp_path / "map_start0.mrc")
    before = stack.read_bytes()
    for source, out in (("stack.mrc", "stack.mrc"), ("map_start0.mrc", "map.mrc")):
        with pytest.raises(ValueError, match="would replace the input"):
            command.abinitio_file(tmp_path / source, tmp_path / out)
    for foreign in ("[1]", '{"asked": {"most": "7"}, "evidence": {}}'):
        (tmp_path / "o.json").write_text(foreign)
        with pytest.raises(ValueError, match="choose another output"):
            command.abinitio_file(stack, tmp_path / "o.mrc")
        assert (tmp_path / "o.json").read_text() == foreign
    assert stack.read_bytes() == before
    with sole(tmp_path / "o.mrc"), pytest.raises(OSError, match="by another process"):
        command.abinitio_file(stack, tmp_path / "o.mrc")


def test_images_without_noise_are_left_out(a_file, tmp_path, monkeypatch, capsys):
    particles = read_particles(a_file)
    images = particles.images.clone()
    images[3] = 7.0
    star = write_particles(particles.with_images(images), tmp_path / "blank.star")
    monkeypatch.setattr(command, "STAGES", (STAGES[0]._replace(passes=1),))
    command.abinitio_file(star, tmp_path / "map.mrc", AbInitioOptions(starts=1))
    said = capsys.readouterr().out
    assert "99 of 100 particles" in said and "1 images have no noise" in said


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("map.mrcs", {}, "end the output's name in .mrc"),
        ("map.mrc", {"starts": 0}, "starts is 0"),
        ("map.mrc", {"symmetry": "Q7"}, "Q7"),
        ("map.mrc", {"most_shift_A": 60.0}, "shifts of up to 10 px in a box of 32"),
    ],
)
def test_what_is_wrong_is_one_line(a_file, tmp_path, out, options, message):
    with pytest.raises(ValueError, match=message):
        command.abinitio_file(a_file, tmp_path / out, AbInitioOptions(**options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bad", "sigma", "message"),
    [(torch.empty(0, 8, 8), 1.0, "no particles"), (torch.zeros(2, 8, 8), 0.0, "sigma is 0")],
)
def test_bad_particles_are_one_line(bad, sigma, message):
    with pytest.raises(ValueError, match=message):
        next(ab_initio(bad, sigma))
