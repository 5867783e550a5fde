"""Training: it learns, it repeats, it resumes exactly, and it refuses what it cannot do."""

from __future__ import annotations

import copy
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from cryonb.base.precision import KEPT_BYTES, M_TRIM_THRESHOLD, fast_precision, keep_freed_memory
from cryonb.learning.diffusion import SR3
from cryonb.learning.refine import INPUTS, Refiner, refine, refine_loss
from cryonb.learning.train import (
    count_flops,
    curriculum_sigma,
    draw_batch,
    flops_per_image,
    learning_rate_share,
    sr3_loss,
    train,
    update_average,
)
from cryonb.learning.unet import UNet
from cryonb.learning.weights import load_kept, load_model, save_model

SMALL = dict(widths=(16, 32), blocks=1, transformers=1, embedding=32)
SIGMA = 2.0


def blobs(n=64, box=16):
    """Bright discs at random places: something to learn in seconds."""
    generator = torch.Generator().manual_seed(0)
    centre = 4 + 8 * torch.rand(n, 2, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(box), torch.arange(box), indexing="ij")
    inside = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 9).float()
    return (inside - inside.mean()) / inside.std()


def run(n_images=160, checkpoint=None, stop_at=None, seed=0, **options):
    torch.manual_seed(0)
    model = SR3(**SMALL)
    average = copy.deepcopy(model)
    images = blobs()
    draw, loss = partial(draw_batch, (images, images)), partial(sr3_loss, sigma=SIGMA)
    losses = []
    for progress in train(
        model,
        average,
        draw,
        loss,
        n_images,
        batch_size=16,
        seed=seed,
        precision="no",
        checkpoint=checkpoint,
        **options,
    ):
        losses.append(progress.loss)
        if progress.step == stop_at:
            break
    return average, losses


@pytest.fixture(scope="module")
def uninterrupted():
    """Average and losses of a run that nothing disturbs."""
    return run()


def test_every_step_has_random_numbers_of_its_own():
    """Seeds of the generator that draws: a function of the run's seed and of the step."""

    def seeds(seed, n=64):
        seen, model = [], torch.nn.Conv2d(1, 1, 1)

        def draw(n, generator):
            seen.append(generator.initial_seed())
            return [torch.zeros(n, 1, 4, 4)]

        loss = lambda model, batch, *_: model(batch[0]).mean()  # noqa: E731
        list(train(model, copy.deepcopy(model), draw, loss, n, batch_size=16, seed=seed))
        return seen

    assert seeds(0) == seeds(0) and len({*seeds(0), *seeds(1)}) == 8


def test_the_average_remembers_a_tenth_of_the_run_and_500_steps_at_most():
    model, average = (torch.nn.Linear(1, 1, bias=False) for _ in range(2))
    torch.nn.init.ones_(model.weight)
    for step, weight in ((0, 1.0), (10, 0.5), (90, 0.1), (5000, 0.002), (10**6, 0.002)):
        torch.nn.init.zeros_(average.weight)
        update_average(average, model, step)
        assert average.weight.item() == pytest.approx(weight)


def test_gradients_are_clipped_at_unit_norm(monkeypatch):
    norms, step = [], torch.optim.AdamW.step

    def seen(self, *given, **named):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    model, draw = torch.nn.Conv2d(1, 1, 1), lambda n, _: [torch.ones(n, 1, 4, 4)]
    loss = lambda model, batch, *_: 1e3 * model(batch[0]).sum()  # noqa: E731
    list(train(model, copy.deepcopy(model), draw, loss, 48, batch_size=16, precision="no"))
    assert norms == pytest.approx([1.0] * 3, abs=1e-3)


def test_the_rate_warms_up_and_falls_to_nothing():
    """A tenth of a short run up, then half a cosine: one half in the middle, zero at the end."""
    rates = [learning_rate_share(step, 20) for step in range(20)]
    assert rates[0] == pytest.approx(1 / 3) and rates[10] == pytest.approx(0.5)
    assert rates[2] == max(rates) < 1 and rates[-1] < 0.01


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_it_learns():
    _, losses = run(800, learning_rate=1e-2)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_one_process_may_train_in_both_precisions():
    images, model = blobs(), SR3(**SMALL)
    draw, loss = partial(draw_batch, (images, images)), partial(sr3_loss, sigma=SIGMA)
    losses = [
        next(train(copy.deepcopy(model), copy.deepcopy(model), draw, loss, 64, precision=p)).loss
        for p in ("bf16", "no", "bf16")
    ]
    assert losses[0] == losses[2] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_seed_repeats_bit_for_bit_and_another_does_not(uninterrupted):
    (a, la), (b, lb), (c, lc) = uninterrupted, run(), run(seed=1)
    assert la == lb and equal(a, b)
    assert la != lc and not equal(a, c)


def test_an_interrupted_run_resumes_exactly(tmp_path, uninterrupted):
    whole, losses = uninterrupted
    checkpoint = tmp_path / "run.checkpoint"
    _, first = run(checkpoint=checkpoint, stop_at=7)
    resumed, rest = run(checkpoint=checkpoint)
    assert first + rest == losses
    assert equal(resumed, whole)
    again, nothing = run(checkpoint=checkpoint)  # a finished run has nothing left to do
    assert nothing == [] and equal(again, whole)


def test_ctrl_c_within_a_step_resumes_exactly(tmp_path, uninterrupted):
    """The state of a step that was cut off is not kept: the last whole one is."""
    checkpoint, images = tmp_path / "run.checkpoint", blobs()
    torch.manual_seed(0)
    model = SR3(**SMALL)
    calls = []

    def loss(model, batch, fraction, generator):
        calls.append(fraction)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return sr3_loss(model, batch, fraction, generator, sigma=SIGMA)

    options = dict(batch_size=16, precision="no", checkpoint=checkpoint)
    average, draw = copy.deepcopy(model), partial(draw_batch, (images, images))
    with pytest.raises(KeyboardInterrupt):
        list(train(model, average, draw, loss, 160, **options))
    resumed, rest = run(checkpoint=checkpoint)
    whole, losses = uninterrupted
    assert rest == losses[5:] and equal(resumed, whole)


def test_a_killed_run_resumes_exactly(tmp_path, uninterrupted):
    """SIGKILL in the middle: at most the steps since the last checkpoint are done again."""
    checkpoint = tmp_path / "run.checkpoint"
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_train as t\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "import os, signal\n"
        "def stop(progress): os.kill(os.getpid(), signal.SIGKILL) if progress.step == 9 else None\n"
        "it = t.train\n"
        "def watched(*a, **k):\n"
        "    for p in it(*a, **k):\n"
        "        yield p\n"
        "        stop(p)\n"
        "t.train = watched\n"
        "t.run(checkpoint=sys.argv[2], checkpoint_seconds=0.0)\n"
    )
    tests = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", code, tests, checkpoint], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
    assert [f.name for f in tmp_path.iterdir()] == ["run.checkpoint"]  # nothing half-written
    resumed, rest = run(checkpoint=checkpoint)
    whole, losses = uninterrupted
    assert 0 < len(rest) < len(losses) and rest == losses[-len(rest) :]
    assert equal(resumed, whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    run(checkpoint=checkpoint, stop_at=2)
    with pytest.raises(ValueError, match="another .*seed.*delete"):
        run(checkpoint=checkpoint, seed=1)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole weights file"):
        run(checkpoint=checkpoint)


def test_full_disk_keeps_the_older_file(tmp_path):
    model = SR3(**SMALL)
    path = save_model(tmp_path / "m.safetensors", model, {"note": "old"})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(OSError, match="make room"):
            save_model(path, model, {"note": "new"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]


def ddp(folder, name: str, processes: int, steps: int, checkpoint: str = "none"):
    """Run ddp_train.py in so many processes; what each of them wrote."""
    script = os.path.join(os.path.dirname(__file__), "ddp_train.py")
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(several if processes > 1 else []), script]
    command += [folder / name, folder / checkpoint, str(steps)]
    env = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{name}-{k}.json").read_text()) for k in range(processes)]


def test_two_processes_train_as_one_does(tmp_path):
    """Gradients are shared: losses and weights of 2 × 8 images are those of 16, to rounding."""
    (alone,) = ddp(tmp_path, "alone", 1, 12)
    both = ddp(tmp_path, "both", 2, 12, "shared.checkpoint")
    assert alone["shares"] == [16] * 12 and [b["shares"] for b in both] == [[8] * 12] * 2
    for one in both:  # the reported loss is that of the whole batch, in every process
        # float32 sums in another order, amplified over 12 steps of Adam
        assert one["losses"] == pytest.approx(alone["losses"], rel=1e-3)
        assert one["weights"] == pytest.approx(alone["weights"], rel=1e-2, abs=1e-2)
    assert both[0]["weights"] == both[1]["weights"]
    assert alone["losses"][-1] < 0.9 * alone["losses"][0]


def test_nan_stops_training_with_advice():
    images = blobs()
    images[:] = float("nan")
    model = SR3(**SMALL)
    draw, loss = partial(draw_batch, (images, images)), partial(sr3_loss, sigma=SIGMA)
    with pytest.raises(FloatingPointError, match="learning_rate.*NaN"):
        next(train(model, copy.deepcopy(model), draw, loss, 100, precision="no"))


@pytest.mark.parametrize("half", [False, True])
def test_weights_round_trip(tmp_path, half):
    torch.manual_seed(1)
    model = SR3(**SMALL).eval()
    torch.nn.init.normal_(model.unet.exit.weight, std=0.05)
    path = save_model(tmp_path / "m.safetensors", model, {"snr": 0.1}, half=half)
    loaded, manifest = load_model(path, SR3)
    assert manifest == {"snr": 0.1}
    x = torch.randn(2, 16, 16)
    # bfloat16 weights have 8 bits: 0.4 % each, less in the sum
    assert_close(
        loaded(x, 0.5, x, SIGMA), model(x, 0.5, x, SIGMA), rtol=0, atol=0.05 if half else 0
    )


def test_weights_that_are_not_there_or_not_right(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebook"):
        load_model(tmp_path / "none.safetensors", SR3)
    path = save_model(tmp_path / "m.safetensors", Refiner(**SMALL), {})
    with pytest.raises(ValueError, match="another kind of network"):
        load_model(path, SR3)
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not a whole weights file"):
        load_model(tmp_path / "foreign.safetensors", SR3)
    assert load_kept("nothing", "white", "sr3", SR3) is None


def test_batches_are_turned_alike_and_stay_pairs():
    stack = blobs()
    a, b = draw_batch((stack, 2 * stack), 8, torch.Generator().manual_seed(3))
    assert_close(b, 2 * a)
    known = torch.cat([torch.rot90(s, k, (1, 2)) for s in (stack, stack.flip(2)) for k in range(4)])
    assert all((known == image).all((1, 2)).any() for image in a)
    square, given = torch.arange(4.0).view(1, 2, 2), torch.Generator().manual_seed
    seen = {str(draw_batch((square,), 1, given(s))[0].tolist()) for s in range(60)}
    assert len(seen) == 8  # four turns, each mirrored or not


def test_curriculum_grows_to_the_target():
    assert curriculum_sigma(0.0, 3.0) == pytest.approx(3**-0.5)
    assert curriculum_sigma(0.6, 3.0) == curriculum_sigma(1.0, 3.0) == pytest.approx(3.0)
    assert curriculum_sigma(0.3, 3.0) == pytest.approx((3.0 * 3**-0.5) ** 0.5)  # geometric
    assert curriculum_sigma(0.0, 0.1) == pytest.approx(0.1)  # never above the target


def test_cost_of_an_image_is_that_of_its_convolution_forward_and_back():
    """4 channels of 3 × 3 on 8 × 8 pixels: a product and a sum each; then the same for weights."""

    class Net(torch.nn.Conv2d):
        def forward(self, x):
            return super().forward(x[:, None])[:, 0]

    torch.manual_seed(0)
    model, images = Net(1, 4, 3, padding=1), torch.randn(6, 8, 8)
    before = copy.deepcopy(model)
    draw = partial(draw_batch, (images,))

    def start(*copies):
        assert all(c is not model for c in copies)
        return train(*copies, draw, lambda m, batch, *_: m(batch[0]).mean(), 10**6, batch_size=4)

    each = 2 * 8 * 8 * 9 * 4
    assert flops_per_image(start, model, model) == 2 * each
    assert count_flops(lambda: model(images)) == 6 * each
    assert equal(model, before)  # trained on copies


def test_attention_is_counted_in_the_cost():
    inputs = torch.zeros(1, 1, 16, 16), torch.zeros(1, 2)
    nets = [UNet(1, **SMALL | {"transformers": k}) for k in (1, 0)]
    with_attention, without = (count_flops(partial(net, *inputs)) for net in nets)
    n, w = (16 // 8) ** 2, SMALL["widths"][1]  # positions; queries, keys, values, out, MLP, scores
    embedding = SMALL["embedding"] * 4 * w
    assert with_attention - without == 2 * (n * (4 + 6) * w**2 + 2 * n**2 * w + embedding)


def test_precision_is_what_the_processor_can_do(monkeypatch):
    for can, name in (({"amx_bf16": True}, "bf16"), ({"avx512_bf16": False}, "no"), ({}, "no")):
        fast_precision.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert fast_precision() == name
    fast_precision.cache_clear()


def test_freed_memory_is_kept():
    """Pages that the system hands out for four blocks of 24 MB, when they come for the third time.

    By malloc itself: torch's small objects between large ones may hold on to memory by chance.
    """
    if not keep_freed_memory():
        pytest.skip("not glibc's allocator")
    code = (
        "import ctypes, resource\n"
        "from cryonb.base.precision import keep_freed_memory\n"
        "libc, size = ctypes.CDLL(None), 24 * 2**20\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "{}\n"
        "for _ in range(3):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    blocks = [ctypes.c_void_p(libc.malloc(size)) for _ in range(4)]\n"
        "    [libc.memset(block, 1, size) for block in blocks]\n"
        "    [libc.free(block) for block in blocks]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", code.format(call)]))
        for call in ("keep_freed_memory()", "")
    )
    assert kept < 0.1 * given_back


def test_where_memory_comes_from_changes_no_result(uninterrupted):
    if not keep_freed_memory():
        pytest.skip("not glibc's allocator")
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 0)
    try:
        assert run()[1] == uninterrupted[1]
    finally:
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


@pytest.mark.parametrize("inputs", INPUTS)
def test_refiner_starts_as_identity_and_sees_what_it_says(inputs):
    torch.manual_seed(0)
    refiner = Refiner(inputs, **SMALL).eval()
    sample, noisy = torch.randn(5, 16, 16), torch.randn(5, 16, 16)
    assert_close(refine(refiner, sample, noisy, SIGMA, batch_size=2), sample)
    assert refine_loss(refiner, (sample, sample, noisy), 0.0, None, sigma=SIGMA) == 0
    torch.nn.init.normal_(refiner.unet.exit.weight, std=0.1)
    moved = refiner(sample, noisy + 1, SIGMA) - refiner(sample, noisy, SIGMA)
    assert (moved.abs().max() > 1e-3) == (inputs == "sample+noisy")
    seen = []
    refiner.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    refiner(sample, noisy * (1 + SIGMA**2) ** 0.5, SIGMA)  # the particle at unit variance
    assert_close(seen[0], torch.stack([sample, noisy], 1)[:, : 1 + (inputs == "sample+noisy")])
    with pytest.raises(ValueError, match="sample"):
        Refiner("everything")


def test_unet_takes_other_boxes_and_refuses_odd_ones():
    net = UNet(1, levels=1, **SMALL)
    for box in (16, 24):
        assert net(torch.zeros(2, 1, box, box), torch.zeros(2, 1)).shape == (2, 1, box, box)
    with pytest.raises(ValueError, match="17 × 17.*multiple of 8"):
        net(torch.zeros(1, 1, 17, 17), torch.zeros(1, 1))
