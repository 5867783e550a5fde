#!/usr/bin/env bash
# RELION 3.1.3 (Debian): a blank line inside the table of a STAR file ends it, and the rows behind it
# are dropped without a word. CIF, whose subset STAR is, takes white space of any kind between
# values, so one would expect all rows, or an error.
# Seen: relion_project makes 3 images of a table of 3 rows, and 1 where a blank line follows the
# first; exit code 0 both times.
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

with mrcfile.new("v.mrc") as mrc:
    mrc.set_data(np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32))
    mrc.voxel_size = 3.0
head = """data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 g 300.0 2.7 0.1 3.0 32 2

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnAngleRot #3
_rlnAngleTilt #4
_rlnAnglePsi #5
"""

def count(name, gap):
    rows = [f"{i}@x.mrcs 1 {10.0 * i} 20.0 30.0\n" for i in (1, 2, 3)]
    Path(f"{name}.star").write_text(head + rows[0] + gap + "".join(rows[1:]))
    call = ["relion_project", "--i", "v.mrc", "--ang", f"{name}.star", "--o", name]
    subprocess.run(call, check=True, capture_output=True)
    return mrcfile.read(f"{name}.mrcs").reshape(-1, 32, 32).shape[0]

found = count("whole", ""), count("parted", "\n")
print("images, of a whole table and of one with a blank line:", found)
assert found == (3, 1), "the behaviour has changed"
PY
