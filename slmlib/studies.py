"""Experiments beyond the paper's, whose records chapters quote beside it."""

from collections.abc import Callable
from dataclasses import replace

from . import paper, recipes
from .experiments import Experiment
from .frontier import SEEDS, Found, frontier
from .models import TransformerConfig
from .training import TrainingConfig

#: Contexts at three blocks, and depths at 128 characters, of the paper's transformer: equal windows for all.
CONTEXTS = (32, 64, 128, 256)
DEPTHS = (1, 2, 3, 4, 6)
#: A third more windows than the paper's sweeps, looked at eight times on the way.
FOLLOWED = TrainingConfig(epochs=8, windows_per_epoch=10_000, eval_stride=8)


def followed(model: TransformerConfig, seed: int) -> Experiment:
    """A model trained on 80,000 windows of Tiny Shakespeare, its validation loss taken after every 10,000."""
    return Experiment("tiny_shakespeare", model, FOLLOWED, seed)


def depth_context(seeds: int = SEEDS) -> list[Experiment]:
    """The paper's transformer over contexts and depths, with the validation loss followed over the steps."""
    models = [TransformerConfig(context=T) for T in CONTEXTS] + [TransformerConfig(layers=n) for n in DEPTHS]
    return [followed(model, seed) for seed in range(seeds) for model in dict.fromkeys(models)]


POSITIONS = ("learned", "rope", "none")


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
        *(every_position(kind, seed) for seed in range(seeds) for kind in POSITIONS),
        *(every_position("learned", seed, "small") for seed in range(seeds)),
        *(unplaced(seed) for seed in range(seeds)),
        *(further(label, seed) for seed in range(seeds) for label in ("Learned positions", "RoPE")),
    ]


def uncapped(seed: int) -> Experiment:
    """The paper's Penn Treebank run on the whole train split."""
    return replace(paper.run("Penn Treebank").experiment(seed), train_tokens=None)


def words(seeds: int = SEEDS) -> list[Experiment]:
    """What the cap on the training text does."""
    return [uncapped(seed) for seed in range(seeds)]


#: By name: the experiments for a number of seeds, given the records that there are. Their records lie in a folder of
#: that name under ``results/``.
SUITES: dict[str, Callable[[int, Found], list[Experiment]]] = {
    "depth-context": lambda seeds, found: depth_context(seeds),
    "positions": lambda seeds, found: positions(seeds),
    "words": lambda seeds, found: words(seeds),
    "frontier": frontier,
    "today": recipes.today,
}
