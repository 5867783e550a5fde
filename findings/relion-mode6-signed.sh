#!/usr/bin/env bash
# RELION 3.1.3 (Debian): an MRC file of mode 6 (unsigned 16 bits, MRC2014; detectors write it) is
# read as signed, so counts above 32,767 become negative. One would expect the values, or a refusal.
# Seen: 40,000 comes out of relion_image_handler as -25,536, exit code 0.
set -euo pipefail
command -v relion_image_handler >/dev/null || apt-get install -y -qq --no-install-recommends relion
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q mrcfile==1.5.4 numpy==2.4.6
cd "$tmp"
env/bin/python - <<'PY'
import subprocess

import mrcfile, numpy as np

counts = np.full((16, 16), 1000, np.uint16)
counts[4:8] = 40000
with mrcfile.new("counts.mrc", data=counts) as mrc:
    mrc.voxel_size = 2.0
    assert mrc.header.mode == 6
call = ["relion_image_handler", "--i", "counts.mrc", "--o", "copied.mrc"]
subprocess.run(call, check=True, capture_output=True)
copied = mrcfile.read("copied.mrc")
print("given 1000 and 40000, copied:", sorted(set(copied.ravel().tolist())))
assert sorted(set(copied.ravel().tolist())) == [-25536.0, 1000.0], "the behaviour has changed"
PY
