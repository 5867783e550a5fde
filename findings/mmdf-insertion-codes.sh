#!/usr/bin/env bash
# mmdf 0.0.5 (what TeamTomo's simulators read models with): its table has no insertion codes and no labels of
# alternative conformations. Residues 52 and 52A become one when the table is written again, under the name of
# the first; and `write` writes the PDB format whatever the file is called, so that `read` refuses its own .cif.
# Seen: a glycine 52 and an alanine 52A come back as one glycine 52 of five atoms, two of them both called CA A.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q mmdf==0.0.5 gemmi==0.7.5 pandas==2.3.3
cd "$tmp"
cat > in.pdb <<'PDB'
ATOM      1  N   GLY A  52       0.000   0.000   0.000  1.00 10.00           N
ATOM      2  CA  GLY A  52       1.458   0.000   0.000  1.00 10.00           C
ATOM      3  N   ALA A  52A      5.000   0.000   0.000  1.00 10.00           N
ATOM      4  CA AALA A  52A      6.458   0.000   0.000  0.60 10.00           C
ATOM      5  CA BALA A  52A      6.458   0.900   0.000  0.40 10.00           C
END
PDB
env/bin/python - <<'PY'
import gemmi
import mmdf

table = mmdf.read("in.pdb")
mmdf.write("out.pdb", table)
before, after = (
    [(r.name, str(r.seqid), len(r)) for r in gemmi.read_structure(name)[0]["A"]] for name in ("in.pdb", "out.pdb")
)
print("before:", before, "after:", after)
assert before == [("GLY", "52", 2), ("ALA", "52A", 3)] and after == [("GLY", "52", 5)], "the behaviour has changed"
mmdf.write("out.cif", table)
try:
    mmdf.read("out.cif")
    raise SystemExit("the behaviour has changed")
except ValueError as error:
    print("reading out.cif:", error)
PY
