#!/usr/bin/env bash
# starfile 0.5.13: a table that is read and written again is another one, without a word. Numbers
# are printed with six decimals, so a small one becomes zero; an apostrophe inside a word becomes a
# quotation mark; leading zeros go. One would expect what nobody touched to come back.
# Seen: 0.00000012345 -> 0.000000, o'neill -> o"neill, 001 -> 1.000000.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q starfile==0.5.13 pandas==3.1.1
cd "$tmp"
env/bin/python - <<'PY'
from pathlib import Path

import starfile

labels = ["rlnCtfScalefactor", "rlnMicrographName"]
head = "data_particles\n\nloop_\n" + "".join(f"_{name} #{i}\n" for i, name in enumerate(labels, 1))
Path("given.star").write_text(head + "001 o'neill\n0.00000012345 plain\n")
starfile.write(starfile.read("given.star"), "written.star")
rows = [line.split() for line in Path("written.star").read_text().splitlines()]
rows = [row for row in rows if len(row) == 2 and not row[0].startswith(("_", "#"))]
print("written:", rows)
assert rows == [["1.000000", 'o"neill'], ["0.000000", "plain"]], "the behaviour has changed"
PY
