#!/usr/bin/env bash
# cryosparc-tools 5.0.3, mrcfile 1.5.4: `cryosparc.mrc.write` has one header for maps and stacks, with space
# group 0 and no version of the format. MRC2014 calls that a stack of images: mrcfile reads a map of 16³
# as 16 images, and its validator refuses the file. One would expect a volume.
# Seen: is_volume() False, is_image_stack() True, validate() False.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q cryosparc-tools==5.0.3 mrcfile==1.5.4
cd "$tmp"
env/bin/python - <<'PY'
import mrcfile
import numpy as np
from cryosparc import mrc

mrc.write("map.mrc", np.random.default_rng(0).normal(size=(16, 16, 16)).astype("f4"), 1.5)
with mrcfile.open("map.mrc") as m:
    seen = m.is_volume(), m.is_image_stack(), int(m.header.ispg), int(m.header.nversion)
valid = mrcfile.validate("map.mrc")
print("volume, stack, space group, version:", seen, "valid:", valid)
assert seen == (False, True, 0, 0) and not valid, "the behaviour has changed"
PY
