#!/usr/bin/env bash
# cryoDRGN 4.3.1: a RELION 3.1 STAR file without rlnPhaseShift (RELION writes it for phase plates
# only) becomes CTF parameters with NaN, and backproject_voxel then writes maps that are NaN
# throughout, with exit code 0. One would expect 0, as RELION takes it, or an error.
# Seen: all voxels NaN without the column, none with a column of 0.0.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q torch==2.13.0 torchvision==0.28.0 cryodrgn==4.3.1 mrcfile==1.5.4
cd "$tmp"
env/bin/python - <<'PY'
import subprocess
from pathlib import Path

import mrcfile, numpy as np

rng, n = np.random.default_rng(0), 200
with mrcfile.new("p.mrcs") as mrc:
    mrc.set_data(rng.normal(size=(n, 32, 32)).astype(np.float32))
    mrc.set_image_stack()
    mrc.voxel_size = 3.0
optics = """data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 g1 300.0 2.7 0.1 3.0 32 2

data_particles

loop_
"""
columns = ("ImageName OpticsGroup DefocusU DefocusV DefocusAngle AngleRot AngleTilt AnglePsi "
           "OriginXAngst OriginYAngst").split()

def share_of_nan(name, extra):
    labels = [f"_rln{c} #{i}\n" for i, c in enumerate(columns + ["PhaseShift"] * extra, 1)]
    rows = []
    for i in range(n):
        rot, psi = rng.uniform(0, 360, 2)
        tilt = rng.uniform(0, 180)
        row = f"{i + 1:06d}@p.mrcs 1 15000.0 14500.0 20.0 {rot:.2f} {tilt:.2f} {psi:.2f} 0.0 0.0"
        rows.append(row + " 0.0" * extra + "\n")
    Path(f"{name}.star").write_text(optics + "".join(labels + rows))
    for call in (
        ["parse_ctf_star", f"{name}.star", "-o", f"{name}-ctf.pkl"],
        ["parse_pose_star", f"{name}.star", "-o", f"{name}-pose.pkl"],
        ["backproject_voxel", "p.mrcs", "--poses", f"{name}-pose.pkl", "--ctf", f"{name}-ctf.pkl",
         "-o", name],
    ):
        subprocess.run(["env/bin/cryodrgn", *call], check=True, capture_output=True)
    return float(np.isnan(mrcfile.read(f"{name}/backproject.mrc")).mean())

found = share_of_nan("without", 0), share_of_nan("with", 1)
print("share of NaN voxels, without and with rlnPhaseShift 0.0:", found)
assert found == (1.0, 0.0), "the behaviour has changed"
PY
