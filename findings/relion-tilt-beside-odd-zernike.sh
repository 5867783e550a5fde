#!/usr/bin/env bash
# RELION 3.1.3 (Debian): where the optics table has both rlnBeamTiltX/Y and rlnOddZernike, the tilt,
# even of 0, takes the place of the coma coefficients (the fourth and fifth), without a word; the
# others stay. One would expect their sum, or an error.
# Seen: beside a tilt, maps of [1,-2,0,-40,30,9] and [1,-2,0,0,0,9] are the same, voxel by voxel;
# without the columns of the tilt they differ.
set -euo pipefail
command -v relion_reconstruct >/dev/null || apt-get install -y -qq --no-install-recommends relion
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q mrcfile==1.5.4 numpy==2.4.6
cd "$tmp"
env/bin/python - <<'PY'
import subprocess
from pathlib import Path

import mrcfile, numpy as np

rng = np.random.default_rng(0)
with mrcfile.new("x.mrcs") as mrc:
    mrc.set_data(rng.normal(size=(20, 32, 32)).astype(np.float32))
    mrc.set_image_stack()
    mrc.voxel_size = 3.0
OPTICS = {"OpticsGroup": 1, "OpticsGroupName": "g", "Voltage": 300.0, "SphericalAberration": 2.7,
          "AmplitudeContrast": 0.1, "ImagePixelSize": 3.0, "ImageSize": 32,
          "ImageDimensionality": 2}
ROWS = [{"ImageName": f"{k:06d}@x.mrcs", "OpticsGroup": 1, "AngleRot": a, "AngleTilt": b,
         "AnglePsi": c, "DefocusU": 15000.0, "DefocusV": 15000.0, "DefocusAngle": 0.0}
        for k, (a, b, c) in enumerate(rng.uniform(0, 180, (20, 3)), 1)]

def table(name, rows):
    labels = "".join(f"_rln{label} #{i}\n" for i, label in enumerate(rows[0], 1))
    lines = "".join(" ".join(map(str, row.values())) + "\n" for row in rows)
    return f"data_{name}\n\nloop_\n{labels}{lines}\n"

def map_of(tilt, odd):
    optics = OPTICS | {"OddZernike": odd}
    if tilt is not None:
        optics |= {"BeamTiltX": tilt, "BeamTiltY": 0.0}
    Path("p.star").write_text(table("optics", [optics]) + table("particles", ROWS))
    call = "relion_reconstruct --i p.star --ctf --o r.mrc".split()
    subprocess.run(call, check=True, capture_output=True)
    return mrcfile.read("r.mrc").copy()

LONG, SHORT = "[1,-2,0,-40,30,9]", "[1,-2,0,0,0,9]"
same = {tilt: np.array_equal(map_of(tilt, LONG), map_of(tilt, SHORT)) for tilt in (20.0, 0.0, None)}
print("the same map of", LONG, "and", SHORT, "by beam tilt in mrad:", same)
assert same == {20.0: True, 0.0: True, None: False}, "the behaviour has changed"
PY
