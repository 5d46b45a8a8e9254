"""The published models as a page loads them."""

import base64
import gzip
import json
from dataclasses import asdict
from pathlib import Path

from slmlib.corpora import load_corpus
from slmlib.experiments import RESULTS
from slmlib.explore import published
from slmlib.models import MLP


def packed(folder: Path = RESULTS / "weights") -> str:
    """The published models as a script that sets ``window.slmModels``, for ``assets/models.js``.

    It is base64 of gzip of: the length of a JSON header as 4 bytes, the header, the weights as float16, then the
    5-grams of Tiny Shakespeare in order, each as the length that it shares with the one before, its other ids, and its
    count in base 128, least first.

    Raises:
        FileNotFoundError, CorpusUnavailable: as ``explore.published`` does.
    """
    networks, counts, vocabulary = published(folder)
    parts, at = [], 0

    def add(data: bytes) -> list[int]:
        nonlocal at
        parts.append(data)
        at += len(data)
        return [at - len(data), len(data)]

    listed = []
    for name, model in networks.items():
        tensors = {key: [add(w.half().numpy().tobytes())[0], w.numel()] for key, w in model.state_dict().items()}
        kind = "mlp" if isinstance(model, MLP) else "transformer"
        listed.append({"name": name, "kind": kind, "config": asdict(model.config), "tensors": tensors})
    ids = load_corpus("tiny_shakespeare").train
    grams, often = ids.unfold(0, counts.order, 1).unique(dim=0, return_counts=True)
    data, before = bytearray(), [-1] * counts.order
    for gram, count in zip(grams.tolist(), often.tolist(), strict=True):
        same = next(k for k in range(counts.order) if gram[k] != before[k])
        data += bytes([same, *gram[same:]])
        while count > 127:
            data.append(128 + count % 128)
            count //= 128
        data.append(count)
        before = gram
    first = {"name": f"counts of order {counts.order}", "kind": "counts", "config": {"order": counts.order}}
    listed.insert(0, {**first, "counts": add(bytes(data))})
    header = json.dumps({"vocabulary": vocabulary.tokens, "models": listed}).encode()
    header += b" " * (-(len(header) + 4) % 4)
    whole = gzip.compress(len(header).to_bytes(4, "little") + header + b"".join(parts), 9, mtime=0)
    return f'window.slmModels = "{base64.b64encode(whole).decode()}";\n'
