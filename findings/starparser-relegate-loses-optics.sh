#!/usr/bin/env bash
# starparser 1.60: `--relegate` makes a file "compatible with RELION 3.0" by leaving the optics table out.
# RELION 3.0 wants voltage, spherical aberration and amplitude contrast in every row; they are not moved
# there, but lost, with the pixel size. One would expect columns.
# Seen: one table, without rlnVoltage, rlnSphericalAberration, rlnAmplitudeContrast and a pixel size.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q starparser==1.60
cd "$tmp"
cat > in.star <<'STAR'

# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
1 3.0 300.0 2.7 0.1

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
1@s.mrcs 1 15000.0 15100.0
STAR
env/bin/starparser --i in.star --relegate --o out.star | tail -3
grep '^_' out.star | tee labels.txt
[ "$(awk '{print $1}' labels.txt | tr '\n' ' ')" = "_rlnImageName _rlnDefocusU _rlnDefocusV " ] ||
  { echo "the behaviour has changed"; exit 1; }
