#!/usr/bin/env bash
# torch-fourier-shell-correlation 0.6.0: the FSC of an empty map (all zeros) with any other is 1 in
# shell 0 and 0 elsewhere, as if the mean were shared. 0 / 0 is undefined: one would expect NaN or 0
# in every shell, as the correlation coefficient of a constant has in numpy.
# Seen: 1, 0, 0, ... for an empty map with noise, and for two empty maps.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q torch==2.13.0 torch-fourier-shell-correlation==0.6.0
"$tmp/env/bin/python" - <<'PY'
import torch
from torch_fourier_shell_correlation import fsc

empty, noise = torch.zeros(16, 16, 16), torch.randn(16, 16, 16)
curves = fsc(empty, noise), fsc(empty, empty)
print(*curves, sep="\n")
for curve in curves:
    assert curve[0] == 1 and (curve[1:] == 0).all(), "the behaviour has changed"
PY
