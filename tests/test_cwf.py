"""The covariance Wiener filter against ASPIRE's, against its own formula, and on noise alone."""

from __future__ import annotations

import pytest
import torch
from test_peers import SIGMA, data, needs  # noqa: F401  (a fixture)

from cryonb.denoisers import peers
from cryonb.denoisers.cwf import _at_rings, _denoise_order, _orders, _rings, cwf, shrink
from cryonb.evaluation.metrics import psnr
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import spread_shells


@pytest.mark.parametrize("box", [24, 25])
def test_the_basis_is_orthonormal_and_holds_smooth_images(box):
    at = torch.arange(box) - box // 2
    inside = at.square() + at[:, None].square() <= (box // 2) ** 2
    blob = torch.exp(-((at - 2) ** 2 + (at[:, None] + 1) ** 2) / 12)[inside]
    found = torch.zeros_like(blob)
    for k, (cosine, sine, _) in enumerate(_orders(box)):
        parts = [cosine] if k == 0 else [2**0.5 * cosine, 2**0.5 * sine]
        for part in parts:
            # Square pixels are not quite round: measured 0.10 at worst, 0.003 in the mean.
            away = (part.T @ part - torch.eye(part.shape[1])).abs()
            assert away.max() < 0.15 and away.mean() < 0.2 / part.shape[1]
            found += part @ (blob @ part)
    assert (found - blob).norm() < 0.01 * blob.norm()


def test_noise_alone_is_shrunk_to_nothing():
    noise = torch.randn(600, 32, 32, generator=torch.Generator().manual_seed(0))
    assert cwf(3 * noise, 3.0).var() < 0.001 * 9  # of the noise; measured 0.00004
    edge = (1 + 0.5**0.5) ** 2
    assert shrink(torch.tensor([0.2, 1.0, edge - 1e-3]), 0.5).abs().max() == 0


def test_noise_alone_leaves_little():
    noise = torch.randn(60, 16, 16, generator=torch.Generator().manual_seed(0))
    assert cwf(noise, 1.0).var() < 0.002  # 0.004 for half the ratio of dimension to samples


def test_a_spike_is_shrunk_as_in_the_paper():
    # Donoho et al. 2018: spike l -> sample eigenvalue (1 + l)(1 + g / l) -> l c^2.
    g, spike = 0.5, torch.tensor([1.0, 3.0, 10.0])
    cosine2 = (1 - g / spike**2) / (1 + g / spike)
    torch.testing.assert_close(shrink((1 + spike) * (1 + g / spike), g), spike * cosine2)


def test_it_is_level_with_aspires(data):  # noqa: F811
    needs("cwf")
    ours, theirs = cwf(data.noisy, SIGMA), peers.cwf(data.noisy, SIGMA)
    gain = psnr(ours, data.clean).mean() - psnr(theirs, data.clean).mean()
    assert gain > -0.1  # 64 px, 512 images: +0.09 dB (channel), +0.07 dB (dimer)
    assert (ours - theirs).norm() < 0.15 * (theirs - theirs.mean()).norm()


def test_a_transfer_function_is_told_from_the_molecule(data):  # noqa: F811
    clean, box = data.clean, data.clean.shape[-1]
    defocus_um = torch.tensor([0.8, 1.2, 1.7, 2.3])
    group = torch.arange(len(clean)) % 4
    transfer = ctf(box, 6.0, defocus_um)[:, 0].abs()  # along one axis: of every shell
    filters = torch.stack([spread_shells(h, box) for h in transfer])[group]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    noisy = apply_ctf(clean, filters) + noise
    told = cwf(noisy, 1.0, transfer=transfer, group=group)
    untold = cwf(noisy, 1.0)

    def error(images, of=slice(None)):
        return (images - clean)[of].square().mean() / clean[of].square().mean()

    assert error(told) < 0.8 * error(untold)
    scaled = cwf(-7 * noisy + 5, 7.0, transfer=transfer, group=group)  # another unit and sign
    assert (scaled - 5 + 7 * told).norm() < 0.01 * (7 * told).norm()
    half = torch.arange(len(clean)) < len(clean) // 2
    learnt = cwf(noisy, 1.0, transfer=transfer, group=group, learn_from=half)
    assert error(learnt, ~half) < 1.2 * error(told, ~half)


def test_a_transfer_function_is_read_at_the_rings_in_cycles_per_box():
    found = _at_rings(torch.arange(13.0)[None], 24)[0]
    torch.testing.assert_close(found, torch.from_numpy(24 * _rings(24)[2]).float())


def test_images_that_are_all_alike_but_for_their_transfer_are_their_mean():
    mean, filters = torch.tensor([3.0, -2.0]), [torch.diag(torch.tensor([1.0, h])) for h in (2, 5)]
    members = list(torch.arange(30).split(10))[:2]
    observed = torch.stack([mean @ filters[k] for k in (0, 1)]).repeat_interleave(10, 0)[None]
    found = _denoise_order(observed, members, members, filters, centred=False)
    torch.testing.assert_close(found, mean.expand(1, 20, 2))


def test_what_it_cannot_take():
    with pytest.raises(ValueError, match="sigma"):
        cwf(torch.zeros(4, 8, 8), 0.0)
    for images in (torch.zeros(8, 8), torch.zeros(2, 8, 9), torch.full((2, 8, 8), torch.nan)):
        with pytest.raises(ValueError, match="finite stack"):
            cwf(images, 1.0)
