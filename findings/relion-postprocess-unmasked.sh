#!/usr/bin/env bash
# RELION 3.1.3 (Debian): relion_postprocess without a mask writes its map and its STAR file and then
# ends with exit code 1, since it plots a column that only masked runs have. One would expect 0, or
# an error before the work.
# Seen: pp.mrc and pp.star are there, exit code 1, "cannot find y-axis label".
set -euo pipefail
command -v relion_postprocess >/dev/null || apt-get install -y -qq --no-install-recommends relion
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q mrcfile==1.5.4 numpy==2.4.6
cd "$tmp"
env/bin/python - <<'PY'
import pathlib, subprocess

import mrcfile, numpy as np

rng, k = np.random.default_rng(0), np.arange(32) - 16
volume = np.exp(-(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2) / 30)
for half in ("half1", "half2"):
    with mrcfile.new(f"{half}_class001_unfil.mrc") as mrc:
        mrc.set_data((volume + 0.05 * rng.normal(size=volume.shape)).astype(np.float32))
        mrc.voxel_size = 3.0
halves = ["--i", "half1_class001_unfil.mrc", "--i2", "half2_class001_unfil.mrc"]
call = ["relion_postprocess", *halves, "--o", "pp", "--angpix", "3"]
done = subprocess.run(call, capture_output=True, text=True)
written = sorted(p.name for p in pathlib.Path().glob("pp.*"))
print("exit code", done.returncode, "written", written)
assert done.returncode == 1 and "cannot find y-axis label" in done.stderr, "it has changed"
assert {"pp.mrc", "pp.star"} <= set(written), "the behaviour has changed"
PY
