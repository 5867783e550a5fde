#!/usr/bin/env bash
# gemmi 0.7.5: a stack of ten particle images (MRC, space group 0, MZ = 1), read as a CCP4 map,
# keeps one image at setup(): the cell is one section high, so ten sections are taken for ten
# repeats of one. One would expect all ten, or an error.
# Seen: the grid goes from 16 x 16 x 10 to 16 x 16 x 1, without a warning.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q gemmi==0.7.5 mrcfile==1.5.4 numpy==2.4.6
cd "$tmp"
env/bin/python - <<'PY'
import gemmi, mrcfile, numpy as np

with mrcfile.new("stack.mrcs") as mrc:
    mrc.set_data(np.random.default_rng(0).normal(size=(10, 16, 16)).astype(np.float32))
    mrc.set_image_stack()
    mrc.voxel_size = 2.0
stack = gemmi.read_ccp4_map("stack.mrcs")
before = stack.grid.shape
stack.setup(0.0)
print("before setup", before, "after", stack.grid.shape)
assert (before, stack.grid.shape) == ((16, 16, 10), (16, 16, 1)), "the behaviour has changed"
PY
