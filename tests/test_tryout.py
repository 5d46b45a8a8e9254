"""A text of one's own: what is tried on it, what is kept of that, and the commands."""

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from slmlib import __main__ as command_line
from slmlib import mixing, reading, recipes, tryout
from slmlib.__main__ import _harmless, app
from slmlib.corpora import Vocabulary, read_corpus
from slmlib.experiments import Experiment
from slmlib.models import MLPConfig, TransformerConfig, build, generate
from slmlib.ngrams import KneserNey
from slmlib.recipes import best_under
from slmlib.training import TrainingConfig, evaluate, token_nll
from slmlib.windows import Evaluation, random_stream


@pytest.fixture(scope="module", autouse=True)
def an_eighth():
    """Of a budget of FLOPs the networks are trained for so much, to save time."""

    def less(*arguments, **options):
        run = best_under(*arguments, **options)
        few = run.training.windows_per_epoch // 32
        return replace(run, training=replace(run.training, windows_per_epoch=few))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "best_under", less)
        yield


said = []


@pytest.fixture(scope="module")
def tried(file):
    corpus = read_corpus(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tryout, "FEW_STEPS", 10**6)
        patch.setattr(recipes, "PASSES", 0.01)
        return corpus, tryout.attempt(corpus, flops=1e10, workers=1, say=said.append)


def test_counting_and_two_networks_are_tried_and_mixed(tried):
    corpus, found = tried
    counting, orders, mlp, blocks, mixed = found.rows
    assert counting.model.startswith("counting, order ") and orders.model == "counting, 4 orders mixed"
    assert counting.flops == orders.flops == 0 and orders.test_nll <= counting.test_nll + 0.02
    assert (mlp.model, blocks.model) == ("MLP", "transformer")
    assert all(0.8e10 < 32 * row.flops < 1.2e10 for row in (mlp, blocks))
    assert orders.parameters == sum(KneserNey(9, len(corpus.vocabulary)).fit(corpus.train).sizes)
    of_network = {r.model: r.parameters for r in (mlp, blocks)}[mixed.model.split()[0]]
    assert mixed.parameters == orders.parameters + of_network
    assert mixed.test_nll <= min(orders.test_nll, mlp.test_nll, blocks.test_nll) + 0.02
    assert all(len(row.sample) == 200 for row in (counting, mlp, blocks, mixed))
    assert all(set(row.sample) <= set(corpus.vocabulary.tokens) for row in found.rows)


def test_the_network_that_is_kept_is_validations_choice_and_scores_what_is_said(tried):
    corpus, found = tried
    row = next(r for r in found.rows if mixed_of(found) == f"{r.model} and counting")
    assert isinstance(found.experiment.model, {"MLP": MLPConfig, "transformer": TransformerConfig}[row.model])
    nll = evaluate(found.mixture.network, corpus.test, found.experiment.training.test)
    assert nll == pytest.approx(row.test_nll, abs=1e-5)
    assert row.parameters == sum(p.numel() for p in found.mixture.network.parameters())
    assert found.experiment.training.test == Evaluation(None, 1, 128)


def mixed_of(found):
    return found.rows[-1].model


def test_two_processes_find_what_one_does(tried, spawned, monkeypatch):
    corpus, found = tried
    monkeypatch.setattr(tryout, "process_pool", lambda workers: nullcontext(spawned))
    again = tryout.attempt(corpus, flops=1e10, workers=2)
    assert [replace(row, seconds=0.0) for row in again.rows] == [replace(row, seconds=0.0) for row in found.rows]


def test_counts_and_mixture_read_on_where_they_are_asked_to(tried, monkeypatch):
    monkeypatch.setattr(reading, "PART", 300)
    corpus, found = tried
    _, orders, *_, mixed = found.rows
    counts_on, mixed_on = tryout.reading_on(found, corpus, said.append)
    assert "300 characters at a time: 10 parts of validation and 10 of test" in said[-1]
    assert (counts_on.model, mixed_on.model) == (f"{orders.model}, reading on", f"{mixed.model}, reading on")
    assert counts_on.test_nll < orders.test_nll and mixed_on.test_nll < mixed.test_nll
    of = reading.losses(found.mixture.network, corpus, found.experiment.training)
    counts = reading.counted(corpus, found.experiment.training, 128, [m.order for m in found.mixture.counts])
    by_hand = mixing.together([reading.read(of)], counts)["whole"].mean().item()
    assert mixed_on.test_nll == pytest.approx(by_hand, abs=1e-5)


def test_a_budget_of_seconds_is_kept_to(file, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # of this process, however busy the machine is
    corpus = read_corpus(file)

    def took():
        return sum(row.seconds for row in tryout.attempt(corpus, seconds=11, workers=1).rows[1:4])

    assert any(took() < 15 for _ in range(3))  # the machine may get slower while it trains


def test_where_all_is_too_slow_the_time_is_kept_to_all_the_same(tried, monkeypatch):
    monkeypatch.setattr(tryout, "expected", lambda *arguments: 1e4)
    run = tryout._fitted(tried[0], "blocks", 4.0, 0)
    assert run.training.windows_per_epoch == run.training.batch


def test_a_text_is_refused_before_counting_where_no_network_is_short_enough_for_it(tried):
    with pytest.raises(ValueError, match=r"has 2,000 characters to train on, after .* the smallest mlp needs \d,"):
        tryout.attempt(tried[0].head(train=2_000), seconds=60, say=lambda text: pytest.fail(text))


def test_too_few_steps_and_too_many_passes_are_said(tried):
    assert sum("steps only" in text for text in said) == 2 and sum("times" in text for text in said) == 2


def test_one_budget_is_asked_for(tried):
    for budgets in ({}, {"seconds": 1.0, "flops": 1e10}):
        with pytest.raises(ValueError, match="give seconds or flops, one of the two"):
            tryout.attempt(tried[0], **budgets)
    with pytest.raises(ValueError, match="flops must be a positive number"):
        tryout.attempt(tried[0], flops=-1.0)
    least = r"seconds must be \d+ at least for this text here, or minutes 0\.\d.*mixed scores \d"
    with pytest.raises(ValueError, match=least):
        tryout.attempt(tried[0], seconds=3)


@pytest.mark.parametrize("config", [MLPConfig(4, 8, 16), TransformerConfig(8, 16, heads=2, layers=1, tied=True)])
def test_a_kept_model_comes_back(config, tried, tmp_path):
    vocabulary = tried[0].vocabulary
    model = build(config, len(vocabulary), seed=0).eval()
    experiment = replace(best_under(1e10, tried[0]), model=config)
    tryout.keep(tmp_path / "model.safetensors", model, experiment, vocabulary)
    loaded, known, mixture = tryout.load(tmp_path / "model.safetensors")
    tokens = tried[0].test[: config.context][None]
    assert mixture is None and known == vocabulary and not loaded.training
    assert torch.equal(loaded(tokens), model(tokens))


def test_a_kept_mixture_scores_what_the_table_says_and_writes_what_it_wrote(tried, tmp_path):
    corpus, found = tried
    tryout.keep(tmp_path / "both", found.mixture, found.experiment, corpus.vocabulary)
    network, _, mixture = tryout.load(tmp_path / "both")
    alone, both = mixture.nll(corpus.test, found.experiment.training.test)
    assert both.mean().item() == pytest.approx(found.rows[-1].test_nll, abs=1e-6)
    assert alone.mean().item() == pytest.approx(evaluate(network, corpus.test, found.experiment.training.test), 1e-5)
    written = generate(mixture, corpus.test[:128], 40, 1.0, random_stream(0, "text"), 0, mixed_of(found)[0] == "t")
    assert corpus.vocabulary.decode(written[128:]) == found.rows[-1].sample[:40]


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*other"):
        tryout.load(tmp_path / "other.safetensors")


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def command(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def at_once(tried, monkeypatch):
    """What was tried already, where the command would try it."""
    asked = []
    monkeypatch.setattr(tryout, "attempt", lambda *arguments: asked.append(arguments) or tried[1])
    return asked


def test_try_and_generate_from_the_command_line(file, tmp_path, monkeypatch, at_once):
    monkeypatch.chdir(tmp_path)
    result = command("try", file, "--minutes", "3", "--workers", "1", "--json")
    _, seconds, flops, workers, seed, _ = at_once[0]
    assert (seconds, flops, workers, seed) == (180.0, None, 1, 0)
    rows = json.loads(result.stdout)
    assert "and counting are in cats.safetensors, together with the text that was counted" in result.stderr
    monkeypatch.setattr(tryout, "reading_on", lambda found, corpus, say: found.rows[:2])
    assert len(json.loads(command("try", file, "--read-on", "--json").stdout)) == 7
    Path("cats-2.safetensors").unlink()
    first = Path("cats.safetensors").read_bytes()
    assert "are in cats-2.safetensors" in command("try", file, "--json").stderr
    assert Path("cats.safetensors").read_bytes() == first
    assert [set(row) for row in rows] == [{"model", "test_nll", "seconds", "flops", "parameters", "sample"}] * 5
    written = command("generate", "cats.safetensors", "--prompt", "the cat", "-n", "30", "--seed", "1").stdout
    assert written.startswith("the cat") and len(written) == len("the cat") + 30 + 1
    same = "generate", "cats.safetensors", "--prompt", "the cat", "-n", "30", "--seed", "1"
    assert command(*same).stdout == written != command(*same, "--network").stdout
    assert len(command("generate", "cats.safetensors", "-n", "5").stdout) == 5 + 1  # from nothing: no line ends there
    unknown = command("generate", "cats.safetensors", "--prompt", "QED")
    lacking = "--prompt: not among the 15 characters known, leave out: 'D', 'E', 'Q'"
    assert unknown.exit_code == 1 and lacking in " ".join(unknown.stderr.split())


def test_what_came_there_meanwhile_is_not_written_over(file, tmp_path, monkeypatch, tried):
    monkeypatch.chdir(tmp_path)
    before = file.with_name("-cats.txt")
    before.write_bytes(file.read_bytes())
    monkeypatch.setattr(tryout, "attempt", lambda *_: Path("-cats.safetensors").write_bytes(b"x") and tried[1])
    result = command("try", "--", before)
    assert Path("-cats.safetensors").read_bytes() == b"x" and "generate ./-cats-2.safetensors -n" in result.stdout


def test_score_gives_the_mean_nll_of_another_text(tried, tmp_path):
    (corpus, found), text = tried, tmp_path / "other.txt"
    for name, model in (("both", found.mixture), ("alone", found.mixture.network)):
        tryout.keep(tmp_path / name, model, found.experiment, corpus.vocabulary)
    text.write_text("the cat sat on a mat and saw dogs run " * 20, encoding="utf-8")
    ids = corpus.vocabulary.encode(text.read_text(encoding="utf-8"))
    rows = json.loads(command("score", tmp_path / "both", text, "--json").stdout)
    assert [row["nll"] for row in rows] == [nll.mean().item() for nll in found.mixture.nll(ids)]
    assert all(row["tokens"] == len(ids) - found.mixture.network.config.context and row["unknown"] == 0 for row in rows)
    assert [row["model"] for row in rows] == [mixed_of(found).removesuffix(" and counting"), mixed_of(found)]
    shown = command("score", tmp_path / "alone", text).stdout
    assert f"{rows[0]['nll']:.3f}" in shown and "bits/char." in shown and "counting" not in shown
    text.write_text("the cat"[: found.mixture.network.config.context], encoding="utf-8")
    assert "characters, and the network sees" in command("score", tmp_path / "both", text).stderr
    text.write_text("THE CAT " * 20, encoding="utf-8")
    assert "leave out: 'A', 'C', 'E', 'H', 'T'" in command("score", tmp_path / "both", text).stderr


def test_what_a_kept_vocabulary_lacks_is_read_as_unknown_and_scored_apart(tmp_path):
    words = Vocabulary(("<unk>", "a", "b"), "word")
    config = MLPConfig(1, 2, 4)
    experiment = Experiment("python-docs", config, TrainingConfig(), 0)
    tryout.keep(tmp_path / "words", build(config, 3, seed=0), experiment, words)
    (tmp_path / "text").write_text("z a z b a", encoding="utf-8")
    (row,) = json.loads(command("score", tmp_path / "words", tmp_path / "text", "--json").stdout)
    nll = token_nll(tryout.load(tmp_path / "words").network, torch.tensor([0, 1, 0, 2, 1]))
    assert (row["tokens"], row["unknown"]) == (4, 1)  # the first has no context
    assert row["nll_known"] == pytest.approx(nll[[0, 2, 3]].mean().item())
    shown = " ".join(command("score", tmp_path / "words", tmp_path / "text").stdout.split())
    assert "Unknown of these, and scored as <unk>: 1 (25.0%)" in shown
    assert "unknown words of the prompt: 1" in command("generate", tmp_path / "words", "--prompt", "a q").stderr


def test_what_was_tried_is_kept_whoever_reads_the_rows(file, tmp_path, at_once, monkeypatch):
    def gone(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.setattr(command_line, "_table", gone)
    command("try", file, "--keep", tmp_path / "kept")
    assert tryout.load(tmp_path / "kept").mixture is not None


def test_what_would_steer_a_terminal_is_written_out():
    assert _harmless("a\x1b[31m\tb\n\x00é\u202e") == "a\\x1b[31m\tb\n\\x00é\\u202e"
    assert _harmless("fermé\xa0; \u3000 👩\u200d🚀") == "fermé\xa0; \u3000 👩\u200d🚀"


def test_a_table_for_people_names_bits_or_perplexity(file, tmp_path, at_once):
    for unit, column in (("character", "bits/char."), ("word", "perplexity")):
        keep = tmp_path / f"{unit}.safetensors"
        result = command("try", file, "--flops", "1e10", "--unit", unit, "--workers", "1", "--keep", keep)
        assert result.exit_code == 0 and keep.exists(), result.stderr
        assert column in result.stdout and "--- transformer" in result.stdout and f"generate {keep}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["try", "missing.txt"], "No such file"),
        (["try", "FILE", "--flops", "1e30"], "flops must be from"),
        (["try", "FILE", "--flops", "1e10", "--minutes", "1"], "one of the two"),
        (["try", "FILE", "--flops", "0"], "flops must be a positive number"),
        (["try", "FILE", "--keep", "no/folder/x"], "there is no folder"),
        (["try", "FILE", "--keep", "FILE"], "is there and is no model"),
        (["generate", "missing.safetensors"], "no model at missing.safetensors"),
        (["best", "--flops", "1e3"], "the smallest budget is 1e+10"),
        (["best", "--flops", "1e12", "--corpus", "ptb"], "records of tiny_shakespeare alone"),
        (["run", "paper", "--group", "depths"], "'depths' is not one of"),
        (["run", "words", "--group", "main"], "only the suite paper has groups"),
        (["run", "paper", "--store", "FILE"], "is a file"),
        (["run", "paper", "--store", "FILE/x"], "Not a directory"),
        (["status", "--store", "nowhere"], "does not exist"),
        (["scoreboard", "--readme"], "is not the book's repository"),
        (["run", "words", "--scheduler", "tcp://x:1", "--workers", "2"], "a cluster has its own, not 2: leave it out"),
        pytest.param(["run", "words", "--device", "cuda"], "PyTorch finds no GPU here", marks=no_gpu),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(arguments, words, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(*(a.replace("FILE", str(file)) for a in arguments))
    assert result.exit_code and words in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


def test_the_best_on_record_for_a_budget(monkeypatch):
    row = json.loads(command("best", "--corpus", "tiny_shakespeare", "--flops", "1e12", "--json").stdout)
    assert row["flops"] <= 1e12 * 1.001 and row["seeds"] >= 3 and 1.6 < row["test_nll"] < row["test_nll_whole"] < 2.0
    shown = command("best", "--flops", "1e12")
    assert f"{row['test_nll']:.4g}" in shown.stdout and '"learning_rate"' in shown.stdout
