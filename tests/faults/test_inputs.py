"""Bad input, by hypothesis: whatever a public function or the command line is given, it gives a sound result or says in
a line which argument is wrong. Short in ``make test``; with SLMLIB_SOAK=1 at length.
"""

import importlib
import inspect
import io
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Hashable, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from enum import EnumType
from pathlib import Path
from types import FunctionType
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from torch import Tensor, nn
from typer.models import OptionInfo
from typer.testing import CliRunner

import slmlib
from slmlib import __main__ as command_line
from slmlib import chapters, checks, corpora, experiments, explore, figures, mixing, ngrams, stats, tryout, verdicts
from slmlib.corpora import Corpus, Vocabulary
from slmlib.models import Config, LinearConfig, MLPConfig, Transformer, TransformerConfig, build
from slmlib.training import Run, TrainingConfig
from slmlib.windows import Evaluation

SOAK = bool(os.environ.get("SLMLIB_SOAK"))
OPTIONS = {"phases": [Phase.generate], "suppress_health_check": list(HealthCheck), "deadline": None, "database": None}
#: What does more than compute, and what it does.
LEFT_OUT = {
    "cluster.Cluster.submit": "needs a scheduler",
    "cluster.main": "starts processes",
    "corpora.fetch": "downloads",
    "experiments.process_pool": "starts processes",
    "figures.use_style": "sets the process's style",
    "speed.keep_freed_memory": "sets the process's allocator",
    "tryout.attempt": "trains for seconds",
    "explore.lottery": "reads every record",
}

# What arguments are drawn from, by the type that a signature names

INTS = st.one_of(st.integers(-2, 9), st.sampled_from([0, 1, 2, 10**30, np.int64(3), np.uint8(2)]))
FLOATS = st.one_of(
    st.floats(-1, 3), st.sampled_from([0.0, 1.0, 1e11, 1e300, float("nan"), float("inf"), np.float32(0.5), 1])
)
WORDS = [
    *("", "x", "\0", "\ud800", "../../x", "/x", "<script>", "x" * 300, "nan", "-1", "a\nb", "cpu", "meta", "cuda:99"),
    *("valid", "python-docs", "python-docs-00000000", "today", "mlp", "blocks", "MLP", "Transformer", "MLP T=8", "C1"),
]
WRONG = st.sampled_from(
    [None, True, float("nan"), -1, 1.5, 10**30, "x", b"x", [], {}, [1, "x"], object(), int, {"x": 1}]
)


def corpus(train: int, valid: int, test: int, size: int = 5) -> Corpus:
    splits = (torch.arange(n) % size for n in (train, valid, test))
    return Corpus("toy", *splits, Vocabulary(tuple("abcdefghij"[:size]), "character"))


CONFIGS = [
    *(LinearConfig(4, 2), MLPConfig(3, 2, 2), MLPConfig(1, 1, 1, 0.5), TransformerConfig(4, 4, 2, 1, 0)),
    TransformerConfig(4, 4, 1, 2, 2, norm="pre", positions="rope"),
]
TINY = TrainingConfig(epochs=1, windows_per_epoch=4, batch=2, eval_windows=3)
CORPORA = [corpus(60, 40, 40), corpus(3, 2, 1), corpus(0, 0, 0), corpus(60, 300, 300, 1)]
EXPERIMENTS = [experiments.Experiment("python-docs", config, TINY, 0) for config in CONFIGS]
RECORDS = [experiments.trained(e, CORPORA[0], progress=False)[-1] for e in EXPERIMENTS[:2]]
RECORDS = [experiments.replace(r, experiment=e) for r, e in zip(RECORDS, EXPERIMENTS, strict=False)]
KINDS = {
    int: INTS,
    float: FLOATS,
    str: st.sampled_from(WORDS),
    os.PathLike: st.deferred(lambda: st.sampled_from(PATHS)),
    Path: st.deferred(lambda: st.sampled_from(PATHS)),
    Tensor: st.sampled_from(
        [torch.arange(n) for n in (0, 1, 3, 9, 200)]
        + [torch.zeros(3), torch.zeros(3, 2), torch.tensor(1), torch.tensor([-1, 99]), torch.zeros(1, 4, dtype=int)]
        + [torch.full((3, 2), float("nan")), torch.zeros(2, 2, 3, 4), torch.tensor([True])]
    ),
    nn.Module: st.builds(build, st.sampled_from(CONFIGS), st.sampled_from([1, 5]), st.just(0)),
    Run: st.builds(Run, st.builds(build, st.sampled_from(CONFIGS), st.just(5), st.just(0)), st.just(TINY), st.just(0)),
    Transformer: st.builds(build, st.sampled_from(CONFIGS[3:]), st.just(5), st.just(0)),
    Config: st.sampled_from(CONFIGS),
    LinearConfig: st.sampled_from(CONFIGS[:1]),
    MLPConfig: st.sampled_from(CONFIGS[1:3]),
    TransformerConfig: st.sampled_from(CONFIGS[3:]),
    TrainingConfig: st.sampled_from([TINY, TrainingConfig(), TrainingConfig(scored="every", optimiser="muon")]),
    Evaluation: st.builds(Evaluation, st.sampled_from([None, 1, 5]), st.integers(1, 3), st.sampled_from([None, 1, 9])),
    Corpus: st.sampled_from(CORPORA),
    Vocabulary: st.sampled_from([one.vocabulary for one in CORPORA]),
    torch.device: st.just(torch.device("cpu")),
    Executor: st.none(),
    nn.Embedding: st.just(nn.Embedding(5, 2)),
    nn.Linear: st.just(nn.Linear(8, 3)),
    experiments.Experiment: st.sampled_from(EXPERIMENTS),
    experiments.Record: st.sampled_from(RECORDS),
    experiments.Store: st.deferred(lambda: st.builds(experiments.Store, st.sampled_from(PATHS[:3]), st.booleans())),
    verdicts.Evidence: st.just(verdicts.Evidence({run.label: {} for run in slmlib.paper.RUNS}, {}, {})),
    ngrams.KneserNey: st.sampled_from([ngrams.KneserNey(2, 5), ngrams.KneserNey(3, 5).fit(CORPORA[0].train)]),
    stats.Estimate: st.builds(stats.Estimate, *[FLOATS] * 4, INTS, FLOATS),
    torch.Generator: st.just(torch.Generator()),
    explore.Explorer: st.just(explore.Explorer("x", "x", [explore.Control("x", ["a", "b"])], str)),
    object: WRONG,
    Mapping: lambda kind: mapping(*get_args(kind)),
}
GATES = [mixing.Gate.of(torch.ones(6, 2)), mixing.Gate(torch.ones(3, 6), torch.zeros(3, 2))]
MIXTURE = mixing.Mixture(
    build(CONFIGS[1], 5, 0), [ngrams.KneserNey(3, 5).fit(CORPORA[0].train)], GATES[0], CORPORA[0].train
)
KINDS |= {mixing.Gate: st.sampled_from(GATES), mixing.Mixture: st.just(MIXTURE)}
PATHS: list[Path] = []


def mapping(key=str, *value) -> st.SearchStrategy:
    """A dictionary, and no other of the many kinds of mapping that may be imported."""
    keys = st.from_type(key) if value and key is not Hashable else st.sampled_from(WORDS)
    return st.dictionaries(keys, st.from_type(*value or [float]), max_size=4)


@pytest.fixture(scope="module", autouse=True)
def there(tmp_path_factory):
    """A folder of records, an empty one, none; files of all sorts; and no published records, which take seconds."""
    folder, none = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("none")
    for record in RECORDS:
        experiments.Store(folder).put(record)
    files = [(none.parent / f"file-{i}") for i in range(3)]
    for file, data in zip(files, (b"x" * 3000, b"", b"\0\xff" * 2000), strict=True):
        file.write_bytes(data)
    tryout.keep(files[1], build(CONFIGS[0], 5), EXPERIMENTS[0], CORPORA[0].vocabulary)
    PATHS[:] = [none, folder, none / "missing" / "x", *files, Path("a\0b")]
    for kind, strategy in KINDS.items():
        st.register_type_strategy(kind, strategy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLMLIB_DATA", str(none))
        patch.setattr(corpora, "build_opener", lambda: (_ for _ in ()).throw(OSError("no network here")))
        patch.chdir(none)
        for module in (*MODULES, command_line):
            for name in ("RESULTS", "BENCHMARKS"):
                if hasattr(module, name):
                    patch.setattr(module, name, none)
        yield


NAMES = [m.name for m in pkgutil.iter_modules(slmlib.__path__) if not m.name.startswith("_")]
MODULES = [importlib.import_module(f"slmlib.{name}") for name in NAMES]


def public() -> dict:
    """Every function, constructor and method that a module offers, by name."""
    found = {}
    for module in MODULES:
        for name, thing in vars(module).items():
            own = not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
            if own and callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
                short = f"{module.__name__.removeprefix('slmlib.')}.{name}"
                found[short] = thing
                for key, method in vars(thing).items() if isinstance(thing, type) else ():
                    if isinstance(method, FunctionType | classmethod) and not key.startswith("_"):
                        found[f"{short}.{key}"] = getattr(thing, key)
    return {name: thing for name, thing in found.items() if name not in LEFT_OUT and not name.startswith("checks.")}


PUBLIC = public()
tried = 0


def thorough(short: int, long: int):
    return settings(max_examples=long if SOAK else short, derandomize=not SOAK, **OPTIONS)


@contextmanager
def no_longer_than(seconds: int):
    """And counts what was tried."""
    global tried

    def stop(*_):
        raise AssertionError(f"it hangs: more than {seconds} seconds")

    tried, before = tried + 1, signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        plt.close("all")


#: What else messages name than an argument: a field, what a corpus or a store holds, an inner function's argument.
NAMED = r"\w+\.\w+ must|tokens|position|split|record|series|call fit|cannot work with"


def quotes(said: str, given: dict) -> bool:
    """Whether a message names an argument, or quotes a piece of what was given."""
    values = [text for value in given.values() for text in (repr(value), str(value)) if text]
    pieces = [a or b for a, b in re.findall(r"'([^']+)'|(-?\d[\d.]*)", said)]
    quoted = any(text[:60] in said for text in values) or any(piece in text for piece in pieces for text in values)
    return quoted or any(re.search(rf"\b({name})", said) for name in [NAMED, *given])


def drawn(function, wrong=True) -> st.SearchStrategy:
    """Arguments: of each parameter what its signature says, and now and then something else."""
    parts = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        if name == "self":
            parts[name] = one_of_its(vars(sys.modules[function.__module__])[function.__qualname__.partition(".")[0]])
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            right = WRONG if kind is parameter.empty or "Any" in str(kind) else st.from_type(kind)
            parts[name] = st.integers(0, 4).flatmap(lambda n, right=right: right if n or not wrong else WRONG)
    return st.fixed_dictionaries(parts)


@st.composite
def one_of_its(draw, owner: type):
    if owner in KINDS:
        return draw(st.from_type(owner))
    try:
        return owner(**draw(drawn(owner, wrong=False)))
    except (ValueError, TypeError):
        reject()


def complaint(function, given: dict) -> str | None:
    """What is wrong with how it answers; None if nothing is."""
    try:
        with no_longer_than(30):
            function(**given)
    except Exception as error:
        said, kinds = str(error), {kind.__name__ for kind in type(error).__mro__}
        documented = any(kind in (inspect.getdoc(function) or "") for kind in kinds - {"Exception"})
        documented |= type(error).__module__.startswith("slmlib") or "; there are " in said  # an unknown name
        if not (documented or kinds & {"ValueError", "TypeError", "OSError"}):
            return f"{type(error).__name__}: {said}"
        if not said or "\n" in said or len(said) > 1_200 or ("ValueError" in kinds and not quotes(said, given)):
            return f"does not name an argument in a line: {type(error).__name__}: {said}"
    return None


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.filterwarnings("ignore")
def test_a_sound_result_or_a_line_that_names_the_argument(name, capsys):
    @thorough(2, 30)
    @given(drawn(PUBLIC[name]))
    def holds(given):
        assert complaint(PUBLIC[name], given) is None

    holds()
    capsys.readouterr()


CHECKED = [LinearConfig, MLPConfig, TransformerConfig, TrainingConfig, Evaluation, experiments.Experiment]
FIELDS = [(config, field) for config in CHECKED for field in experiments.fields(config)]
BASE = {
    Evaluation: Evaluation(3),
    TrainingConfig: TrainingConfig(optimiser="adamw"),
    experiments.Experiment: EXPERIMENTS[0],
}
POSITIVE, MAY_BE_ZERO = ("learning_rate", "muon_rate", "clip"), ("ff_width", "previous", "conv", "seed")


@thorough(300, 2000)
@given(st.sampled_from(FIELDS), st.one_of(WRONG, INTS, FLOATS, st.sampled_from(WORDS)))
def test_a_field_keeps_to_its_domain_and_what_it_refuses_is_named(of, value):
    config, field = of
    try:
        with no_longer_than(30):
            kept = getattr(experiments.replace(BASE.get(config) or config(), **{field.name: value}), field.name)
    except ValueError as error:
        said = str(error)
        assert field.name in said and "\n" not in said and (repr(value)[:400] in said or str(value) in said)
        return
    assert checks._fits(field.type, kept) and type(kept).__module__ != "numpy"
    if type(kept) is int:
        assert kept == value and (kept >= 1 or (kept == 0 and field.name in MAY_BE_ZERO)) and kept < 2**31
    elif type(kept) is float:
        highest = float("inf") if field.name in (*POSITIVE, "weight_decay") else 1
        assert kept == float(value) and 0 <= kept < highest and (kept > 0 or field.name not in POSITIVE)
    elif field.name == "corpus":
        assert re.fullmatch(r"\w[\w-]*", kept)


# Texts and counts

TEXTS = st.one_of(
    st.sampled_from(
        [
            *(b"", b"a", b"\n" * 3000, b"\xef\xbb\xbf" + b"abc def " * 400, b"a\r\nb\rc\n" * 600, b"a\0b" * 1000),
            *(b"\xff\xfe\x00" * 900, b"abc \x80" * 900, b"\xef\xbb\xbf", "\u2028🙂 \ufeff\ufffd".encode() * 900),
            *(b"\xed\xa0\x80" * 900, b"the cat sat on the mat\n" * 150, b"x" * 2_000, b"x " * 2_000),
        ]
    ),
    st.binary(max_size=50).map(lambda data: data * 900),
    st.text(min_size=1, max_size=50).map(lambda text: (text * 900).encode("utf-8", "surrogatepass")),
)


@thorough(20, 500)
@given(data=TEXTS, unit=st.sampled_from(["character", "word"]))
def test_any_file_is_a_corpus_or_refused_in_a_line(data, unit):
    PATHS[3].write_bytes(data)
    try:
        with no_longer_than(30):
            corpus = slmlib.read_corpus(PATHS[3], unit)
    except ValueError as error:
        assert str(PATHS[3]) in str(error) and "\n" not in str(error)
        return
    assert corpus.vocabulary.decode(corpus.train).split() and len(corpus.train) >= 1600 if data.strip() else True
    assert min(len(ids) for ids in (corpus.train, corpus.valid, corpus.test)) >= 200
    for ids in (corpus.train, corpus.valid, corpus.test):
        assert torch.equal(corpus.vocabulary.encode(corpus.vocabulary.decode(ids)), ids)
    model = ngrams.KneserNey(3, len(corpus.vocabulary)).fit(corpus.train)
    assert model.nll(corpus.test).isfinite().all()


@pytest.mark.skipif(not SOAK, reason="seconds and memory: in the long form")
def test_a_million_distinct_words():
    PATHS[3].write_text(" ".join(f"w{i}" for i in range(10**6)), encoding="utf-8")
    corpus = slmlib.read_corpus(PATHS[3], "word")
    assert corpus.vocabulary.tokens == ("<unk>",) and sum(corpus.unknown.values()) == 10**6
    vocabulary = Vocabulary(tuple(f"w{i}" for i in range(10**6)), "word")
    ids = torch.arange(10**6)
    assert ngrams.KneserNey(2, len(vocabulary)).fit(ids).nll(ids).isfinite().all()


@thorough(60, 1000)
@given(st.data(), st.integers(1, 70), st.integers(1, 4), st.sampled_from(["KneserNey", "Additive"]))
def test_counts_of_any_text_are_a_distribution_or_refused(data, order, size, kind):
    """Orders beyond the text, one token, counts that leave a discount undefined."""
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=30)) * data.draw(st.sampled_from([1, 1, 40]))
    with no_longer_than(30):
        try:
            model = getattr(ngrams, kind)(order, size).fit(ids)
        except ValueError as error:
            assert len(ids) < order and "gram" in str(error)
            return
        after = [model.nll(torch.tensor([*ids[:5], w]))[-1].item() for w in range(size)]
    assert sum(np.exp(-np.array(after))) == pytest.approx(1, abs=1e-9)


# The command line

ARGUMENTS = ["", "x", "0", "1", "-1", "1e10", "1e30", "nan", "inf", "--", "é", "\udcff", "[/b]", "tiny_shakespeare"]
COMMANDS = {c.name or c.callback.__name__: inspect.signature(c.callback) for c in command_line.app.registered_commands}


@st.composite
def lines(draw) -> list[str]:
    """A command with some of its options, each with a choice of its own or anything."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    line = [name]
    for parameter in COMMANDS[name].parameters.values():
        kind, about = get_args(parameter.annotation)
        choices = [c for k in (kind, *get_args(kind)) for c in (k if isinstance(k, EnumType) else ())]
        folder = about.file_okay is False  # its default would be the published records
        if folder or draw(st.booleans()):
            if isinstance(about, OptionInfo):
                line.append((about.param_decls or ["--" + parameter.name.replace("_", "-")])[0])
            if kind is not bool:
                values = PATHS[:3] if folder else [*choices, *ARGUMENTS, *PATHS[:6]]
                line.append(str(draw(st.sampled_from(values))))
    return line


@thorough(25, 600)
@given(lines())
def test_whatever_the_command_line_is_given_it_answers_in_a_line(line):
    with pytest.MonkeyPatch.context() as patch:  # not what takes minutes
        patch.setattr(command_line, "run_all", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(command_line, "process_pool", lambda workers: nullcontext())
        row = tryout.Row("[/b]", 1.0, 1.0, 0.0, 1, "[red]<script>")
        kept = tryout.Tried([row], EXPERIMENTS[0], MIXTURE)
        patch.setattr(tryout, "attempt", lambda *_: kept)
        with no_longer_than(60):
            result = CliRunner().invoke(command_line.app, line)
    assert result.exit_code in (0, 1, 2, 130), (line, result.exception)
    assert isinstance(result.exception, SystemExit | OSError | None), (line, result.exception)
    assert "Traceback" not in result.output
    if result.exit_code == 1 and not isinstance(result.exception, OSError):
        assert len(result.stderr.strip().splitlines()) == 1, (line, result.stderr)


def test_a_hostile_text_is_escaped_wherever_a_page_shows_it(monkeypatch):
    bad = "<script>alert(1)</script>\"'&$^_$"
    signs = tuple(sorted(set(bad)))
    ids = torch.tensor([signs.index(c) for c in bad * 60])
    text = Corpus(bad, ids, ids, ids, Vocabulary(signs, "character"))
    model = build(TransformerConfig(16, 8, 2, 1, 8), len(signs), 0)
    monkeypatch.setattr(explore, "generate", lambda model, ids, *_, **__: torch.cat((ids, text.train[: len(bad)])))
    explorers = [
        explore.counting(text),
        explore.attention(model, text, 0),
        explore.learning(model.config, TINY, text),
        explore.Explorer(bad, bad, [explore.Control(bad, [bad], 0, kind) for kind in ("list", "play")], lambda *_: ""),
    ]
    pages = [explorer.page() for explorer in explorers]
    shown = []
    monkeypatch.setattr(chapters, "display", lambda html: shown.append(html.data))
    chapters._banner(bad, "")
    pages += [*shown, chapters.compare({bad: RECORDS}).to_html()]
    for page in pages:
        assert "alert(1)" in page or "&lt;" in page
        assert "<script>" not in page and "&amp;lt;" not in page, page[:500]
    file = io.StringIO()
    figures.attention_rows(torch.rand(1, 1, 4), [bad]).savefig(file, format="svg")
    assert "<script>" not in file.getvalue()


def test_what_a_worker_refuses_is_said_in_its_words(spawned):
    def asked(n: int):
        return spawned.submit(checks.integer, "tokens", n).result()

    module = {"__name__": __name__, "asked": asked}
    checks.explain(module)
    with pytest.raises(ValueError, match=r"^tokens must be an integer of at least 1, got -1$"):
        module["asked"](-1)


@pytest.mark.skipif(not SOAK, reason="of the long form")
def test_enough_was_tried():
    print(f"{tried:,} inputs tried")
    assert tried >= 10_000
