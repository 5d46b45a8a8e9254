"""What today's training makes of small budgets: four architectures, each at its best as validation chooses it.

An architecture's settings lie on ladders. At each budget they are chosen by coordinate descent with seed 0, from the
best of the budget below; the validation text begins where the play that training ends in is over.
"""

from collections.abc import Mapping

from .experiments import Experiment, Record
from .flops import Scored, flops_per_window
from .models import Config, LinearConfig, MLPConfig, TransformerConfig
from .training import TrainingConfig

#: Records by experiment.
Found = Mapping[Experiment, Record]
#: A setting by name.
Point = dict[str, float]

BUDGETS = (1e10, 3e10, 1e11, 3e11, 1e12, 3e12, 1e13, 3e13, 1e14)  # FLOPs of training's matrix products
SEEDS = 3
#: The first character of Tiny Shakespeare's validation split that is not of *Measure for Measure*, which training ends
#: in: there *The Taming of the Shrew* begins, of which the test split is a later part.
NEXT_PLAY = 74_015

_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
_MUON = (0.005, 0.01, 0.02, 0.05)
_REGULAR = {"dropout": (0.0, 0.1, 0.2, 0.3), "weight_decay": (0.0, 0.1, 0.3)}
_BLOCKS = {
    "width": (16, 32, 48, 64, 96, 128, 160, 192, 256),
    "context": (8, 16, 32, 64, 128),
    "tokens": (64, 128, 256, 512, 1024, 2048, 4096),  # a batch
    "rate": _RATES,
    "muon_rate": _MUON,
    **_REGULAR,
}
#: By architecture the settings that are chosen, in the order in which they are, each with its ladder. A ``muon_rate``
#: of 0 stands for AdamW alone.
LADDERS: dict[str, dict[str, tuple[float, ...]]] = {
    "linear": {
        "context": (2, 4, 8, 16, 32),
        "width": (8, 16, 32, 64, 128),
        "batch": (16, 32, 64, 128, 256),
        "rate": _RATES,
        "weight_decay": _REGULAR["weight_decay"],
    },
    "mlp": {
        "context": (4, 6, 8, 12, 16, 24, 32),
        "width": (8, 16, 32, 64),
        "hidden": (32, 64, 128, 256, 512, 1024),
        "batch": (16, 32, 64, 128, 256, 512),
        "rate": _RATES,
        "muon_rate": (0, *_MUON),
        **_REGULAR,
    },
    "one block": _BLOCKS,
    "blocks": {"layers": (1, 2, 3, 4, 5, 6, 8), **_BLOCKS},
}
_FIRST: dict[str, Point] = {  # where the search begins at the smallest budget
    "linear": {"context": 4, "width": 16, "batch": 64, "rate": 5e-3, "weight_decay": 0.0},
    "mlp": {
        **{"context": 4, "width": 8, "hidden": 64, "batch": 64},
        **{"rate": 5e-3, "muon_rate": 0, "dropout": 0.0, "weight_decay": 0.0},
    },
    "one block": {
        **{"width": 32, "context": 16, "tokens": 256},
        **{"rate": 5e-3, "muon_rate": 0.02, "dropout": 0.0, "weight_decay": 0.0},
    },
}
_FIRST["blocks"] = {"layers": 1, **_FIRST["one block"]}
#: Where a search begins anew: the best of the budget below is so small, in so small batches, that one run would take
#: most of an hour. It stays in the race as it is.
_ANEW: dict[tuple[str, float], Point] = {
    ("one block", 3e12): {
        **{"width": 128, "context": 64, "tokens": 1024},
        **{"rate": 5e-3, "muon_rate": 0.01, "dropout": 0.0, "weight_decay": 0.1},
    },
}
_ANEW["blocks", 3e12] = {"layers": 4, **_ANEW["one block", 3e12], "width": 96}
#: What is still chosen above 10¹³ FLOPs, where a run takes a quarter of an hour and more.
_LATE = ("layers", "width", "rate", "dropout", "weight_decay")
#: The largest budget of each architecture: where more compute has ceased to help it.
LARGEST = {"linear": 1e12, "mlp": 3e12, "one block": 1e13, "blocks": 1e14}


def model(architecture: str, point: Point) -> Config:
    """The model of a point: the linear model, the MLP, or pre-norm blocks as they are built today."""
    context, width = int(point["context"]), int(point["width"])
    if architecture == "linear":
        return LinearConfig(context, width)
    if architecture == "mlp":
        return MLPConfig(context, width, int(point["hidden"]), point["dropout"])
    return TransformerConfig(
        context=context,
        d_model=width,
        heads=max(1, width // (16 if width < 96 else 32)),
        layers=int(point.get("layers", 1)),
        ff_width=4 * width,
        ff_kind="relu2",
        dropout=point["dropout"],
        dropout_site="residual",
        norm="pre",
        positions="rope",
        qkv_init="linear",
        norm_kind="rms",
        qk_norm=True,
        zero_init=True,
    )


def experiment(architecture: str, point: Point, budget: float, seed: int) -> Experiment:
    """A point trained for so many FLOPs on Tiny Shakespeare, to the nearest window an epoch."""
    config = model(architecture, point)
    scored: Scored = "every" if isinstance(config, TransformerConfig) else "last"
    epochs = 2 if budget < 1e13 else 4
    muon = point.get("muon_rate")
    training = TrainingConfig(
        epochs=epochs,
        windows_per_epoch=max(1, round(budget / epochs / flops_per_window(config, 65, scored=scored))),
        eval_from=128,  # the test is the paper's first 10,000 windows, whatever the context
        valid_from=NEXT_PLAY,
        valid_stride=4,
        whole_stride=8,
        batch=int(point["batch"]) if "batch" in point else max(1, int(point["tokens"]) // config.context),
        learning_rate=point["rate"],
        scored=scored,
        optimiser="muon" if muon else "adamw",
        **({"muon_rate": muon} if muon else {}),
        weight_decay=point["weight_decay"],
        schedule="cosine",
        warmup=0.02,
    )
    return Experiment("tiny_shakespeare", config, training, seed)


def search(architecture: str, budget: float, found: Found) -> tuple[Point | None, list[Experiment]]:
    """The settings that validation chooses at a budget, None while that is not known, and all runs that it asks for.

    Coordinate descent: one setting after the other moves to the better of its neighbours on the ladder for as long as
    that lowers seed 0's validation loss; twice through all of them up to 10¹² FLOPs, once above.
    """
    point, asked = _FIRST[architecture], []
    if budget > BUDGETS[0]:
        point, asked = search(architecture, BUDGETS[BUDGETS.index(budget) - 1], found)
        if point is None:
            return None, asked
    starts = [p for p in (_ANEW.get((architecture, budget)), point) if p]
    ends = [_descend(architecture, budget, starts[0], found, asked), *starts[1:]]
    runs = [experiment(architecture, p, budget, 0) for p in ends if p]
    asked += runs
    if None in ends or any(run not in found for run in runs):
        return None, asked
    return ends[min(range(len(runs)), key=lambda k: min(found[runs[k]].valid))], asked


def _descend(architecture: str, budget: float, point: Point, found: Found, asked: list[Experiment]) -> Point | None:
    """Where coordinate descent from a point ends, None while that is not known; it adds to what is asked."""
    settings = {n: v for n, v in LADDERS[architecture].items() if budget <= 1e13 or n in _LATE}
    for _ in range(2 if budget <= 1e12 else 1):
        before = point
        for name, ladder in settings.items():
            while True:
                at = ladder.index(point[name])
                near = [point, *({**point, name: ladder[j]} for j in (at - 1, at + 1) if 0 <= j < len(ladder))]
                runs = [experiment(architecture, p, budget, 0) for p in near]
                asked += runs
                if any(run not in found for run in runs):
                    return None
                best = min(range(len(near)), key=lambda k: min(found[runs[k]].valid))
                if best == 0:
                    break
                point = near[best]
        if point == before:
            break
    return point


def today(seeds: int = SEEDS, found: Found | None = None) -> list[Experiment]:
    """Each architecture at each budget: the runs by which its settings are chosen, then other seeds of the choice.

    What is asked depends on what is found, as in ``studies.frontier``.
    """
    found, wanted = found or {}, []
    for architecture, largest in LARGEST.items():
        for budget in BUDGETS[: BUDGETS.index(largest) + 1]:
            point, asked = search(architecture, budget, found)
            wanted += asked
            if point is None:
                break
            wanted += [experiment(architecture, point, budget, seed) for seed in range(1, seeds)]
    return list(dict.fromkeys(wanted))
