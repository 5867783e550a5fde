#!/usr/bin/env bash
# starfile 0.5.13: in one process, a STAR file that could not be read and was then repaired is still
# read by its old lines (they come from Python's linecache, which looks at a file again only when
# told to). One would expect the second reading to see the file as it is.
# Seen: a row of three values under two labels raises ParserError, and so does the repaired file;
# after linecache.clearcache() it is read.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q starfile==0.5.13 pandas==3.1.1
cd "$tmp"
env/bin/python - <<'PY'
import linecache
from pathlib import Path

import pandas as pd
import starfile

def outcome():
    try:
        return len(starfile.read("particles.star"))
    except pd.errors.ParserError:
        return "ParserError"

head = "data_particles\n\nloop_\n_rlnAngleRot #1\n_rlnAngleTilt #2\n"
Path("particles.star").write_text(head + "10.0 20.0\n30.0 40.0 50.0\n")
found = [outcome()]
Path("particles.star").write_text(head + "10.0 20.0\n30.0 40.0\n")
found.append(outcome())
linecache.clearcache()
found.append(outcome())
print("damaged, repaired, repaired and cache cleared:", found)
assert found == ["ParserError", "ParserError", 2], "the behaviour has changed"
PY
