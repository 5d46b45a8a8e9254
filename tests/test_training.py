import copy
import itertools
import math
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from conftest import close, epochs_in, same, stream
from torch.nn import functional as F

from slmlib import models, speed
from slmlib import training as training_module
from slmlib.corpora import Corpus, Vocabulary
from slmlib.models import LinearConfig, MLPConfig, TransformerConfig, build
from slmlib.training import BUDGETS, Diverged, History, TrainingConfig, budget, evaluate, fit
from slmlib.windows import Evaluation, Windows, random_stream

V, T = 7, 5
LINEAR = LinearConfig(context=T, d_model=6)
MLP = MLPConfig(context=T, d_model=6, hidden=16, dropout=0.3)
ATTENTION = TransformerConfig(context=T, d_model=8, heads=2, layers=1, ff_width=8, dropout=0.3)
kinds = pytest.mark.parametrize("config", [LINEAR, MLP, ATTENTION], ids=lambda c: type(c).__name__)
QUICK = TrainingConfig(epochs=2, windows_per_epoch=40, eval_windows=50, batch=16)
FOUR = replace(QUICK, epochs=4, learning_rate=0.01)  # of 3 steps each
TODAY = replace(
    *(FOUR,),
    **{"optimiser": "muon", "muon_rate": 0.01, "weight_decay": 0.2, "beta2": 0.9, "schedule": "linear", "warmup": 0.25},
    **{"clip": 0.5, "average": 0.8},
)


def corpus(ids, valid=None):
    vocabulary = Vocabulary(tuple("abcdefg"), "character")
    return Corpus("toy", ids, ids if valid is None else valid, ids, vocabulary)


def noise(n, seed=0):
    return torch.randint(V, (n,), generator=stream(seed))


NOISE = corpus(noise(300), noise(300, seed=1))
BY_HEART = corpus(noise(40), noise(300, seed=1))  # learnt by heart soon: validation is best early
OVERFITS = {"training": replace(QUICK, epochs=8, learning_rate=0.03), "data": BY_HEART}


def run(config=MLP, training=QUICK, seed=0, data=NOISE, start=0, dtype=torch.float32, **options):
    """A model and its history, from the initial weights of the seed ``start``."""
    model = build(config, V, seed=start).to(dtype)
    return model, fit(model, data, training, seed, **{"progress": False, **options})


def outcome(history):
    return history.step_losses, history.train, history.valid


def assert_equal_runs(one, other):
    assert outcome(one[1]) == outcome(other[1])
    assert same(one[0], other[0])


# fit


class Enough(ValueError):
    """A reader's own."""


def test_what_a_callback_raises_comes_out_as_it_is():
    def enough(history):
        raise Enough

    with pytest.raises(Enough) as said:
        run(each_epoch=enough)
    assert type(said.value) is Enough


def test_a_models_own_forward_is_what_is_evaluated():
    class Doubled(models.MLP):
        def forward(self, tokens):
            return 2 * super().forward(tokens)

    model = Doubled(MLP, V).eval()
    by_hand = [F.cross_entropy(model(w[None, :-1]), w[None, -1]).item() for w in NOISE.valid.unfold(0, T + 1, 1)]
    assert evaluate(model, NOISE.valid) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


def test_no_table_is_made_that_would_be_too_large():
    embed, layer = torch.nn.Embedding(9_999, 2), torch.nn.Linear(64 * 2, 200)
    tokens = torch.randint(9_999, (3, 64), generator=stream())
    assert torch.equal(speed.look_up(embed, layer)(tokens), layer(embed(tokens).flatten(1)))


@kinds
def test_the_same_seed_gives_the_same_numbers_whatever_the_global_generator(config, generator_left):
    first, other = run(config), run(config, seed=1)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert_equal_runs(first, run(config))
    torch.set_rng_state(state)
    assert outcome(first[1]) != outcome(other[1])
    assert not same(first[0], other[0])


def test_the_seed_also_decides_what_dropout_drops():
    """Every window of one token repeated is alike, so only dropout can tell two seeds apart."""
    flat = corpus(torch.zeros(100, dtype=torch.long))
    for dropout, alike in ((0.0, True), (0.5, False)):
        losses = [run(replace(MLP, dropout=dropout), seed=seed, data=flat)[1].step_losses for seed in (0, 1)]
        assert (losses[0] == losses[1]) == alike


def test_a_model_that_was_trained_draws_from_the_global_generator_again():
    model, seen = run(ATTENTION)[0].train(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seen.append(model(NOISE.valid[None, :T]))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


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
        close(tensor, means[history.best_epoch - 1][name], 1e-3)  # Muon's bfloat16


def test_schedules_end_at_zero_and_a_constant_one_stays():
    def rates(**options):
        return [replace(QUICK, **options).rate(step) for step in range(6)]  # two epochs of three steps

    assert rates() == [1] * 6
    assert rates(schedule="linear") == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rates(schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)])
    assert rates(warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("training", "looks_at"),
    [
        (QUICK, Evaluation(50)),
        (replace(QUICK, eval_windows=40, eval_stride=3), Evaluation(40, 3)),
        (replace(QUICK, eval_windows=None, eval_stride=3, eval_from=9), Evaluation(None, 3, 9)),
        (replace(QUICK, valid_from=100, valid_stride=7), Evaluation(None, 7, 100)),
    ],
)
def test_each_epoch_draws_new_windows_and_validates_as_told(training, looks_at):
    """At a vanishing learning rate the model stays as it is, so the losses tell which windows it saw."""
    model, history = run(replace(MLP, dropout=0.0), replace(training, learning_rate=1e-30))
    windows, draws = Windows(NOISE.train, T), random_stream(0, "windows")
    for seen in history.train:
        inputs, targets = windows[windows.draw(40, draws)]
        assert seen == pytest.approx(F.cross_entropy(model(inputs), targets).item(), abs=1e-5)
    assert history.train[0] != history.train[1]
    assert history.valid == [evaluate(model, NOISE.valid, looks_at)] * 2


def test_the_model_keeps_its_best_epoch_and_the_last_is_shown_before():
    seen, without = [], replace(MLP, dropout=0.0)
    model, history = run(without, **OVERFITS, at_end=lambda m, h: seen.append(evaluate(m, NOISE.valid, Evaluation(50))))
    best = min(history.valid)
    assert history.valid[-1] > best + 0.5
    assert seen == [history.valid[-1]]
    assert history.valid[history.best_epoch - 1] == best == evaluate(model, NOISE.valid, Evaluation(50))
    shorter, _ = run(without, replace(OVERFITS["training"], epochs=history.best_epoch), data=BY_HEART)
    assert same(model, shorter)
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_best_epoch_is_the_first_of_equals():
    assert History(valid=[2.0, 1.0, 3.0, 1.0]).best_epoch == 2


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_when_asked_for(progress, capsys):
    run(progress=progress)
    assert ("6/6" in capsys.readouterr().err) == progress


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"config": LINEAR, "training": replace(QUICK, optimiser="muon")}, "'muon', but a Linear has no matrix"),
        ({"training": replace(QUICK, scored="every")}, "'every', which a MLP cannot"),
        ({"data": corpus(noise(100), noise(20))}, "validation split: 50 windows .*eval_windows.* 15"),
        ({"training": replace(QUICK, eval_from=3)}, "validation split: the first token scored is 3"),
        ({"data": corpus(noise(T), noise(100))}, "does not fit 5 tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_step(options, named):
    model = build(options.get("config", MLP), V, seed=0)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=named):
        fit(model, options.get("data", NOISE), options.get("training", QUICK), 0, progress=False)
    assert same(model, before)


# Checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture
def stop_at(monkeypatch):
    """Trains until Ctrl-C in the n-th training step from here."""
    loss = training_module._loss

    def stop_at(n, **options):
        steps = itertools.count(1)

        def interrupted(*args):
            if next(steps) == n:
                raise KeyboardInterrupt
            return loss(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training_module, "_loss", interrupted)
            run(**options)

    return stop_at


RUNS = {
    **{type(config).__name__: {"config": config, "training": FOUR} for config in (LINEAR, MLP, ATTENTION)},
    "today": {"config": replace(ATTENTION, tied=True, embed_init="small"), "training": TODAY},
}


@pytest.mark.parametrize("stops", [(4,), (12,), (5, 5, 5)], ids=str)
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_stopped_run_goes_on_to_the_same_bits(options, stops, checkpoint, stop_at, generator_left):
    whole, finished = run(**options), 0
    for stop in stops:
        stop_at(stop, **options, checkpoint=checkpoint)
        finished += (stop - 1) // 3
        assert epochs_in(checkpoint) == finished
    again = run(**options, checkpoint=checkpoint)
    assert_equal_runs(again, whole)
    assert not again[0].training and all(p.grad is None for p in again[0].parameters())
    assert [file.name for file in checkpoint.parent.iterdir()] == [checkpoint.name]


@pytest.mark.parametrize("config", [replace(MLP, dropout=0.1), ATTENTION], ids=lambda c: type(c).__name__)
def test_the_best_weights_of_before_the_stop_are_kept(config, checkpoint, stop_at):
    whole = run(config, **OVERFITS)
    assert whole[1].best_epoch <= 4
    stop_at(5 * 3 + 2, config=config, **OVERFITS, checkpoint=checkpoint)
    assert epochs_in(checkpoint) == 5
    assert_equal_runs(run(config, **OVERFITS, checkpoint=checkpoint), whole)


@kinds
def test_a_finished_run_is_not_trained_further_unless_more_epochs_are_asked_for(config, checkpoint, monkeypatch):
    longer = {"config": config, "training": replace(FOUR, epochs=7)}
    first, history = run(config, FOUR, checkpoint=checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(training_module, "_loss", None)
        patch.setattr(training_module, "evaluate", None)
        again, same_history = run(config, FOUR, checkpoint=checkpoint)
    assert same_history == history  # its seconds too
    assert same(again, first)
    assert_equal_runs(run(**longer, checkpoint=checkpoint), run(**longer))


def test_seconds_add_up_over_the_stops(checkpoint, stop_at, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(training_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    whole = run(training=FOUR)[1].seconds
    stop_at(8, training=FOUR, checkpoint=checkpoint)
    next(clock)  # time that passes between the two is not counted
    assert run(training=FOUR, checkpoint=checkpoint)[1].seconds == whole


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
def test_what_is_no_checkpoint_of_this_run_is_refused_by_name_and_left(other, checkpoint, generator_left):
    run(training=FOUR, checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="delete it to start this run anew") as error:
        run(**{"training": FOUR, **other}, checkpoint=checkpoint)
    assert str(checkpoint) in str(error.value)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("other", ["torch.__version__", "compiling"])
def test_a_checkpoint_of_other_arithmetic_is_refused(other, checkpoint, monkeypatch):
    run(training=FOUR, checkpoint=checkpoint)
    where = torch if other == "torch.__version__" else training_module
    monkeypatch.setattr(where, other.split(".")[-1], "1.0" if where is torch else lambda: True)
    monkeypatch.setattr(training_module, "compiled", lambda step: step)
    with pytest.raises(ValueError, match="delete it to start this run anew"):
        run(training=FOUR, checkpoint=checkpoint)


def test_a_checkpoint_without_its_checksum_is_refused(checkpoint):
    run(training=FOUR, checkpoint=checkpoint)
    with safetensors.safe_open(checkpoint, "pt") as file:
        tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    del texts["sha256"]
    safetensors.torch.save_file(tensors, checkpoint, texts)
    with pytest.raises(ValueError, match=r"no checkpoint of this package, or damaged.*delete it"):
        run(training=FOUR, checkpoint=checkpoint)


def test_a_run_whose_schedule_knows_its_end_is_not_the_beginning_of_a_longer_one(checkpoint):
    run(ATTENTION, TODAY, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="another run"):
        run(ATTENTION, replace(TODAY, epochs=5), checkpoint=checkpoint)


def test_a_checkpoint_says_of_its_run_what_differs_from_the_defaults(checkpoint):
    """So that a field added later, with a default that means what was always done, does not make it another run."""
    run(replace(MLP, dropout=MLPConfig().dropout), checkpoint=checkpoint)
    with safetensors.safe_open(checkpoint, "pt") as file:
        name = file.metadata()["run"]
    assert "'hidden': 16" in name
    assert "dropout" not in name


def test_a_checkpoint_may_be_named_by_text_and_its_folder_must_be_there(tmp_path, monkeypatch):
    run(checkpoint=str(tmp_path / "a"))
    assert epochs_in(tmp_path / "a") == 2
    monkeypatch.setattr(training_module, "_loss", None)  # nothing is trained before that is known
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(checkpoint=tmp_path / "nowhere" / "a")


# Matrix products


@pytest.fixture
def precision(monkeypatch):
    """What oneDNN may use for float32 products, large or small; as it was after the test."""
    monkeypatch.setattr(speed, "LARGE", 0)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "none"
    yield lambda: matmul.fp32_precision
    matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("exact", "chosen", "inside"),
    [(True, "none", "bf16"), (False, "none", "none"), (True, "ieee", "ieee"), (True, "bf16", "bf16")],
)
@pytest.mark.parametrize("function", ["fit", "evaluate"])
def test_onednn_multiplies_where_it_is_exact_and_none_chose_else(
    function, exact, chosen, inside, precision, monkeypatch
):
    monkeypatch.setattr(speed, "_onednn_is_exact", lambda: exact)
    torch.backends.mkldnn.matmul.fp32_precision = chosen
    model, seen = build(MLP, V, seed=0), set()
    model.head.register_forward_hook(lambda *_: seen.add(precision()))
    fit(model, NOISE, QUICK, 0, False) if function == "fit" else evaluate(model, NOISE.valid)
    assert (seen, precision()) == ({inside}, chosen)


def test_the_setting_is_the_processs_and_is_put_back(precision, monkeypatch):
    monkeypatch.setattr(speed, "_onednn_is_exact", lambda: True)
    monkeypatch.setattr(speed, "LARGE", 100)
    for device, work in (("cuda", 100), ("cpu", 99)):
        with speed.fast_matmul(torch.device(device), work):
            assert precision() == "none"
    for work in (100, 1):  # the first of two, as of two threads, leaves first
        one, other = (speed.fast_matmul(torch.device("cpu"), size) for size in (work, 100))
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert precision() == "bf16"
        other.__exit__(None, None, None)
        assert precision() == "none"
    with suppress(ValueError), speed.fast_matmul(torch.device("cpu"), 100):
        raise ValueError
    assert precision() == "none"


def test_with_and_without_onednn_the_numbers_agree(precision, monkeypatch):
    def numbers():
        model, history = run(MLPConfig(context=32, d_model=32, hidden=64), replace(QUICK, windows_per_epoch=160))
        return [*history.step_losses, *history.valid, evaluate(model, NOISE.test)]

    with_it = numbers()
    monkeypatch.setattr(speed, "_onednn_is_exact", lambda: False)
    assert with_it == pytest.approx(numbers(), abs=1e-5)


def test_coarse_products_are_noticed(precision, monkeypatch):
    """As on a processor whose oneDNN rounds the factors where it may use bfloat16."""
    multiply = torch.bmm

    def coarse(a, b):
        return multiply(a.bfloat16().float(), b.bfloat16().float()) if precision() == "bf16" else multiply(a, b)

    monkeypatch.setattr(torch, "bmm", coarse)
    assert speed._onednn_is_exact.__wrapped__() is False
    assert precision() == "none"


# Divergence


@pytest.mark.parametrize("step", [1, 99, 100, 101, 130, 131, 260])
def test_divergence_names_step_loss_and_learning_rate(step, monkeypatch):
    loss, steps = training_module._loss, itertools.count(1)
    monkeypatch.setattr(training_module, "_loss", lambda *of: loss(*of) * (math.nan if next(steps) == step else 1))
    training = TrainingConfig(epochs=2, windows_per_epoch=130, batch=1, eval_windows=1, learning_rate=0.00123)
    with pytest.raises(Diverged, match=rf"^loss is nan at step {step}, with learning rate 0\.00123"):
        run(training=training)


@pytest.mark.parametrize(
    ("epochs", "windows", "rate", "named"),
    [(2, 40, 1e30, r"loss is (inf|nan) at step 2, with"), (1, 16, 1e38, r"validation loss is (inf|nan) at step 1,")],
)
def test_infinity_and_what_only_validation_shows_are_divergence_too(epochs, windows, rate, named):
    with pytest.raises(FloatingPointError, match=named):
        run(training=replace(QUICK, epochs=epochs, windows_per_epoch=windows, learning_rate=rate))


# evaluate


@pytest.mark.parametrize(
    "evaluation",
    [Evaluation(*of) for of in ((None,), (1,), (37,), (37, 4), (None, 10), (295,), (None, 1, 9), (50, 7, 9))],
    ids=str,
)
@pytest.mark.parametrize("batch, training", [(8, True), (512, False)])
@kinds
def test_evaluate_equals_a_naive_loop_and_leaves_the_model(config, evaluation, batch, training, generator_left):
    """Over more tokens than four times the vocabulary's, linear models and MLPs do it by look-up."""
    model = build(config, V, seed=0).eval()
    ids, tokens = NOISE.valid, range(evaluation.first or T, 300)[: evaluation.windows][:: evaluation.stride]
    losses = [F.cross_entropy(model(ids[None, i - T : i])[0], ids[i]).item() for i in tokens]
    model.train(training)
    before = copy.deepcopy(model)
    nll = evaluate(model, ids, evaluation, batch)
    assert type(nll) is float
    assert nll == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert same(model, before) and model.training == training
    model.eval()(ids[None, :T]).sum().backward()  # it can be trained on


def test_evaluate_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="batch must be an integer of at least 1, got 0"):
        evaluate(build(MLP, V, seed=0), NOISE.valid, batch=0)


def test_each_part_is_in_the_mode_it_was_in_afterwards_error_or_not():
    model = build(MLP, V, seed=0)
    model.head = None  # so that it fails when it is called
    model.hidden.eval()
    with pytest.raises(TypeError):
        evaluate(model, NOISE.valid)
    assert model.training and not any(part.training for part in model.hidden.modules())


@pytest.mark.parametrize("bad", [-100, V])
@pytest.mark.parametrize("at", [0, 299])  # as an input, and as the last target
def test_an_id_outside_the_vocabulary_is_no_target(bad, at):
    ids = NOISE.valid.clone()
    ids[at] = bad
    model = build(MLP, V, seed=0)
    for use in (
        lambda: run(data=corpus(NOISE.train, ids)),
        lambda: run(data=corpus(ids, NOISE.valid)),
        lambda: evaluate(model, ids),
    ):
        with pytest.raises(ValueError, match=f"id {bad} at position {at}"):
            use()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_a_short_type_is_summed_in_a_longer_one(dtype):
    model = build(LINEAR, V, seed=0).to(dtype)
    inputs, targets = Windows(NOISE.valid, T)[:]
    exact = F.cross_entropy(model(inputs).double(), targets).item()
    assert evaluate(model, NOISE.valid) == pytest.approx(exact, abs=1e-5)


# TrainingConfig and budgets


@pytest.mark.parametrize("sized_for", BUDGETS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_at_scales_the_windows_and_keeps_the_text_validated_on(budget, sized_for):
    sized = TrainingConfig(epochs=4)
    training, fraction = sized.at(budget, sized_for), min(1, BUDGETS[budget] / BUDGETS[sized_for])
    assert training.windows_per_epoch == max(64, round(50_000 * fraction))
    assert (training.eval_stride == 1) == (fraction == 1)
    assert replace(training, windows_per_epoch=50_000, eval_stride=1) == sized
    assert replace(sized, windows_per_epoch=10).at(budget, sized_for).windows_per_epoch == 10  # never more


@pytest.mark.parametrize("unknown", ["budget", "sized_for"])
def test_at_lists_the_budgets_for_an_unknown_one(unknown):
    with pytest.raises(ValueError, match=f"{unknown} must be 'smoke' or 'reduced' or 'paper', got 'huge'"):
        TrainingConfig().at(**{"budget": "smoke", unknown: "huge"})


@pytest.mark.parametrize(("value", "expected"), [(None, "reduced"), ("", "reduced"), *((b, b) for b in BUDGETS)])
def test_budget_reads_the_environment_and_refuses_nonsense(monkeypatch, value, expected):
    monkeypatch.delenv("SLMLIB_BUDGET", raising=False)
    if value is not None:
        monkeypatch.setenv("SLMLIB_BUDGET", value)
    assert budget() == expected
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


def grown(tokens, windows):
    """By how many MB a training makes its process grow, which has done nothing before."""
    import resource

    ids = [torch.arange(n) * 7919 % 10_000 for n in (50_000, tokens, 2_000)]
    text = Corpus("made up", *ids, Vocabulary(tuple(map(str, range(10_000))), "word"))
    model = build(TransformerConfig(context=8, d_model=16, heads=2, layers=1, tied=True), 10_000, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fit(model, text, TrainingConfig(1, windows, None, scored="every"), 0, progress=False)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere freed memory is not kept")
@pytest.mark.parametrize(("tokens", "windows"), [(3_000, 1_600), (50_000, 64)], ids=["training", "validation"])
def test_memory_does_not_grow_with_the_number_of_batches(forkserver, tokens, windows):
    with ProcessPoolExecutor(1, forkserver) as pool:
        megabytes = pool.submit(grown, tokens, windows).result()
    assert megabytes < 250  # 100 to 150; where each batch's loss stays by itself, 400 or more
