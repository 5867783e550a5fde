"""The posterior over poses, against sums over all poses in pixels, and against its own forecast."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from test_projection import phantom
from torch.testing import assert_close

from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.geometry import (
    angular_distance_deg,
    euler_to_matrix,
    random_rotations,
    symmetry_rotations,
)
from cryonb.physics.projection import project, shift_images
from cryonb.poses.posterior import _on_rings, bayes_limit, posterior, refined
from cryonb.poses.steerable import PolarGrid
from cryonb.poses.templates import (
    Molecule,
    every_pose,
    image_templates,
    neighbours,
    pose_of,
    view_directions,
    volume_templates,
)

BOX, SIGMA = 24, 2.5


@pytest.fixture(scope="module")
def molecule() -> torch.Tensor:
    """An asymmetric molecule whose projections have unit variance."""
    volume = phantom(BOX, width=1.6).float()
    return volume / project(volume, random_rotations(64, torch.Generator().manual_seed(9))).std()


def particles(volume, n, sigma=SIGMA, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rotations = random_rotations(n, generator)
    clean = project(volume, rotations)
    return rotations, clean, clean + sigma * torch.randn(clean.shape, generator=generator)


def by_pixels(images, norms, noisy, targets):
    """Posterior by sums over pixels: mean, expected error, log weights (n, poses)."""
    log_weight = (noisy.flatten(1) @ images.flatten(1).T - 0.5 * norms) / SIGMA**2
    weight = log_weight.softmax(1)
    mean = (weight @ targets.flatten(1)).view_as(noisy)
    second = weight @ targets.square().mean((1, 2))
    return mean, second - mean.square().mean((1, 2)), log_weight


def test_candidates_alone_are_looked_at(molecule):
    _, _, noisy = particles(molecule, 5)
    templates = volume_templates(molecule, 8.0)
    whole = posterior(templates, noisy, SIGMA)
    likely = whole.log_weight > -12
    assert 0 < likely.float().mean() < 0.7
    part = posterior(templates, noisy, SIGMA, candidates=likely)
    assert_close(part.mean, whole.mean, rtol=0, atol=1e-2)
    assert_close(part.log_evidence, whole.log_evidence, rtol=0, atol=1e-2)
    assert torch.equal(part.index, whole.index)
    assert (part.log_weight[~likely] == -math.inf).all()
    assert_close(part.log_weight.exp().sum(1), torch.ones(5))


def test_it_equals_the_sum_over_all_poses(molecule):
    _, _, noisy = particles(molecule, 6)
    templates = volume_templates(molecule, 25.0)
    images = project(molecule, every_pose(templates))
    mean, mmse, log_weight = by_pixels(images, images.square().sum((1, 2)), noisy, images)
    found = posterior(templates, noisy, SIGMA)
    # Coefficients reproduce these small images to 1 %, the weights follow.
    assert_close(found.mean, mean, rtol=0, atol=0.08)
    assert_close(found.mmse, mmse, rtol=0.1, atol=1e-3)
    assert_close(
        found.log_evidence,
        log_weight.logsumexp(1) - math.log(log_weight.shape[1]),
        rtol=0,
        atol=0.2,
    )
    best = found.index * templates.turns + (found.psi_deg / 360 * templates.turns).round().long()
    assert (log_weight.amax(1) - log_weight.gather(1, best[:, None])[:, 0]).max() < 0.2


def test_with_ctf_it_equals_the_sum_over_all_poses(molecule):
    _, clean, _ = particles(molecule, 4)
    wave = ctf(BOX, 4.0, torch.tensor([0.2, 0.3, 0.4, 0.5]))
    noisy = apply_ctf(clean, wave)
    noisy = noisy + SIGMA * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(3))
    templates = volume_templates(molecule, 25.0)
    found = posterior(templates, noisy, SIGMA, ctf=wave)
    images = project(molecule, every_pose(templates))
    for i in range(4):
        seen = apply_ctf(images, wave[i : i + 1])
        norms = seen.square().sum((1, 2))
        mean, mmse, _ = by_pixels(seen, norms, noisy[i : i + 1], images)
        assert_close(found.mean[i : i + 1], mean, rtol=0, atol=0.12)
        assert_close(found.mmse[i : i + 1], mmse, rtol=0.15, atol=2e-3)


def test_forecast_of_the_error_is_borne_out(molecule):
    """Predicted and measured error agree within three standard errors; samples have twice it."""
    rotations, clean, noisy = particles(molecule, 128)
    generator = torch.Generator().manual_seed(1)
    *_, (spacing, found) = bayes_limit(
        molecule,
        noisy,
        SIGMA,
        spacings_deg=(12.0, 8.0, 5.0, 4.0, 3.0),
        draws=2,
        generator=generator,
    )
    error = (found.mean - clean).square().mean((1, 2))
    gap = error - found.mmse
    assert abs(gap.mean()) < 3 * gap.std() / math.sqrt(128)
    templates = volume_templates(molecule, spacing)
    drawn = pose_of(templates.directions_deg, found.drawn_index, found.drawn_psi_deg)
    samples = torch.stack([project(molecule, r) for r in drawn])
    ratio = (samples - clean).square().mean() / error.mean()
    assert 1.7 < ratio < 2.3  # theory: 2
    between = (samples[0] - samples[1]).square().mean()  # as far apart as from the truth
    assert_close(between, (samples - clean).square().mean(), rtol=0.2, atol=0)
    best = pose_of(templates.directions_deg, found.index, found.psi_deg)
    assert angular_distance_deg(best, rotations).median() < 16  # a blurred molecule at SNR 0.16


def test_refining_projects_only_what_comes_into_question(molecule, monkeypatch):
    """It finds what the whole grid finds, from a part of its projections."""
    _, _, noisy = particles(molecule, 2, sigma=0.8)
    counts, make = [], Molecule.templates

    def count(self, directions, spacing):
        counts.append(len(directions))
        return make(self, directions, spacing)

    monkeypatch.setattr(Molecule, "templates", count)
    grids = refined(Molecule.of(molecule), noisy, 0.8, spacings_deg=(12.0, 8.0, 4.0))
    *_, (_, directions, found) = grids
    monkeypatch.undo()
    assert sum(counts) < 0.5 * len(directions)
    whole = posterior(volume_templates(molecule, 4.0), noisy, 0.8)
    assert len(directions) == whole.log_weight.shape[1]
    assert torch.equal(found.index, whole.index)
    assert_close(found.mean, whole.mean, rtol=0, atol=1e-2)
    assert_close(found.log_evidence, whole.log_evidence, rtol=0, atol=1e-2)
    likely = whole.log_weight > -10
    assert_close(found.log_weight[likely], whole.log_weight[likely], rtol=0, atol=0.05)


def test_no_denoiser_does_better(molecule):
    _, clean, noisy = particles(molecule, 64)
    found = posterior(volume_templates(molecule, 4.0), noisy, SIGMA)
    best = (found.mean - clean).square().mean()
    for scale in (0.8, 1.2):
        assert (scale * found.mean - clean).square().mean() > best


def test_symmetry_leaves_one_wedge_and_the_same_answer(molecule):
    box = BOX + 1  # the centre of an odd box stays where it is when the array turns
    subunit = phantom(box, width=1.6).float()
    tetramer = sum(torch.rot90(subunit, k, (1, 2)) for k in range(4))
    tetramer = tetramer / project(tetramer, random_rotations(64)).std()
    _, _, noisy = particles(tetramer, 8)
    small, whole = (volume_templates(tetramer, 5.0, s) for s in ("C4", "C1"))
    assert len(small.directions_deg) == pytest.approx(len(whole.directions_deg) / 4, rel=0.03)
    a, b = (posterior(t, noisy, SIGMA) for t in (small, whole))
    assert (a.mean - b.mean).square().mean() < 0.1 * b.mmse.mean()
    assert_close(a.mmse.mean(), b.mmse.mean(), rtol=0.1, atol=0)


@pytest.mark.parametrize("symmetry", ["C1", "C2", "C4", "D2", "D7"])
def test_every_direction_has_a_mate_on_the_grid(symmetry):
    grid = euler_to_matrix(torch.cat([view_directions(10.0, symmetry)] * 2, 1)[:, :3] * 1.0)[..., 2]
    group = symmetry_rotations(symmetry)
    view = random_rotations(200, torch.Generator().manual_seed(0))[..., 2]
    mates = torch.einsum("gij,nj->gni", group, view)
    nearest = (mates @ grid.T).amax((0, 2)).clamp(max=1).acos().rad2deg()
    assert nearest.max() < 12  # a grid of 10° has its farthest point nearer than that
    assert len(grid) < 1.2 * 4 * math.pi / math.radians(10) ** 2 / len(group) + 4


def test_shells_are_read_at_the_rings_in_cycles_per_box():
    grid = PolarGrid.whole(BOX)
    assert_close(_on_rings(torch.arange(BOX / 2 + 1)[None], grid)[0], BOX * grid.radii)


def test_a_mate_of_a_direction_is_near_it():
    """rot of 89 degrees is -1 degree for C4."""
    coarse, finer = torch.tensor([[1.0, 90.0], [45.0, 0.0]]), torch.tensor([[89.0, 90.0], [9, 90]])
    chosen = torch.tensor([[True, False]])
    near = {s: neighbours(coarse, chosen, finer, 5.0, s).tolist() for s in ("C1", "C4")}
    assert near == {"C1": [[False, False]], "C4": [[True, False]]}


def test_structure_fixed_to_the_pose_is_seen_through(molecule):
    belt = phantom(BOX, seed=5, blobs=8, width=2.0).float() * float(molecule.abs().max())
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(32, generator)
    clean, structure = project(torch.stack([molecule, belt]), rotations)
    noisy = clean + structure + SIGMA * torch.randn(clean.shape, generator=generator)
    told = posterior(volume_templates(molecule, 4.0, structure=belt), noisy, SIGMA)
    untold = posterior(volume_templates(molecule, 4.0), noisy, SIGMA)
    error = (told.mean - clean).square().mean((1, 2))
    assert error.mean() < 0.5 * (untold.mean - clean).square().mean()
    gap = error - told.mmse
    assert abs(gap.mean()) < 3 * gap.std() / math.sqrt(32) + 0.1 * error.mean()  # one 4° grid


@pytest.mark.parametrize("box", [24, 25])
def test_training_images_serve_as_templates_in_all_turns_and_mirrored(box):
    volume = phantom(box, width=1.6).float()
    clean = project(volume, random_rotations(20, torch.Generator().manual_seed(0)))
    clean = clean / clean.std()
    templates = image_templates(clean)
    turned = torch.rot90(clean, 1, (1, 2))
    mirrored = clean.flip(2)
    if box % 2 == 0:  # the centre is index n // 2: turning and mirroring move it by one pixel
        turned, mirrored = turned.roll(1, 1), mirrored.roll(1, 2)
    for images in (clean, turned, mirrored):
        found = posterior(templates, images, 0.05)
        assert (found.mean - images).square().mean() < 0.02
        assert (found.index % 20 == torch.arange(20)).all()
    with pytest.raises(ValueError, match="no poses"):
        every_pose(templates)


def test_shifts_are_found_and_the_particle_stays_where_it_is(molecule):
    _, clean, _ = particles(molecule, 6, sigma=0.0)
    true = torch.tensor([[0, 0], [2, 0], [0, -2], [-2, 2], [2, 2], [0, 2]]).float()
    moved = shift_images(clean, true)
    noisy = moved + 1.0 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    steps = torch.tensor([-2.0, 0.0, 2.0])
    grid = torch.cartesian_prod(steps, steps)
    templates = volume_templates(molecule, 8.0)
    found = posterior(templates, noisy, 1.0, shifts_px=grid)
    assert_close(found.shift_px, true)
    assert (found.mean - moved).square().mean() < 0.15
    assert (found.mmse > 0).all()


def test_bad_input_is_refused(molecule):
    templates = volume_templates(molecule, 40.0)
    _, _, noisy = particles(molecule, 2)
    with pytest.raises(ValueError, match="sigma is 0"):
        posterior(templates, noisy, 0.0)
    with pytest.raises(ValueError, match="no particles"):
        posterior(templates, noisy[:0], 1.0)
    with pytest.raises(ValueError, match="24 px"):
        posterior(templates, noisy[:, 1:, 1:], SIGMA)
    with pytest.raises(ValueError, match="positive angle"):
        view_directions(0.0)
    with pytest.raises(ValueError, match="NaN"):
        posterior(templates, noisy * math.nan, SIGMA)
    with pytest.raises(RuntimeError, match="finer spacings_deg"):
        list(bayes_limit(molecule, noisy, 0.3, spacings_deg=(40.0, 30.0)))


GROWTH = """
import resource
import torch
from cryonb.poses.posterior import posterior
from cryonb.poses.templates import volume_templates

def peak_MB():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
templates = volume_templates(torch.randn(32, 32, 32, generator=generator), 6.0)
noisy = torch.randn(400, 32, 32, generator=generator)
share = 0.2 + 0.8 * torch.rand(len(noisy), 1, generator=generator)
near = torch.rand(len(noisy), templates.target.shape[1], generator=generator) < share
posterior(templates, noisy[:40], 1.0, candidates=near[:40])
before = peak_MB()
posterior(templates, noisy, 1.0, candidates=near)
print(peak_MB() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_does_not_grow_with_the_particles():
    """Products of another size for each particle must not break up the heap."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout) < 100  # their coefficients and weights; it was 290 MB
