#!/usr/bin/env bash
# cryospax 0.2.1 (cryojax 0.6.0): the CTF that it reads from a STAR file has DefocusU along y where
# rlnDefocusAngle is 0, and turns the other way: it takes the angle A as 90 - A. In RELION, whose
# file it is, A counts from x towards y. One would expect the CTF of RELION (or of CTFFIND, whose
# formula is the same).
# Seen: with U 20000 A, V 10000 A and angle 0, the CTF along x is that of 10000 A; up to a sign.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q cryospax==0.2.1 cryojax==0.6.0
cd "$tmp"
env/bin/python - <<'PY'
from pathlib import Path

import jax.numpy as jnp, numpy as np
from cryospax import RelionParticleParameterFile

def table(name, values):
    labels = "".join(f"_rln{label} #{i}\n" for i, label in enumerate(values, 1))
    return f"data_{name}\n\nloop_\n{labels}{' '.join(map(str, values.values()))}\n\n"

OPTICS = {"OpticsGroup": 1, "OpticsGroupName": "g", "Voltage": 300.0, "SphericalAberration": 2.7,
          "AmplitudeContrast": 0.1, "ImagePixelSize": 3.0, "ImageSize": 32,
          "ImageDimensionality": 2}
ROW = {"ImageName": "000001@x.mrcs", "OpticsGroup": 1, "DefocusU": 20000.0, "DefocusV": 10000.0,
       "DefocusAngle": 0.0, "PhaseShift": 0.0, "AngleRot": 0.0, "AngleTilt": 0.0, "AnglePsi": 0.0,
       "OriginXAngst": 0.0, "OriginYAngst": 0.0}
Path("p.star").write_text(table("optics", OPTICS) + table("particles", ROW))
theory = RelionParticleParameterFile.load("p.star")[0]["transfer_theory"]

k, wave = np.linspace(0.01, 0.12, 40), 0.0196875
along_x = jnp.asarray(np.stack([k, 0 * k], axis=-1)[None])
found = np.abs(np.asarray(theory.ctf(along_x, wave, amplitude_contrast_ratio=0.1))[0])

def known(defocus_A):
    chi = np.pi * wave * defocus_A * k**2 - np.pi / 2 * 2.7e7 * wave**3 * k**4 + np.arcsin(0.1)
    return np.abs(np.sin(chi))

off = {name: round(float(np.abs(found - known(name)).max()), 3) for name in (20000.0, 10000.0)}
print("largest difference of |CTF| along x from that of U and of V:", off)
assert off[20000.0] > 0.5 and off[10000.0] < 0.02, "the behaviour has changed"
PY
