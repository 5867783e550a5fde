"""A map from the particles alone: what it is worth, what it is not, and that noise gives none."""

import pytest
import torch

from cryonb.data.volumes import load_volume
from cryonb.denoisers.abinitio import STAGES, Sums, _expect, _maximise, ab_initio, posterior_mean
from cryonb.denoisers.cwf import cwf
from cryonb.evaluation.metrics import psnr
from cryonb.evaluation.resolution import fsc
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import low_pass
from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project
from cryonb.poses.templates import volume_templates
from cryonb.simulation.simulate import clean_scale, noise_sigma

SIGMA = noise_sigma(0.4)  # at 6 Å a pixel the dose of 0.1 at 3 Å


def particles(source, n, seed=0):
    volume = load_volume(source, 32, 6.0)
    molecule = volume.map / clean_scale(volume)
    generator = torch.Generator().manual_seed(seed)
    clean = project(molecule, random_rotations(n, generator))
    return molecule, clean, clean + SIGMA * torch.randn(clean.shape, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["channel", "prestin"])
def test_the_map_denoises_better_than_what_sees_no_third_dimension(source):
    _, clean, noisy = particles(source, 300)
    *_, last = ab_initio(noisy, SIGMA)
    own, filtered = posterior_mean(last, noisy, SIGMA), cwf(noisy, SIGMA)
    assert float((psnr(own, clean) - psnr(filtered, clean)).mean()) > 0.7  # dB


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
    sums, evidence = _expect(templates, noisy, 0.5, transfer, 1.0)
    flat = torch.full((17,), 1e6)
    volume = _maximise(sums, templates.directions_deg, 0.5, flat, "C1", stage)
    curve = fsc(low_pass(molecule, 18.0, 6.0), volume, 6.0)[1][1:9]
    assert float(curve.min()) > 0.95 and float(evidence.min()) > 0
    low, truth = (low_pass(v - v.mean(), 40.0, 6.0) for v in (volume, molecule))
    size = float((low * truth).sum() / truth.square().sum())
    assert 0.9 < size < 1.02, size  # in the particles' unit, not only in shape


def test_sums_blend_by_shares():
    zero, one = (Sums(torch.full((2, 4, 4), x), torch.full((2, 3), x)) for x in (0.0, 1.0))
    blended = zero.blend(one, 0.25)
    assert blended.images.unique().tolist() == blended.weights.unique().tolist() == [0.25]


@pytest.mark.parametrize(
    ("bad", "sigma", "message"),
    [(torch.empty(0, 8, 8), 1.0, "no particles"), (torch.zeros(2, 8, 8), 0.0, "sigma is 0")],
)
def test_bad_particles_are_one_line(bad, sigma, message):
    with pytest.raises(ValueError, match=message):
        next(ab_initio(bad, sigma))
