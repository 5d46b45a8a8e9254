"""What arguments may be: one rule and one message for the whole package. NumPy's numbers count as Python's."""

import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from dis import opname
from functools import cache, wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from os import PathLike
from os.path import dirname
from sysconfig import get_path
from types import FunctionType, ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor


def short(value: Any) -> str:
    """A value as an error quotes it: on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of an object that was never finished, say
        text = f"a {type(value).__name__}"
    return text if len(text) <= 500 else f"{text[:499]}…"


def plain(name: str | PathLike) -> str:
    """A name as an error has it: as it is where it can be printed on one line, else quoted."""
    return str(name) if str(name).isprintable() else short(str(name))


def integer(name: str, value: Any, least: int = 1, most: int = 2**31 - 1) -> int:
    """That value as an ``int``.

    Raises:
        ValueError: if it is no integer (True and 2.0 are none), below ``least`` or above ``most``; names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {short(value)}")
    if value > most:
        raise ValueError(f"{name} must be an integer of at most {most}, got {short(value)}")
    return int(value)


MOST_SEEDS = 1_000  # that may be asked for


def each_seed(seeds: Any, first: int = 0) -> range:
    """The seeds from ``first`` up to that number, itself left out.

    Raises:
        ValueError: for a number of seeds that is no integer from 0 to ``MOST_SEEDS``.
    """
    return range(first, integer("seeds", seeds, 0, MOST_SEEDS))


def number(name: str, value: Any, positive: bool = False, zero: bool = False) -> float:
    """That value as a ``float`` in [0, 1), or finite and above 0 (or 0, with ``zero``) if ``positive``.

    -0.0 becomes 0.0.

    Raises:
        ValueError: if it is none; names it.
    """
    value = value.item() if isinstance(value, np.generic) else value
    ok = isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
    if not ok or (value == 0 and positive and not zero) or (value >= 1 and not positive):
        kind = "positive number" + " or 0" * zero if positive else "number in [0, 1)"
        raise ValueError(f"{name} must be a {kind}, got {short(value)}")
    return float(value) + 0.0


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """That value, if it is one of the choices.

    Raises:
        ValueError: if it is none of them; names it and lists them.
    """
    if not isinstance(value, str) or value not in choices:
        raise UnknownChoice(f"{name} must be {' or '.join(map(repr, choices))}, got {short(value)}")
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
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be a 1-D sequence of integers, got {short(ids)}") from error
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
    ``_positive``, or 0 where named in both; a ``Literal`` is one of its choices, anything else of its class;
    ``| None`` allows None.

    Raises:
        ValueError: for a field that is something else; names it, what it must be and what it was.
    """

    _may_be_zero: tuple[str, ...] = ()
    _positive: tuple[str, ...] = ()

    def __post_init__(self):
        for field, name, kinds in _fields(type(self)):
            given = value = getattr(self, field)
            zero, positive = field in self._may_be_zero, field in self._positive
            if value is None and type(None) in kinds:
                continue
            if int in kinds:
                value = integer(name, value, 0 if zero else 1)
            elif float in kinds:
                value = number(name, value, positive, zero)
            elif bool in kinds:
                if not isinstance(value, bool | np.bool_):
                    raise ValueError(f"{name} must be True or False, got {short(value)}")
                value = bool(value)
            elif isinstance(kinds[0], str):
                value = choice(name, value, kinds)
            elif not isinstance(value, kinds):
                raise ValueError(f"{name} must be a {' or a '.join(k.__name__ for k in kinds)}, got {short(value)}")
            if value is not given:
                object.__setattr__(self, field, value)


@cache
def _fields(cls: type[Checked]) -> list[tuple[str, str, tuple]]:
    """Each field, what an error calls it, and its types."""
    return [(f.name, f"{cls.__name__}.{f.name}", get_args(f.type) or (f.type,)) for f in fields(cls)]


class Unfit(TypeError, ValueError):
    """An argument that is no such thing as the signature names, or that a function cannot work with."""


_LIBRARIES = ("<frozen ", "<string>", *(get_path(of) for of in ("stdlib", "platstdlib", "purelib", "platlib")))
#: What unfit arguments lead to, where no statement of this package has raised it.
_BLUNT = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError, StopIteration)


def explain(module: dict[str, Any]) -> None:
    """Let all that a module offers say what is wrong with its arguments where it fails over them.

    First what its signature says of them is held against them; where they are all of the right kind, they are all
    named. Calls cost nothing for it: arguments are looked at after a failure alone.

    Raises:
        Unfit: from a function so treated, in place of the error that unfit arguments led to, which is its cause.
    """
    for name, thing in list(module.items()):
        if name.startswith("_") or getattr(thing, "__module__", None) != module["__name__"]:
            continue
        if isinstance(thing, FunctionType):
            module[name] = _explained(thing)
        elif isinstance(thing, type) and not issubclass(thing, Exception):
            for key, method in list(vars(thing).items()):
                if not key.startswith("_") or key in ("__init__", "__call__", "__getitem__"):
                    if isinstance(method, FunctionType):
                        setattr(thing, key, _explained(method))
                    elif isinstance(method, classmethod):
                        setattr(thing, key, classmethod(_explained(method.__func__)))


def _explained(function: Callable) -> Callable:
    @wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            shapes = type(error) is RuntimeError and "allocate" not in str(error)  # which says PyTorch's want of memory
            blunt = isinstance(error, _BLUNT) or shapes
            said = _what_is_wrong(function, args, kwargs, error) if blunt and not _raised_here(error) else None
            if said is None:
                raise
            raise Unfit(said) from error

    return call


def _raised_here(error: Exception) -> bool:
    """Whether a ``raise`` of this package or of a reader's own code, in a callback, say, made it, and no library's.

    Then it says what is wrong, ``Unfit`` of the arguments there. A worker's error said so there, whoever passes it on.
    """
    if type(error.__cause__).__name__ == "_RemoteTraceback":
        return True
    last = function = error.__traceback__.tb_next
    while last and last.tb_next:
        last = last.tb_next
    if last is None or (type(error) is Unfit and last is not function):
        return False
    code = last.tb_frame.f_code
    said = opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return said and (code.co_filename.startswith(dirname(__file__)) or not code.co_filename.startswith(_LIBRARIES))


def _what_is_wrong(function: Callable, args: tuple, kwargs: dict, error: Exception) -> str | None:
    parameters, name = signature(function), function.__qualname__.removesuffix(".__init__")
    try:
        given = parameters.bind(*args, **kwargs).arguments
    except TypeError as wrong:  # one too many, or too few
        return f"{name}: {wrong}"
    for argument, value in given.items():
        parameter = parameters.parameters[argument]
        kind = Any if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) else parameter.annotation
        if not _fits(kind, value):
            said = kind.__name__ if isinstance(kind, type) else re.sub(r"\w[\w.]*\.(?=\w)", "", str(kind))
            return f"{argument} must be {said}, got {short(value)}"
    if type(error) is Unfit:  # of an argument further in
        return None
    said = ", ".join(f"{argument} = {short(value)[:60]}" for argument, value in given.items())
    return f"{name} cannot work with {said} ({' '.join(str(error).split())[:200] or type(error).__name__})"


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is what an annotation says, as far as that can be seen without taking it up."""
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(one, value) for one in of)
    if origin is Literal:
        return any(value is one or (isinstance(value, str) and value == one) for one in of)
    if origin is tuple and of[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(of) and all(map(_fits, of, value))
    if origin is not None:
        items = isinstance(value, np.ndarray | Tensor) and not issubclass(origin, Mapping | Callable)
        if isinstance(value, str) or not (isinstance(value, origin) or items):
            return False
        if isinstance(value, Mapping):
            return all(_fits(of[0], key) and _fits(of[-1], item) for key, item in value.items())
        return items or not isinstance(value, Collection) or all(_fits(of[0], item) for item in value)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return not isinstance(kind, type) or kind in (Any, Parameter.empty) or isinstance(value, kind)


class _Package(ModuleType):
    """The package: it lets each of its modules explain itself as soon as that is loaded, not when it is reloaded."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if isinstance(value, ModuleType) and name not in ("checks", "cluster", "__main__"):
            explain(vars(value))


sys.modules[__package__].__class__ = _Package
