"""Files that are written whole or not at all, and the checkpoints of training runs among them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, uint8


def write_whole(path: Path, partial: Path, data: bytes) -> None:
    """Write a file whole or not at all, by way of another on the same disk, whatever happens in between."""
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(partial, path)
    except BaseException:  # on a full disk, what was written would keep it full
        Path(partial).unlink(missing_ok=True)
        raise


def save(path: Path, run: str, tensors: Mapping[str, Tensor], history: Mapping[str, Any]) -> None:
    """Write the checkpoint of a run: which run it is, its state as named tensors, its history so far."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # the format refuses tied ones
    metadata = {"run": run, "history": json.dumps(history)}
    metadata["sha256"] = digest(tensors, run, metadata["history"])
    write_whole(path, path.with_name(f"{path.name}.partial"), safetensors.torch.save(tensors, metadata))


def load(path: Path, run: str, epochs: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the history that ``save`` wrote for that run, of so many epochs or fewer.

    Raises:
        ValueError: if the file is no checkpoint, damaged, of another run or further; says so and what to do.
    """
    metadata, anew = _metadata(path), "delete it to start this run anew"
    if metadata["run"] != run:
        raise ValueError(f"checkpoint {path} is of another run, {metadata['run']!r}, not {run!r}; {anew}")
    tensors = safetensors.torch.load_file(path)
    if metadata["sha256"] != digest(tensors, run, metadata["history"]):
        raise ValueError(f"checkpoint {path} is damaged: its checksum is not that of what it holds; {anew}")
    history = json.loads(metadata["history"])
    if len(history["valid"]) > epochs:
        raise ValueError(f"checkpoint {path} is {len(history['valid'])} epochs into a run of {epochs}; {anew}")
    return tensors, history


def epochs_done(path: Path) -> int:
    """How many epochs a checkpoint is into its run; 0 where there is none.

    Raises:
        ValueError: if the file is no checkpoint.
    """
    return len(json.loads(_metadata(path)["history"])["valid"]) if path.exists() else 0


def digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of named tensors, shapes and types included, and of texts."""
    sha = hashlib.sha256(repr(texts).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(uint8).numpy())
    return sha.hexdigest()[:16]


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no checkpoint ({error}); delete it to start this run anew") from error
    if not metadata.keys() >= {"run", "history", "sha256"}:
        raise ValueError(f"{path} is no checkpoint of this package; delete it to start this run anew")
    return metadata
