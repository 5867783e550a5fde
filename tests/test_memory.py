"""A stack as its own memory: what it leaves out, what it adds, and when there is none."""

import pytest
import torch

from cryonb.base.options import DenoiseOptions
from cryonb.commands import denoise as command
from cryonb.commands import remember
from cryonb.data.maps import read_map
from cryonb.data.particle_file import read_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import load_volume
from cryonb.denoisers.memory import JUDGED, SHARE, Memory, learn, recall, whitening_of
from cryonb.evaluation.metrics import correlation, psnr
from cryonb.learning.diffusion import SR3
from cryonb.learning.weights import save_model
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import spread_shells
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
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
