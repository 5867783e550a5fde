r"""The conventions of the whole package, stated once.

Arrays
    Images are ``(n, y, x)`` and volumes ``(z, y, x)`` float32 tensors. The centre of a box of
    ``n`` pixels is index ``n // 2`` on every axis, for even and odd ``n``.
Contrast
    Particles are bright: positive on a background of zero.
Rotations
    A pose ``R`` ``(3, 3)`` acts on column vectors ``(x, y, z)`` and carries image coordinates to
    volume coordinates: ``I(x, y) = sum over z of V(R (x, y, z))``. A volume that has the symmetry
    ``g`` looks alike from ``R`` and ``g R``. The RELION angles of ``R`` are intrinsic ZYZ:
    ``R = Rz(rot) Ry(tilt) Rz(psi)``.
Shifts
    ``shifts_px`` ``(n, 2)`` is ``(y, x)``: where the particle sits relative to the box centre,
    positive towards larger index. RELION's origin is the move that brings it back:
    ``rlnOriginXAngst = -shift_x * pixel_size_A``.
Fourier transforms
    ``torch.fft.rfftn`` layout, the origin of space at index ``n // 2``. Shell ``s`` holds the
    frequencies whose rounded radius is ``s``, that is ``s / (n * pixel_size_A)`` in 1/Å; the
    Nyquist shell is ``n // 2``.
CTF
    Positive at low frequency for underfocus, so that particles stay bright; at zero frequency it
    equals the amplitude contrast. ``defocus_um`` is positive for underfocus.
Signal-to-noise ratio
    Variance of the clean target over the whole box, pooled over the data set, divided by the
    variance of the white noise, which has one sigma for the whole data set. It belongs to a pixel
    size and a box: at one dose it falls with the area of a pixel, to 0.26 for half the pixel size,
    and with empty margins, to 0.50 for 1.5 times the box (the channel in 64 px of 3 Å).
Image quality
    MSE is the mean over pixels of ``(a - b)**2``, per image. PSNR is ``10 log10(range**2 / MSE)``
    per image, with the range (maximum - minimum) of that clean image. SSIM uses a Gaussian window
    of sigma 1.5 and the same range. Means over a data set are means of the values per image. Each
    can be restricted to a mask.
Resolution
    FSC = 0.5 against a known truth, 0.143 between two half maps.
"""

from __future__ import annotations

FSC_TRUTH = 0.5
FSC_HALF_MAPS = 0.143
