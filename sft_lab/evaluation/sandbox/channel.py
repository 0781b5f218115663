"""Let a test call a solution that runs in another process.

Each process has a ``Peer``; the two exchange one line of JSON per call and per answer. Plain values
are copied: numbers, strings, the standard containers, dates. Everything else stays in its process,
and the other one holds a ``Remote``. The test's process trusts nothing that it receives: a copy is
built from a fixed list of types, and a ``Remote`` compares equal to no copy, because its process
would decide the comparison.
"""

import builtins
import datetime
import decimal
import fractions
import importlib
import itertools
import json
import numbers
import operator
import os
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Any

# Functions defined from here on keep these builtins, whatever a solution does to its process.
globals()["__builtins__"] = dict(vars(builtins))

MAX_MESSAGE_MB = 16
MAX_ERROR_LENGTH = 10_000
MAX_PLAIN_INT = 1 << 63  # larger ones go as hex: decimal digits are limited, and slow
MUTABLE = (list, dict, set, bytearray)

_parse = json.JSONDecoder().raw_decode
_read, _write = os.read, os.write
_int_text, _float_text = int.__repr__, float.__repr__

# How to take a value apart, by type, and how to build it again, by the type's name.
_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    **dict.fromkeys((list, tuple, set, frozenset), iter),
    dict: lambda value: itertools.chain.from_iterable(value.items()),
    **dict.fromkeys((bytes, bytearray), lambda value: [value.decode("latin-1")]),
    complex: lambda value: [value.real, value.imag],
    range: lambda value: [value.start, value.stop, value.step],
    decimal.Decimal: lambda value: [str(value)],
    fractions.Fraction: lambda value: [value.numerator, value.denominator],
    **dict.fromkeys((datetime.date, datetime.time, datetime.datetime), lambda v: [v.isoformat()]),
    datetime.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
}
_BUILD: dict[str, Callable[[list[Any]], Any]] = {
    **{kind.__name__: kind for kind in (list, tuple, set, frozenset)},
    "dict": lambda parts: dict(zip(parts[::2], parts[1::2], strict=True)),
    "bytes": lambda parts: parts[0].encode("latin-1"),
    "bytearray": lambda parts: bytearray(parts[0].encode("latin-1")),
    **{
        kind.__name__: lambda parts, kind=kind: kind(*parts)  # type: ignore[misc]
        for kind in (complex, range, decimal.Decimal, fractions.Fraction, datetime.timedelta)
    },
    **{
        kind.__name__: lambda parts, kind=kind: kind.fromisoformat(parts[0])  # type: ignore[misc]
        for kind in (datetime.date, datetime.time, datetime.datetime)
    },
    "int": lambda parts: int(parts[0], 16),
}
_NUMBERS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    *((numbers.Integral, int), (numbers.Real, float), (numbers.Complex, complex)),
)
_LENGTHS = {"call": 4, "return": 3, "raise": 3}  # of messages, by their first part
_VALUE_TYPES = {kind.__name__: kind for kind in (*_PARTS, int, float, bool, str, type(None))}


class ConnectionLost(BaseException):
    """Report that the other process has ended."""


class Garbled(ConnectionLost):
    """Report that the other process has sent an invalid message, or one that is too long."""


class Remote:
    """Stand for an object of the other process.

    Forwards what cannot show that process the value that a test expects: calls, attributes,
    iteration, indexing, length, truth and text; never arithmetic, ``==`` with a copy, or ``in``.
    Attributes of Python's own protocols are refused: numpy, for one, would read memory at an
    address that ``__array_interface__`` gives.
    """

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: "Peer", number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object."""
        return self._peer.call(self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.call(getattr, self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.call(setattr, self, name, value)

    def __eq__(self, other: object) -> Any:
        return (
            self._peer.call(operator.eq, self, other) if type(other) is Remote else NotImplemented
        )

    def __instancecheck__(self, instance: object) -> bool:
        return type(instance) is Remote and bool(self._peer.call(isinstance, instance, self))

    __hash__ = object.__hash__


def _forward(name: str, function: Callable[..., Any]) -> None:
    def forwarder(self: Remote, *args: Any) -> Any:
        return self._peer.call(function, self, *args)

    setattr(Remote, name, forwarder)


for _function in (iter, next, len, bool, str, repr, operator.getitem, operator.setitem):
    _forward(f"__{_function.__name__}__", _function)


class Peer:
    """Hold one process's end of the connection: the solution's, or in a subclass the test's.

    Args:
        receive_end: Descriptor to read messages from.
        send_end: Descriptor to write messages to.
        offered: Objects that the other process may call, by their place.
    """

    def __init__(self, receive_end: int, send_end: int, offered: Sequence[Any] = ()) -> None:
        self._receive_end, self._send_end = receive_end, send_end
        self._received = b""
        self._objects: list[Any] = []  # that the other process may refer to, by number
        self._numbers: dict[int, int] = {}  # by id
        self._remotes: dict[int, Remote] = {}
        for value in offered:
            self._number(value)

    def call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function in the other process, and return its value or raise its error.

        Changes that it makes to lists, dicts, sets and bytearrays among ``args`` are copied back.

        Raises:
            ConnectionLost: If the other process is gone.
        """
        self.send(
            f'["call",{self.encode(function)},{self.encode(list(args))},{self.encode(kwargs)}]'
        )
        answer = self.receive()
        while answer[0] == "call":  # a function that it has been given
            self._answer(*answer[1:])
            answer = self.receive()
        if answer[0] == "raise":
            error = _error(*answer[1:])
            if isinstance(error, StopIteration) and function is not next:
                # In a test's ``map`` or ``all`` it would end the loop as if all were well.
                raise RuntimeError("StopIteration") from error
            raise error
        _, value, changed = answer
        if changed is not None:
            for old, new in zip(args, self.decode(changed), strict=True):
                if type(old) in MUTABLE and type(new) is type(old):
                    old.clear()
                    (old.extend if type(old) in (list, bytearray) else old.update)(new)
        return self.decode(value)

    def serve(self) -> None:
        """Answer calls until the connection is lost."""
        while True:
            self._answer(*self.receive()[1:])

    def _answer(self, target: Any, args: Any, kwargs: Any) -> None:
        try:
            given = self.decode(args)
            before = self.encode(given)
            value = self.encode(self.target(target)(*given, **self.decode(kwargs)))
            after = self.encode(given)
            self.send(f'["return",{value},{"null" if after == before else after}]')
        except ConnectionLost:
            raise
        except BaseException as error:  # SystemExit and KeyboardInterrupt are answers, too
            names = ",".join(quote(kind.__name__) for kind in type(error).__mro__)
            self.send(f'["raise",[{names}],{quote(text_of(error))}]')

    def send(self, message: str) -> None:
        """Send a message.

        Raises:
            ConnectionLost: If nobody reads it.
            ValueError: If it is too long.
        """
        if len(message) > MAX_MESSAGE_MB << 20:
            raise ValueError(f"more than {MAX_MESSAGE_MB} MiB between solution and test")
        rest = memoryview(message.encode() + b"\n")
        try:
            while rest:
                rest = rest[_write(self._send_end, rest) :]
        except OSError as error:
            raise ConnectionLost from error

    def receive(self) -> list[Any]:
        """Wait for a message and return it, its values still encoded.

        Raises:
            ConnectionLost: If the other process ends, or sends an invalid message (``Garbled``).
        """
        parts = [self._received]
        size = 0
        while b"\n" not in parts[-1]:
            try:
                parts.append(_read(self._receive_end, 1 << 16))
            except OSError as error:
                raise ConnectionLost from error
            size += len(parts[-1])
            if not parts[-1]:
                raise ConnectionLost
            if size > MAX_MESSAGE_MB << 20:
                raise Garbled
        line, _, self._received = b"".join(parts).partition(b"\n")
        try:
            message = _parse(line.decode())[0]
        except (ValueError, RecursionError) as error:
            raise Garbled from error
        kind = message[0] if type(message) is list and message else None
        if type(kind) is not str or len(message) != _LENGTHS.get(kind):
            raise Garbled
        return message

    def encode(self, value: Any) -> str:
        """Return a value as JSON text."""
        kind = type(value)
        if kind is str:
            return quote(value)
        if kind is int and -MAX_PLAIN_INT < value < MAX_PLAIN_INT:  # here for speed
            return _int_text(value)
        if kind is float and value - value == 0:  # neither infinite nor NaN
            return _float_text(value)
        if value is None:
            return "null"
        if kind is bool:
            return "true" if value else "false"
        for base in kind.__mro__:  # Counter is copied as dict, numpy.float64 as float
            if base is int:
                if -MAX_PLAIN_INT < value < MAX_PLAIN_INT:
                    return _int_text(value)
                return f'["int",{quote(hex(value))}]'
            if base is float:
                text = _float_text(value)
                return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)
            if base is str:
                return quote(value)
            if base in _PARTS:
                return _tagged(base.__name__, map(self.encode, _PARTS[base](value)))
        if kind is Remote:
            return f'["yours",{value._number}]'
        if kind is type and value in _VALUE_TYPES.values():
            return f'["type",{quote(value.__name__)}]'
        if kind is types.ModuleType and _is_standard(value.__name__):
            return f'["module",{quote(value.__name__)}]'
        return self.encode_other(value)

    def encode_other(self, value: Any) -> str:
        """Return the JSON text of a value that is not of a copied type, such as a reference.

        Raises:
            TypeError: If it is an installed package: a test must import what it relies on.
        """
        if isinstance(value, types.ModuleType):
            raise TypeError(f"a test must import {value.__name__} itself")
        if getattr(value, "shape", None) == () and hasattr(value, "item"):  # of numpy
            return self.encode(value.item())
        for number, plain in _NUMBERS:
            if isinstance(value, number):
                return self.encode(plain(value))
        return f'["mine",{self._number(value)}]'

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # also keeps its id from being used again
        return self._numbers[id(value)]

    def decode(self, encoded: Any) -> Any:
        """Return the value of an encoded one.

        Raises:
            Garbled: If it is of no known form.
        """
        if type(encoded) is not list:
            return encoded
        try:
            tag, *parts = encoded
            if tag in _BUILD:
                return _BUILD[tag](list(map(self.decode, parts)))
            (what, *rest) = parts
            if tag == "mine":
                return self._remotes.setdefault(what, Remote(self, int(what)))
            if tag == "yours":
                return self._objects[what]
            if tag == "type":
                return _VALUE_TYPES[what]
            return self.imported(tag, what, *rest)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise Garbled from error

    def imported(self, tag: str, module: str, name: str = "") -> Any:
        """Return a module, or a function or class of one, that the test has passed."""
        found = importlib.import_module(module)
        return getattr(found, name) if tag == "global" else found

    def target(self, encoded: Any) -> Any:
        """Return the function that the other process wants to call."""
        return self.decode(encoded)


class TestPeer(Peer):
    """Hold the end of the test's process, which gives away functions only."""

    __test__ = False  # no test class of pytest

    def encode_other(self, value: Any) -> str:
        """Return the JSON text of a reference to a function or class.

        Raises:
            TypeError: If it is something else.
        """
        module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
        if type(module) is str and name and getattr(sys.modules.get(module), name, None) is value:
            return f'["global",{quote(module)},{quote(name)}]'
        if not callable(value):
            raise TypeError(f"a solution cannot be passed a {type(value).__name__} of its test")
        return f'["mine",{self._number(value)}]'

    def imported(self, tag: str, module: str, name: str = "") -> Any:
        """Return a module of the standard library, that the solution has imported."""
        if tag != "module" or not _is_standard(module):
            raise ValueError(module)
        return importlib.import_module(module)

    def target(self, encoded: Any) -> Any:
        """Return one of the test's functions that the solution has been given."""
        if type(encoded) is not list or encoded[:1] != ["yours"]:
            raise TypeError("only a function of the test can be called")
        return self.decode(encoded)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _tagged(tag: str, parts: Iterable[str]) -> str:
    return f"[{','.join([quote(tag), *parts])}]"


def text_of(error: BaseException) -> str:
    """Return an error's text; its own methods may fail, too."""
    try:
        return str(error)[:MAX_ERROR_LENGTH]
    except BaseException:
        return ""


def _error(names: Any, text: Any) -> BaseException:
    """Return an error with the name and text of another process's, of the nearest built-in type."""
    if not (type(text) is str and type(names) is list and all(type(name) is str for name in names)):
        raise Garbled
    known = (getattr(builtins, name, None) for name in names)
    base = next(
        (kind for kind in known if isinstance(kind, type) and issubclass(kind, BaseException)),
        Exception,
    )
    try:
        kind: Any = type(names[0], (base,), {"__str__": lambda _: text})
        error: BaseException = kind.__new__(kind)
        error.args = (text,)
    except (ValueError, TypeError, LookupError) as fault:
        raise Garbled from fault
    return error
