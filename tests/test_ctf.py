"""The CTF against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch_ctf import calculate_ctf_2d

from cryonb.physics.ctf import apply_ctf, beam_tilt_phase, ctf


@pytest.mark.parametrize("box", [64, 65])
@pytest.mark.parametrize("voltage_kv", [200.0, 300.0])
def test_ctf_equals_the_formula(box, voltage_kv):
    pixel_A, cs_A, contrast = 2.0, 2.7e7, 0.07
    values = [1.5, 2.0, 2.0, 2.0], [0.1, 0.2, -0.2, 0.0], [20.0, 70.0, -70.0, 10.0]
    defocus, astigmatism, angle = map(torch.tensor, values)
    ky = torch.fft.fftfreq(box, pixel_A).double()[:, None]
    kx = torch.fft.rfftfreq(box, pixel_A).double()[None]
    k2 = ky**2 + kx**2
    volts = voltage_kv * 1e3
    lam = 12.2643247 / math.sqrt(volts * (1 + volts * 0.978466e-6))  # Å, as in RELION
    direction = torch.atan2(ky, kx) - torch.deg2rad(angle)[:, None, None]
    dz = 1e4 * (defocus[:, None, None] + astigmatism[:, None, None] * torch.cos(2 * direction))
    chi = math.pi * lam * dz * k2 - math.pi / 2 * cs_A * lam**3 * k2**2
    expected = torch.sin(chi + math.asin(contrast)).float()
    result = ctf(
        box,
        pixel_A,
        defocus,
        astigmatism_um=astigmatism,
        astigmatism_angle_deg=angle,
        voltage_kv=voltage_kv,
        amplitude_contrast=contrast,
    )
    # float32 phases of up to 70 radians: rounding of a few 1e-4.
    torch.testing.assert_close(result, expected, atol=2e-3, rtol=0)


def test_ctf_agrees_with_torch_ctf():
    defocus, angle = torch.tensor([0.6, 2.1]), torch.tensor([20.0, -70.0])
    theirs = calculate_ctf_2d(
        defocus=defocus,
        astigmatism=0.1,
        astigmatism_angle=angle,
        voltage=200.0,
        spherical_aberration=2.0,
        amplitude_contrast=0.07,
        phase_shift=30.0,
        pixel_size=1.5,
        image_shape=(64, 64),
        rfft=True,
        fftshift=False,
    )
    optics = {"voltage_kv": 200.0, "spherical_aberration_mm": 2.0, "amplitude_contrast": 0.07}
    bent = {"astigmatism_um": 0.1, "astigmatism_angle_deg": angle, "phase_shift_deg": 30.0}
    torch.testing.assert_close(ctf(64, 1.5, defocus, **optics, **bent), theirs, atol=2e-3, rtol=0)


def test_sign_and_value_at_zero_frequency():
    c = ctf(64, 3.0, torch.tensor([0.5, 1.0, 3.0]), amplitude_contrast=0.1)
    torch.testing.assert_close(c[:, 0, 0], torch.full((3,), 0.1))  # Q exactly
    assert (c[:, 0, :3] > 0).all() and (c[:, :3, 0] > 0).all()  # underfocus: bright stays bright
    assert (ctf(64, 3.0, -1.0)[0, 0, 4:9] < 0).all()  # overfocus inverts


@pytest.mark.parametrize("box", [16, 17])
def test_apply_ctf_multiplies_the_transform(box):
    images = torch.randn(3, box, box)
    c = ctf(box, 3.0, torch.tensor([1.0, 1.5, 2.0]))
    torch.testing.assert_close(apply_ctf(images, torch.ones_like(c)), images)
    # A real, centrosymmetric filter: the mean is multiplied by its value at zero frequency.
    torch.testing.assert_close(
        apply_ctf(images, c).mean((1, 2)), 0.1 * images.mean((1, 2)), atol=1e-6, rtol=1e-4
    )
    assert apply_ctf(images[None].expand(2, -1, -1, -1), c).shape == (2, 3, box, box)


def test_defocus_u_and_v_may_change_places():
    given = {"astigmatism_um": torch.tensor([0.025]), "astigmatism_angle_deg": 20.0}
    turned = {"astigmatism_um": torch.tensor([-0.025]), "astigmatism_angle_deg": 110.0}
    torch.testing.assert_close(ctf(32, 3.0, 1.5, **turned), ctf(32, 3.0, 1.5, **given))


def test_unphysical_optics_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        ctf(64, 3.0, torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="positive"):
        ctf(64, 0.0, 1.0)
    with pytest.raises(ValueError, match="positive"):
        ctf(64, 3.0, 1.0, voltage_kv=0.0)


def test_a_tilt_of_a_milliradian_by_arithmetic():
    """-2 pi Cs lambda^2 k^2 (k . tilt), along k and across it; RELION judges the sign, too."""
    k = torch.tensor([[0.1, 0.0], [0.0, 0.1]])[None, None]
    found = beam_tilt_phase(k, torch.tensor([[1.0, 0.0]]), 300.0, 2.7)
    expected = -2 * math.pi * 2.7e7 * 0.0196875**2 * 0.1**2 * 0.1 * 1e-3
    torch.testing.assert_close(found, torch.tensor([[[expected, 0.0]]]), rtol=1e-4, atol=0)
