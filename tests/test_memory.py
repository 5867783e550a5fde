"""A stack as its own memory: what it leaves out, what it adds, and when there is none."""

from types import SimpleNamespace

import pytest
import torch

from cryonb.base.options import DenoiseOptions
from cryonb.commands import denoise as command
from cryonb.commands import remember
from cryonb.data.maps import read_map
from cryonb.data.particle_file import read_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import load_volume
from cryonb.denoisers import memory as module
from cryonb.denoisers.abinitio import STAGES, Pass
from cryonb.denoisers.memory import (
    JUDGED,
    SHARE,
    Memory,
    _best_share,
    _whitened,
    learn,
    recall,
    whitening_of,
)
from cryonb.evaluation.metrics import correlation, psnr
from cryonb.learning.diffusion import SR3
from cryonb.learning.weights import save_model
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import spread_shells
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project, shift_images
from cryonb.simulation.masks import micelle
from cryonb.simulation.simulate import clean_scale

BOX, SIGMA = 32, 1.5


def stack(n, seed=0):
    """The channel, its micelle, and clean and observed particles."""
    volume = load_volume("channel", BOX, 6.0)
    generator = torch.Generator().manual_seed(seed)
    maps = torch.stack([volume.map, micelle(volume)]) / clean_scale(volume)
    clean, belt = project(maps, random_rotations(n, generator))
    noisy = clean + belt + SIGMA * torch.randn(clean.shape, generator=generator)
    return maps, clean, noisy, generator


def test_what_a_denoiser_takes_away_is_made_white():
    g = torch.Generator().manual_seed(0)
    noise = SIGMA * torch.randn(500, BOX, BOX, generator=g)
    ones = torch.ones(BOX // 2 + 1)
    assert torch.allclose(whitening_of(noise, torch.zeros_like(noise), SIGMA), ones, atol=0.08)
    amplitude = torch.linspace(4, 1, BOX // 2 + 1)
    coloured = apply_ctf(noise, spread_shells(amplitude, BOX))
    found = whitening_of(coloured, torch.zeros_like(noise), SIGMA)
    assert torch.allclose(found[1:] * amplitude[1:], ones[1:], atol=0.08)
    assert torch.equal(whitening_of(0.5 * noise, torch.zeros_like(noise), SIGMA), ones)


def test_what_is_seen_finds_the_pose_and_what_is_clean_comes_back():
    (molecule, belt), clean, noisy, _ = stack(48)
    memory = Memory(molecule + belt, molecule, torch.ones(BOX // 2 + 1), 1.0)
    found = recall(memory, noisy, SIGMA)
    blind = memory._replace(clean=molecule + belt)
    worse = recall(blind, noisy, SIGMA)
    gain = psnr(found, clean) - psnr(worse, clean)
    assert float(psnr(found, clean).mean()) > 26 and float(gain.mean()) > 3


def test_recall_keeps_the_ctf_and_takes_the_filter_out():
    (molecule, _), clean, _, g = stack(16)
    transfer = torch.full((16, BOX, BOX // 2 + 1), 0.8)
    noisy = apply_ctf(clean, transfer) + 0.5 * torch.randn(clean.shape, generator=g)
    memory = Memory(molecule, molecule, torch.linspace(0.5, 1, BOX // 2 + 1), 1.0)
    found = recall(memory, noisy, 0.5, transfer)
    assert float((found - 0.8 * clean).square().mean() / clean.square().mean()) < 0.05


def test_errors_of_the_network_average_out_what_it_removes_stays_out_and_the_share_is_measured():
    """A network that errs by much, anew in each image, and knows only that a belt is none."""
    _, clean, noisy, g = stack(200)
    denoised = clean + 0.7 * torch.randn(clean.shape, generator=g)
    answers = iter([denoised, denoised[:JUDGED], denoised[100:][:JUDGED]])
    memory = learn(noisy, SIGMA, lambda _: next(answers))
    found = recall(memory, noisy, SIGMA)
    assert float(psnr(found, clean).mean()) > float(psnr(denoised, clean).mean()) + 5
    difference = found - denoised
    best = float((difference * (clean - denoised)).sum() / difference.square().sum())
    assert abs(memory.share / SHARE - best) < 0.15


def test_a_clean_projection_is_filtered_as_the_particles_are():
    (molecule, _), clean, _, _ = stack(2)
    transfer = torch.full((2, BOX, BOX // 2 + 1), -0.8)
    filtered = _whitened(apply_ctf(clean, transfer), transfer, torch.linspace(0.5, 1, 17))
    assert torch.allclose(filtered[0], apply_ctf(clean, filtered[1]), atol=1e-5)


@pytest.fixture
def known(monkeypatch):
    """EM that has found the molecule; no share; the maps from halves, in the order of judging."""
    judged, last = [], Pass(stack(1)[0][0], 0.0, STAGES[-1])
    monkeypatch.setattr(module, "ab_initio", lambda *_, **__: iter([last]))
    monkeypatch.setattr(module, "_best_share", lambda memory, *_: judged.append(memory.seen) or 0)
    return judged


def test_the_memory_of_a_half_is_judged_by_the_other(known):
    _, clean, noisy, _ = stack(128)
    noisy[64:] -= clean[64:]  # the second half is noise
    learn(noisy, SIGMA, torch.zeros_like)
    assert known[0].std() < 0.5 * known[1].std()


def test_where_nothing_is_taken_away_the_map_is_half_the_first(known, monkeypatch):
    noisy = stack(128)[2]
    mixed = learn(noisy, SIGMA, torch.clone)
    monkeypatch.setattr(module, "TRUST", 0.0)
    alone = learn(noisy, SIGMA, torch.clone)
    assert torch.allclose(mixed.clean, (alone.seen + alone.clean) / 2, atol=1e-4)
    assert alone.clean.std() > 1.05 * alone.seen.std()  # it has almost no prior


def test_the_share_of_two_denoisers_of_noise_is_that_of_arithmetic(monkeypatch):
    """a y beside b y, of y that is noise: E[y^2] W = sigma^2, so (1 - b - mean W) / (a - b)."""
    a, b, w = -0.5, 0.5, torch.linspace(0.5, 1, BOX // 2 + 1)
    monkeypatch.setattr(module, "recall", lambda memory, y, *_: a * y)
    white = SIGMA * torch.randn(400, BOX, BOX, generator=torch.Generator().manual_seed(1))
    for filter_ in (torch.ones_like(w), w):
        noisy, dot = apply_ctf(white, 1 / spread_shells(filter_, BOX)), torch.zeros(1, BOX, BOX)
        dot[0, 0, 0] = 1
        mean = float(apply_ctf(dot, spread_shells(filter_**2, BOX))[0, 0, 0])
        memory = SimpleNamespace(templates=None, whitening=filter_)
        found = _best_share(memory, noisy, b * noisy, SIGMA, lambda y: b * y, None)
        assert found == pytest.approx((1 - b - mean) / (a - b), abs=0.01)
    monkeypatch.setattr(module, "recall", lambda memory, y, *_: SIGMA * torch.tanh(y / SIGMA))
    memory, network = SimpleNamespace(templates=None, whitening=torch.ones_like(w)), a * white
    difference = SIGMA * torch.tanh(white / SIGMA) - network
    true = float(-(difference * network).sum() / difference.square().sum())  # what is clean is 0
    found = _best_share(memory, white, network, SIGMA, lambda y: a * y, None)
    assert found == pytest.approx(true, abs=0.02)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """RELION's file of 120 particles with CTF, and a network that has learnt nothing."""
    folder = tmp_path_factory.mktemp("memory")
    torch.manual_seed(0)
    model = SR3(widths=(16, 32), transformers=1, embedding=32)
    torch.nn.init.normal_(model.unet.exit.weight, std=0.05)
    weights = save_model(folder / "w.safetensors", model, {"options": {"box_size": BOX}})
    _, _, noisy, g = stack(120)
    found = particles_from_arrays(noisy, random_rotations(120, g), 6.0)
    return write_particles(found, folder / "particles.star"), weights


def denoised(files, out, **options):
    star, weights = files
    how = DenoiseOptions(checkpoint=weights, device="cpu", **options)
    return read_particles(command.denoise_file(star, star.with_name(out), how)).images


def test_the_command_averages_network_and_memory_and_goes_on(files, monkeypatch):
    cut = pytest.MonkeyPatch()
    cut.setattr(command, "with_memories", lambda *_: 1 / 0)
    cut.setattr(remember, "learn", lambda *a, **k: learn(*a, **k)._replace(share=0.75))
    with pytest.raises(ZeroDivisionError):
        denoised(files, "both.star", memory="clean")
    cut.undo()
    maps = [read_map(files[0].with_name(f"both_memory_{k}.mrc")) for k in ("seen", "clean")]
    assert all(m.shape == (BOX,) * 3 and m.std() > 0 and pixel == 6.0 for m, pixel in maps)
    monkeypatch.setattr(remember, "learn", None)  # a run that goes on learns nothing anew
    both, alone = denoised(files, "both.star", memory="clean"), denoised(files, "alone.star")
    recalled = (both - 0.25 * alone) / 0.75
    _, clean, noisy, _ = stack(120)
    gain = correlation(recalled, clean) - correlation(noisy, clean)
    assert float(gain.mean()) > 0.15


def test_no_memory_is_said_and_the_network_is_left(files, monkeypatch, capsys):
    monkeypatch.setattr(remember, "LEAST", 121)
    alone, without = denoised(files, "a.star"), denoised(files, "b.star", memory="clean")
    assert torch.allclose(alone, without, atol=0.03)  # bf16, of images with a deviation about 1
    assert "no memory: 120 particles are too few, 121 are the least" in capsys.readouterr().out


def test_memory_is_for_the_mean_of_the_network(files):
    with pytest.raises(ValueError, match="not samples or a reference"):
        denoised(files, "c.star", memory="clean", samples=2)


def test_each_half_set_has_its_own_memory_about_the_centres_of_its_particles(
    files, tmp_path, monkeypatch
):
    """A memory that repeats what it sees gives particles back, where they lie."""
    centred, (volumes, *_) = read_particles(files[0]).images, stack(1)
    molecule, belt = volumes
    shifts, half = torch.tensor([[2.0, -3.0]]).repeat(120, 1), torch.arange(120) % 2 + 1
    moved, poses = shift_images(centred, shifts), random_rotations(120)
    made = particles_from_arrays(moved, poses, 6.0, shifts_px=shifts, half=half)
    star, given, shown = write_particles(made, tmp_path / "p.star"), [], []

    def learnt(noisy, *_, **__):
        given.append(noisy)
        share = float(len(given) == 1)
        return Memory(molecule + belt, molecule, torch.ones(BOX // 2 + 1), share)

    monkeypatch.setattr(remember, "LEAST", 60)
    monkeypatch.setattr(remember, "learn", learnt)
    monkeypatch.setattr(remember, "recall", lambda m, noisy, *_: shown.append(m.clean) or noisy)
    alone, found = (denoised((star, files[1]), f"{m}.star", memory=m) for m in ("none", "seen"))
    for k, noisy in enumerate(given):
        assert float(correlation(noisy, centred[k::2]).min()) > 0.9
    assert float(correlation(found, moved)[half == 1].min()) > 0.99
    assert torch.allclose(found[half == 2], alone[half == 2], atol=0.03)
    assert all(torch.equal(volume, molecule + belt) for volume in shown) and shown
