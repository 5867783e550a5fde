#!/usr/bin/env bash
# Where a map lies: gemmi 0.7.5 places it by NSTART and ignores MRC2014's ORIGIN, and
# relion_image_handler of RELION 3.1.3 (Debian) writes both as zero, whatever the input has. One would
# expect ORIGIN, which ChimeraX writes, to count as NSTART does, and a copy to lie where the map lay.
# Seen: the density at x = 8 A is found there by gemmi for NSTART 4 (2 A/px), and at x = 0 for
# ORIGIN 8; the copy of a map with NSTART 5 and ORIGIN 10 has 0 and 0.
set -euo pipefail
command -v relion_image_handler >/dev/null || apt-get install -y -qq --no-install-recommends relion
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q gemmi==0.7.5 mrcfile==1.5.4 numpy==2.4.6
cd "$tmp"
env/bin/python - <<'PY'
import subprocess

import gemmi, mrcfile, numpy as np

def write(name, nxstart=0, origin_x=0.0):
    data = np.zeros((16, 16, 16), np.float32)
    data[0, 0, 0] = 1
    with mrcfile.new(name, data=data) as mrc:
        mrc.voxel_size = 2.0
        mrc.header.nxstart, mrc.header.origin.x = nxstart, origin_x

def at_x(name, x_A):
    grid = gemmi.read_ccp4_map(name, setup=True).grid
    return round(grid.interpolate_value(gemmi.Position(x_A, 0, 0)), 3)

write("start.mrc", nxstart=4)
write("origin.mrc", origin_x=8.0)
found = [at_x("start.mrc", 8), at_x("origin.mrc", 8), at_x("origin.mrc", 0)]
print("gemmi: NSTART at 8 A, ORIGIN at 8 A, ORIGIN at 0 A:", found)
assert found == [1.0, 0.0, 1.0], "the behaviour has changed"

write("both.mrc", nxstart=5, origin_x=10.0)
call = ["relion_image_handler", "--i", "both.mrc", "--o", "copy.mrc", "--multiply_constant", "1"]
subprocess.run(call, check=True, capture_output=True)
with mrcfile.open("copy.mrc") as mrc:
    kept = int(mrc.header.nxstart), float(mrc.header.origin.x)
print("RELION's copy, NSTART and ORIGIN:", kept)
assert kept == (0, 0.0), "the behaviour has changed"
PY
