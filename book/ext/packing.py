"""The published models as a page loads them."""

import base64
import gzip
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from slmlib.corpora import load_corpus
from slmlib.experiments import RESULTS
from slmlib.explore import published
from slmlib.models import MLP


def packed(folder: Path = RESULTS / "weights") -> str:
    """The published models as a script that sets ``window.slmModels``, for ``assets/models.js``.

    It is base64 of gzip of safetensors: the weights as float16, and the 5-grams of Tiny Shakespeare in order, each as
    the length that it shares with the one before, its other ids, and its count in base 128, least first.

    Raises:
        FileNotFoundError, CorpusUnavailable: as ``explore.published`` does.
    """
    networks, counts, vocabulary = published(folder)
    tensors = {f"{name}.{key}": w.half() for name, of in networks.items() for key, w in of.state_dict().items()}
    listed = [{"name": f"counts of order {counts.order}", "kind": "counts", "config": {"order": counts.order}}]
    for name, model in networks.items():
        kind = "mlp" if isinstance(model, MLP) else "transformer"
        listed.append({"name": name, "kind": kind, "config": asdict(model.config)})
    ids = load_corpus("tiny_shakespeare").train
    grams, often = ids.unfold(0, counts.order, 1).unique(dim=0, return_counts=True)
    data, before = bytearray(), [-1] * counts.order
    for gram, times in zip(grams.tolist(), often.tolist(), strict=True):
        same = next(k for k in range(counts.order) if gram[k] != before[k])
        data += bytes([same, *gram[same:]])
        while times > 127:
            data.append(128 + times % 128)
            times //= 128
        data.append(times)
        before = gram
    about = json.dumps({"vocabulary": vocabulary.tokens, "models": listed})  # one text: several come in any order
    whole = save(tensors | {"counts": torch.frombuffer(data, dtype=torch.uint8)}, {"about": about})
    return f'window.slmModels = "{base64.b64encode(gzip.compress(whole, 9, mtime=0)).decode()}";\n'
