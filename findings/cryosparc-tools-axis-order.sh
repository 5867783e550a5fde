#!/usr/bin/env bash
# cryosparc-tools 5.0.3, gemmi 0.7.5: `cryosparc.mrc.read` takes the axes of a file in the order of its
# bytes and never looks at MAPC, MAPR and MAPS. A map that is stored z fastest, as crystallographic programs
# may, comes back with its axes exchanged, without a word. One would expect z, y, x, or an error.
# Seen: a point that gemmi finds at x, y, z = 1, 2, 5 is found at 5, 2, 1.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q cryosparc-tools==5.0.3 gemmi==0.7.5 mrcfile==1.5.4
cd "$tmp"
env/bin/python - <<'PY'
import gemmi
import mrcfile
import numpy as np
from cryosparc import mrc

values = np.zeros((8, 9, 10), "f4")  # sections of x, rows of y, columns of z
values[1, 2, 5] = 1
with mrcfile.new("zyx.mrc") as m:
    m.set_data(values)
    m.set_volume()
    m.header.mapc, m.header.mapr, m.header.maps = 3, 2, 1
    m.header.mx, m.header.my, m.header.mz = m.header.cella = 8, 9, 10

ccp4 = gemmi.read_ccp4_map("zyx.mrc")
ccp4.setup(0.0)
right = np.argwhere(np.array(ccp4.grid) == 1)[0].tolist()
read = np.argwhere(mrc.read("zyx.mrc")[1] == 1)[0].tolist()[::-1]
print("x, y, z: gemmi", right, "cryosparc-tools", read)
assert right == [1, 2, 5] and read == [5, 2, 1], "the behaviour has changed"
PY
