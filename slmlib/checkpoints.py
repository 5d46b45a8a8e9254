"""Files that are written whole or not at all, and the checkpoints of training runs among them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, uint8


class NotWritten(OSError):
    """A file that could not be written, for want of room or of permission, say; what was there before is whole."""

    def __str__(self) -> str:
        return (
            f"{self.filename} could not be written ({self.strerror}), and what was there before is whole: make room "
            "there, or let yourself write there, and do the same again"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, an error of the file system becomes a ``NotWritten`` that names the file."""
    try:
        yield
    except OSError as error:
        raise NotWritten(error.errno, error.strerror or str(error), str(path)) from error


def write_whole(path: Path, data: bytes, partial: Path | None = None) -> None:
    """Write a file whole or not at all, by way of another on the same disk, whatever happens in between.

    Raises:
        NotWritten: if the file system refuses.
    """
    partial = partial or path.with_name(f"{path.name}.partial")
    try:
        with writing(path):
            with Path(partial).open("wb") as file:  # of True, open would take standard output
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
            os.replace(partial, path)
    except BaseException:  # on a full disk, what was written would keep it full
        with suppress(OSError):
            partial.unlink()
        raise


def load(path: Path, run: str, epochs: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the history that ``save`` wrote for that run, of so many epochs or fewer.

    Raises:
        ValueError: if the file is no checkpoint, damaged, of another run or further; says so and what to do.
    """
    tensors, found, history = _read(path)
    if found != run:
        raise ValueError(f"checkpoint {path} is of another run, {found!r}, not {run!r}; {_ANEW}")
    if len(history["valid"]) > epochs:
        raise ValueError(f"checkpoint {path} is {len(history['valid'])} epochs into a run of {epochs}; {_ANEW}")
    return tensors, history


def epochs_done(path: Path) -> int:
    """How many epochs a checkpoint is into its run; 0 where there is none.

    Raises:
        ValueError: if the file is no checkpoint, or damaged.
    """
    return len(_read(path)[2]["valid"]) if path.exists() else 0


def digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of named tensors, shapes and types included, and of texts."""
    sha = hashlib.sha256(repr(texts).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(uint8).numpy())
    return sha.hexdigest()[:16]


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], texts: dict[str, str], *more: str, partial: Path | None = None
) -> None:
    """Write named tensors and texts as safetensors, with a checksum of both and of more texts that a reader knows."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}  # the format refuses tied ones
    texts = {**texts, "sha256": digest(tensors, *texts.values(), *more)}
    write_whole(path, safetensors.torch.save(tensors, texts), partial)


def load_tensors(path: str | os.PathLike, names: Sequence[str], *more: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What ``save_tensors`` wrote, with texts of those names, else KeyError, ValueError, OSError, SafetensorError."""
    with safetensors.safe_open(path, "pt") as file:
        tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    found = digest(tensors, *(texts.get(name, "") for name in names), *more)
    if texts.get("sha256") not in (None, found):  # None: of an earlier version
        raise ValueError("its checksum is not that of what it holds")
    return tensors, texts


_ANEW = "delete it to start this run anew"


def _read(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """A checkpoint's tensors, which run it is of, and the history."""
    try:
        tensors, texts = load_tensors(path, ("run", "history"))
        run, history, _ = (texts[name] for name in ("run", "history", "sha256"))  # each has a checksum
        return tensors, run, json.loads(history)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of this package, or damaged ({error}); {_ANEW}") from error
