"""Check that no pattern of the code base takes time that grows with the square of a text.

Patterns are found by themselves, in modules and in calls inside functions, so a new one is checked
as soon as it is written. One that is built from a function's arguments needs an example in
``ARGUMENTS``.
"""

import ast
import gc
import importlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import sft_lab
from sft_lab.runs.accidents import _BY_TEXT, _STORE_BY_TEXT

PACKAGE = Path(sft_lab.__file__).parent
CALLS = ("compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn")

# By module, the values of a function's arguments and loops, where a pattern is built from them.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "sft_lab.api": {"names": ["config", "from"]},
    "sft_lab.data.chat_template": {"argument": "enable_thinking"},
    "sft_lab.data.prefix_encoder": {"borders": [re.escape("<|im_end|>"), "<s>"]},
    "sft_lab.data.tokenizer": {"longest_first": ["<|im_end|>", "<s>"]},
    "sft_lab.evaluation.benchmarks.code_answers": {"inside": " " * 4, "mark": "```", "width": 4},
    "sft_lab.evaluation.benchmarks.python_code": {"name": "half"},
    "sft_lab.report.departures": {"ending": "epochs"},
    "sft_lab.runs.accidents": {"pattern": "|".join([*_BY_TEXT, *_STORE_BY_TEXT])},
}
# Patterns that no stranger's text or pattern reaches: filters are the config's, which is code, and
# drawings are matplotlib's, which escapes names.
TRUSTED = {"sft_lab.data.row_filters", "sft_lab.report.drawing"}


class Use(NamedTuple):
    """A pattern with the way it is used."""

    place: str
    pattern: re.Pattern[str]
    method: str


def modules() -> Iterator[tuple[ModuleType, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if "import re\n" in source or "import regex\n" in source:
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            yield importlib.import_module(".".join(parts)), ast.parse(source)


def uses() -> list[Use]:
    found = list(modules())
    methods = _methods(tree for _, tree in found)
    every = []
    for module, tree in found:
        for name, value in vars(module).items():
            for number, pattern in enumerate(_held(value)):
                for method in methods.get(name, {"finditer"}):
                    every.append(Use(f"{module.__name__}.{name}[{number}]", pattern, method))
        every += _inline(module, tree)
    return every


def _methods(trees: Iterator[ast.Module]) -> dict[str, set[str]]:
    """Return the methods that are called on each name."""
    methods: dict[str, set[str]] = {}
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Attribute) and node.attr in CALLS:
            name = node.value
            key = getattr(name, "id", None) or getattr(name, "attr", None)
            if key is not None:
                methods.setdefault(key, set()).add(node.attr)
    return methods


def _held(value: object) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from _held([*value, *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _held(part)


def _inline(module: ModuleType, tree: ast.Module) -> Iterator[Use]:
    """Yield the patterns that functions pass to ``re``."""
    if module.__name__ in TRUSTED:
        return
    names = {**vars(module), **ARGUMENTS.get(module.__name__, {})}
    for function, call in _calls(tree):
        place = f"{module.__name__}:{call.lineno}"
        library, _, method = ast.unparse(call.func).partition(".")
        keywords = {word.arg: word.value for word in call.keywords}
        if library == "regex":
            assert method == "compile" or "timeout" in keywords, f"{place}: no time limit"
            continue
        flags = [*call.args[1:], *(keywords[name] for name in keywords if name == "flags")]
        try:
            pattern = _value(call.args[0], function, names)
            wanted = [
                _value(node, function, names)
                for node in flags
                if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("re.")
            ]
        except NameError as fault:
            pytest.fail(f"{place}: {fault}; give ARGUMENTS an example of it")
        compiled = re.compile(pattern, sum(wanted))
        yield Use(place, compiled, "finditer" if method == "compile" else method)


def _calls(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, ast.Call]]:
    names = {f"{library}.{call}" for library in ("re", "regex") for call in CALLS}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                    yield function, node


def _value(node: ast.expr, function: ast.FunctionDef, names: dict[str, Any]) -> Any:
    """Return what an expression yields, with the function's assignments to the names in it."""
    for name in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - set(names):
        for line in ast.walk(function):
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name:
                names = {**names, name: _value(line.value, function, names)}
    return eval(compile(ast.Expression(node), "pattern", "eval"), names)


def texts(pattern: str, size: int) -> Iterator[str]:
    """Yield texts that are hard for a backtracking engine: repeated pieces of the pattern."""
    plain = re.sub(r"\(\?P?[<=!:]*\w*>?|\[[^\]]*\]|\\[wWsSdDbBAZ]", "|", pattern)
    runs = dict.fromkeys(run.replace("\\", "") for run in re.split(r"[|()?*+{}^$.]", plain))
    literals = [run for run in runs if len(run) > 1][:6]
    marks = set(re.sub(r"\\[a-zA-Z]|[A-Za-z0-9\s]", "", pattern)) - set("^$|?+\\")
    single = [*sorted(marks)[:14], "a", "1", " ", "\n"]
    for before, piece in itertools.product(["", *literals], [*single, *literals]):
        yield before + piece * (size // len(piece)) + "\0"
    for one, other in itertools.permutations(single, 2):
        yield (one + other) * (size // 2) + "\0"
        yield one * (size // 2) + other * (size // 2) + "\0"
        for before in literals[:2]:
            yield before + one + other * size + "\0"


def seconds(use: Callable[[str], Any], text: str, repeats: int = 1) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        use(text)
        times.append(time.process_time() - start)
    return min(times)


def runner(use: Use) -> Callable[[str], Any]:
    call = getattr(use.pattern, use.method)
    if use.method in ("sub", "subn"):
        return lambda text: call("", text)
    if use.method == "finditer":
        return lambda text: sum(1 for _ in call(text))
    return call


SHORT, SCREEN, LONG = 22, 2_000, 8_000
SUSPECT_S = 0.001  # a linear pattern takes 0.1 ms for SCREEN characters, a quadratic one 2 or more


def slow(use: Use) -> str | None:
    """Return a text for which time grows faster than its length, or None."""
    run = runner(use)
    for short, text, long in zip(
        *(texts(use.pattern.pattern, size) for size in (SHORT, SCREEN, LONG)), strict=True
    ):
        if seconds(run, short) > 0.03:
            return repr(short)  # exponential: the next would never end
        if seconds(run, text) > SUSPECT_S and seconds(run, text, 5) > SUSPECT_S:
            half, whole = (seconds(run, part, 2) for part in (long[: LONG // 2] + "\0", long))
            if whole > max(3 * half, 0.005):  # twice is linear, four times quadratic
                return f"{text[:20]!r}..., {whole:.3f} s for {LONG} characters"
    return None


@pytest.mark.slow
def test_time_grows_linearly_for_every_pattern() -> None:
    every = uses()
    gc.disable()  # its time depends on all other objects of the process
    try:
        found = {f"{use.place} {use.method}": slow(use) for use in every}
    finally:
        gc.enable()
    assert len(every) > 80
    assert {place: text for place, text in found.items() if text} == {}


@pytest.mark.parametrize(
    "pattern",
    [
        r"\[\[(\d+\.?\d*)\]\]",  # 12 s for a rating of 16,000 digits
        r"(a+)+b",
        r"<!--.*?-->",
    ],
)
def test_slow_patterns_are_found(pattern: str) -> None:
    assert slow(Use("here", re.compile(pattern, re.DOTALL), "search"))
