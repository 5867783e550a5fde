#!/usr/bin/env bash
# torch-so3 0.6.0: the last ring of the uniform grid of directions lies up to a step beyond the range that was
# asked for, and beyond the pole, where the step does not divide it; HEALPix grids of the same call end inside.
# Seen: directions in steps of 7° have a tilt of up to 182°, those of a hemisphere one of 91°.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q torch==2.13.0 torch-so3==0.6.0
cd "$tmp"
env/bin/python - <<'PY'
from torch_so3 import get_uniform_euler_angles

highest = {
    (method, limit): float(
        get_uniform_euler_angles(theta_step=7, psi_step=90, theta_max=limit, base_grid_method=method)[:, 1].max()
    )
    for method in ("uniform", "healpix")
    for limit in (180, 90)
}
print(highest)
assert highest["uniform", 180] == 182 and highest["uniform", 90] == 91, "the behaviour has changed"
assert highest["healpix", 180] < 180 and highest["healpix", 90] <= 90, "the behaviour has changed"
PY
