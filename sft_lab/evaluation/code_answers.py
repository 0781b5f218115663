"""From what a model answers to a program: fenced code, restated functions, plain continuations."""

import ast
import re
import warnings
from collections.abc import Iterator

# A fence may be indented, as in a list; that of an answer which was cut off is never closed.
_FENCE = re.compile(
    r"^[ \t]*(?P<mark>```+|~~~+)[^\n`]*\n(?P<code>.*?)(?:^[ \t]*(?P=mark)[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
# Brackets that close there belong to what stands above, and comments are no statements.
_AT_MARGIN = re.compile(r"^[^\s)\]}#]", re.MULTILINE)
_CODE_BEGINS = re.compile(r"(?:from|import|def|class|async|if|try)\b|@|[A-Za-z_]\w*\s*(?::.*)?=")


def solution(prompt: str, entry_point: str, completion: str) -> str:
    """Return the program that a completion makes of a prompt, without its tests.

    * Fenced code: the first block that defines the function, with the blocks before it; where none
      does, the first block as the function's body.
    * A continuation, which begins with an indented line: up to the next statement at the left
      margin. Definitions behind it are kept where they and nothing else follow.
    * The whole function restated: without the prose around it, where it is no Python otherwise.
    * Anything else as it is.

    The prompt stands before it in every case, for its imports and helpers. Nothing is repaired: a
    body without its indentation fails.

    Args:
        prompt: The problem: imports, signature and docstring, or nothing.
        entry_point: The function's name.
        completion: What the model answered.
    """
    if blocks := fenced(completion):
        for index, block in enumerate(blocks):
            if _defines(block, entry_point):
                return "\n".join([prompt, *filter(_parses, blocks[:index]), block])
        return prompt + blocks[0]
    if prompt and re.match(r"\s*^[ \t]", completion, re.MULTILINE):
        return prompt + _continuation(prompt, entry_point, completion)
    if _defines(completion, entry_point):
        return f"{prompt}\n{_without_prose(completion, entry_point)}"
    return prompt + completion


def fenced(completion: str) -> list[str]:
    r"""Return the contents of all fenced blocks.

    >>> fenced("Run this:\n```python\nx = 1\n```\nand see.")
    ['x = 1\n']
    """
    return [match["code"] for match in _FENCE.finditer(completion)]


def _continuation(prompt: str, entry_point: str, completion: str) -> str:
    """Return a completion up to the next statement at the margin.

    A line at the margin inside a string ends nothing, and what stands before it is no program.
    """
    for start in _margin_lines(completion):
        if _parses(prompt + completion[:start]):
            following = _parsed(completion[start:])
            kept = following is not None and all(
                isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
                and getattr(node, "name", "") != entry_point
                for node in following.body
            )
            return completion if kept else completion[:start]
    return completion


def _without_prose(completion: str, entry_point: str) -> str:
    """Return a completion that defines a function, without the prose before and behind the code."""
    if _parses(completion):
        return completion
    for start in _margin_lines(completion):
        if _CODE_BEGINS.match(completion, start):
            code = _longest_program(completion[start:])
            if _defines(code, entry_point):
                return code
    return completion


def _longest_program(text: str) -> str:
    """Return what of a text is Python before the first statement at the margin that is none."""
    while (fault := _fault_line(text)) is not None:
        lines = text.splitlines(keepends=True)
        until = len("".join(lines[: fault - 1])) + 1  # into the line that is at fault
        text = text[: max((start for start in _margin_lines(text) if start < until), default=0)]
    return text


def _fault_line(text: str) -> int | None:
    """Return the line, from 1 on, of the first error in the syntax of a text; None without one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings with odd backslashes
            ast.parse(text)
    except SyntaxError as fault:
        return fault.lineno or 1
    except (ValueError, RecursionError, MemoryError):  # a null character; too deep
        return 1
    return None


def _parsed(text: str) -> ast.Module | None:
    return None if _fault_line(text) is not None else ast.parse(text)


def _parses(text: str) -> bool:
    return _fault_line(text) is None


def _defines(code: str, name: str) -> bool:
    return bool(re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\b", code, re.MULTILINE))


def _margin_lines(text: str) -> Iterator[int]:
    """Yield where lines begin that have a statement, or prose, at the left margin."""
    return (match.start() for match in _AT_MARGIN.finditer(text))
