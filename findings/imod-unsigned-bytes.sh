#!/usr/bin/env bash
# mrcfile 1.5.4 and RELION 3.1.3 (Debian): bytes of mode 0 that IMOD's stamp in the header calls
# unsigned (imodStamp 1146047817, bit 0 of imodFlags clear) are read as signed by both, without a
# word. One would expect the stamp, which IMOD itself goes by, to be honoured or warned of.
# Seen: 200 comes out as -56 in both.
set -euo pipefail
command -v relion_image_handler >/dev/null || apt-get install -y -qq --no-install-recommends relion
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q mrcfile==1.5.4 numpy==2.4.6
cd "$tmp"
env/bin/python - <<'PY'
import struct, subprocess, warnings
from pathlib import Path

import mrcfile, numpy as np

values = np.full((16, 16), 50, np.uint8)
values[4:8] = 200
with mrcfile.new("bytes.mrc", data=values.view(np.int8)) as mrc:
    mrc.voxel_size = 2.0
file = bytearray(Path("bytes.mrc").read_bytes())
file[152:160] = struct.pack("<ii", 1146047817, 0)
Path("bytes.mrc").write_bytes(file)
call = ["relion_image_handler", "--i", "bytes.mrc", "--o", "copied.mrc"]
subprocess.run(call, check=True, capture_output=True)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = [sorted(set(mrcfile.read(p).ravel().tolist())) for p in ("bytes.mrc", "copied.mrc")]
print("given 50 and 200; mrcfile and RELION read:", found)
assert found == [[-56, 50], [-56.0, 50.0]], "the behaviour has changed"
PY
