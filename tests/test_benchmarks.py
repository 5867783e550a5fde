"""The benchmarks run at their smallest sizes, and what they print can be true."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted({path.stem for path in FOLDER.glob("*.py")} - {"timing"})  # what they share


@pytest.fixture
def bench(monkeypatch, capsys):
    """A function that runs a script with arguments, and returns what it printed."""
    monkeypatch.syspath_prepend(FOLDER)

    def run(name: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test's of that name
        importlib.import_module(name).main()
        return capsys.readouterr().out

    return run


def numbers(text: str, row: str) -> list[float]:
    """Numbers in the one line of a table that begins with `row`."""
    lines = (x.strip() for x in text.splitlines() if " against " not in x)
    (line,) = [x for x in lines if x.startswith(row)]
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", line.removeprefix(row))]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_help_and_a_line_in_the_list(name, bench, capsys):
    with pytest.raises(SystemExit) as left:
        bench(name, "--help")
    assert left.value.code == 0 and "--" in capsys.readouterr().out
    assert f"python benchmarks/{name}.py" in (FOLDER / "README.md").read_text()


def test_training_says_what_each_optimisation_is_worth(bench):
    sizes = "--box-size 16 --batch-size 4 --images 8 --parts 2 --steps 1 --rounds 1 --repeats 2"
    options = "--peak-size 512 --no-compile --device cpu --clock cpu"
    text = bench("training", *sizes.split(), *options.split())
    for row in (
        "cryonb.learning.train",
        "channels first",
        "AdamW not fused",
        "full resolution",
    ):
        *rates, ratio, low, high, gigaflop, used = numbers(text, row)
        assert min(rates) > 0 and low <= ratio <= high and gigaflop > 0
        assert 0 < used < 1, row
    assert numbers(text, "the same step, written out")[3:6] == [1, 1, 1]
    if "Freed memory" in text:  # where glibc is
        assert min(numbers(text, "a training step") + numbers(text, "denoising")) > 0
    kinds = re.findall(r"^  \w.*?([\d.]+)%$", text, re.M)
    assert sum(map(float, kinds)) == pytest.approx(100, abs=0.5)


def test_batches_are_timed_in_every_box(bench):
    sizes = "--box-sizes 16 32 --batch-sizes 2 4 --device cpu".split()
    rows = bench("batches", *sizes).strip().splitlines()[2:]
    table = [[float(x) for x in row.split()] for row in rows]
    sizes = [(16, 32), (16, 64), (32, 8), (32, 16)]
    assert [(box, batch) for box, batch, *_ in table] == sizes
    for _, _, one, eight, there, trained, _ in table:
        assert one > eight > 0 and there > trained > 0


def test_denoisers_are_set_beside_the_peers(bench):
    sizes = (
        "--sources channel --images 4 --few 2 --learn 16 --timed 1 --threads 1 --repeats 1".split()
    )
    text = bench("denoisers", *sizes, "--box-sizes", 64)
    dB = {
        name: numbers(text, name)[-2]
        for name in (
            "SR3 for the channel, 1 step",
            "SR3 for the channel, 8 steps",
            "SR3 for any molecule, 1 step",
        )
    }
    one, sample, many = dB.values()
    assert one > sample + 1 and one > many > 18  # 25.6, 23 and 22.7 dB with more particles
    shown = re.findall(r"against .*: [+-][\d.]+ ± [\d.]+ dB, at ([\d.]+) of the time", text)
    assert len(shown) == 2 * sum(f"  {peer}" in text for peer in ("Topaz,", "BM3D ", "CWF,"))
    assert all(float(ratio) > 0 for ratio in shown)


def test_solvers_reach_the_exact_posterior(bench):
    text = bench("solvers", *"--images 8 --samples 2 --steps 1 16".split())
    for part in text.strip().split("\n\n"):
        found = {
            (name, int(steps)): [float(x) for x in rest.split()]
            for name, steps, rest in re.findall(r"^  (\w[a-z ]*?) +(\d+) (.*)$", part, re.M)
        }
        assert len(found) == 6
        one, mean, ratio, coarse, middle, fine = found["second order", 16]
        assert ratio == pytest.approx(1, abs=0.15)  # 8 images
        assert found["second order", 1][2] == 0.5 and found["second order", 1][0] > one + 2
        assert one + 0.7 < mean  # theory: 1.25 dB
        assert min(coarse, middle, fine) > 0.75 > 0.4 > found["second order", 1][5]
        for name in ("first order", "ancestral"):  # behind the second order, at 16 steps
            assert found[name, 16][5] < fine


def test_published_form_is_followed_beside_ours(bench):
    sizes = "--box-size 16 --images 16 32 --particles 8 --test 2 --steps 4".split()
    text = bench("published_form", *sizes)
    for way in ("as published", "fused"):
        part = text.partition(way)[2].partition("beats the blur from")
        assert [int(n) for n in re.findall(r"^   (\d+) ", part[0], re.M)] == [16, 32]
        assert part[2].split()[:3] == ["more", "than", "32"]


def test_time_to_quality_goes_on_where_it_was(bench, tmp_path):
    sizes = "--minutes 0.02 --box-size 16 --images 8 --linear 64 --batch-size 4 --out".split()
    text = bench("time_to_quality", *sizes, tmp_path)
    table = pd.read_csv(tmp_path / "quality.csv")
    assert list(table.budget_s) == [1.2, 1.2] and (table.cpu_s > 1).all()
    linear = float(re.search(r"images: ([\d.]+) dB", text)[1])
    assert (table.psnr_dB - table.gain_dB - linear).abs().max() < 0.01
    table[:1].to_csv(tmp_path / "quality.csv", index=False)
    bench("time_to_quality", *sizes, tmp_path)
    again = pd.read_csv(tmp_path / "quality.csv")
    pd.testing.assert_frame_equal(again[:1], table[:1])
    assert list(again.design) == list(table.design)


def test_a_known_structure_is_judged_beside_other_denoisers(bench):
    text = bench("known_structure", *"channel --box-size 24 --pixel-size 8 --images 6".split())
    assert numbers(text, "known structure")[0] > numbers(text, "noisy")[0]
    for kind in ("noise", "ice", "carbon", "neighbours"):
        assert all(0 <= area <= 1 for area in numbers(text, kind + " "))
    assert len(numbers(text, "without a quarter")) == 1
