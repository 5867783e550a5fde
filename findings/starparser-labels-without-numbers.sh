#!/usr/bin/env bash
# starparser 1.60: a STAR file whose labels have no running number behind them (`_rlnDefocusU` instead of
# `_rlnDefocusU #3`, which STAR does not ask for and RELION does not need) is taken apart at the wrong
# places: every other label is lost and the cells slide into wrong columns. One would expect the same
# table, or an error.
# Seen: "Removed the columns", exit code 0, and image names "1" and "12.3".
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q starparser==1.60
cd "$tmp"
cat > numbered.star <<'STAR'

# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
_rlnVoltage #3
_rlnImageSize #4
1 3.0 300.0 64

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnAnglePsi #5
1@s.mrcs 1 9999.5 10000.0 12.3
2@s.mrcs 1 15000.5 15100.0 45.6
STAR
sed 's/ #[0-9]*$//' numbered.star > plain.star
for f in numbered plain; do
  env/bin/starparser --i $f.star --remove_column AnglePsi --o $f.out.star | tail -3
  echo "first column of $f.star:"; sed -n '/^data_particles/,$p' $f.out.star | awk 'NF>1 && $1 !~ /^_/ {print $1}' | tee $f.txt
done
[ "$(tr '\n' ' ' < numbered.txt)" = "1@s.mrcs 2@s.mrcs " ] && grep -qx 1 plain.txt && grep -qx 12.3 plain.txt ||
  { echo "the behaviour has changed"; exit 1; }
