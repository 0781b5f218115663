"""The arguments of classes, read by importing them or, in a fraction of the time, from source."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_LIGHT = (
    "typing_extensions",
    "annotated_types",
    "sft_lab.config.ranges",
    "sft_lab.training.shares",
)
"""Modules beside the standard library that are imported to read a type: none takes long."""
_OWN = "sft_lab."


@dataclass(frozen=True)
class Arguments:
    """The arguments of a class.

    Attributes:
        hints: The type of each argument, in order; None where it has none, or an unknown one.
        required: Names of those without a default.
        takes_any: Whether it takes others by ``**kwargs``.
    """

    hints: Mapping[str, Any]
    required: tuple[str, ...]
    takes_any: bool


class Unimported:
    """Base of the types that stand in for classes of modules that are not imported."""

    path: str


@dataclass(frozen=True)
class Unimportable:
    """The type of a class path that leads nowhere, for a ``reason``."""

    reason: str


def imported(path: str) -> Any:
    """Return the class of a path, an ``Unimportable``, or None for a name without a module."""
    module, _, name = path.rpartition(".")
    if not module:
        return None  # the parser knows some classes by their names alone
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as fault:
        return Unimportable(str(fault).rstrip("."))


def unimported(path: str) -> Any:
    """Return what stands in for a class of this package or of PEFT, by its source, or None.

    Another's class may be made or decorated in a way that its source alone does not show.
    """
    if not path.startswith((_OWN, "peft.")):
        return None
    module, _, name = path.rpartition(".")
    try:
        found = _resolve(module, name)
    except LookupError:
        return None
    return found if isinstance(found, type) and issubclass(found, Unimported) else None


def arguments_of(owner: Any) -> Arguments | None:
    """Return the arguments of a class or of what stands in for one; None if they are unknown."""
    if isinstance(owner, type) and issubclass(owner, Unimported):
        return _from_source(owner.path)
    parameters = inspect.signature(owner).parameters
    hints = argument_types(owner)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = {n: hints.get(n) for n, p in parameters.items() if p.kind in kinds}
    bases = owner.__mro__[1:] if isinstance(owner, type) and takes_any else ()
    base = next((b for b in bases if b.__module__.startswith(_OWN) and "__init__" in vars(b)), None)
    return Arguments(
        hints=own if base is None else _with_inherited(own, arguments_of(base)),
        required=tuple(
            n for n, p in parameters.items() if p.kind in kinds and p.default is p.empty
        ),
        takes_any=takes_any,
    )


def _with_inherited(own: Mapping[str, Any], base: Arguments | None) -> dict[str, Any]:
    """Return a class's own arguments and those of its base, which ``**kwargs`` go to."""
    inherited = base.hints if base is not None else {}
    return {**own, **{name: hint for name, hint in inherited.items() if name not in own}}


def argument_types(owner: Any) -> dict[str, Any]:
    """Return the types of a class's arguments, and of its bases', which ``**kwargs`` go to."""
    if dataclasses.is_dataclass(owner) or not isinstance(owner, type):
        return _hints(owner)
    found: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        if "__init__" in vars(base):
            found |= _hints(vars(base)["__init__"])
    return found


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except NameError:  # of a type that its module imports for type checkers alone
        return {name: Any for name in inspect.signature(owner).parameters if name != "self"}


def is_dataclass(hint: Any) -> bool:
    """Return whether a type, or what stands in for it, is a dataclass."""
    if isinstance(hint, type) and issubclass(hint, Unimported):
        module, _, name = hint.path.rpartition(".")
        return _is_dataclass(_module(module).classes[name])
    return dataclasses.is_dataclass(hint)


@dataclass
class _Module:
    name: str
    package: str
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    aliases: dict[str, ast.expr] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def read(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.aliases[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom):
                parents = self.package.split(".")[: -node.level + 1 or None] if node.level else []
                origin = ".".join([*parents, *([node.module] if node.module else [])])
                for name in node.names:
                    self.imports[name.asname or name.name] = (origin, name.name)
            elif isinstance(node, ast.Import):
                for name in node.names:
                    whole = name.name if name.asname else name.name.partition(".")[0]
                    self.imports[name.asname or whole] = (whole, None)
            elif isinstance(node, ast.If | ast.Try):
                self.read(node.body)


@functools.cache
def _module(name: str) -> _Module:
    """Return a module's names, by its source.

    Raises:
        LookupError: If there is none.
    """
    top, *below = name.split(".")
    spec = importlib.util.find_spec(top)  # of a package, this imports nothing
    if spec is None or spec.origin is None:
        raise LookupError(name)
    file = Path(spec.origin)
    if below:
        place = file.parent.joinpath(*below)
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if file.suffix != ".py" or not file.is_file():
        raise LookupError(name)
    is_package = file.name == "__init__.py"
    found = _Module(name, name if is_package else name.rpartition(".")[0])
    found.read(ast.parse(file.read_text(encoding="utf-8")).body)
    return found


@functools.cache
def _resolve(module_name: str, name: str) -> Any:
    """Return what a name means in a module: a type, or what stands in for it.

    Raises:
        LookupError: If the source does not say.
    """
    if module_name in _LIGHT or module_name.partition(".")[0] in sys.stdlib_module_names:
        return getattr(importlib.import_module(module_name), name)
    module = _module(module_name)
    if name in module.classes:
        return type(name, (Unimported,), {"path": f"{module_name}.{name}"})
    if name in module.aliases:
        return _evaluated(module.aliases[name], module)
    origin, attribute = module.imports[name]
    return importlib.import_module(origin) if attribute is None else _resolve(origin, attribute)


class _Names(dict[str, Any]):
    """The names of a module, each resolved when an annotation uses it."""

    def __init__(self, module: _Module) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        known = self.module
        if name in known.classes or name in known.aliases or name in known.imports:
            return _resolve(known.name, name)
        return vars(__import__("builtins"))[name]


def _evaluated(annotation: ast.expr, module: _Module) -> Any:
    """Return the type that an annotation means.

    Raises:
        LookupError: If a name in it means nothing known.
    """
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    code = compile(ast.Expression(annotation), module.name, "eval")
    found = eval(code, {"__builtins__": {}}, _Names(module))
    return type(None) if found is None else found


def _hint(annotation: ast.expr | None, module: _Module) -> Any:
    """Return the type of an annotation; None where it cannot be known without an import."""
    if annotation is None:
        return None
    try:
        return _evaluated(annotation, module)
    except (LookupError, TypeError, AttributeError, ImportError):
        return None


@functools.cache
def _from_source(path: str) -> Arguments | None:
    """Return the arguments of a class, by its own or the nearest base's ``__init__``."""
    module_name, _, name = path.rpartition(".")
    try:
        module = _module(module_name)
        node = module.classes[name]
        bases = [_evaluated(base, module) for base in node.bases]
    except (LookupError, TypeError, AttributeError, ImportError):
        return None
    ours = [base for base in bases if isinstance(base, type) and issubclass(base, Unimported)]
    if _is_dataclass(node):
        inherited = [_from_source(base.path) for base in ours]
        return None if None in inherited else _fields(node, module, inherited)
    init = next((n for n in node.body if getattr(n, "name", None) == "__init__"), None)
    if isinstance(init, ast.FunctionDef):
        own = _parameters(init.args, module)
        if own.takes_any and ours and ours[0].path.startswith(_OWN):
            return replace(own, hints=_with_inherited(own.hints, _from_source(ours[0].path)))
        return own
    for base in ours:
        found = _from_source(base.path)
        if found is None or found.hints or found.takes_any:
            return found
    return Arguments({}, (), takes_any=False)


def _is_dataclass(node: ast.ClassDef) -> bool:
    names = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(getattr(n, "id", getattr(n, "attr", None)) == "dataclass" for n in names)


def _fields(node: ast.ClassDef, module: _Module, bases: list[Any]) -> Arguments:
    hints: dict[str, Any] = {}
    required: list[str] = []
    for base in reversed(bases):
        hints |= base.hints
        required += base.required
    for entry in node.body:
        if not isinstance(entry, ast.AnnAssign) or not isinstance(entry.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(entry.annotation) or _is_derived(entry.value):
            continue
        hints[entry.target.id] = _hint(entry.annotation, module)
        if entry.value is None:
            required.append(entry.target.id)
    return Arguments(hints, tuple(required), takes_any=False)


def _is_derived(default: ast.expr | None) -> bool:
    """Return whether a field is no argument: ``field(init=False)``."""
    words = default.keywords if isinstance(default, ast.Call) else []
    return any(word.arg == "init" and ast.unparse(word.value) == "False" for word in words)


def _parameters(args: ast.arguments, module: _Module) -> Arguments:
    by_place = [*args.posonlyargs, *args.args][1:]  # without self
    required = by_place[: len(by_place) - len(args.defaults)]
    required += [a for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d is None]
    return Arguments(
        hints={a.arg: _hint(a.annotation, module) for a in [*by_place, *args.kwonlyargs]},
        required=tuple(a.arg for a in required),
        takes_any=args.kwarg is not None,
    )
