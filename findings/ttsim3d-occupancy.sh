#!/usr/bin/env bash
# ttsim3d 0.4.2 (simulates maps of models for 2D template matching): occupancies are not read. An atom with two
# alternative conformations of 0.6 and 0.4 counts twice, one with an occupancy of 0.5 counts whole.
# Seen: the potential of one carbon, of the same carbon as two conformations in one place, and of half a carbon:
# 1, 2 and 1.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q torch==2.13.0 ttsim3d==0.4.2
cd "$tmp"
env/bin/python - <<'PY'
from pathlib import Path

from ttsim3d.pdb_handler import load_model
from ttsim3d.simulate3d import simulate3d

LINE = "ATOM  {:5d}  CA {}ALA A   1       0.000   0.000   0.000  {:4.2f} 20.00           C\n"


def potential(*atoms):
    Path("m.pdb").write_text("".join(LINE.format(i, *atom) for i, atom in enumerate(atoms, 1)) + "END\n")
    return float(simulate3d(*load_model("m.pdb"), 300.0, 1.0, (32, 32, 32), apply_dose_weighting=False, device="cpu").sum())


one = potential((" ", 1.0))
shares = [potential(*atoms) / one for atoms in ([("A", 0.6), ("B", 0.4)], [(" ", 0.5)])]
print("two conformations, half an atom, as parts of one atom:", [round(share, 3) for share in shares])
assert abs(shares[0] - 2) < 0.01 and abs(shares[1] - 1) < 0.01, "the behaviour has changed"
PY
