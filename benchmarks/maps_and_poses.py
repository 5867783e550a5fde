"""Time reconstruction against relion_reconstruct on the same file, and the search for poses.

    python benchmarks/maps_and_poses.py

Both programs read the same STAR file and stack and write a map, in turn; relion_reconstruct has one
thread, so ours is timed with one and with all. Without RELION on the path only ours runs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from simulate_train_sample import measure, spread

from cryonb.commands.tools import reconstruct_file
from cryonb.data.maps import read_map
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import load_volume
from cryonb.evaluation.resolution import fsc
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project
from cryonb.poses.search import estimate_poses
from cryonb.simulation.simulate import clean_scale, noise_sigma


def reconstruction(volume, n: int, repeats: int, folder: Path) -> None:
    """Both programs on n particles with CTF and shifts, and how far their maps agree."""
    star, pixel = particle_file(volume, n, folder), volume.pixel_size_A
    ours, theirs, threads = folder / "ours.mrc", folder / "relion.mrc", torch.get_num_threads()

    def with_threads(count: int) -> None:
        torch.set_num_threads(count)
        reconstruct_file(star, ours, symmetry=volume.symmetry)
        torch.set_num_threads(threads)

    command = f"relion_reconstruct --i {star} --o {theirs} --sym {volume.symmetry} --ctf"
    calls = {f"cryonb, {threads} threads": lambda: with_threads(threads)}
    calls["cryonb, 1 thread"] = lambda: with_threads(1)
    if shutil.which("relion_reconstruct"):
        calls["relion_reconstruct, 1 thread"] = lambda: subprocess.run(
            command.split(), check=True, capture_output=True, cwd=folder
        )
    seconds = in_turn(calls, repeats)
    print(f"\nReconstruction of {n:,} particles, {volume.symmetry}, CTF")
    report(seconds)
    if theirs.is_file():
        agreement = fsc(read_map(ours)[0], read_map(theirs)[0], pixel)[1]
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


def in_turn(
    calls: dict[str, Callable], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call, all in turn, after one turn to warm up."""
    seconds = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of all threads together


def report(seconds: dict[str, list[float]]) -> None:
    """Print seconds, and the ratio of each side to the first."""
    first = next(iter(seconds))
    for name, values in seconds.items():
        ratios = [b / a for a, b in zip(seconds[first], values, strict=True)]
        versus = "" if name == first else f"   ratio {spread(ratios, 2)}"
        print(f"  {name:30} {spread(values):>22} s{versus}")


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


def main() -> None:
    """Run the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box-size", type=int, default=64, help="pixels")
    parser.add_argument("--particles", type=int, default=10_000, help="to reconstruct from")
    parser.add_argument("--poses", type=int, default=1000, help="particles whose poses are sought")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    volume = load_volume("channel", args.box_size, 192 / args.box_size)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.box_size} px")
    with tempfile.TemporaryDirectory() as folder:
        reconstruction(volume, args.particles, args.repeats, Path(folder))
        memory(volume, [args.particles // 10, args.particles], Path(folder))
    search(volume, args.poses)


if __name__ == "__main__":
    main()
