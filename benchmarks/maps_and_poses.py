"""Time projection, reconstruction and the search for poses against RELION's programs.

    python benchmarks/maps_and_poses.py

Both sides read the same files and write the like, in turn. relion_project and relion_reconstruct
have one thread, so ours are timed with one and with all; relion_refine has as many as ours. Without
RELION on the path only ours runs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mrcfile
import torch
from timing import in_turn, measure, report

from cryonb.commands.tools import reconstruct_file
from cryonb.data.maps import read_map, write_map
from cryonb.data.particle_file import read_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import load_volume
from cryonb.evaluation.resolution import fsc
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project
from cryonb.poses.search import estimate_poses
from cryonb.simulation.simulate import clean_scale, noise_sigma


def projection(volume, n: int, repeats: int, folder: Path) -> None:
    """Projections in n poses with shifts and CTF, read from a STAR file, written as a stack."""
    star, map_file, pixel = (
        particle_file(volume, n, folder),
        folder / "map.mrc",
        volume.pixel_size_A,
    )
    write_map(map_file, volume.map, pixel)

    def ours() -> None:
        rows = read_particles(star)  # with the images, which RELION leaves alone
        map = read_map(map_file)[0]
        images = apply_ctf(project(map, rows.rotations, rows.shifts_px), rows.ctf)
        write_particles(rows.with_images(images, ctf_applied=True), folder / "ours.star")

    command = f"relion_project --i {map_file} --ang {star} --o projected --ctf --angpix {pixel}"
    print(f"\nProjection of {n:,} images with CTF")
    report(in_turn(beside_relion(ours, command, folder), repeats))
    rows, made = read_particles(star).select(range(min(n, 40))), ["ours.mrcs", "projected.mrcs"]
    exact = project(volume.map, rows.rotations, rows.shifts_px, padding=6)
    exact = apply_ctf(exact, rows.ctf)
    for stack in (name for name in made if (folder / name).is_file()):
        images = torch.from_numpy(mrcfile.read(folder / stack)[: len(exact)].copy())
        error = (images - exact).norm() / exact.norm()
        print(f"  {stack}: error {error:.2%} of a projection padded sixfold")


def beside_relion(ours: Callable, command: str, folder: Path) -> dict[str, Callable]:
    """Calls of ours with all threads and with one, and of a program of RELION if it is there."""
    threads, program = torch.get_num_threads(), command.split()[0]

    def with_threads(count: int) -> None:
        torch.set_num_threads(count)
        ours()
        torch.set_num_threads(threads)

    calls = {f"cryonb, {threads} threads": lambda: with_threads(threads)}
    calls["cryonb, 1 thread"] = lambda: with_threads(1)
    if shutil.which(program):
        calls[f"{program}, 1 thread"] = lambda: run(command, folder)
    return calls


def run(command: str, folder: Path) -> None:
    """Run a program in a folder; CalledProcessError if it fails."""
    subprocess.run(command.split(), check=True, capture_output=True, cwd=folder)


# All poses on a grid of 7.5°, with shifts up to 2 px; then all finer ones near what is likely.
RELION_SEARCH = """relion_refine --i search.star --ref reference.mrc --o ./run --iter 1 --K 1
 --healpix_order 3 --oversampling {} --perturb 0 --offset_range 2 --offset_step 1 --sym {} --pad 2
 --particle_diameter {} --zero_mask --skip_maximize --norm --scale --random_seed 1 --j {}
 --pool 30 --preread_images --dont_combine_weights_via_disc --ini_high 6"""


def reconstruction(volume, n: int, repeats: int, folder: Path) -> None:
    """Both programs on n particles with CTF and shifts, and how far their maps agree."""
    star, pixel = particle_file(volume, n, folder), volume.pixel_size_A
    mine, theirs = folder / "ours.mrc", folder / "relion.mrc"
    command = f"relion_reconstruct --i {star} --o {theirs} --sym {volume.symmetry} --ctf"

    def ours() -> None:
        reconstruct_file(star, mine, symmetry=volume.symmetry)

    print(f"\nReconstruction of {n:,} particles, {volume.symmetry}, CTF")
    report(in_turn(beside_relion(ours, command, folder), repeats))
    if theirs.is_file():
        agreement = fsc(read_map(mine)[0], read_map(theirs)[0], pixel)[1]
        edge = int(0.9 * (len(agreement) - 1))
        print(
            f"  FSC of the two maps, least to 90 % of Nyquist: {agreement[1 : edge + 1].min():.4f}"
        )


def memory(volume, counts: list[int], folder: Path) -> None:
    """Rise of the memory with the number of particles."""
    print("\nMemory of a reconstruction")
    for n in counts:
        star = particle_file(volume, n, folder)
        out = folder / "map.mrc"
        rise_MB = measure(lambda s=star, o=out: reconstruct_file(s, o, symmetry=volume.symmetry))[1]
        print(f"  {n:7,} particles: +{rise_MB:.0f} MB")


def particle_file(volume, n: int, folder: Path) -> Path:
    """Simulate n particles with CTF, shifts and noise; STAR file and stack."""
    generator = torch.Generator().manual_seed(0)
    rotations, pixel = random_rotations(n, generator), volume.pixel_size_A
    shifts = 2 * torch.randn(n, 2, generator=generator)
    defocus = 1 + torch.rand(n, generator=generator)
    clean = project(volume.map / clean_scale(volume), rotations, shifts)
    noisy = apply_ctf(clean, ctf(clean.shape[-1], pixel, defocus))
    noisy += noise_sigma(0.1) * torch.randn(noisy.shape, generator=generator)
    particles = particles_from_arrays(noisy, rotations, pixel, shifts_px=shifts, defocus_um=defocus)
    return write_particles(particles, folder / f"particles{n}.star")


def search(volume, n: int) -> None:
    """Poses of n noisy particles, time and error."""
    molecule, sigma = volume.map / clean_scale(volume), noise_sigma(0.1)
    generator = torch.Generator().manual_seed(1)
    rotations = random_rotations(n, generator)
    noisy = project(molecule, rotations)
    noisy += sigma * torch.randn(noisy.shape, generator=generator)
    found = None

    def find() -> None:
        nonlocal found
        found = estimate_poses(molecule, noisy, sigma, volume.symmetry)

    seconds, rise_MB = measure(find)
    error = angular_distance_deg(found.rotations, rotations, volume.symmetry)
    print(
        f"\nPose search, {n:,} particles at SNR 0.1: {seconds:.0f} s, "
        f"+{rise_MB:.0f} MB; error median {error.median():.2f}°, 90 % below "
        f"{error.quantile(0.9):.2f}°"
    )


def search_with_shifts(volume, n: int, folder: Path) -> None:
    """Poses and shifts of n particles by ours and by one iteration of relion_refine."""
    sigma, pixel, threads = noise_sigma(0.1), volume.pixel_size_A, torch.get_num_threads()
    generator = torch.Generator().manual_seed(2)
    rotations = random_rotations(n, generator)
    shifts = 3 * torch.rand(n, 2, generator=generator) - 1.5
    molecule = volume.map / clean_scale(volume)
    noisy = project(molecule, rotations, shifts)
    noisy += sigma * torch.randn(noisy.shape, generator=generator)
    write_map(folder / "reference.mrc", molecule / sigma, pixel)
    given = particles_from_arrays(noisy / sigma, rotations, pixel, shifts_px=shifts)
    write_particles(given, folder / "search.star")
    diameter_A = 0.9 * len(molecule) * pixel
    print(f"\nPoses and shifts of {n:,} particles at SNR 0.1, {threads} threads")

    def say(name: str, seconds: float, found, found_px) -> None:
        error = angular_distance_deg(found, rotations, volume.symmetry)
        off = (found_px - shifts).norm(dim=1).median()
        print(
            f"  {name:34} {1000 * seconds / n:6.0f} ms each; error median {error.median():.2f}°, "
            f"90 % below {error.quantile(0.9):.2f}°, shift {off:.2f} px"
        )

    start = time.perf_counter()
    found = estimate_poses(molecule, noisy, sigma, volume.symmetry, most_shift_px=2.0)
    say("cryonb, to 1°", time.perf_counter() - start, found.rotations, found.shifts_px)
    for oversampling in (1, 2) if shutil.which("relion_refine") else ():
        start = time.perf_counter()
        run(RELION_SEARCH.format(oversampling, volume.symmetry, diameter_A, threads), folder)
        seconds = time.perf_counter() - start
        found = read_particles(folder / "run_it001_data.star")
        name = f"relion_refine, to {3.75 / oversampling:.1f}°"
        say(name, seconds, found.rotations, found.shifts_px)


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--particles", type=int, default=10_000, help="to reconstruct from")
    parser.add_argument("--poses", type=int, default=1000, help="particles whose poses are sought")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    volume = load_volume("channel", args.box_size, 192 / args.box_size)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.box_size} px")
    with tempfile.TemporaryDirectory() as folder:
        projection(volume, args.particles, args.repeats, Path(folder))
        reconstruction(volume, args.particles, args.repeats, Path(folder))
        memory(volume, [args.particles // 10, args.particles], Path(folder))
        search_with_shifts(volume, args.poses // 10, Path(folder))
    search(volume, args.poses)


if __name__ == "__main__":
    main()
