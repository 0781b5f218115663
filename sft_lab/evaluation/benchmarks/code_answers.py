"""From what a model answers to a program: fenced code, restated functions, plain continuations."""

import ast
import re
import warnings
from collections.abc import Iterator
from itertools import islice

# An answer that was cut off never closes its fence, and some open it behind a colon.
_OPENING = (
    r"^(?P<indent>%s)(?P<mark>```+|~~~+)[ \t]*(?P<tag>[^\s`]*)[^\n`]*$"
    r"|(?:(?<=[^\s`])|(?<=[^\s`][ \t]))(?P<inline>```)(?P<inline_tag>[Pp]y(?:thon)?3?)[ \t]*$"
)
# Indented by four or more it is code, a docstring's for one, or a fence inside a list.
_FENCE = re.compile(_OPENING % " {0,3}", re.MULTILINE)
_LIST_FENCE = re.compile(_OPENING % r"[ \t]*", re.MULTILINE)
_OPENED = re.compile(r"\A(?:python|py)\n")  # of a fence that the prompt had opened
_PYTHON = re.compile(r"(?:python|py)[\d.]*|", re.IGNORECASE)
# Brackets that close at the margin belong to what stands above, and comments are no statements.
_AT_MARGIN = re.compile(r"^[^\s)\]}#]", re.MULTILINE)
_CODE_BEGINS = re.compile(r"(?:from|import|def|class|async|if|try)\b|@|[A-Za-z_]\w*\s*(?::.*)?=")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
_MAX_TRIES = 200  # parses of one answer: the time would grow with the square of its length

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom


def solution(prompt: str, entry_point: str, completion: str) -> str:
    """Return the program that a completion makes of a prompt, without its tests.

    * Fenced code: the first Python block that defines the function as more than a stub, with what
      other blocks import and define; where none does, the first block as the function's body. A
      block inside a list may be indented with its fence.
    * A continuation, which begins with an indented line: up to the next statement at the left
      margin, with the definitions that follow it at once.
    * The whole function restated: without the prose around it, where it is no Python otherwise.
    * Anything else as it is.

    A fence that only closes ends an answer to a prompt that had opened it. The prompt stands before
    the answer in every case, for its imports and helpers. Nothing is repaired: a body without its
    indentation fails.

    Args:
        prompt: The problem: imports, signature and docstring, or nothing.
        entry_point: The function's name.
        completion: What the model answered.
    """
    completion = completion.replace("\r\n", "\n")
    completion = completion.rstrip("\0") or completion  # some models pad what they say
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


def _fenced(prompt: str, entry_point: str, codes: list[str]) -> str:
    chosen = next(
        (code for code in codes if _defines(code, entry_point) and not _is_stub(code, entry_point)),
        None,
    )
    if chosen is None:
        return prompt + codes[0]
    place = codes.index(chosen)
    before = [_definitions(code, entry_point) for code in codes[:place]]
    behind = [_definitions(code, entry_point) for code in codes[place + 1 :]]
    return _joined(prompt, "\n".join([*before, chosen, *behind]))


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
    """Return what stands between the fences that may hold Python, without their indentation."""
    found = []
    place = 0
    while (start := fence.search(completion, place)) is not None:
        mark = start["mark"] or start["inline"]
        indent = start["indent"] or ""
        # A fence closes in its list or nearer the margin; a docstring's stands farther in.
        inside = indent if len(indent.expandtabs()) > 3 else ""
        closing = re.compile(
            rf"^(?:{inside})? {{0,3}}{mark[0]}{{{len(mark)},}}[ \t]*$", re.MULTILINE
        )
        end = closing.search(completion, start.end())
        code = completion[start.end() + 1 : end.start() if end else len(completion)]
        if _PYTHON.fullmatch(start["tag"] or start["inline_tag"] or ""):
            found.append(_dedented(code, len(indent)))
        place = end.end() if end else len(completion)
    return found


def _dedented(code: str, width: int) -> str:
    """Take up to so much white space off every line; less, where the first line has less."""
    first = next((line for line in code.splitlines() if line.strip()), "")
    width = min(width, len(first) - len(first.lstrip()))
    return re.sub(rf"^[ \t]{{1,{width}}}", "", code, flags=re.MULTILINE) if width else code


def _is_continuation(prompt: str, completion: str) -> bool:
    return bool(prompt and re.match(r"\s*^[ \t]", completion, re.MULTILINE))


def _continuation(prompt: str, entry_point: str, completion: str) -> str:
    """Return a completion up to the next statement at the margin that is no definition.

    A line at the margin inside a string ends nothing, and what stands before it is no program.
    """
    for start in islice(_margin_lines(completion), _MAX_TRIES):
        if _parses(prompt + completion[:start]):
            return completion[:start] + _leading_definitions(completion[start:], entry_point)
    return completion


def _leading_definitions(text: str, entry_point: str) -> str:
    """Return the definitions with which a text begins, as far as it is Python."""
    text = _longest_program(text)
    for node in _statements(text):
        if not _is_definition(node) or getattr(node, "name", "") == entry_point:
            return "".join(text.splitlines(keepends=True)[: _first_line(node) - 1])
    return text


def _definitions(code: str, entry_point: str) -> str:
    """Return what a block imports and defines besides the function; nothing if it is no Python."""
    lines = code.splitlines()
    kept = [
        "\n".join(lines[_first_line(node) - 1 : node.end_lineno])
        for node in _statements(code)
        if _is_definition(node) and getattr(node, "name", "") != entry_point
    ]
    return "\n".join(kept)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _is_definition(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        try:
            ast.literal_eval(node.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return False
        return True
    return isinstance(node, _Definition)


def _is_stub(code: str, name: str) -> bool:
    """Whether a block's function is a docstring, ``pass`` or ``...`` alone: the prompt, echoed."""
    functions = [
        node
        for node in _statements(code)
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return bool(functions) and all(
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in functions[-1].body
    )


def _without_prose(completion: str, entry_point: str) -> str:
    """Return a completion that defines a function, without the prose before and behind the code."""
    if _parses(completion):
        return completion
    starts = (at for at in _margin_lines(completion) if _CODE_BEGINS.match(completion, at))
    for start in islice(starts, _MAX_TRIES):
        code = _longest_program(completion[start:])
        if _defines(code, entry_point):
            return code
    return completion


def _longest_program(text: str) -> str:
    """Return what of a text is Python before the first statement at the margin that is none."""
    for _ in range(_MAX_TRIES):
        fault = _parsed(text)
        if isinstance(fault, ast.Module):
            return text
        lines = text.splitlines(keepends=True)
        until = len("".join(lines[: fault - 1])) + 1  # into the line that is at fault
        text = text[: max((start for start in _margin_lines(text) if start < until), default=0)]
    return ""


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
    """Return the statements of a text at the margin, none if it is no Python."""
    tree = _parsed(text)
    return tree.body if isinstance(tree, ast.Module) else []


def _defines(code: str, name: str) -> bool:
    named = re.escape(name)
    defined = rf"^(?:(?:async\s+)?def\s+{named}\b|{named}\s*(?::[^=\n]*)?=[^=])"
    return bool(re.search(defined, code, re.MULTILINE))


def _margin_lines(text: str) -> Iterator[int]:
    """Yield where lines begin that have a statement, or prose, at the left margin."""
    return (match.start() for match in _AT_MARGIN.finditer(text))
