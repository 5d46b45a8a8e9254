"""What arguments may be: one rule and one message for the whole package. NumPy's numbers count as Python's."""

import sys
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor


def integer(name: str, value: Any, least: int = 1) -> int:
    """That value as an ``int``.

    Raises:
        ValueError: if it is no integer (True and 2.0 are none) or below ``least``; names it.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def number(name: str, value: Any, positive: bool = False) -> float:
    """That value as a ``float`` in [0, 1), or finite and above 0 if ``positive``. -0.0 becomes 0.0.

    Raises:
        ValueError: if it is none; names it.
    """
    ok = not isinstance(value, bool) and isinstance(value, Real)
    ok = ok and (0 < value <= sys.float_info.max if positive else 0 <= value < 1)
    if not ok:
        raise ValueError(f"{name} must be a {'positive number' if positive else 'number in [0, 1)'}, got {value!r}")
    return float(value) + 0.0


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """That value, if it is one of the choices.

    Raises:
        ValueError: if it is none of them; names it and lists them.
    """
    if not isinstance(value, str) or value not in choices:
        raise UnknownChoice(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    return str(value)


class UnknownChoice(ValueError):
    """A word that is none of those there are."""


def token_ids(ids: Any, vocab_size: int, name: str = "ids") -> Tensor:
    """Ids as a 1-D int64 tensor where they are: a tensor, an array or a sequence of integers from 0 to V - 1.

    Raises:
        ValueError: for another shape, another type than integers, or the first id outside; names it and its position.
    """
    try:
        ids = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a 1-D sequence of integers, got {ids!r}") from error
    if ids.dim() != 1:
        raise ValueError(f"{name} must be 1-D, got shape {tuple(ids.shape)}")
    if len(ids) and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise ValueError(f"{name} must be integers, got {ids.dtype}")
    ids = ids.long()
    if len(outside := ((ids < 0) | (ids >= vocab_size)).nonzero()):
        at = int(outside[0])
        where = "" if name == "ids" else f" of {name}"
        raise ValueError(f"id {int(ids[at])} at position {at}{where} is not from 0 to {vocab_size - 1}")
    return ids


class Checked:
    """A frozen dataclass whose fields are checked by their types and brought to Python's own.

    Integers are at least 1, or 0 where named in ``_may_be_zero``; numbers lie in [0, 1), or are positive where named in
    ``_positive``; a ``Literal`` is one of its choices, anything else of its class; ``| None`` allows None.

    Raises:
        ValueError: for a field that is something else; names it, what it must be and what it was.
    """

    _may_be_zero: tuple[str, ...] = ()
    _positive: tuple[str, ...] = ()

    def __post_init__(self):
        for f in fields(self):
            name, value = f"{type(self).__name__}.{f.name}", getattr(self, f.name)
            kinds = get_args(f.type) or (f.type,)
            if value is None and type(None) in kinds:
                continue
            if int in kinds:
                value = integer(name, value, 0 if f.name in self._may_be_zero else 1)
            elif float in kinds:
                value = number(name, value, f.name in self._positive)
            elif bool in kinds:
                if not isinstance(value, bool | np.bool_):
                    raise ValueError(f"{name} must be True or False, got {value!r}")
                value = bool(value)
            elif isinstance(kinds[0], str):
                value = choice(name, value, kinds)
            elif not isinstance(value, kinds):
                raise ValueError(f"{name} must be a {' or a '.join(k.__name__ for k in kinds)}, got {value!r}")
            object.__setattr__(self, f.name, value)
