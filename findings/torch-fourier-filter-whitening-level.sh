#!/usr/bin/env bash
# torch-fourier-filter 0.6.0: the whitening filter is scaled so that its largest value is 1. It makes a
# spectrum flat, but not of variance 1: how high the flat line lies depends on the one shell with the least
# power. One would expect whitened noise to have a standard deviation of 1.
# Seen: noise of standard deviation 1 and 10, "whitened": 0.9 and 9.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q torch==2.13.0 torch-fourier-filter==0.6.0 numpy
cd "$tmp"
env/bin/python - <<'PY'
import torch
from torch_fourier_filter.whitening import whitening_filter

noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
deviations = []
for scale in (1, 10):
    transform = torch.fft.rfft2(scale * noise)
    white = torch.fft.irfft2(transform * whitening_filter(transform))
    deviations.append(float(white.std()))
print("standard deviation after whitening:", deviations)
assert abs(deviations[0] - 0.9) < 0.05 and abs(deviations[1] - 9) < 0.5, "the behaviour has changed"
PY
