"""A canary for each main model: a training of seconds whose losses are committed, lest a change in mathematics land.

After a change that is meant: ``python tests/faults/test_canaries.py`` writes ``canaries.json`` anew.
"""

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch

from slmlib.corpora import Corpus, Vocabulary
from slmlib.experiments import machine
from slmlib.models import LinearConfig, MLPConfig, TransformerConfig, build
from slmlib.training import TrainingConfig, evaluate, fit

KEPT = Path(__file__).with_name("canaries.json")
#: Nats, on another kind of processor or version. In float64 instead of float32, which rounds otherwise everywhere, the
#: losses differ by 4e-7 at most; where Muon makes its products in bfloat16, by 3e-3.
TOLERANCE = {"today's": 1e-2}

PAPER = TrainingConfig(2, windows_per_epoch=360, eval_windows=300, batch=32, learning_rate=0.003)
TODAY = TrainingConfig(
    *(2, 360, 300, 1, 32, 0.01),
    **{"scored": "every", "optimiser": "muon", "muon_rate": 0.05, "beta2": 0.95, "weight_decay": 0.1},
    **{"schedule": "cosine", "warmup": 0.1, "clip": 1.0, "average": 0.8},
)
CANARIES = {
    "linear": (LinearConfig(context=16, d_model=24), PAPER),
    "mlp": (MLPConfig(context=16, d_model=24, hidden=64), PAPER),
    "attention": (TransformerConfig(context=16, d_model=32, heads=2, layers=1, ff_width=128), PAPER),
    "transformer": (TransformerConfig(context=16, d_model=64, heads=4, layers=3, ff_width=128), PAPER),
    "rotary": (TransformerConfig(context=16, d_model=32, heads=2, layers=2, ff_width=64, positions="rope"), PAPER),
    "today's": (
        TransformerConfig(
            *(16, 32, 2, 2, 64),
            **{"ff_kind": "relu2", "dropout_site": "residual", "norm": "pre", "positions": "rope", "tied": True},
            **{"qkv_init": "linear", "embed_init": "small", "norm_kind": "rms", "qk_norm": True, "zero_init": True},
        ),
        TODAY,
    ),
}


def text():
    """8,000 characters by a fixed rule: the corpus that every Python carries differs between Pythons."""
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "tis", "nobler", "in", "mind"]
    state, drawn = 1, []
    while len(drawn) < 1_600:
        state = (1_103_515_245 * state + 12_345) % 2**31
        drawn.append(words[(state >> 16) % len(words)])
    return " ".join(drawn)[:8_000]


def sing(name, dtype=torch.float32):
    """The losses of a canary: of each step, after each epoch, of the test."""
    whole, (config, training) = text(), CANARIES[name]
    vocabulary = Vocabulary(tuple(sorted(set(whole))), "character")
    ids = vocabulary.encode(whole)
    corpus = Corpus("by rule", ids[:6_000], ids[6_000:7_000], ids[7_000:], vocabulary)
    model = build(config, len(vocabulary), seed=0).to(dtype)
    history = fit(model, corpus, training, seed=0, progress=False)
    return {"steps": history.step_losses, "valid": history.valid, "test": evaluate(model, corpus.test, training.test)}


def made_by():
    """The versions and the kind of processor that give the same bits."""
    flags = ""
    if (cpu := Path("/proc/cpuinfo")).exists():
        flags = next((line for line in cpu.read_text(encoding="utf-8").splitlines() if line.startswith("flags")), "")
    flags = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:10]
    where = {"processor": machine()["processor"], "flags": flags, "system": f"{platform.system()} {platform.machine()}"}
    return {**where, "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


@pytest.mark.parametrize("name", CANARIES)
def test_a_canary_sings_as_it_did(one_thread, name):
    """Bit for bit where it was taught; elsewhere, and in float64, which rounds otherwise, nearly."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    then, now, otherwise = kept["canaries"][name], sing(name), sing(name, torch.float64)
    if kept["made by"] == made_by():
        assert now == then
    for song in (now, otherwise):
        for part, losses in then.items():
            assert song[part] == pytest.approx(losses, rel=0, abs=TOLERANCE.get(name, 1e-5)), part


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {"made by": made_by(), "canaries": {name: sing(name) for name in CANARIES}}
    KEPT.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
