#!/usr/bin/env bash
# cryosparc-tools 5.0.3: `downsample` adds the pixels of a bin, so that grey values grow with the square of the
# factor, and a stack of one image comes back without its first axis, a stack of two with it. One would
# expect means, and as many axes.
# Seen: ones become 4 (factor 2) and 9 (factor 3); (1, 12, 12) becomes (6, 6), (2, 12, 12) becomes (2, 6, 6).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q cryosparc-tools==5.0.3
cd "$tmp"
env/bin/python - <<'PY'
import numpy as np
from cryosparc.tools import downsample

values = [float(downsample(np.ones((12, 12), "f4"), k).mean()) for k in (2, 3)]
shapes = [downsample(np.ones((n, 12, 12), "f4"), 2).shape for n in (1, 2)]
print("ones become", values, "shapes", shapes)
assert values == [4, 9] and shapes == [(6, 6), (2, 6, 6)], "the behaviour has changed"
PY
