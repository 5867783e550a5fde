#!/usr/bin/env bash
# RELION 3.1.3 (Debian): beside an optics table, rlnOriginX/Y in pixels (the columns of 3.0) are
# ignored without a word; only rlnOriginXAngst/YAngst count. RELION's own relion_project writes
# files with both. One would expect pixels x pixel size, or an error.
# Seen: the blob at x = 3 px goes to 6 px for rlnOriginXAngst -9 (3 A/px), stays for rlnOriginX -3.
set -euo pipefail
command -v relion_project >/dev/null || apt-get install -y -qq --no-install-recommends relion
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q mrcfile==1.5.4 numpy==2.4.6
cd "$tmp"
env/bin/python - <<'PY'
import subprocess
from pathlib import Path

import mrcfile, numpy as np

k = np.arange(32) - 16
z, y, x = np.meshgrid(k, k, k, indexing="ij")
with mrcfile.new("v.mrc") as mrc:
    mrc.set_data(np.exp(-((x - 3) ** 2 + (y - 2) ** 2 + z**2) / 8).astype(np.float32))
    mrc.voxel_size = 3.0

def table(name, values):
    labels = "".join(f"_rln{label} #{i}\n" for i, label in enumerate(values, 1))
    return f"data_{name}\n\nloop_\n{labels}{' '.join(map(str, values.values()))}\n\n"

OPTICS = {"OpticsGroup": 1, "OpticsGroupName": "g", "Voltage": 300.0, "SphericalAberration": 2.7,
          "AmplitudeContrast": 0.1, "ImagePixelSize": 3.0, "ImageSize": 32,
          "ImageDimensionality": 2}
POSE = {"ImageName": "000001@x.mrcs", "OpticsGroup": 1, "AngleRot": 0.0, "AngleTilt": 0.0,
        "AnglePsi": 0.0}

def peak_x(name, shift):
    text = table("optics", OPTICS) + table("particles", POSE | shift)
    Path(f"{name}.star").write_text(text)
    call = ["relion_project", "--i", "v.mrc", "--ang", f"{name}.star", "--o", name]
    subprocess.run(call, check=True, capture_output=True)
    image = mrcfile.read(f"{name}.mrcs").reshape(32, 32)
    return int(np.unravel_index(image.argmax(), image.shape)[1]) - 16

shifts = {}, {"OriginXAngst": -9.0, "OriginYAngst": 0.0}, {"OriginX": -3.0, "OriginY": 0.0}
found = [peak_x(f"p{i}", shift) for i, shift in enumerate(shifts)]
print("x of the projection: no shift, -9 A, -3 px:", found)
assert found == [3, 6, 3], "the behaviour has changed"
PY
