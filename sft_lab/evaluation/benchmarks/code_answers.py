"""Turn a model's answer into a program: fenced code, restated functions, plain continuations."""

import ast
import re
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence

# An answer that was cut off never closes its fence, and some open it right after a colon.
_OPENING = (
    r"^(?P<indent>%s)(?P<mark>```++|~~~++)[ \t]*+(?P<tag>[^\s`]*+)[^\n`]*+$"
    r"|(?:(?<=[^\s`])|(?<=[^\s`][ \t]))(?P<inline>```)(?P<inline_tag>[Pp]y(?:thon)?3?)[ \t]*+$"
)
# Indented by four or more it is code (of a docstring, say) or a fence inside a list.
_FENCE = re.compile(_OPENING % " {0,3}", re.MULTILINE)
_LIST_FENCE = re.compile(_OPENING % r"[ \t]*+", re.MULTILINE)
_OPENED = re.compile(r"\A(?:python|py)\n")  # the rest of a fence that the prompt had opened
_PYTHON = re.compile(r"(?:python|py)[\d.]*|", re.IGNORECASE)
# Closing brackets at the margin belong to the lines above, and comments are not statements.
_AT_MARGIN = re.compile(r"^[^\s)\]}#]", re.MULTILINE)
_CODE_BEGINS = re.compile(r"(?:from|import|def|class|async|if|try)\b|@|[A-Za-z_]\w*\s*(?::.*)?=")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)

MAX_LENGTH = 200_000  # characters of an answer; a longer one is not searched for code
_PARSE_BUDGET = 500_000  # characters parsed in one search for code: about a second

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom


def solution(prompt: str, entry_point: str, completion: str) -> str:
    """Return the program that a completion makes of a prompt, without its tests.

    * Fenced code: the first Python block that defines the function as more than a stub, with the
      imports, definitions and constants of the other blocks; if none does, the first block as the
      function's body. A block inside a list may be indented with its fence.
    * A continuation, which begins with an indented line: up to the next statement at the left
      margin, with the definitions that follow it directly.
    * The whole function restated: without the prose around it, if that is not Python.
    * Anything else unchanged, and so is an answer of more than ``MAX_LENGTH`` characters.

    A fence that only closes ends an answer to a prompt that had opened it. The prompt always comes
    before the answer, for its imports and helpers. Nothing is repaired: a body without its
    indentation fails.

    Args:
        prompt: The problem: imports, signature and docstring, or nothing.
        entry_point: The function's name.
        completion: The model's answer.
    """
    if len(completion) > MAX_LENGTH:
        return prompt + completion
    completion = completion.replace("\r\n", "\n")
    completion = completion.rstrip("\0") or completion  # some models pad their answers
    first = _FENCE.search(completion)
    if first is not None and not (first["tag"] or first["inline_tag"]):
        before = _OPENED.sub("", completion[: first.start()])
        if _is_continuation(prompt, before) or (_defines(before, entry_point) and _parses(before)):
            return _unfenced(prompt, entry_point, before)
    codes = _python_blocks(completion, _FENCE)
    listed = _python_blocks(completion, _LIST_FENCE)
    if len(listed) > len(codes) and not (
        any(_defines(code, entry_point) for code in codes)
        or _is_continuation(prompt, completion)
        or _parses(_without_prose(completion, entry_point))
    ):
        codes = listed
    if codes:
        return _fenced(prompt, entry_point, codes)
    return _unfenced(prompt, entry_point, completion)


def definitions(code: str, entry_point: str, needed: Iterable[str] = ()) -> str:
    """Return the imports, functions, classes and constants of a block; nothing if not Python.

    Args:
        code: The block.
        entry_point: The function that is left out.
        needed: Names whose computed values are kept; constants with literal values always are.
    """
    lines = code.splitlines()
    names = set(needed)
    kept = [
        "\n".join(lines[_first_line(node) - 1 : node.end_lineno])
        for node in _statements(code)
        if _is_definition(node, entry_point, names)
    ]
    return "\n".join(kept)


def _fenced(prompt: str, entry_point: str, codes: list[str]) -> str:
    chosen = next(
        (code for code in codes if _defines(code, entry_point) and not _is_stub(code, entry_point)),
        None,
    )
    if chosen is None:
        return prompt + codes[0]
    place = codes.index(chosen)
    needed = _names_used(codes, entry_point)
    parts = [definitions(code, entry_point, needed) for code in codes]
    return _joined(prompt, "\n".join([*parts[:place], chosen, *parts[place + 1 :]]))


def _unfenced(prompt: str, entry_point: str, completion: str) -> str:
    if _is_continuation(prompt, completion):
        return prompt + _continuation(prompt, entry_point, completion)
    if _defines(completion, entry_point):
        return _joined(prompt, _without_prose(completion, entry_point))
    return prompt + completion


def _joined(prompt: str, code: str) -> str:
    """Put a prompt before a whole program, whose ``__future__`` imports must come first."""
    before = f"{prompt}\n" if prompt else ""
    return "".join(_FUTURE.findall(code)) + before + _FUTURE.sub("", code)


def _python_blocks(completion: str, fence: re.Pattern[str]) -> list[str]:
    """Return the blocks that may be Python, without their fences and the fences' indentation."""
    found = []
    place = 0
    while (start := fence.search(completion, place)) is not None:
        mark = start["mark"] or start["inline"]
        indent = start["indent"] or ""
        # A fence closes in its list or nearer the margin; one in a docstring is farther in.
        inside = indent if len(indent.expandtabs()) > 3 else ""
        closing = re.compile(
            rf"^(?:{inside})? {{0,3}}{mark[0]}{{{len(mark)},}}+[ \t]*+$", re.MULTILINE
        )
        end = closing.search(completion, start.end())
        code = completion[start.end() + 1 : end.start() if end else len(completion)]
        if _PYTHON.fullmatch(start["tag"] or start["inline_tag"] or ""):
            found.append(_dedented(code, len(indent)))
        place = end.end() if end else len(completion)
    return found


def _dedented(code: str, width: int) -> str:
    """Remove up to ``width`` characters of indentation; less if the first line has less."""
    first = next((line for line in code.splitlines() if line.strip()), "")
    width = min(width, len(first) - len(first.lstrip()))
    return re.sub(rf"^[ \t]{{1,{width}}}", "", code, flags=re.MULTILINE) if width else code


def _is_continuation(prompt: str, completion: str) -> bool:
    return bool(prompt and re.match(r"\s*^[ \t]", completion, re.MULTILINE))


def _continuation(prompt: str, entry_point: str, completion: str) -> str:
    """Return a completion up to the next statement at the margin that is not a definition.

    A line at the margin inside a string ends nothing: the text before it is not a program.
    """
    budget = _PARSE_BUDGET
    for start in _margin_lines(completion):
        budget -= len(prompt) + start
        if budget < 0:
            break
        if _parses(prompt + completion[:start]):
            body, rest = completion[:start], _longest_program(completion[start:])
            needed = _names_used([prompt + body, rest], entry_point)
            return body + _leading_definitions(rest, entry_point, needed)
    return completion


def _leading_definitions(program: str, entry_point: str, needed: set[str]) -> str:
    """Return the definitions with which a program begins."""
    for node in _statements(program):
        if not _is_definition(node, entry_point, needed):
            return "".join(program.splitlines(keepends=True)[: _first_line(node) - 1])
    return program


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


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


def _names_used(codes: Sequence[str], entry_point: str) -> set[str]:
    """Return the global names that the functions of some code need, directly or by a constant."""
    statements = [node for code in codes for node in _statements(code)]
    used = set().union(*(_globals_of(node) for node in statements if isinstance(node, _Definition)))
    constants = [node for node in statements if isinstance(node, ast.Assign | ast.AnnAssign)]
    for node in reversed(constants):  # a constant can need those above it
        if _is_definition(node, entry_point, used):
            used |= _names(node, ast.Load)
    return used


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


def _is_stub(code: str, name: str) -> bool:
    """Return whether a block's function only repeats the prompt, without a body."""
    functions = [
        node
        for node in _statements(code)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    return bool(functions) and all(map(_does_nothing, functions[-1].body))


def _does_nothing(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, ``pass``, ``...`` or NotImplementedError."""
    if isinstance(node, ast.Raise):
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _without_prose(completion: str, entry_point: str) -> str:
    """Return a completion that defines a function, without the prose before and after the code."""
    if _parses(completion):
        return completion
    budget = _PARSE_BUDGET
    searched = 0
    for start in _margin_lines(completion):
        if start < searched or not _CODE_BEGINS.match(completion, start):
            continue
        code, parsed = _search_program(completion[start:], budget)
        budget -= parsed
        if _defines(code, entry_point):
            return code
        if budget < 0:
            break
        searched = start + len(code)  # code that begins inside this program ends where it does
    return completion


def _longest_program(text: str) -> str:
    """Return the longest beginning of a text that is Python and ends at the margin."""
    return _search_program(text, _PARSE_BUDGET)[0]


def _search_program(text: str, budget: int) -> tuple[str, int]:
    """Return the longest program with which a text begins, and how many characters were parsed.

    Nothing is found if more than ``budget`` characters had to be parsed.
    """
    parsed = 0
    while text:
        fault = _parsed(text)
        if isinstance(fault, ast.Module):
            return text, parsed + len(text)
        before = len("".join(text.splitlines(keepends=True)[: fault - 1]))
        parsed += before + len(text) // 50  # the rest is only split into tokens
        if parsed > budget:
            return "", parsed
        until = before + 1  # into the line that is at fault
        text = text[: max((start for start in _margin_lines(text) if start < until), default=0)]
    return "", parsed


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


def _parses(text: str) -> bool:
    return isinstance(_parsed(text), ast.Module)


def _statements(text: str) -> list[ast.stmt]:
    """Return the top-level statements of a text, none if it is not Python."""
    tree = _parsed(text)
    return tree.body if isinstance(tree, ast.Module) else []


def _defines(code: str, name: str) -> bool:
    named = re.escape(name)
    defined = rf"^(?:(?:async\s+)?def\s+{named}\b|{named}\s*(?::[^=\n]*)?=[^=])"
    return bool(re.search(defined, code, re.MULTILINE))


def _margin_lines(text: str) -> Iterator[int]:
    """Yield the offset of each line that begins with a statement, or prose, at the left margin."""
    return (match.start() for match in _AT_MARGIN.finditer(text))
