#!/usr/bin/env bash
# torch-ctf 0.6.0: a negative astigmatism, as (DefocusU - DefocusV) / 2 is in many STAR files, gives
# a CTF of NaN. One would expect the ellipse of the positive value turned by 90 degrees, as the
# formula of Rohou and Grigorieff (2015) says; no error is raised.
# Seen: 544 of 544 values are NaN for -0.025 um, none for +0.025 um.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q torch==2.13.0 torch-ctf==0.6.0 torch-grid-utils==0.6.0
"$tmp/env/bin/python" - <<'PY'
from torch_ctf import calculate_ctf_2d

def count_nan(astigmatism_um):
    ctf = calculate_ctf_2d(
        defocus=1.5, astigmatism=astigmatism_um, astigmatism_angle=20.0, voltage=300.0,
        spherical_aberration=2.7, amplitude_contrast=0.1, phase_shift=0.0, pixel_size=3.0,
        image_shape=(32, 32), rfft=True, fftshift=False,
    )
    return int(ctf.isnan().sum()), ctf.numel()

found = count_nan(0.025), count_nan(-0.025)
print("NaN of all values, U > V and U < V:", found)
assert found == ((0, 544), (544, 544)), "the behaviour has changed"
PY
