#!/usr/bin/env bash
# CryoSieve 1.3.3: where the rows of two optics groups alternate, its data set holds images, poses and CTFs in
# the order of the groups, but writes rows, and takes half sets, in the order of the file. One would expect
# the particle that was chosen to be the one whose row is written.
# Seen: of rows 1 to 4 in groups 1, 2, 1, 2, item 1 is image 3, saved as image 2; half set 2 (rows 2 and 4)
# is images 3 and 4.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/env"
"$tmp/env/bin/pip" install -q --no-deps cryosieve==1.3.3
"$tmp/env/bin/pip" install -q starfile==0.4.12 mrcfile==1.5.4 numpy==1.26.4 pandas==2.1.4
cd "$tmp"
env/bin/python - <<'PY'
import mrcfile
import numpy as np
import starfile
from cryosieve.ParticleDataset import ParticleDataset

with mrcfile.new("s.mrcs") as file:  # image k holds the value k
    file.set_data(np.arange(1, 5, dtype=np.float32)[:, None, None] * np.ones((1, 8, 8), np.float32))
    file.set_image_stack()
    file.voxel_size = 1
optics = "OpticsGroup Voltage ImagePixelSize SphericalAberration AmplitudeContrast".split()
columns = (
    "ImageName OpticsGroup RandomSubset OriginXAngst OriginYAngst AngleRot AngleTilt AnglePsi DefocusU DefocusV DefocusAngle"
).split()
with open("p.star", "w") as file:
    file.write("data_optics\n\nloop_\n" + "".join(f"_rln{name}\n" for name in optics))
    file.write("1 300 1 2.7 0.1\n2 200 1 2.7 0.1\n\n")
    file.write("data_particles\n\nloop_\n" + "".join(f"_rln{name}\n" for name in columns))
    for k in range(1, 5):
        file.write(f"{k}@s.mrcs {2 - k % 2} {2 - k % 2} 0 0 0 0 0 10000 10000 0\n")

particles = ParticleDataset("p.star")
order = [int(particles[i][0].mean()) for i in range(4)]
chosen = particles.subset(np.array([False, True, False, False]))
chosen.save("chosen.star")
written = starfile.read("chosen.star")["particles"]
half = particles.get_random_subset(2)
print("images in the data set:", order)
print("item 1 is image", int(chosen[0][0].mean()), "written as", list(np.atleast_1d(written["rlnImageName"])))
print("half set 2, rows 2 and 4, is images", [int(half[i][0].mean()) for i in range(len(half))])
assert order == [1, 3, 2, 4], "the behaviour has changed"
assert int(chosen[0][0].mean()) == 3 and "2@s.mrcs" in str(written["rlnImageName"]), "the behaviour has changed"
PY
