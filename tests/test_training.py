import copy
import itertools
import json
import math
import platform
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from slmlib import training as training_module
from slmlib.corpora import Corpus, Vocabulary
from slmlib.models import LinearConfig, MLPConfig, TransformerConfig, build
from slmlib.training import BUDGETS, Diverged, History, TrainingConfig, budget, evaluate, fit
from slmlib.windows import Windows, random_stream

V, T = 7, 5
LINEAR = LinearConfig(context=T, d_model=6)
MLP = MLPConfig(context=T, d_model=6, hidden=16, dropout=0.3)
ATTENTION = TransformerConfig(context=T, d_model=8, heads=2, layers=1, ff_width=8, dropout=0.3)
kinds = pytest.mark.parametrize("config", [LINEAR, MLP, ATTENTION], ids=lambda c: type(c).__name__)
QUICK = TrainingConfig(epochs=2, windows_per_epoch=40, eval_windows=50, batch=16)


def corpus(ids, valid=None):
    vocabulary = Vocabulary(tuple("abcdefg"), "character")
    return Corpus("toy", ids, ids if valid is None else valid, ids, vocabulary)


def noise(n, seed=0):
    return torch.randint(V, (n,), generator=torch.Generator().manual_seed(seed))


EASY, NOISE = corpus(torch.arange(300) % V), corpus(noise(300), noise(300, seed=1))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def outcome(history):
    return history.step_losses, history.train, history.valid


def run(config=MLP, training=QUICK, seed=0, data=NOISE):
    model = build(config, V, seed=0)
    history = fit(model, data, training, seed, progress=False)
    return model, history


# fit


@kinds
def test_the_same_seed_gives_the_same_numbers_whatever_the_global_generator(config):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, history = run(config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, again = run(config)
    assert outcome(history) == outcome(again)
    assert same(first.state_dict(), second.state_dict())
    other, different = run(config, seed=1)
    assert outcome(history) != outcome(different)
    assert not same(first.state_dict(), other.state_dict())


def test_the_seed_also_decides_what_dropout_drops():
    """Every window of one token repeated is alike, so only dropout can tell two seeds apart."""
    flat = corpus(torch.zeros(100, dtype=torch.long))
    for dropout, alike in ((0.0, True), (0.5, False)):
        losses = [run(replace(MLP, dropout=dropout), seed=seed, data=flat)[1].step_losses for seed in (0, 1)]
        assert (losses[0] == losses[1]) == alike


def test_the_loss_falls_on_an_easy_text():
    _, history = run(replace(MLP, dropout=0.0), replace(QUICK, epochs=6, learning_rate=0.03), data=EASY)
    assert history.step_losses[0] > 1.5
    assert history.train == sorted(history.train, reverse=True)
    assert history.valid[-1] < 0.2
    assert history.seconds > 0


@pytest.mark.parametrize(("windows", "steps"), [(40, 3), (32, 2), (33, 3), (5, 1)])
def test_an_epoch_has_its_windows_in_batches_the_last_one_partial(windows, steps):
    training = replace(QUICK, windows_per_epoch=windows)
    _, history = run(training=training)
    assert training.steps_per_epoch == steps
    assert len(history.step_losses) == training.epochs * steps
    assert len(history.train) == len(history.valid) == training.epochs
    sizes = [min(16, windows - 16 * step) for step in range(steps)]
    for epoch, mean in enumerate(history.train):
        losses = history.step_losses[epoch * steps : (epoch + 1) * steps]
        weighted = sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / windows
        assert mean == pytest.approx(weighted, rel=1e-5)


def test_fit_is_adam_with_default_betas_on_the_drawn_windows():
    config, training = replace(MLP, dropout=0.0), replace(QUICK, epochs=1, windows_per_epoch=72)
    fitted, history = run(config, training)
    model = build(config, V, seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, fused=False)
    starts = Windows(NOISE.train, T).draw(72, random_stream(0, "windows")).tolist()
    losses = []
    for first in range(0, 72, 16):
        chosen = starts[first : first + 16]
        inputs = torch.stack([NOISE.train[i : i + T] for i in chosen])
        loss = F.cross_entropy(model(inputs), torch.stack([NOISE.train[i + T] for i in chosen]))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert history.step_losses == pytest.approx(losses, abs=1e-6)
    for ours, theirs in zip(fitted.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


TODAY = replace(
    *(QUICK,),
    **{"optimiser": "muon", "muon_rate": 0.01, "weight_decay": 0.2, "beta2": 0.9, "schedule": "linear", "warmup": 0.25},
    **{"clip": 0.5, "average": 0.8, "epochs": 4, "learning_rate": 0.01},
)


def test_fit_with_todays_training_is_what_its_parts_say():
    """AdamW and Muon by a scheduled rate, the gradient's norm clipped, the weights averaged, as a loop by hand."""
    config = replace(ATTENTION, dropout=0.0)
    fitted, history = run(config, TODAY)
    model = build(config, V, seed=0)
    inner = [p for name, p in model.named_parameters() if name.startswith("blocks") and p.dim() == 2]
    outer = [model.embed.weight, model.positions.weight, model.head.weight]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW([{"params": outer}, {"params": vectors, "weight_decay": 0}], weight_decay=0.2)
    muon = torch.optim.Muon(inner, weight_decay=0.2)
    starts, rates = random_stream(0, "windows"), [1 / 3, 2 / 3, 1, *(1 - i / 9 for i in range(9))]
    assert [TODAY.rate(step) for step in range(12)] == pytest.approx(rates)
    mean, means = None, []
    for step, rate in enumerate(rates):
        if step % 3 == 0:
            drawn = Windows(NOISE.train, T).draw(40, starts).split(16)
        inputs, targets = Windows(NOISE.train, T)[drawn[step % 3]]
        loss = F.cross_entropy(model(inputs), targets)
        assert loss.item() == pytest.approx(history.step_losses[step], abs=1e-4)
        model.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        for p in model.parameters():
            p.grad *= min(1, 0.5 / norm)
        for optimiser, full in ((adam, 0.01), (muon, 0.01)):
            for group in optimiser.param_groups:
                group["lr"] = full * rate
                group["betas"] = (0.9, 0.9)
            optimiser.step()
        now = {k: v.clone() for k, v in model.state_dict().items()}
        mean = now if mean is None else {k: 0.8 * v + 0.2 * now[k] for k, v in mean.items()}
        means += [mean] if step % 3 == 2 else []
    for name, tensor in fitted.state_dict().items():
        torch.testing.assert_close(tensor, means[history.best_epoch - 1][name], rtol=0, atol=1e-3)  # Muon's bfloat16


def test_schedules_end_at_zero_and_a_constant_one_stays():
    def rates(**options):
        training = replace(QUICK, epochs=2, **options)  # six steps
        return [training.rate(step) for step in range(6)]

    assert rates() == [1] * 6
    assert rates(schedule="linear") == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rates(schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)])
    assert rates(warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_muon_needs_a_matrix_between_embedding_and_head():
    with pytest.raises(ValueError, match="'muon', but a Linear has no matrix"):
        run(LINEAR, replace(QUICK, optimiser="muon"))


def test_validation_may_look_elsewhere_than_the_test():
    training = replace(QUICK, valid_from=100, valid_stride=7)
    model, history = run(MLP, training)
    assert history.valid[history.best_epoch - 1] == evaluate(model, NOISE.valid, None, 7, first=100)


def test_at_the_end_the_last_epochs_weights_are_shown():
    data, seen = corpus(noise(40), noise(300, seed=1)), []
    model, training = build(MLP, V, seed=0), replace(QUICK, epochs=8, learning_rate=0.03)
    history = fit(
        model, data, training, 0, False, at_end=lambda m, h: seen.append(evaluate(m, data.valid, **training.validation))
    )
    assert history.best_epoch < 8
    assert seen == [history.valid[-1]]


def test_each_epoch_draws_new_windows_and_validates_as_told():
    """At a vanishing learning rate the model stays as it is, so the losses tell which windows it saw."""
    training = replace(QUICK, learning_rate=1e-30, eval_windows=40, eval_stride=3)
    model, history = run(replace(MLP, dropout=0.0), training)
    windows, draws, model = Windows(NOISE.train, T), random_stream(0, "windows"), model.eval()
    for seen in history.train:
        inputs, targets = windows[windows.draw(40, draws)]
        assert seen == pytest.approx(F.cross_entropy(model(inputs), targets).item(), abs=1e-5)
    assert history.train[0] != history.train[1]
    assert history.valid == [evaluate(model, NOISE.valid, 40, 3)] * 2


def test_the_model_keeps_its_best_epoch_when_later_ones_are_worse():
    """Forty random tokens learnt by heart: validation is best early, and the later weights are far away."""
    data, training = corpus(noise(40), noise(300, seed=1)), replace(QUICK, epochs=8, learning_rate=0.02)
    model, history = run(replace(MLP, dropout=0.0), training, data=data)
    best = min(history.valid)
    assert history.valid[-1] > best + 0.5
    assert history.valid[history.best_epoch - 1] == best
    assert history.best_epoch < 8
    assert evaluate(model, data.valid, training.eval_windows) == best
    shorter, _ = run(replace(MLP, dropout=0.0), replace(training, epochs=history.best_epoch), data=data)
    assert same(model.state_dict(), shorter.state_dict())


def test_best_epoch_is_the_first_of_equals():
    assert History(valid=[2.0, 1.0, 3.0, 1.0]).best_epoch == 2


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_when_asked_for(progress, capsys):
    fit(build(MLP, V, seed=0), NOISE, QUICK, 0, progress=progress)
    assert ("6/6" in capsys.readouterr().err) == progress


# Checkpoints

FOUR = replace(QUICK, epochs=4, learning_rate=0.01)  # of 3 steps each


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture
def stop_at(monkeypatch):
    """Makes ``fit`` end as by Ctrl-C in the n-th training step from here; 0: never."""
    loss = training_module._loss

    def stop_at(n):
        steps = itertools.count(1)

        def interrupted(*args):
            if next(steps) == n:
                raise KeyboardInterrupt
            return loss(*args)

        monkeypatch.setattr(training_module, "_loss", interrupted)

    return stop_at


def go_on(checkpoint, config=MLP, training=FOUR, seed=0, data=NOISE, start=0, dtype=torch.float32):
    """A run with a checkpoint, from the initial weights of the seed ``start``."""
    model = build(config, V, seed=start).to(dtype)
    return model, fit(model, data, training, seed, progress=False, checkpoint=checkpoint)


def epochs_in(checkpoint):
    with safetensors.safe_open(checkpoint, "pt") as file:
        return len(json.loads(file.metadata()["history"])["valid"])


@pytest.mark.parametrize("stops", [(4,), (9,), (10,), (5, 5, 5)], ids=str)
@kinds
def test_a_stopped_run_goes_on_to_the_same_bits(config, stops, checkpoint, stop_at):
    whole, history = run(config, FOUR)
    finished = 0
    for stop in stops:
        stop_at(stop)
        with pytest.raises(KeyboardInterrupt):
            go_on(checkpoint, config)
        finished += (stop - 1) // 3
        assert epochs_in(checkpoint) == finished
    stop_at(0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model, again = go_on(checkpoint, config)
    assert torch.equal(torch.get_rng_state(), before)
    assert outcome(again) == outcome(history)
    assert same(model.state_dict(), whole.state_dict())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert [file.name for file in checkpoint.parent.iterdir()] == [checkpoint.name]


@pytest.mark.parametrize("stop", [4, 9, 12])
def test_a_stopped_run_with_todays_training_goes_on_to_the_same_bits(stop, checkpoint, stop_at):
    config = replace(ATTENTION, tied=True, embed_init="small")
    whole, history = run(config, TODAY)
    stop_at(stop)
    with pytest.raises(KeyboardInterrupt):
        go_on(checkpoint, config, TODAY)
    stop_at(0)
    model, again = go_on(checkpoint, config, TODAY)
    assert outcome(again) == outcome(history)
    assert same(model.state_dict(), whole.state_dict())


def test_a_run_whose_schedule_knows_its_end_is_not_the_beginning_of_a_longer_one(checkpoint):
    go_on(checkpoint, ATTENTION, TODAY)
    with pytest.raises(ValueError, match="another run"):
        go_on(checkpoint, ATTENTION, replace(TODAY, epochs=5))


@pytest.mark.parametrize("config", [replace(MLP, dropout=0.1), ATTENTION], ids=lambda c: type(c).__name__)
def test_the_best_weights_of_before_the_stop_are_kept(config, checkpoint, stop_at):
    data, training = corpus(noise(40), noise(300, seed=1)), replace(QUICK, epochs=8, learning_rate=0.03)
    whole, history = run(config, training, data=data)
    assert history.best_epoch <= 4
    stop_at(5 * 3 + 2)
    with pytest.raises(KeyboardInterrupt):
        go_on(checkpoint, config, training, data=data)
    assert epochs_in(checkpoint) == 5
    stop_at(0)
    model, again = go_on(checkpoint, config, training, data=data)
    assert again.best_epoch == history.best_epoch
    assert same(model.state_dict(), whole.state_dict())


@kinds
def test_a_finished_run_is_not_trained_further_unless_more_epochs_are_asked_for(config, checkpoint, monkeypatch):
    longer, expected = run(config, replace(FOUR, epochs=7))
    first, history = go_on(checkpoint, config)
    with monkeypatch.context() as patch:
        patch.setattr(training_module, "_loss", None)
        patch.setattr(training_module, "evaluate", None)
        again, same_history = go_on(checkpoint, config)
    assert same_history == history  # its seconds too
    assert same(again.state_dict(), first.state_dict())
    model, history = go_on(checkpoint, config, replace(FOUR, epochs=7))
    assert outcome(history) == outcome(expected)
    assert same(model.state_dict(), longer.state_dict())


def test_seconds_add_up_over_the_stops(checkpoint, stop_at, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(training_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    whole = run(MLP, FOUR)[1].seconds
    stop_at(8)
    with pytest.raises(KeyboardInterrupt):
        go_on(checkpoint)
    stop_at(0)
    next(clock)  # time that passes between the two is not counted
    assert go_on(checkpoint)[1].seconds == whole


def test_a_run_that_fails_leaves_the_checkpoint_before(checkpoint, monkeypatch):
    go_on(checkpoint)
    before = checkpoint.read_bytes()
    monkeypatch.setattr(training_module, "_loss", None)
    with pytest.raises(TypeError):
        go_on(checkpoint, training=replace(FOUR, epochs=9))
    assert checkpoint.read_bytes() == before


OTHER_RUNS = {
    "seed": {"seed": 1},
    "learning rate": {"training": replace(FOUR, learning_rate=0.02)},
    "windows": {"training": replace(FOUR, windows_per_epoch=41)},
    "validation": {"training": replace(FOUR, eval_stride=2)},
    "architecture": {"config": LINEAR},
    "dropout": {"config": replace(MLP, dropout=0.4)},
    "text": {"data": corpus(noise(299), NOISE.valid)},
    "corpus": {"data": replace(NOISE, name="another")},
    "fewer epochs": {"training": replace(FOUR, epochs=3)},
    "a text of the same length": {"data": replace(NOISE, train=noise(300, seed=5))},
    "a validation text of the same length": {"data": replace(NOISE, valid=noise(300, seed=5))},
    "other initial weights": {"start": 9},
    "other types": {"dtype": torch.float64},
}


@pytest.mark.parametrize("other", OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_the_checkpoint_of_another_run_is_refused_and_left(other, checkpoint):
    go_on(checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="delete it to start this run anew") as error:
        go_on(checkpoint, **other)
    assert str(checkpoint) in str(error.value)
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_says_of_its_run_what_differs_from_the_defaults(checkpoint):
    """So that a field added later, with a default that means what was always done, does not make it another run."""
    go_on(checkpoint, config=replace(MLP, dropout=MLPConfig().dropout))
    with safetensors.safe_open(checkpoint, "pt") as file:
        run = file.metadata()["run"]
    assert "'hidden': 16" in run
    assert "dropout" not in run


@pytest.mark.parametrize(
    "spoil",
    [lambda _: b"", lambda _: b"garbage" * 100, lambda whole: whole[:-1], lambda whole: whole[: len(whole) // 2]],
    ids=["empty", "garbage", "a byte short", "half"],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_left(spoil, checkpoint):
    go_on(checkpoint)
    spoilt = spoil(checkpoint.read_bytes())
    checkpoint.write_bytes(spoilt)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="delete it to start this run anew") as error:
        go_on(checkpoint)
    assert str(checkpoint) in str(error.value)
    assert checkpoint.read_bytes() == spoilt
    assert torch.equal(torch.get_rng_state(), before)


def test_a_flipped_byte_is_found_wherever_it_is(checkpoint):
    go_on(checkpoint)
    whole, places = checkpoint.read_bytes(), torch.Generator().manual_seed(0)
    for at in torch.randint(len(whole), (60,), generator=places).tolist():
        checkpoint.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="delete it to start this run anew"):
            go_on(checkpoint)


def test_a_checkpoint_may_be_named_by_text_and_its_folder_must_be_there(tmp_path, monkeypatch):
    fit(build(MLP, V, seed=0), NOISE, QUICK, 0, False, str(tmp_path / "a"))
    assert epochs_in(tmp_path / "a") == 2
    monkeypatch.setattr(training_module, "_loss", None)  # nothing is trained before that is known
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fit(build(MLP, V, seed=0), NOISE, QUICK, 0, False, tmp_path / "nowhere" / "a")


def test_tensors_without_a_run_are_no_checkpoint(checkpoint):
    safetensors.torch.save_file({"model.head.bias": torch.zeros(V)}, checkpoint)
    with pytest.raises(ValueError, match="delete it to start this run anew"):
        go_on(checkpoint)


def headless():
    """A model that fails when it is called."""
    model = build(MLP, V, seed=0)
    model.head = None
    return model


# Matrix products


@pytest.fixture
def precision():
    """What oneDNN may use for float32 products; as it was after the test."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "none"
    yield lambda: matmul.fp32_precision
    matmul.fp32_precision = before


def precisions_in(function, precision):
    """Those in force during each forward pass of a model that the function is called with."""
    model, seen = build(MLP, V, seed=0), set()
    model.register_forward_hook(lambda *_: seen.add(precision()))
    function(model)
    return seen


@pytest.mark.parametrize(("exact", "inside"), [(True, "bf16"), (False, "none")])
@pytest.mark.parametrize(
    "function",
    [lambda model: fit(model, NOISE, QUICK, 0, progress=False), lambda model: evaluate(model, NOISE.valid)],
    ids=["fit", "evaluate"],
)
def test_onednn_multiplies_where_it_is_exact_and_the_setting_is_restored(
    function, exact, inside, precision, monkeypatch
):
    monkeypatch.setattr(training_module, "_onednn_is_exact", lambda: exact)
    assert precisions_in(function, precision) == {inside}
    assert precision() == "none"


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda: run(training=replace(QUICK, learning_rate=1e30)), Diverged),
        (lambda: evaluate(headless(), NOISE.valid), TypeError),
    ],
)
def test_the_setting_is_restored_after_an_error(function, error, precision, monkeypatch):
    def exact():
        asked.append(precision())
        return True

    asked = []
    monkeypatch.setattr(training_module, "_onednn_is_exact", exact)
    with pytest.raises(error):
        function()
    assert asked == ["none"]
    assert precision() == "none"


@pytest.mark.parametrize("chosen", ["ieee", "bf16"])
def test_a_setting_that_the_user_chose_is_left(chosen, precision, monkeypatch):
    monkeypatch.setattr(training_module, "_onednn_is_exact", lambda: True)
    torch.backends.mkldnn.matmul.fp32_precision = chosen
    assert precisions_in(lambda model: evaluate(model, NOISE.valid), precision) == {chosen}
    assert precision() == chosen


def test_the_setting_is_of_no_concern_to_a_gpu(precision, monkeypatch):
    monkeypatch.setattr(training_module, "_onednn_is_exact", lambda: True)
    with training_module.fast_matmul(torch.device("cuda")):
        assert precision() == "none"


def test_with_and_without_onednn_the_numbers_agree(precision, monkeypatch):
    def numbers():
        model, history = run(MLPConfig(context=32, d_model=32, hidden=64), replace(QUICK, windows_per_epoch=160))
        return [*history.step_losses, *history.valid, evaluate(model, NOISE.test)]

    with_it = numbers()
    monkeypatch.setattr(training_module, "_onednn_is_exact", lambda: False)
    assert with_it == pytest.approx(numbers(), abs=1e-5)


def test_coarse_products_are_noticed(precision, monkeypatch):
    """As on a processor whose oneDNN rounds the factors where it may use bfloat16."""
    multiply = torch.bmm

    def coarse(a, b):
        return multiply(a.bfloat16().float(), b.bfloat16().float()) if precision() == "bf16" else multiply(a, b)

    monkeypatch.setattr(torch, "bmm", coarse)
    assert training_module._onednn_is_exact.__wrapped__() is False
    assert precision() == "none"


# Divergence


class Bomb(nn.Module):
    """A model whose loss is NaN or infinite from the n-th training step on."""

    config = SimpleNamespace(context=T)

    def __init__(self, at, loss):
        super().__init__()
        self.at, self.loss, self.steps, self.logits = at, loss, 0, nn.Parameter(torch.zeros(V))

    def forward(self, tokens):
        self.steps += self.training
        logits = self.logits.expand(len(tokens), V)
        return logits if self.steps < self.at else logits + torch.tensor(self.loss) * torch.arange(V)


@pytest.mark.parametrize("step", [1, 99, 100, 101, 130, 131, 260])
def test_divergence_names_step_loss_and_learning_rate(step):
    training = TrainingConfig(epochs=2, windows_per_epoch=130, batch=1, eval_windows=1, learning_rate=0.123)
    with pytest.raises(Diverged) as error:
        fit(Bomb(step, math.nan), NOISE, training, 0, progress=False)
    assert (error.value.step, error.value.learning_rate) == (step, 0.123)
    assert math.isnan(error.value.loss)
    assert all(words in str(error.value) for words in ("loss is nan", f"step {step},", "learning rate 0.123"))


def test_divergence_is_an_arithmetic_error_and_infinity_counts():
    with pytest.raises(FloatingPointError, match=r"loss is (inf|nan) at step 2, with learning rate 1e\+30"):
        run(training=replace(QUICK, learning_rate=1e30))


def test_nan_weights_are_found_at_the_first_step():
    model = build(ATTENTION, V, seed=0)
    with torch.no_grad():
        model.head.bias[0] = math.nan
    with pytest.raises(Diverged, match=r"loss is nan at step 1, with learning rate 0\.0003"):
        fit(model, NOISE, QUICK, 0, progress=False)


def test_divergence_at_the_very_last_step_is_found():
    with pytest.raises(Diverged):
        run(training=replace(QUICK, epochs=1, windows_per_epoch=16, learning_rate=1e38))


def test_a_validation_split_that_is_too_short_is_refused_before_training():
    model = build(MLP, V, seed=0)
    before = state(model)
    with pytest.raises(ValueError, match="eval_windows"):
        fit(model, corpus(noise(100), noise(20)), QUICK, 0, progress=False)
    assert same(model.state_dict(), before)


# evaluate


@pytest.mark.parametrize(("n_windows", "stride"), [(None, 1), (1, 1), (37, 1), (37, 4), (None, 10), (295, 1)])
@pytest.mark.parametrize("batch", [8, 512])
@pytest.mark.parametrize("training", [True, False])
def test_evaluate_equals_a_naive_loop_and_leaves_the_mode(n_windows, stride, batch, training):
    model = build(MLP, V, seed=0).eval()
    ids, losses = NOISE.valid, []
    for i in range(0, len(ids) - T if n_windows is None else n_windows, stride):
        losses.append(F.cross_entropy(model(ids[None, i : i + T])[0], ids[i + T]).item())
    model.train(training)
    rng = torch.get_rng_state()
    nll = evaluate(model, ids, n_windows, stride, batch)
    assert type(nll) is float
    assert nll == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), rng)


def test_contexts_score_the_same_tokens_from_the_first_asked_for():
    model = build(MLP, V, seed=0).eval()
    every = [F.cross_entropy(model(NOISE.valid[None, i - T : i])[0], NOISE.valid[i]).item() for i in range(9, 300)]
    assert len(NOISE.valid) == 300
    assert evaluate(model, NOISE.valid, first=9) == pytest.approx(sum(every) / len(every), abs=1e-6)
    assert evaluate(model, NOISE.valid, 50, 7, first=9) == pytest.approx(sum(every[:50:7]) / 8, abs=1e-6)
    assert evaluate(model, NOISE.valid, first=T) == evaluate(model, NOISE.valid)


def test_fit_validates_from_the_first_token_asked_for():
    training = replace(QUICK, eval_windows=None, eval_stride=3, eval_from=9)
    model = build(MLP, V, seed=0)
    history = fit(model, NOISE, training, 0, progress=False)
    assert min(history.valid) == evaluate(model, NOISE.valid, stride=3, first=9)
    with pytest.raises(ValueError, match="first token scored is 3"):
        fit(model, NOISE, replace(training, eval_from=3), 0, progress=False)


def test_evaluate_changes_nothing_and_the_model_trains_on():
    model = build(ATTENTION, V, seed=0)
    before = copy.deepcopy(model.state_dict())
    evaluate(model, NOISE.valid)
    assert same(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())
    model(NOISE.train[None, :T]).sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_windows": 0}, "n_windows must be an integer of at least 1, got 0"),
        ({"n_windows": 296}, "n_windows must be at most the 295 there are, got 296"),
        ({"stride": 0}, "stride must be an integer of at least 1, got 0"),
        ({"batch": 0}, "batch must be an integer of at least 1, got 0"),
        ({"first": T - 1}, f"first token scored is {T - 1}, but a context of {T} "),
        ({"first": 300}, "first token scored is 300, but there are 300, numbered from 0"),
        ({"ids": torch.arange(T) % V}, "does not fit 5 tokens"),
        ({"ids": NOISE.valid[None]}, "1-D"),
    ],
)
def test_evaluate_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(build(MLP, V, seed=0), **{"ids": NOISE.valid, **arguments})


def test_evaluate_restores_the_mode_after_an_error():
    model = headless()
    with pytest.raises(TypeError):
        evaluate(model, NOISE.valid)
    assert model.training


def test_parts_that_their_owner_keeps_in_evaluation_mode_stay_there():
    model = build(MLP, V, seed=0)
    model.hidden.eval()
    evaluate(model, NOISE.valid)
    assert model.training and not any(part.training for part in model.hidden.modules())


@pytest.mark.parametrize("bad", [-100, V])
@pytest.mark.parametrize("at", [0, 299])  # as an input, and as the last target
def test_an_id_outside_the_vocabulary_is_no_target(bad, at):
    ids = NOISE.valid.clone()
    ids[at] = bad
    for train, valid in ((NOISE.train, ids), (ids, NOISE.valid)):
        with pytest.raises(ValueError, match=f"id {bad} at position {at}"):
            run(data=corpus(train, valid))
    with pytest.raises(ValueError, match=f"id {bad} at position {at}"):
        evaluate(build(MLP, V, seed=0), ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_a_short_type_is_summed_in_a_longer_one(dtype):
    model = build(LINEAR, V, seed=0).to(dtype)
    inputs, targets = Windows(NOISE.valid, T)[:]
    exact = F.cross_entropy(model(inputs).double(), targets).item()
    assert evaluate(model, NOISE.valid) == pytest.approx(exact, abs=1e-5)


# TrainingConfig and budgets


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("epochs", "windows_per_epoch", "eval_windows", "eval_stride", "batch", "eval_from")),
        *(("batch", value) for value in (-1, 1.5, True, "64", None)),
        *(("learning_rate", value) for value in (0, -1e-3, math.nan, math.inf, 10**400, "3e-4", None)),
        *(("valid_from", 0), ("valid_stride", 0), ("whole_stride", 0), ("muon_rate", 0.0), ("clip", 0)),
        *(("beta2", 1.0), ("weight_decay", -0.1), ("warmup", 1), ("average", 1.0), ("optimiser", "sgd")),
        *(("schedule", "step"), ("weight_decay", 0.1)),  # the last: with Adam
    ],
)
def test_a_bad_field_is_named_with_its_value(field, value):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**{field: value})
    assert f"TrainingConfig.{field}" in str(error.value)
    assert repr(value) in str(error.value)


def test_training_config_is_frozen_and_hashable_and_defaults_to_the_papers():
    paper = TrainingConfig()
    assert (paper.batch, paper.learning_rate, paper.windows_per_epoch, paper.eval_windows) == (64, 3e-4, 50_000, 10_000)
    assert hash(paper) == hash(replace(paper))
    assert TrainingConfig(eval_windows=None) != paper
    with pytest.raises(AttributeError):
        paper.batch = 3


def test_at_scales_the_windows_and_keeps_the_text_validated_on():
    paper = TrainingConfig(epochs=4)
    assert paper.at("paper") == paper
    for name, fraction in BUDGETS.items():
        training = paper.at(name)
        assert training.windows_per_epoch == max(64, round(50_000 * fraction))
        assert (training.eval_stride == 1) == (name == "paper")
        assert replace(training, windows_per_epoch=50_000, eval_stride=1) == paper
    assert BUDGETS["smoke"] < BUDGETS["reduced"] < BUDGETS["paper"] == 1


def test_a_training_sized_for_a_smaller_budget_is_scaled_from_there():
    small = TrainingConfig(windows_per_epoch=6_000)
    assert small.at("reduced", sized_for="reduced") == small.at("paper", sized_for="reduced") == small
    smoke = small.at("smoke", sized_for="reduced")
    assert smoke.windows_per_epoch == round(6_000 * BUDGETS["smoke"] / BUDGETS["reduced"])
    assert smoke.eval_stride > 1


def test_no_budget_trains_more_than_the_papers():
    assert TrainingConfig(windows_per_epoch=10).at("reduced").windows_per_epoch <= 10


def test_at_lists_the_budgets_for_an_unknown_one():
    with pytest.raises(ValueError, match="smoke, reduced, paper"):
        TrainingConfig().at("huge")


@pytest.mark.parametrize(("value", "expected"), [(None, "reduced"), ("", "reduced"), *((b, b) for b in BUDGETS)])
def test_budget_reads_the_environment(monkeypatch, value, expected):
    monkeypatch.delenv("SLMLIB_BUDGET", raising=False)
    if value is not None:
        monkeypatch.setenv("SLMLIB_BUDGET", value)
    assert budget() == expected


def test_budget_rejects_nonsense(monkeypatch):
    monkeypatch.setenv("SLMLIB_BUDGET", "Paper")
    with pytest.raises(ValueError, match=r"SLMLIB_BUDGET is 'Paper'; set it to one of smoke, reduced, paper"):
        budget()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_steps_reuse_the_memory_of_those_before():
    resource = pytest.importorskip("resource")
    config = TransformerConfig(context=128, d_model=64, layers=2, ff_width=128, dropout=0.0)

    def new_pages(steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run(config, TrainingConfig(epochs=1, windows_per_epoch=64 * steps, eval_windows=64))
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    new_pages(2)
    one_tensor = 64 * 4 * 128 * 128 * 4 // resource.getpagesize()  # attention weights: a step makes several
    assert new_pages(6) < 6 * one_tensor
