# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,jupyter,-all
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Run experiments and read them
#
# ```text
#   a question ──► an experiment ──► runs ──────────────► one tidy table ──► curves with their spread
#                  what varies       each in a folder     a row for each
#                  what is fixed     of its own, many     number that was
#                  which seeds       at a time            measured
# ```
#
# You will design a small experiment, run it with one command, gather the results in one table, and decide which
# of the differences are more than chance.
#
# ## You will learn
#
# - to **design** an experiment: what to vary, what to fix, how many seeds;
# - to **run** it here or on a cluster, and to resume it after a crash;
# - to **gather** hundreds of results in one table, without copying a number by hand;
# - to **draw** a curve together with its spread, and to **tell** an effect from luck;
# - to **recognise** comparisons that look fair and are not.
#
# ## Before you start
#
# | concept | need | where |
# |---|---|---|
# | SNR, PSNR, one step and sample of SR3 | necessary | `02_train_sr3` |
# | the second stage | necessary | `03_refine_unet` |
# | mean, standard deviation, standard error | necessary | any statistics course |
# | the Bayes limit | helpful | `04_compare_methods` |
# | pandas | helpful | [10 minutes to pandas](https://pandas.pydata.org/docs/user_guide/10min.html) |
#
# **Inputs**: none, or the folder of a sweep that you ran before (`results`). **Outputs**: a sweep in
# `run_dir/sweep` with its tables, figures of merit in `run_dir/results`. **Hardware**: two CPU cores; each run is
# short and needs one of them.

# %% jupyter={"source_hidden": true}
import json
import subprocess
import sys
from math import comb
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import yaml
from matplotlib.ticker import LogLocator

from cryonb.base.files import read_json
from cryonb.running.experiment import (
    gather,
    make_experiment,
    plan_runs,
    read_experiment,
    write_results,
)
from cryonb.running.plan import find_notebooks
from cryonb.showing.plotting import say, say_table, use_style

use_style()

# %% tags=["parameters"]
results = ""  # folder of a sweep run outside, such as runs/snr; empty: run a small one
snrs = [0.3, 0.1, 0.03]  # signal-to-noise ratios; the middle one is used for the other curves
image_counts = [1024, 2048, 4096]  # images that SR3 sees in training; the middle one at each SNR
refine_images = 1024  # images that the second stage sees
limit_images = 16  # test particles whose Bayes limit is computed, for each run; 0 for none
seed_values = [0, 1, 2]  # each setting is run once with each
cores = 0  # runs at a time, since each takes one core; 0: as many as cores and memory allow
seed = 0  # of the draws in sections 5 and 8
run_dir = "runs/own"  # everything is written under it

# %% [markdown]
# ## 1. One run is an anecdote
#
# **Question.** You change a setting, run the notebook again, and the PSNR rises by 0.3 dB. Is the new setting
# better?
#
# From two runs nobody can know. A network starts from random weights, sees particles in random order with random
# noise, and is judged on test particles that were drawn at random too. Change nothing but the `seed`, and the
# PSNR changes as well. How much it changes is the yardstick for every difference, and the only way to get it is
# to run the same setting several times. That soon makes many runs, more than anyone can start, watch and write
# down by hand without mistakes. So let a program do this part.
#
# The thinking that comes first remains yours. Four questions are worth a minute each:
#
# - **What is the question?** Write it as the axes of the figure you want to see: *PSNR of each method, against
#   the SNR*. Whatever is on no axis stays fixed.
# - **Which values?** For quantities that act by their ratio (SNR, numbers of images, steps), space the values by
#   a constant factor. Three points show a trend, five a shape.
# - **Grid or star?** A *grid* has all combinations of two parameters. It is the only way to see whether one
#   changes the effect of the other, and it grows quickly. A *star* varies one parameter at a time around a common
#   centre: cheap, and blind to such interactions.
# - **How many seeds?** Two show that there is a spread, three give a rough idea of its size. The standard error
#   of a mean falls as $1/\sqrt{n}$: ten times the precision costs a hundred times the runs.
#
# ## 2. An experiment is a few lines of YAML
#
# **Idea.** An experiment names the notebooks to run, what is fixed, what varies, and the seeds. Ours runs a
# notebook that is small on purpose, `experiments/small/00_denoise`: it trains SR3 and a second stage on images of
# 32 pixels and measures how good both become. Any notebook with a cell of parameters can take its place. Ours is
# a star, with its centre at the middle SNR and the middle number of training images.

# %%
run_dir, centre = Path(run_dir), (snrs[len(snrs) // 2], image_counts[len(image_counts) // 2])
arms = [(snr, centre[1]) for snr in snrs] + [(centre[0], n) for n in image_counts]
content = {
    "notebooks": ["00_denoise"],
    "profile": "small",
    "parameters": {"refine_images": refine_images, "limit_images": limit_images},
    "list": [{"snr": snr, "train_images": n} for snr, n in dict.fromkeys(arms)],
    "seeds": seed_values,
    "cores": 1,
    "memory_GB": 2,
}
run_dir.mkdir(parents=True, exist_ok=True)
text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
(run_dir / "tiny.yml").write_text(text)
say(f"```yaml\n{text}```")

# %% [markdown]
# Before anything runs, all of it is planned: every parameter of every run is looked up in the notebook's own cell
# of parameters, and its type is checked. A misspelt name then costs you a second instead of a night. The next
# cell shows the plan, and then misspells one.

# %%
small = find_notebooks()["08_experiments"].parents[1] / "experiments" / "small"
experiment = read_experiment(run_dir / "tiny.yml")
runs = plan_runs(experiment, run_dir / "sweep", small)
columns = ["folder of the run", *runs[0].varied]
say_table(columns, [(run.name, *run.varied.values()) for run in runs], title=f"{len(runs)} runs")
try:
    plan_runs(make_experiment("typo", content | {"parameters": {"step": 8}}), run_dir, small)
except ValueError as error:
    print(error)

# %% [markdown]
# ## 3. Run it
#
# Each run is a process of its own, with its own folder and its share of the cores, so a run that crashes takes
# nothing else down. [Snakemake](https://snakemake.github.io), a program for workflows that runs on laptops and
# clusters alike, starts them, as many at a time as cores and memory allow. (Where it is not installed, they
# are done one after the other.) The executed notebook of a failed run is kept, with the traceback, while the others go on. A
# finished run is never run again unless something that matters has changed: the notebook, the source of cryonb, a
# parameter, or a notebook before it. So there is one answer to a crash, a power cut, a full disk and Ctrl-C: *the
# same command again*. Here we give it twice; watch how long the second one takes.

# %%
folder = Path(results) if results else run_dir / "sweep"
command = [sys.executable, "-m", "cryonb", "sweep", str(run_dir / "tiny.yml")]
command += ["--run-dir", str(folder), "--notebooks", str(small)]
command += ["--cores", str(cores)] if cores else []
for _ in range(0 if results else 2):
    start = perf_counter()
    print(subprocess.run(command, capture_output=True, text=True).stdout)
    print(f"{perf_counter() - start:.0f} s")

# %% [markdown]
# Outside a notebook you do the same with
#
# ```bash
# cryonb sweep experiments/snr.yml --dry-run          # the plan, and the command of every run
# cryonb sweep experiments/snr.yml                    # on this machine
# cryonb sweep experiments/snr.yml --executor slurm --jobs 32   # on a cluster, a Slurm job for each run
# cryonb results experiments/snr.yml                  # the tables
# ```
#
# With `-p results runs/snr`, this notebook draws the figures below from that sweep instead of its own.
#
# ## 4. One tidy table
#
# **Question.** How do you look at hundreds of numbers from dozens of folders?
#
# **Idea.** A table is *tidy* when each row is one measurement and each column one thing you know about it: which
# run, which parameters, which seed, what was measured, the value. Such a table is long and dull to read, and that
# is its strength: any figure is "choose rows, group by some columns, average over others". A spreadsheet with one
# sheet for each SNR and colours for the seeds looks nicer, and has to be taken apart for every new question. In
# ours, the names of quantities are split once, here, into the method and what was measured of it.

# %%
table, _, missing = gather(folder)
written = write_results(folder)
fixed = {"snr": 0.1, "train_images": 0, "seed": 0}  # where a sweep does not vary them
table = table.assign(**{name: value for name, value in fixed.items() if name not in table})
pattern = (
    r"^white: (?:\d+-step )?(?P<method>.+?)(?:, trained here)? (?P<metric>psnr_dB|over_limit)$"
)
long = table.join(table["quantity"].str.extract(pattern)).dropna(subset="method")
long = long.drop_duplicates(["run", "method", "metric"], keep="last")
titles = {"best linear filter": "best linear filter", "one step": "SR3, one step"}
titles |= {"sample": "SR3, sample", "refined, sees sample": "SR3 → U-Net"}
titles |= {"Bayes limit": "Bayes limit"}
long = long[long["method"].isin(titles)].replace({"method": titles})
varied = [name for name in ("snr", "train_images") if table[name].nunique() > 1]
say(f"{table['run'].nunique()} runs, {len(table):,} values; not finished: {len(missing)}")
long[["run", "seed", "method", "metric", "value"]].head(6)

# %% [markdown]
# ## 5. How large is chance?
#
# **Question.** How much do runs differ that differ in nothing but the seed?
#
# For each method, the table shows the standard deviation over seeds within a setting. With so few seeds it is
# itself uncertain (for one setting with $n$ seeds, by about $1/\sqrt{2(n-1)}$ of its value), so we pool all settings. Beside it
# is the standard error of the mean, which is how uncertain each point of a curve is.

# %%
dB = long[long["metric"] == "psnr_dB"]
groups = dB.groupby(["method", "snr", "train_images"])["value"]
n_seeds = int(groups.count().min())
spread = groups.var().groupby("method").mean() ** 0.5
rows = [(name, value, value / n_seeds**0.5) for name, value in spread.items()]
say_table(["method", "deviation between seeds (dB)", "standard error of a mean (dB)"], rows)

# %% [markdown]
# Even methods that learn nothing at random vary, because each seed has other test particles. All methods of a run
# *share* this part of the spread, since they are judged on the same particles. So compare methods **within** a
# run and average the differences: what they share drops out. Here is what that gains.

# %%
wide = dB.pivot_table(index=["snr", "train_images", "seed"], columns="method", values="value")
levels = ["snr", "train_images"]
first, second = "SR3, one step", "best linear filter"
apart = ((wide[first].groupby(levels).var() + wide[second].groupby(levels).var()) / n_seeds) ** 0.5
paired = ((wide[first] - wide[second]).groupby(levels).var() / n_seeds) ** 0.5
say(
    f"Standard error of the difference {first} − {second}: **{paired.mean():.2f} dB** when it is taken run "
    f"by run, {apart.mean():.2f} dB when two means are subtracted as if their seeds had nothing in common."
)

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "For each method, how far the PSNR of each run is from the mean of its setting, one colour for each seed"}}
figure, ax = plt.subplots(figsize=(6.4, 3.4))
residual = wide - wide.groupby(levels).transform("mean")
for k, (number, part) in enumerate(residual.groupby("seed")):
    shift = 0.12 * (k - (n_seeds - 1) / 2)  # side by side, so that no dot hides another
    for values in part.to_numpy():
        ax.plot(np.arange(len(values)) + shift, values, "o", ms=4, color=f"C{k % 7}")
    ax.plot([], [], "o", ms=4, color=f"C{k % 7}", label=f"seed {number}")
ax.axhline(0, color="0.6", lw=0.8)
ax.set_xticks(range(len(wide.columns)), wide.columns)
ax.set(xlabel="method", ylabel="PSNR − mean of its setting (dB)", title="What the seed does")
figure.legend(loc="outside lower center", ncols=6, fontsize=8)
plt.show()

# %% [markdown]
# Where the dots of one colour lie on the same side for several methods, luck with the particles lifted or lowered
# them together. The Bayes limit, where it was computed, is measured on fewer particles and varies more.
#
# ## 6. Quality against the SNR
#
# **Question.** Which method needs how much signal?
#
# Every seed is a dot, and the line goes through their means. With few seeds that is more honest than an error
# bar, which hides how few they are. Where the Bayes limit was recorded it is drawn dashed, and the right figure
# shows the squared error relative to it: 1 would be perfect, and no convention about peak values is needed.


# %%
def draw(ax, frame, x, **labels):
    """One line for each method through the means, and a dot for each seed."""
    for name in dict.fromkeys(frame["method"]):
        part = frame[frame["method"] == name]
        mean = part.groupby(x)["value"].mean()
        style = {"color": "k", "ls": "--"} if name == "Bayes limit" else {}
        (line,) = ax.plot(mean.index, mean, label=name, **style)
        ax.plot(part[x], part["value"], "o", ms=4, alpha=0.6, color=line.get_color())
    ticks = sorted(frame[x].unique())
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(**labels)


def at(frame, **where):
    """Rows with these values, as near as there are any."""
    for name, value in where.items() if len(frame) else []:
        known = frame[name].unique()
        frame = frame[frame[name] == known[np.argmin(np.abs(np.log(known / value)))]]
    return frame


# %% mystnb={"image": {"alt": "Left: PSNR against SNR, a line for each method and a dot for each seed. Right: error relative to the Bayes limit"}}
middle = {}
for name in varied:  # the centre of a star is where most runs are; of a grid, take the middle
    counts = table.groupby(name)["run"].nunique()
    common = counts.index[counts == counts.max()]
    middle[name] = common[len(common) // 2]
if "snr" in varied:
    rest = {k: v for k, v in middle.items() if k != "snr"}
    ratio = at(long[long["metric"] == "over_limit"], **rest)
    panels, width = (2, 9) if len(ratio) else (1, 6.4)
    figure, axes = plt.subplots(1, panels, figsize=(width, 4.2), squeeze=False)
    draw(axes[0, 0], at(dB, **rest), "snr", xlabel="SNR", ylabel="PSNR (dB)", title="Quality")
    names = axes[0, 0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=5, fontsize=8)
    if len(ratio):
        labels = {"xlabel": "SNR", "ylabel": "MSE ÷ limit", "title": "Distance from the limit"}
        draw(axes[0, 1], ratio, "snr", yscale="log", **labels)
        axes[0, 1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0, 1].yaxis.set_major_formatter("{x:g}")
    plt.show()

# %%
if "snr" in varied:
    lines = at(dB, **rest).groupby(["method", "snr"])["value"].mean().unstack()
    lines = lines.drop("Bayes limit", errors="ignore")
    low, high = lines.columns[[0, -1]]
    change = lines[low] - lines[high]
    say(
        f"From SNR {high:g} to {low:g} the PSNR of {change.idxmin()} changes by {change.min():+.1f} dB and "
        f"that of {change.idxmax()} by {change.max():+.1f} dB. At SNR {low:g} the best is "
        f"**{lines[low].idxmax()}**, at {high:g} **{lines[high].idxmax()}**."
    )

# %% [markdown]
# This figure holds two traps. The networks at each point were trained *for that SNR* and on the same number of
# images, so it shows what training buys at each SNR, not how one network fares when the SNR changes; that would
# be another experiment. And a method that loses little may simply have had little to lose: one that is hardly
# trained does hardly better where there is more to see.
#
# ## 7. Quality against training
#
# **Question.** The paper states that 200 epochs of SR3 with a U-Net behind it take nearly twelve times less
# training time than 5,000 epochs of SR3 alone, and give the better image. What does such a claim look like as a
# curve?
#
# The horizontal axis is what was spent. We count *images seen*, by both stages together, and not seconds: runs
# that share a machine slow each other down, so their seconds would compare their neighbours rather than the
# methods. (The price: an image does not cost the two networks quite the same.) Take a ruler: from the two-stage
# curve go right at equal height until you meet a curve of SR3 alone. The ratio of the two positions is the
# factor.

# %% mystnb={"image": {"alt": "PSNR against images seen in training, a line for each method and a dot for each seed"}}
if "train_images" in varied:
    rest = {k: v for k, v in middle.items() if k != "train_images"}
    records = [*folder.glob("*/00_denoise.json"), *folder.glob("*/03_refine_unet.json")]
    extra = read_json(records[0])["parameters"]["refine_images"] if records else 0
    spent = at(dB, **rest).assign(images=lambda f: f["train_images"])
    spent = spent[spent["method"] != "Bayes limit"]
    spent.loc[spent["method"] == "SR3 → U-Net", "images"] += extra
    figure, ax = plt.subplots(figsize=(6.4, 4))
    where = f" at SNR {rest['snr']:g}" if "snr" in rest else ""
    labels = {"xlabel": "images seen in training, both stages", "ylabel": "PSNR (dB)"}
    draw(ax, spent, "images", title=f"Quality against training{where}", **labels)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    plt.show()

# %%
factor = float("nan")
if "train_images" in varied and records:
    mean = spent.groupby(["method", "images"])["value"].mean()
    cost, reached = mean["SR3 → U-Net"].index[0], mean["SR3 → U-Net"].iloc[0]
    lines = []
    for name in ("SR3, sample", "SR3, one step"):
        enough = mean[name].index[mean[name] >= reached]
        most = mean[name].index[-1]
        factor = (enough[0] if len(enough) else most) / cost
        how = f"after {enough[0]:,}: factor {factor:.2g}" if len(enough) else f"not within {most:,}"
        lines.append(f"| {name} | {how} |")
    say(
        f"Two stages are at {reached:.2f} dB after {cost:,} images in all.\n\n| alone | gets there |"
        "\n|---|---|\n" + "\n".join(lines)
    )

# %% [markdown]
# Look at both rows. Against the *sample* of the first stage, a second stage can save a lot. Against its *one
# step*, the posterior mean, which costs nothing extra, the table shows what is left of the factor (below 1, the
# second stage costs more). "Times less training" is a statement about two curves, and about which rival was
# chosen. With a few thousand images of 32 pixels the networks have hardly begun; `experiments/training.yml` asks
# the same question at more honest sizes.
#
# ## 8. Quality against steps of the sampler
#
# **Question.** Do more steps make a better image?
#
# Take one network and sample it with more and more steps. That is cheap, so each run does it on the way, and the
# sweep need not vary the number of steps: *what can be measured within a run should be*.

# %% mystnb={"image": {"alt": "PSNR against the number of sampler steps, a line for each length of training"}}
steps = table.assign(k=table["quantity"].str.extract(r"^steps (\d+) psnr_dB$")[0]).dropna(
    subset="k"
)
steps = at(steps, **{k: v for k, v in middle.items() if k == "snr"})
steps["k"] = steps["k"].astype(int)
if len(steps):
    steps["method"] = steps["train_images"].map("after {:,} images".format)
    figure, ax = plt.subplots(figsize=(6.4, 4))
    labels = {"xlabel": "steps (network evaluations)", "ylabel": "PSNR (dB)"}
    draw(ax, steps.sort_values(["train_images", "k"]), "k", title="Quality against steps", **labels)
    ax.legend(fontsize=8)
    plt.show()
    change = steps[steps["k"].isin([steps["k"].min(), steps["k"].max()])]
    change = change.groupby(["method", "k"])["value"].mean().unstack().diff(axis=1).iloc[:, -1]
    say(
        f"From {steps['k'].min()} to {steps['k'].max()} steps PSNR changes by {change.min():+.1f} to "
        f"{change.max():+.1f} dB; an exact sampler of an exact model would lose 3.0."
    )

# %% [markdown]
# One step gives the mean, more steps give a sample, and a sample of an exact model has twice the squared error of
# the mean. Where a curve falls by more, the network adds errors of its own at every step.
#
# ## 9. Try to break it
#
# **Pick the best seed.** Take two *identical* methods, with the spread that we measured. One is run once for each
# setting, as a baseline often is. The other is "ours": we try as many seeds as the experiment has, and report the
# best.

# %% mystnb={"image": {"alt": "Histogram of how much the best of several seeds gains over a single run of the same method"}}
rng = np.random.default_rng(seed)
name = first if np.isfinite(spread[first]) else spread.idxmax()
draws = spread[name] * rng.standard_normal((10_000, n_seeds + 1))
gain = draws[:, 1:].max(1) - draws[:, 0]
figure, ax = plt.subplots(figsize=(6.4, 3))
ax.hist(gain, 60, color="C0")
ax.axvline(0, color="k", lw=0.8)
labels = {"xlabel": "gain over the twin (dB)", "ylabel": "cases of 10,000"}
ax.set(title=f"The best of {n_seeds} seeds against one run of the same method", **labels)
plt.show()
say(
    f"The best of {n_seeds} seeds beats its own twin in **{(gain > 0).mean():.0%}** of cases, by "
    f"{gain.mean():.2f} dB on average. Nothing was improved."
)

# %% [markdown]
# **Compare seconds.** Runs with the same parameters do the same work. Did they take the same time?

# %%
seconds = table[table["quantity"] == "run seconds"]
same = seconds.groupby(["notebook", "snr", "train_images"])["value"]
slower = float((same.max() / same.min()).max())
say(f"The slowest took up to **{slower:.2f} times** as long as the fastest of the same settings.")

# %% [markdown]
# They shared cores, memory and disk with their neighbours, and the first ones had to start everything up. To
# compare times, run one at a time (`--cores 1`) on a quiet machine, and repeat. The same would hold for results that
# *depend* on time, such as networks trained for equal seconds: `04_compare_methods` counts operations instead.
#
# ## 10. Exercises
#
# ```{exercise}
# :label: ex-experiments-seed
# *Easy, 5 minutes.*
# **One seed more.** Add a seed to the experiment. How many runs would there be to do, and why not all of them?
# ```
#
# ````{solution-start} ex-experiments-seed
# :class: dropdown
# ````
# Only those with the new seed: the others are finished and unchanged. You can add values of what varies to an
# experiment at any time. If you change what is *fixed*, it becomes another experiment, and the folder refuses it.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
more = make_experiment("tiny", content | {"seeds": [*seed_values, max(seed_values) + 1]})
planned = plan_runs(more, run_dir / "sweep", small)
left = [run for run in planned if not run.finished(run_dir / "sweep")]
print(f"{len(planned)} runs, {len(left)} to do")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-experiments-power
# *Hard, 20 minutes.*
# **How many seeds?** You expect a new loss to be worth 0.1 dB for SR3's one step. With how many seeds must you
# run both the old and the new loss to see that, at a margin of two standard errors, in four of five such
# experiments (a *power* of 80 %)? And if both are judged on the same particles?
# ```
#
# ````{solution-start} ex-experiments-power
# :class: dropdown
# ````
# Two standard errors alone do not do: an effect of just that size is missed in half of the experiments, since its
# measured value falls below its true one as often as above. For a power of 80 % the true effect must lie another
# 0.84 standard errors higher, which takes $(2.8/2)^2$, about twice as many seeds. (With fewer than ten seeds the
# spread is uncertain itself, and it takes a few more.) The number grows as the square of spread over effect. If it frightens you, reduce the spread first: more test
# particles, the same ones for all seeds, longer training.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
margin = 1.96 + 0.84  # standard errors: 5 % false alarms, two-sided, and 80 % found
alone = 2 * (margin * spread[first] / 0.1) ** 2  # the variance of a difference is that of both
within = n_seeds * (margin * paired.mean() / 0.1) ** 2
print(
    f"apart: {np.ceil(alone):.0f} seeds each; within runs, if it pairs as above: {np.ceil(within):.0f}"
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise}
# :label: ex-experiments-sign
# *Medium, 15 minutes.*
# **A test that assumes little.** Count the runs in which SR3's one step beats the linear filter. If the two were
# equally good, each run would be a toss of a coin. How likely would a count at least as far from half as yours
# be?
# ```
#
# ````{solution-start} ex-experiments-sign
# :class: dropdown
# ````
# The sign test needs no normal distribution. In return it throws away *how much* better a method is. And it puts
# all settings together, which hides it if one method wins at high SNR and the other at low.

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
better, tosses = int((wide[first] > wide[second]).sum()), len(wide)
far = abs(2 * better - tosses)
chance = sum(comb(tosses, k) for k in range(tosses + 1) if abs(2 * k - tosses) >= far) / 2**tosses
print(f"{better} of {tosses} runs; by tossing coins: probability {chance:.2g}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Quiz
#
# Open the answer that you would give.
#
# **1.** Two settings differ by 0.3 dB in one run each, and the standard deviation between seeds is 0.3 dB. You
# conclude
#
# ```{dropdown} (a) the better one is better
# **No.** By chance alone the difference of two runs scatters by 0.42 dB.
# ```
# ```{dropdown} (b) they are equal
# **No.** Not seeing a difference in two runs is no evidence that there is none.
# ```
# ```{dropdown} (c) nothing yet
# **Right.** Even if nothing differs, the difference of two single runs has 1.4 times the standard deviation
# between seeds.
# ```
#
# **2.** You add two values to the grid of a finished sweep and start it again. What runs?
#
# ```{dropdown} (a) everything
# **No.** What is finished and unchanged is skipped.
# ```
# ```{dropdown} (b) whatever has a new value, with each seed
# **Right.** What is finished and unchanged is skipped.
# ```
# ```{dropdown} (c) nothing, the folder refuses
# **No.** It refuses a change of what is *fixed*, not more values of what varies.
# ```
#
# **3.** Method A needed 60 s and method B 90 s, in one sweep with four runs at a time. A is faster?
#
# ```{dropdown} (a) yes
# **No.** They shared the machine with other runs, and not with the same ones.
# ```
# ```{dropdown} (b) no
# **No.** It may well be; these numbers do not show it.
# ```
# ```{dropdown} (c) one cannot tell
# **Right.** They shared the machine with other runs, and not with the same ones.
# ```
#
# ## Recap
#
# - Write the axes of the figure first; whatever is on none of them stays fixed.
# - The spread over seeds is the yardstick. Show every seed, never the best one.
# - Compare within runs, at equal cost, and count the cost in something that does not depend on the neighbours.
# - The same command resumes a sweep, which ends in one tidy table.
#
# **Next**: an experiment of your own (`experiments/` has three to start from), or `09_clean_a_map`, which leaves
# images for maps.
#
# **References.** Wickham 2014, J. Stat. Softw. 59, 10 (tidy data) · Bouthillier et al. 2021, MLSys (variance in
# benchmarks) · Henderson et al. 2018, AAAI (seeds that decide) · Mölder et al. 2021, F1000Research 10, 33 (snakemake) · Zhang, Zhao, Hu,
# Zhao, ICASSP 2024, arXiv 2401.01097.

# %%
found = {"runs": int(table["run"].nunique()), "values": len(table), "not_finished": len(missing)}
found |= {f"spread: {name} (dB)": value for name, value in spread.items() if np.isfinite(value)}
found |= {"paired_error_dB": float(paired.mean()), "apart_error_dB": float(apart.mean())}
for (name, snr, n), value in groups.mean().items():
    found[f"SNR {snr:g}, {n} images: {name} (dB)"] = float(value)
found |= {"best_of_seeds_wins": float((gain > 0).mean()), "slower_by": slower}
(run_dir / "results").mkdir(parents=True, exist_ok=True)
(run_dir / "results" / "08_experiments.json").write_text(json.dumps(found, indent=1))
