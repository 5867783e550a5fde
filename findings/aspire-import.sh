#!/usr/bin/env bash
# aspire 0.14.3: importing the library makes a folder "logs" with a file in the working directory,
# puts handlers on the root logger and replaces sys.excepthook, so that every later uncaught error of
# the program is logged by it too. One would expect none of this from an import.
# Seen: logs/ is there, sys.excepthook is aspire's, the root logger has handlers.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q aspire==0.14.3 'setuptools<81'
mkdir "$tmp/here" && cd "$tmp/here"
../env/bin/python - <<'PY'
import logging, sys
from pathlib import Path

before = sys.excepthook
import aspire  # noqa: F401

hook, handlers = sys.excepthook.__module__, [type(h).__name__ for h in logging.getLogger().handlers]
made = sorted(p.name for p in Path().iterdir())
print("made", made, "excepthook of", hook, "root handlers", handlers)
assert made == ["logs"] and hook.startswith("aspire") and handlers, "the behaviour has changed"
sys.excepthook = before
PY
