#!/usr/bin/env bash
# RELION 3.1.3 (Debian): relion_project moves the projection of an odd box by one pixel along both
# axes. One would expect the centre n // 2 to be kept as it is for even boxes; so odd boxes are no
# ground on which to judge other software by it.
# Seen: a blob 3 px from the centre of a 32 px box projects to 3.0 px, of a 33 px box to 4.0 px.
set -euo pipefail
command -v relion_project >/dev/null || apt-get install -y -qq --no-install-recommends relion
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q mrcfile==1.5.4 numpy==2.4.6
cd "$tmp"
env/bin/python - <<'PY'
import subprocess

import mrcfile, numpy as np

def peak_x(n):
    k = np.arange(n) - n // 2
    z, y, x = np.meshgrid(k, k, k, indexing="ij")
    with mrcfile.new(f"v{n}.mrc") as mrc:
        mrc.set_data(np.exp(-((x - 3) ** 2 + (y - 2) ** 2 + z**2) / 8).astype(np.float32))
        mrc.voxel_size = 3.0
    turn = ["--rot", "0", "--tilt", "0", "--psi", "0"]
    call = ["relion_project", "--i", f"v{n}.mrc", "--o", f"p{n}.mrc", *turn]
    subprocess.run(call, check=True, capture_output=True)
    image = mrcfile.read(f"p{n}.mrc")
    return int(np.unravel_index(image.argmax(), image.shape)[1]) - n // 2

found = peak_x(32), peak_x(33)
print("x of the blob's projection, 32 and 33 px (true: 3):", found)
assert found == (3, 4), "the behaviour has changed"
PY
