"""Experiments beyond the paper's, whose records chapters quote beside it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from . import paper, recipes
from .checks import choice, each_seed
from .corpora import load_corpus
from .experiments import RESULTS, Experiment, Record, Store
from .flops import flops_per_window
from .frontier import SEEDS, Found, frontier
from .models import TransformerConfig
from .training import TrainingConfig

#: Contexts at three blocks, and depths at 128 characters, of the paper's transformer: equal windows for all.
CONTEXTS = (32, 64, 128, 256)
DEPTHS = (1, 2, 3, 4, 6)


def followed(model: TransformerConfig, seed: int) -> Experiment:
    """A model trained on 80,000 windows of Tiny Shakespeare, its validation loss taken after every 10,000."""
    return Experiment("tiny_shakespeare", model, TrainingConfig(8, windows_per_epoch=10_000, eval_stride=8), seed)


def depth_context(seeds: int = SEEDS) -> list[Experiment]:
    """The paper's transformer over contexts and depths, with the validation loss followed over the steps."""
    models = [TransformerConfig(context=T) for T in CONTEXTS] + [TransformerConfig(layers=n) for n in DEPTHS]
    return [followed(model, seed) for seed in each_seed(seeds) for model in dict.fromkeys(models)]


def unplaced(seed: int) -> Experiment:
    """The paper's RoPE pair has a third: the same model told nothing of positions."""
    experiment = paper.run("RoPE").experiment(seed)
    return replace(experiment, model=replace(experiment.model, positions="none"))


def every_position(positions: str, seed: int, embed_init: str = "unit") -> Experiment:
    """The paper's RoPE pair and its third, the training loss taken at every position, on an eighth of the windows."""
    model = replace(paper.run("RoPE").model, positions=positions, embed_init=embed_init)
    training = TrainingConfig(epochs=4, windows_per_epoch=12_500, eval_stride=8, scored="every")
    return Experiment("tiny_shakespeare", model, training, seed)


def further(label: str, seed: int) -> Experiment:
    """One of the paper's RoPE pair, for half as many epochs again; its first eight are the paper's run."""
    experiment = paper.run(label).experiment(seed)
    return replace(experiment, training=replace(experiment.training, epochs=3 * experiment.training.epochs // 2))


def positions(seeds: int = SEEDS) -> list[Experiment]:
    """What the paper's RoPE pair does not ask."""
    return [
        *(every_position(kind, seed) for seed in each_seed(seeds) for kind in ("learned", "rope", "none")),
        *(every_position("learned", seed, "small") for seed in each_seed(seeds)),
        *(unplaced(seed) for seed in each_seed(seeds)),
        *(further(label, seed) for seed in each_seed(seeds) for label in ("Learned positions", "RoPE")),
    ]


def uncapped(seed: int) -> Experiment:
    """The paper's Penn Treebank run on the whole train split."""
    return replace(paper.run("Penn Treebank").experiment(seed), train_tokens=None)


class Change(NamedTuple):
    """What is changed of a model and its training, and the learning rates among which validation chooses."""

    name: str
    model: Mapping[str, Any] = MappingProxyType({})
    training: Mapping[str, Any] = MappingProxyType({})
    rates: tuple[float, ...] = ()  # of Adam and, where it is in use, of Muon; each has some


#: What each run of ``gain`` costs, in FLOPs of training's matrix products, and how many seeds it has.
GAIN, GAIN_SEEDS = 3e12, 5
_ADAM, _MUON = (3e-4, 1e-3, 3e-3, 1e-2), (5e-3, 1e-2, 2e-2)
#: From the paper's transformer to today's, one change after the other; each keeps those before it.
STEPS = (
    Change("the paper's", rates=(3e-4,)),
    Change("a learning rate of its own", rates=_ADAM),
    Change("every position scored", {}, {"scored": "every"}, _ADAM),
    Change("batches of 512 characters", {}, {"batch": 4}, _ADAM),
    Change("windows of 32", {"context": 32}, {"batch": 16}, _ADAM),
    Change("rotary positions", {"positions": "rope"}, {}, _ADAM),
    Change("norm before each branch", {"norm": "pre"}, {}, _ADAM),
    Change("root-mean-square norm", {"norm_kind": "rms"}, {}, _ADAM),
    Change("queries and keys normalised", {"qk_norm": True}, {}, _ADAM),
    Change("squared ReLU, twice as many units", {"ff_kind": "relu2", "ff_width": 512}, {}, _ADAM),
    Change("branches that start at zero", {"zero_init": True, "qkv_init": "linear"}, {}, _ADAM),
    Change("warm-up, then cosine decay", {}, {"schedule": "cosine", "warmup": 0.02}, _ADAM),
    Change("weight decay", {}, {"optimiser": "adamw", "weight_decay": 0.1}, _ADAM),
    Change("no dropout", {"dropout": 0.0, "dropout_site": "residual"}, {}, _ADAM),
    Change("Muon for the blocks' matrices", {}, {"optimiser": "muon"}, _MUON),
    Change("two blocks of width 96", {"layers": 2, "d_model": 96, "heads": 3, "ff_width": 384}, {}, _MUON),
)
_TODAY = Change("today's", rates=(1e-2,))
#: Changes to today's transformer, each on its own: what the chain has not.
ADDED = (
    _TODAY,
    Change("the character before each, too", {"previous": 1}, {}, _MUON),
    Change("short convolutions", {"conv": recipes.REACH}, {}, _MUON),
    Change("tied head", {"tied": True, "embed_init": "small"}, {}, _MUON),
    Change("averaged weights", {}, {"average": 0.99}, _MUON),
    Change("averaged weights, constant rate", {}, {"average": 0.99, "schedule": "constant"}, (2e-3, *_MUON)),
    Change("linear decay", {}, {"schedule": "linear"}, _MUON),
    Change("gradient clipped to 1", {}, {"clip": 1.0}, _MUON),
    Change("shorter memory of squared gradients", {}, {"beta2": 0.95}, _MUON),
    Change("batches four times as large", {}, {"batch": 64}, _MUON),
)
#: What it has, undone, each on its own.
UNDONE = (
    _TODAY,
    Change("last position scored", {}, {"scored": "last"}, (2e-3, *_MUON)),
    Change("learned positions", {"positions": "learned", "embed_init": "small"}, {}, _MUON),
    Change("norm after each sum", {"norm": "post"}, {}, _MUON),
    Change("LayerNorm", {"norm_kind": "layer"}, {}, _MUON),
    Change("queries and keys as they are", {"qk_norm": False}, {}, _MUON),
    Change("plain ReLU", {"ff_kind": "relu"}, {}, _MUON),
    Change("no branch starts at zero", {"zero_init": False}, {}, _MUON),
    Change("constant rate", {}, {"schedule": "constant"}, (2e-3, *_MUON)),
    Change("no warm-up", {}, {"warmup": 0.0}, _MUON),
    Change("no weight decay", {}, {"weight_decay": 0.0}, _MUON),
    Change("dropout 0.1", {"dropout": 0.1}, {}, _MUON),
    Change("AdamW alone", {}, {"optimiser": "adamw"}, (1e-3, 2e-3, 5e-3, 1e-2)),
)
#: The budget at which what mattered in ``UNDONE`` is undone again, in FLOPs; of its rates the best there and the next
#: below, as larger models train at lower ones.
LARGER = 1e13
AGAIN = (
    _TODAY,
    Change("dropout 0.1", {"dropout": 0.1}, {}, (5e-3, 1e-2)),
    Change("AdamW alone", {}, {"optimiser": "adamw"}, (2e-3, 5e-3)),
    Change("no weight decay", {}, {"weight_decay": 0.0}, (5e-3, 1e-2)),
    Change("constant rate", {}, {"schedule": "constant"}, (1e-3, 2e-3)),
    Change("last position scored", {}, {"scored": "last"}, (2e-3, 5e-3)),
)
#: By name; ``chain`` begins with the paper's transformer, the others with today's, ``again`` at ``LARGER``.
CHANGES = {"chain": STEPS, "added": ADDED, "undone": UNDONE, "again": AGAIN}
#: Other reaches of a short convolution than ``recipes.REACH``, and that.
REACHES = (1, 2, 3, 5, 7)
_LOOKS = TrainingConfig(epochs=2, **recipes.LOOKS)
_CHOSEN = {GAIN: (2, 96, 32), LARGER: (5, 96, 128)}


def today_s(budget: float = GAIN) -> Experiment:
    """The transformer that validation chose for ``GAIN`` or ``LARGER`` FLOPs (a test holds it to ``recipes``)."""
    return shaped(budget, *_CHOSEN[budget], 0)


def tried(changes: str) -> dict[str, list[Experiment]]:
    """The experiments of each of ``CHANGES`` of that name, one a learning rate, seed 0."""
    chain = choice("changes", changes, tuple(CHANGES)) == "chain"
    budget = LARGER if changes == "again" else GAIN
    base = Experiment("tiny_shakespeare", paper.run("Transformer").model, _LOOKS, 0) if chain else today_s(budget)
    there = {}
    for change in CHANGES[changes]:
        model, training = replace(base.model, **change.model), replace(base.training, **change.training)
        window = flops_per_window(model, 65, scored=training.scored)
        training = replace(training, windows_per_epoch=max(1, round(budget / training.epochs / window)))
        rated = ["learning_rate"] + ["muon_rate"] * (training.optimiser == "muon")
        trained = [replace(training, **dict.fromkeys(rated, rate)) for rate in change.rates]
        there[change.name] = [replace(base, model=model, training=of) for of in trained]
        base = replace(base, model=model, training=training) if chain else base
    return there


def gained(found: Found, changes: str) -> dict[str, list[Experiment]]:
    """Of each change all seeds, at the learning rate that seed 0's validation chose; of those that are through.

    Five, or three of a change at ``LARGER``.
    """
    there = {}
    for name, of in tried(changes).items():
        if all(run in found for run in of):
            best, few = min(of, key=lambda e: min(found[e].valid)), changes == "again" and name != _TODAY.name
            there[name] = [replace(best, seed=seed) for seed in range(SEEDS if few else GAIN_SEEDS)]
    return there


def reached() -> dict[int, Experiment]:
    """Today's transformer for ``GAIN`` FLOPs with short convolutions of each reach, seed 0."""
    return {n: _reaching(today_s(), n) for n in REACHES}


def _reaching(experiment: Experiment, reach: int = recipes.REACH) -> Experiment:
    """The same with short convolutions of that reach, or with 0 without."""
    return replace(experiment, model=replace(experiment.model, conv=reach))


def convolved(today: Mapping[tuple[str, float], list[Record]]) -> dict[float, list[Experiment]]:
    """By budget, the transformers of ``recipes.runs`` with short convolutions; all else as without them."""
    there = {}
    for (architecture, budget), records in today.items():
        if architecture == "blocks":
            run, seeds = records[0].experiment, GAIN_SEEDS if 1e12 <= budget < 3e13 else SEEDS
            there[budget] = [replace(_reaching(run), seed=seed) for seed in range(seeds)]
    return there


#: Weight decays tried on the largest transformer with short convolutions, once all else was chosen, and seeds of each.
DECAYS = {0.3: SEEDS, 1.0: 1}


def decayed(today: Mapping[tuple[str, float], list[Record]]) -> dict[float, list[Experiment]]:
    """The transformers of ``convolved`` at 3·10¹³ FLOPs, whose weight decay is 0.1, by another."""
    runs = convolved(today).get(3e13, [])
    return {
        decay: [replace(run, training=replace(run.training, weight_decay=decay)) for run in runs[:seeds]]
        for decay, seeds in DECAYS.items()
    }


def gain(seeds: int, found: Found) -> list[Experiment]:
    """What buys the gain of today's training: each change at each of its rates, then other seeds of its best.

    And what short convolutions add to it, budget by budget, and more weight decay to that.
    """
    today = recipes.runs(Store(RESULTS / "today").found())
    wanted = [*reached().values()]
    wanted += [run for of in (convolved(today), decayed(today)) for runs in of.values() for run in runs]
    for changes in CHANGES:
        wanted += [run for of in (tried(changes), gained(found, changes)) for runs in of.values() for run in runs]
    return wanted


#: Budgets of the isoFLOP curves in FLOPs, and how many seeds each has at most; the rule is fitted to the first two
#: and tested on the last.
SHAPE_SEEDS = {3e11: 3, 3e12: 2, 1e13: 2}
#: The models compared at each budget: widths of four blocks; blocks and width of about equal size; contexts.
WIDTHS = {3e11: (24, 32, 48, 64, 96), 3e12: (32, 48, 64, 96, 128), 1e13: (48, 64, 96, 128, 192)}
ALIKE = {
    3e11: ((1, 64), (2, 48), (4, 32), (8, 24)),
    3e12: ((1, 128), (2, 96), (4, 64), (8, 48)),
    1e13: ((1, 192), (2, 128), (4, 96), (8, 64)),
}
SHAPE_CONTEXTS = (8, 16, 32, 64, 128)
_SHAPE_CONTEXT = 32


def shaped(budget: float, layers: int, width: int, context: int, seed: int) -> Experiment:
    """Today's blocks of that shape for so many FLOPs, in batches of 512 characters."""
    point = {"layers": layers, "width": width, "context": context, "tokens": 512, "rate": 1e-2, "muon_rate": 1e-2}
    return recipes.experiment("blocks", {**point, "dropout": 0.0, "weight_decay": 0.1}, budget, seed)


def curves(budget: float) -> dict[str, dict[int, tuple[int, int, int]]]:
    """What is compared at a budget, by what varies and its value: (blocks, width, context). At 10¹³ no contexts."""
    middle = ALIKE[budget][2]
    there = {
        "width": {width: (4, width, _SHAPE_CONTEXT) for width in WIDTHS[budget]},
        "blocks": {layers: (layers, width, _SHAPE_CONTEXT) for layers, width in ALIKE[budget]},
        "context": {context: (*middle, context) for context in SHAPE_CONTEXTS},
    }
    if budget == 1e13:
        del there["context"]
    return there


def by_all_validation(width: int) -> Experiment:
    """A width of ``curves(3e12)``, seed 0, validated on the whole split: on the play in which training ends, too."""
    run = shaped(3e12, 4, width, _SHAPE_CONTEXT, 0)
    return replace(run, training=replace(run.training, valid_from=recipes.FIRST_SCORED))


def shapes(seeds: int = SEEDS) -> list[Experiment]:
    """Depth, width and context under a budget, with all else as validation chose it for 10¹³ FLOPs."""
    return [
        *(
            shaped(budget, *shape, seed)
            for budget, most in SHAPE_SEEDS.items()
            for seed in each_seed(min(seeds, most))
            for shape in dict.fromkeys(shape for curve in curves(budget).values() for shape in curve.values())
        ),
        *(by_all_validation(width) for width in WIDTHS[3e12] if seeds),
    ]


class Words(NamedTuple):
    """A text of words: its corpus, how much of it is read, and where searches of its settings begin.

    Once they are chosen the shape is sought again at other ``budgets``, larger and smaller, each from where the one
    before ended. Without such, as under a cap, the budget is a setting like the others.
    """

    corpus: str
    cap: int | None
    vocabulary: int
    starts: tuple[recipes.Point, ...]
    budgets: tuple[tuple[float, ...], ...] = ()


def _start(flops: float, width: int, **other: float) -> recipes.Point:
    return {"rate": 2e-3, "batch": 8, "dropout": 0.0, "weight_decay": 0.1, "flops": flops, "shape": (2, width), **other}


#: By name; the first as the paper reads it, its second start about where the search on all of that text ended; the
#: others whole, sentences ended by ``<eos>``.
WORDS = {
    "Penn Treebank, 80,000 words": Words(
        "ptb", paper.WORD_CAP, 9_999, (_start(3e12, 96, batch=16, dropout=0.3), _start(3e12, 96, rate=1.6e-2))
    ),
    "Penn Treebank": Words("ptb-eos", None, 10_000, (_start(1e13, 128),), ((3e13,), (3e12, 1e12))),
    "WikiText-2": Words("wikitext-2-eos", None, 33_278, (_start(1e13, 96, rate=1.6e-2),), ((3e13,),)),
}
_WORD_LADDERS = {
    "rate": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "dropout": (0.0, 0.1, 0.3, 0.5),
    "shape": ((1, 48), (1, 64), (1, 96), (2, 96), (2, 128), (3, 160), (4, 192)),  # blocks and their width
    "batch": (8, 16, 32),
    "flops": (3e11, 1e12, 3e12, 1e13),
    "weight_decay": (0.03, 0.1, 0.3, 1.0, 3.0),
}


def of_words(name: str, point: recipes.Point, seed: int) -> Experiment:
    """One of ``WORDS`` by today's transformer: tied head, Muon, windows of 64 words, the settings of a point.

    Seed 0, by which settings are chosen, looks at every 16th word of validation and test. The others look at every
    fourth of validation and at all of the test, which is the whole split if the text is, else the paper's windows.
    """
    text, (layers, width) = WORDS[name], point["shape"]
    model = recipes.model("blocks", {"layers": layers, "width": width, "context": 64, "dropout": point["dropout"]})
    model = replace(model, tied=True, embed_init="small")
    epochs = 4
    windows = round(point["flops"] / epochs / flops_per_window(model, text.vocabulary, scored="every"))
    test, sample = (16, 16) if seed == 0 else (1, 4)
    training = TrainingConfig(
        epochs=epochs, windows_per_epoch=windows, batch=point["batch"], scored="every", learning_rate=point["rate"],
        optimiser="muon", muon_rate=1e-2, weight_decay=point["weight_decay"], schedule="cosine", warmup=0.02,
        eval_windows=paper.run("Penn Treebank").training.eval_windows if text.cap else None,
        eval_stride=test, valid_stride=sample, whole_stride=sample,
    )  # fmt: skip
    return Experiment(text.corpus, model, training, seed, text.cap)


def words_search(name: str, found: Found) -> tuple[dict[float, recipes.Point], list[Experiment]]:
    """By budget the settings that validation chooses for one of ``WORDS``, as far as known; and the runs asked for."""
    text, asked, points = WORDS[name], [], {}

    def chosen(point: recipes.Point, *settings: str) -> recipes.Point | None:
        ladders = {setting: _WORD_LADDERS[setting] for setting in settings}
        return recipes.descend(lambda p: of_words(name, p, 0), ladders, point, found, asked, rounds=4)

    settings = [setting for setting in _WORD_LADDERS if setting != "flops" or not text.budgets]
    ends = [chosen(start, *settings) for start in text.starts]
    if None not in ends:
        first = min(ends, key=lambda point: min(found[of_words(name, point, 0)].valid))
        points[first["flops"]] = first
    for budgets in text.budgets if points else ():
        point = first
        for budget in budgets:
            if (point := chosen({**point, "flops": budget}, "shape")) is None:
                break
            points[budget] = point
    return points, asked


def words_chosen() -> dict[tuple[str, float], recipes.Point]:
    """What validation chose, by text and budget, by the published records of ``words-today``."""
    found = Store(RESULTS / "words-today").found()
    return {(name, budget): point for name in WORDS for budget, point in words_search(name, found)[0].items()}


def words_together(seeds: int = SEEDS) -> dict[tuple[str, float], list[Experiment]]:
    """What validation chose, by text and budget, with seeds that did not choose."""
    return {key: [of_words(key[0], p, s) for s in each_seed(seeds + 1, 1)] for key, p in words_chosen().items()}


def elsewhere(found: Found | None = None) -> dict[tuple[str, float], tuple[list[Experiment], list[Experiment]]]:
    """On other texts, by text and budget: runs without short convolutions, and the same with them.

    Python's documentation is that of the records in ``found``, the published ones if None: each version has another.
    """
    words = words_together()
    plain = {("Penn Treebank", budget): words["Penn Treebank", budget] for budget in (1e12, 3e12, 1e13)}
    plain["python-docs", 3e12] = on_documentation("blocks", found)
    return {key: (runs, [_reaching(run) for run in runs]) for key, runs in plain.items()}


def on_documentation(architecture: str, found: Found | None = None) -> list[Experiment]:
    """That architecture for 3·10¹² FLOPs on Python's documentation, by seed, without short convolutions.

    The text is that of ``elsewhere``.
    """
    found = Store(RESULTS / "convolutions").found() if found is None else found
    choice("architecture", architecture, ("mlp", "blocks"))
    kind = "mlp" if architecture == "mlp" else "transformer"
    one = next((e for e in found if e.corpus.startswith("python-docs") and e.kind == kind), None)
    one = one or recipes.best_under(3e12, load_corpus("python-docs"), architecture)
    runs = [replace(one, seed=seed) for seed in range(SEEDS)]
    return runs if architecture == "mlp" else [_reaching(run, 0) for run in runs]


def largest(dropout: float = 0.0) -> Experiment:
    """The transformer of 3·10¹³ FLOPs with short convolutions, given 10¹⁴, and that dropout on each branch."""
    point = {**recipes.chosen(recipes.published())["blocks", 3e13], "dropout": dropout}
    return recipes.experiment("blocks", point, 1e14, 0)


def convolutions(seeds: int, found: Found) -> list[Experiment]:
    """Short convolutions on other texts, an MLP on one of them, and the largest runs.

    Transformers of words without convolutions are among ``words-together``.
    """
    there = elsewhere(found)
    with_ = [run for _, of in there.values() for run in of]
    return [*there["python-docs", 3e12][0], *with_, *on_documentation("mlp", found), largest(), largest(0.1)]


def together(seeds: int = SEEDS) -> list[Experiment]:
    """What validation chose at each budget, by the published records; at some, transformers without convolutions.

    Their token losses are kept, to be mixed with counts.
    """
    chosen, plain = recipes.chosen(recipes.published()), recipes.chosen(Store(RESULTS / "today").found())
    points = [(a, b, point) for (a, b), point in chosen.items() if a in ("mlp", "blocks")]
    points += [("blocks", b, plain["blocks", b]) for b in (1e10, 1e11, 3e12, 3e13) if ("blocks", b) in plain]
    return list(dict.fromkeys(recipes.experiment(a, p, b, seed) for a, b, p in points for seed in each_seed(seeds)))


#: The networks that go on learning while they are tested: architectures and budgets.
READING = (*(("mlp", b) for b in (1e10, 1e11, 1e12)), *(("blocks", b) for b in (1e10, 1e11, 1e12, 1e13, 3e13)))


def reading(seeds: int = SEEDS) -> dict[tuple[str, float], list[Experiment]]:
    """They, as validation chose them for training alone, by architecture and budget."""
    chosen, there = recipes.chosen(recipes.published()), {}
    for architecture, budget in READING:
        run = recipes.experiment(architecture, chosen[architecture, budget], budget, 0)
        run = replace(run, training=replace(run.training, reads_on=True))
        there[architecture, budget] = [replace(run, seed=seed) for seed in each_seed(seeds)]
    return there


#: The networks whose weights are published: the name, and for what architecture and budget validation chose it.
PUBLISHED = {"MLP": ("mlp", 3e11), "one block": ("one block", 3e11), "transformer": ("blocks", 3e13)}


def file_of(name: str) -> str:
    """The name of the file that holds the weights of one of ``PUBLISHED``."""
    return f"{name.replace(' ', '-')}.safetensors"


def published() -> dict[str, Experiment]:
    """They, by name; not of the seed that chose. FileNotFoundError says what to do without the records that choose."""
    points = recipes.chosen(Store(RESULTS / "today").found())
    if not points.keys() >= set(PUBLISHED.values()):
        raise FileNotFoundError(f"too few records in {(RESULTS / 'today').absolute()}: clone the book's repository")
    return {name: recipes.experiment(a, points[a, budget], budget, 1) for name, (a, budget) in PUBLISHED.items()}


#: By name: the experiments for a number of seeds, given the records that there are. Their records lie in a folder of
#: that name under ``results/``.
SUITES: dict[str, Callable[[int, Found], list[Experiment]]] = {
    "depth-context": lambda seeds, found: depth_context(seeds),
    "positions": lambda seeds, found: positions(seeds),
    "words": lambda seeds, found: [uncapped(seed) for seed in each_seed(seeds)],  # what the cap on the text does
    "frontier": frontier,
    "today": recipes.today,
    "gain": gain,
    "shapes": lambda seeds, found: shapes(seeds),
    "convolutions": convolutions,
    "words-today": lambda seeds, found: [run for name in WORDS for run in words_search(name, found)[1]],
    "together": lambda seeds, found: together(seeds),
    "words-together": lambda seeds, found: [e for of in words_together(seeds).values() for e in of],
    "reading": lambda seeds, found: [e for of in reading(seeds).values() for e in of],
}
#: The suites whose records have the runs' token losses beside them.
KEEP_LOSSES = ("together", "words-together", "reading")
