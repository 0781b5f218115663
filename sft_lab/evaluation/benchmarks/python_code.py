"""Find Python in text: the longest program, its definitions, and the names that it needs."""

import ast
import io
import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

PARSE_BUDGET = 500_000  # characters parsed in one search for code: about a second
MAX_COMPARED = 20_000  # characters of a program whose syntax tree is written out

# Closing brackets at the margin belong to the lines above, and comments are not statements.
_AT_MARGIN = re.compile(r"^[^\s)\]}#]", re.MULTILINE)

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom


def definitions(code: str, entry_point: str, needed: Iterable[str] = ()) -> str:
    """Return the imports, functions, classes and constants of a block; nothing if not Python.

    Args:
        code: The block.
        entry_point: The function that is left out.
        needed: Names whose computed values are kept; constants with literal values always are.
    """
    names = set(needed)
    return _kept(code, lambda node: _is_definition(node, entry_point, names))


def imports(code: str) -> str:
    """Return the imports of some code; nothing if it is not Python."""
    return _kept(code, lambda node: isinstance(node, ast.Import | ast.ImportFrom))


def _kept(code: str, is_kept: Callable[[ast.stmt], bool]) -> str:
    lines = _lines(code)
    kept = [
        "".join(lines[_first_line(node) - 1 : node.end_lineno]).rstrip("\n")
        for node in _statements(code)
        if is_kept(node)
    ]
    return "\n".join(kept)


def leading_definitions(program: str, entry_point: str, needed: set[str]) -> str:
    """Return the definitions with which a program begins."""
    for node in _statements(program):
        if not _is_definition(node, entry_point, needed):
            return "".join(_lines(program)[: _first_line(node) - 1])
    return program


def names_used(codes: Sequence[str], entry_point: str) -> set[str]:
    """Return the global names that the functions of some code need, directly or by a constant."""
    statements = [node for code in codes for node in _statements(code)]
    used = set().union(*(_globals_of(node) for node in statements if isinstance(node, _Definition)))
    constants = [node for node in statements if isinstance(node, ast.Assign | ast.AnnAssign)]
    for node in reversed(constants):  # a constant can need those above it
        if _is_definition(node, entry_point, used):
            used |= _names(node, ast.Load)
    return used


def is_stub(code: str, name: str) -> bool:
    """Return whether a block's function only repeats the prompt, without a body."""
    functions = [
        node
        for node in _statements(code)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    return bool(functions) and all(map(_does_nothing, functions[-1].body))


def search_program(text: str, budget: int = PARSE_BUDGET) -> tuple[str, int]:
    """Return the longest program with which a text begins, and how many characters were parsed.

    Nothing is found if more than ``budget`` characters had to be parsed.
    """
    parsed = 0
    while text:
        fault = _parsed(text)
        if isinstance(fault, ast.Module):
            return text, parsed + len(text)
        before = len("".join(_lines(text)[: fault - 1]))
        parsed += before + len(text) // 50  # the rest is only split into tokens
        if parsed > budget:
            return "", parsed
        until = before + 1  # into the line that is at fault
        text = text[: max((start for start in margin_lines(text) if start < until), default=0)]
    return "", parsed


def parses(text: str) -> bool:
    """Return whether a text is Python."""
    return isinstance(_parsed(text), ast.Module)


def canonical(text: str) -> str:
    """Return the syntax tree as text, equal for programs that differ in layout and comments alone.

    It is the text itself if that is not Python, or too long or deep to compare quickly.
    """
    tree = _parsed(text) if len(text) <= MAX_COMPARED else 0
    try:
        return ast.dump(tree) if isinstance(tree, ast.Module) else text
    except RecursionError:
        return text


def defines(code: str, name: str) -> bool:
    """Return whether a line at the margin defines a function or assigns the name."""
    named = re.escape(name)
    defined = rf"^(?:(?:async\s+)?def\s+{named}\b|{named}\s*(?::[^=\n]*)?=[^=])"
    return bool(re.search(defined, code, re.MULTILINE))


def margin_lines(text: str) -> Iterator[int]:
    """Yield the offset of each line that begins with a statement, or prose, at the left margin."""
    return (match.start() for match in _AT_MARGIN.finditer(text))


def _is_definition(node: ast.stmt, entry_point: str, needed: set[str]) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        stored = _names(node, ast.Store)
        if entry_point in stored | _names(node, ast.Load):  # another version, or a use
            return False
        return _is_literal(node.value) or not stored.isdisjoint(needed)
    return isinstance(node, _Definition) and getattr(node, "name", "") != entry_point


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, context)
    }


def _globals_of(node: ast.stmt) -> set[str]:
    """Return the names that a function or class looks up outside itself, and its attributes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(ast.Module([node], []), "", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    codes, names = [code], set[str]()
    for part in codes:
        names |= set(part.co_names)
        codes += [inner for inner in part.co_consts if isinstance(inner, types.CodeType)]
    return names


def _does_nothing(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, ``pass``, ``...`` or NotImplementedError."""
    if isinstance(node, ast.Raise):
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _parsed(text: str) -> ast.Module | int:
    """Return a text's syntax tree, or the line, from 1 on, of its first error."""
    if "\0" in text:
        return text[: text.index("\0")].count("\n") + 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings with odd backslashes
            return ast.parse(text)
    except SyntaxError as fault:
        return fault.lineno or 1
    except (ValueError, RecursionError, MemoryError):  # too deep
        return 1


def _statements(text: str) -> list[ast.stmt]:
    """Return the top-level statements of a text, none if it is not Python."""
    tree = _parsed(text)
    return tree.body if isinstance(tree, ast.Module) else []


def _lines(text: str) -> list[str]:
    """Split lines as Python's parser counts them; ``splitlines`` also splits at U+2028."""
    return io.StringIO(text, newline="").readlines()
