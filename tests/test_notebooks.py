"""Rules that every notebook keeps, and one run of all of them at the smoke profile."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from cryonb.base.parameters import true_or_false
from cryonb.data.volumes import load_volume
from cryonb.running.plan import plan, read_literals, read_notebooks, read_profile

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = sorted((FOLDER.parent / "experiments").glob("*/*.ipynb"))  # for experiments alone
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_pair = pytest.mark.parametrize("path", NOTEBOOKS + SMALL, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


@every_pair
def test_pair_is_in_step(path):
    command = [sys.executable, "-m", "jupytext", "--quiet", "--to", "py:percent", "-o", "-", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text == path.with_suffix(".py").read_text(), "make notebooks"


@every_pair
def test_saved_without_outputs_for_python3(path):
    for cell in cells(path):
        assert not cell.outputs and cell.execution_count is None, cell.source[:80]
    kernel = nbformat.read(path, as_version=4).metadata.kernelspec
    assert (kernel.name, kernel.get("language")) == ("python3", "python")
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)


@each
def test_parameters_are_explained_literals(path):
    (cell,) = [c for c in cells(path) if "parameters" in c.metadata.get("tags", [])]
    values = read_literals(path, cell.source)
    assert values.keys() >= {"run_dir", "seed"} and isinstance(values["run_dir"], str)
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    comments = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    for statement in ast.parse(cell.source).body:
        assert statement.end_lineno in comments, f"no comment: {ast.unparse(statement)}"


@each
def test_switches_may_come_as_text(path):
    """Plain papermill injects `-p structural false` as text, which would be true."""
    (cell,) = [c for c in cells(path) if "parameters" in c.metadata.get("tags", [])]
    values = read_literals(path, cell.source)
    switches = [name for name, value in values.items() if isinstance(value, bool)]
    code = "\n".join(c.source for c in cells(path))
    for name in switches:
        assert re.search(rf"^(\w+, )*{name}(, \w+)* = (map\()?true_or_false", code, re.M), name


def test_a_switch_is_true_or_false():
    assert true_or_false(True) and true_or_false("True") and true_or_false("true")
    assert not true_or_false(False) and not true_or_false("false")
    with pytest.raises(ValueError, match="'no' is neither"):
        true_or_false("no")


@each
def test_begins_with_the_only_title_and_ends_with_results(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    prose = "\n".join(c.source for c in cells(path, "markdown"))
    assert len(re.findall(r"^# ", re.sub(r"```.*?```", "", prose, flags=re.S), re.M)) == 1
    last = cells(path)[-1].source
    assert "results" in last and path.stem in last


@each
def test_code_is_short_and_plain(path):
    total = 0
    for cell in cells(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        total += len(lines)
        if "long" not in cell.metadata.get("tags", []):  # a network in one piece may be longer
            assert len(lines) <= 25, f"{len(lines)} lines: {lines[0]}"
        for line in lines:
            assert len(line) <= 110 and "fmt: skip" not in line, line
        assert not re.search(r"^\s*[!%]\s*pip\b", cell.source, re.M)
        # ipywidgets' Output can stall papermill for ever.
        assert not re.search(r"\b(interact|interactive|interactive_output|Output)\(", cell.source)
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "bare except"
    assert total <= 400, f"{total} lines of code: see CONTRIBUTING.md"


def test_00_asks_before_each_figure_and_denoises_within_ten_minutes():
    """Minutes as the book counts them: 200 words each, and one for a figure."""
    minutes, asked = 0.0, ""
    for cell in nbformat.read(FOLDER / "00_start_here.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown":
            minutes, asked = minutes + len(re.findall(r"\w+", cell.source)) / 200, cell.source
        elif "mystnb" in cell.metadata or "frame_viewer(" in cell.source:
            assert "**Predict.**" in asked.split("\n\n")[-1] and "?" in asked, cell.source[:60]
            minutes, asked = minutes + 1, ""
        if "denoise(network" in cell.source:
            reached = minutes
    assert reached < 10


def test_all_profiles_name_real_parameters():
    if not NOTEBOOKS:
        pytest.skip("no notebooks yet")
    profiles = yaml.safe_load((FOLDER / "profiles.yml").read_text())
    assert set(profiles) == {"smoke", "quick", "workshop", "paper"}
    for name in profiles:
        plan(read_notebooks(FOLDER), read_profile(FOLDER, name), {}, "runs/x")


def test_paper_has_the_dose_of_workshop():
    """SNR per pixel at one dose: proportional to the variance of potential × length, and area."""
    relative, stated = {}, {}
    for name in ("workshop", "paper"):
        sizes = read_profile(FOLDER, name)["common"]
        box, pixel_A = sizes["box_size"], sizes["pixel_size_A"]
        grid = load_volume("channel", box, pixel_A).map
        sums = torch.stack([grid.sum(axis) for axis in range(3)]) * pixel_A
        relative[name] = float(sums.var()) * pixel_A**2
        stated[name] = sizes.get("snr", 0.1)
    ratio = relative["paper"] / relative["workshop"]
    assert stated["paper"] / stated["workshop"] == pytest.approx(ratio, rel=0.03)


@pytest.fixture(scope="module")
def smoke(smoke_run) -> dict[str, dict]:
    """Results of all notebooks at the smoke profile."""
    files = {path.stem: smoke_run / "results" / f"{path.stem}.json" for path in NOTEBOOKS}
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def test_smoke_run_writes_flat_results(smoke):
    for name, results in smoke.items():
        assert results, name
        for key, value in results.items():
            assert isinstance(value, (str, int, float, bool)), f"{name}: {key} is {value!r}"


def test_smoke_02_trains_and_asks_rightly(smoke):
    """128 images teach little, but every stage already beats the noise, and eps does not."""
    r = smoke["02_train_sr3"]
    for setting in ("white", "structural"):
        noisy = r[f"{setting}: noisy psnr_dB"]
        assert 3 < noisy < 7  # 10 log10 of range squared over 10 times the signal's variance
        assert r[f"{setting}: best linear filter psnr_dB"] > noisy + 14
        assert r[f"{setting}: one step, trained here psnr_dB"] > noisy + 8
    for curriculum in ("with", "without"):
        one = {
            f: r[f"asked for {f}, {curriculum} curriculum, 1 (dB)"]
            for f in ("noise", "mixture", "clean image")
        }
        assert one["clean image"] > one["noise"] + 10 and one["mixture"] > one["noise"] + 10
    assert (
        r["structural: noisy micelle_left"] > 0.7 > r["structural: best linear filter micelle_left"]
    )


def test_smoke_03_refines(smoke):
    r = smoke["03_refine_unet"]
    for setting in ("white", "structural"):
        sample = r[f"{setting}: 2-step sample psnr_dB"]
        assert r[f"{setting}: refined, sees sample + noisy psnr_dB"] > sample
        assert r[f"{setting}: refined, sees sample psnr_dB"] > sample


def test_smoke_04_compares(smoke):
    """One second of training teaches nothing, but the laws of the table hold already."""
    r = smoke["04_compare_methods"]
    assert abs(r["limit_mse"] - r["limit_forecast"]) < 4 * r["limit_error"]
    assert 1.3 < r["sample_ratio"] < 3  # 16 particles; theory: 2
    assert r["white: Bayes limit over_limit"] == pytest.approx(1)
    dB = {
        k.removeprefix("white: ").removesuffix(" psnr_dB"): v
        for k, v in r.items()
        if k.startswith("white: ") and k.endswith(" psnr_dB")
    }
    assert len(dB) == len([k for k in r if k.startswith("white: ") and k.endswith(" over_limit")])
    best = dB.pop("Bayes limit")
    assert all(value < best for value in dB.values()), dB
    assert max(dB, key=dB.get) == "template posterior"  # memory beats all that was trained
    assert dB["best linear filter"] > dB["Gaussian blur"] > dB["noisy"] + 10
    for title in ("BM3D", "CWF", "Topaz, contrast +1"):  # `make test` installs the peers
        assert dB[title] > dB["noisy"] + 8, title
    assert abs(dB["CWF"] - dB["best linear filter"]) < 1.5  # it estimates the other from 96 images
    lost = dB["template posterior"] - r["other: template posterior psnr_dB"]
    gained = r["other: Bayes limit psnr_dB"] - best
    assert lost > 3 > abs(gained)  # what memory is worth on a molecule it does not know
    told, untold = (r[f"micelle, {name}: mse"] for name in ("told of the micelle", "not told"))
    assert told < 0.7 * untold
    assert "structural: noisy micelle_left" in r and "structural: Bayes limit mse" not in r


def test_smoke_05_measures_what_the_simulation_put_in(smoke):
    """Offline, on a simulated micrograph; the network for many proteins is what the package has."""
    r = smoke["05_real_data"]
    assert r["data"] == "simulated" and r["particles"] > 30
    assert r["picks_right"] > 0.2  # at random: 0.02
    assert 0.3 < r["twin_snr"] / r["snr"] < 3  # two noisy measurements of one SNR
    assert r["twin: many proteins"] < 1 < r["twin: one protein, transferred"] + 0.5
    for name in ("linear filter", "many proteins"):  # Stein's estimate, 48 particles of 32 px
        assert r[f"twin SURE: {name}"] == pytest.approx(r[f"twin: {name}"], abs=0.35)
    assert r["command_correlation"] > 0.98
    for title in ("Gaussian blur", "K-SVD", "BM3D", "CWF", "Topaz, contrast +1"):
        assert r[f"twin: {title}"] > r["twin: linear filter"], title  # none knows proteins
    truth, mean = "correlation with truth: {}", "mean over poses"
    assert r[truth.format(mean)] > r[truth.format("closest projection")] > 0.4  # SNR 0.03
    assert r[truth.format(mean)] > r[truth.format("linear filter")]  # it knows the molecule
    flattered = r[f"correlation with closest: {mean}"]
    assert flattered > r[truth.format(mean)] + 0.1


def test_smoke_06_reconstructs(smoke):
    """Laws that hold for few images too, of independent halves, of poses and of the micelle."""
    r = smoke["06_reconstruct_fsc"]
    for setting in ("white", "structural"):
        assert 12 - 1e-3 <= r[f"{setting}_noisy_truth_A"] < 25  # Nyquist is 12 Å
        for stage in ("posterior_mean", "sample", "refined"):
            assert 12 - 1e-3 <= r[f"{setting}_{stage}_truth_A"] <= 192  # Nyquist to the box
    assert 25 < r["mask_whole box_A"] < 40  # the truth cut at 36 Å: about right
    assert max(r["mask_soft_A"], r["mask_tight_A"]) < 0.8 * r["mask_whole box_A"]
    assert r["independent_error"] < 0.15 and r["cross_error"] < 0.25
    assert r["structural_noisy_micelle_left"] == pytest.approx(1, abs=0.3)
    assert r["white_noisy_micelle_left"] == pytest.approx(0, abs=0.3)
    for name in ("BM3D", "CWF", "DenoiseGAN", "SR3 → U-Net", "refined"):  # 04 left the networks
        assert 0 < r[f"map of {name}: complete"] <= 1 and r[f"map of {name}: climb"] >= 0
    a, b, c, d = (r[f"route_{way}_snr0.1_n48_mean_fsc"] for way in "abcd")
    assert a > max(b, d)  # the same images, with the true poses
    assert r["poses_snr0.1_true_median_deg"] == 0
    assert r["poses_snr0.1_raw_median_deg"] < 40  # at 16 px; by chance 92


def test_smoke_07_provokes(smoke):
    """Knowledge tells: memory draws molecules from noise, the linear filter cannot."""
    r = smoke["07_trust"]
    memory, linear = "template posterior", "best linear filter"
    assert r[f"{memory}: noise resemblance"] > r[f"{memory}: noise control"] + 0.04
    assert r[f"{memory}: noise variation"] > 1.5 * r[f"{linear}: noise variation"]
    assert r[f"{memory}: with known"] > r["truth with known"] + 0.02
    assert r[f"{memory}: missing part drawn"] > 0.5
    assert r[f"{memory}: returned"] > r[f"{linear}: returned"]
    each, shared = (r[f"{memory}, one for {whom}: gap"] for whom in ("each", "both"))
    assert each > r["raw images: gap"] + 0.03 < shared  # they know one molecule, apart or not
    assert 0.75 < r["exact posterior: spread"] < 1.3  # theory: 1; 24 particles
    assert abs(r["exact posterior: coverage"] - 3 / 5) < 0.1  # (K - 1) / (K + 1), K = 4


def test_smoke_09_cleans(smoke):
    """64 particles at 12 Å; the kept network works at its own 3 Å per voxel."""
    r = smoke["09_clean_a_map"]
    assert r["merit C²: like sum"] > r["merit C: like sum"] + 0.01  # least squares
    raw, network = (f"{name}: " for name in ("raw", "network, pretrained"))
    assert r["judged"] == "network, pretrained"
    assert r["mask around the model: correlation"] > r["mask from the map: correlation"]
    assert r["least squares: correlation"] > r[raw + "correlation"] + 0.05
    assert r["least squares: mean_fsc"] == pytest.approx(r[raw + "mean_fsc"], abs=0.02)
    assert r["mask from the map: micelle_left"] == pytest.approx(r[raw + "micelle_left"], abs=0.2)
    assert r[network + "micelle_left"] < r[raw + "micelle_left"] - 0.3
    assert r["raw: noise power left"] == 1 > r[network + "noise power left"]
    assert r["targets from truth: error"] < 0.8 * r["targets from raw: error"]
    parts = "a quarter of the molecule", "the micelle"
    stays, goes = (f"{part} (network, pretrained): arrives" for part in parts)
    assert r[stays] > r[goes] + 0.2


def test_smoke_08_runs_an_experiment_and_reads_it(smoke):
    """Two SNRs and two lengths of training as a star, two seeds each: six runs."""
    r = smoke["08_experiments"]
    assert r["runs"] == 6 and r["not_finished"] == 0
    for setting in ("SNR 0.3, 256 images", "SNR 0.1, 256 images", "SNR 0.1, 128 images"):
        assert r[f"{setting}: best linear filter (dB)"] > r[f"{setting}: SR3, sample (dB)"] + 2
    few, more = (r[f"SNR {snr}, 256 images: best linear filter (dB)"] for snr in (0.1, 0.3))
    assert few + 0.5 < more
    # The best of two beats a third of the same kind in two of three cases; 10,000 draws: 0.5 %.
    assert r["best_of_seeds_wins"] == pytest.approx(2 / 3, abs=0.02)
    assert 0 < r["spread: SR3, one step (dB)"] < 3 and r["slower_by"] >= 1


def test_smoke_00_measures_what_it_says(smoke):
    r = smoke["00_start_here"]
    assert abs(r["snr_measured"] / r["snr"] - 1) < 0.15  # one image of 1,024 pixels: 4 %
    assert abs(r["snr_mean_of_1000"] / (1000 * r["snr"]) - 1) < 0.15
    assert r["noise_only_correlation"] > 0.6 > 0.1 > abs(r["noise_only_control"])
    assert r["contrast_standard_errors"] > 5
    assert (
        r["denoised_correlation"] > 0.6
    )  # as recorded 0.3; at 32 px, by what any molecule teaches


def test_smoke_01_keeps_its_definitions(smoke):
    r = smoke["01_simulate"]
    for setting in ("white", "structural"):
        assert abs(r[f"snr_{setting}"] / 0.1 - 1) < 0.1  # 32 images of 1,024 pixels
    assert abs(r["clean_variance"] - 1) < 0.1
    assert 0.3 < r["structural_variance"] < 0.8  # it is there, and far below the white noise's 10
    assert r["spectra_correlation"] > 0.9 and r["micelle_agreement"] > 0.9
    assert r["projection_error"] < 0.02 and r["wrong_ctf_correlation"] < 0
    assert 0.25 < r["snr_ratio_half_pixel"] < 0.3  # a quarter, and finer detail has variance too
    assert 0.15 < r["snr_ratio_in_ice"] < 0.35  # half the coarse contrast
    assert 0.45 < r["snr_ratio_larger_box"] < 0.55  # 1 / 1.5², and the mean square grows
    assert r["particles"] == 64 + 32 + 32
