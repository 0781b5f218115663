"""Turn a model's answer into a program: fenced code, restated functions, plain continuations."""

import re

from sft_lab.evaluation.benchmarks.python_code import (
    PARSE_BUDGET,
    defines,
    definitions,
    is_stub,
    leading_definitions,
    margin_lines,
    names_used,
    parses,
    search_program,
)

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
_CODE_BEGINS = re.compile(r"(?:from|import|def|class|async|if|try)\b|@|[A-Za-z_]\w*\s*(?::.*)?=")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)

MAX_LENGTH = 200_000  # characters of an answer; a longer one is not searched for code


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
        if _is_continuation(prompt, before) or (defines(before, entry_point) and parses(before)):
            return _unfenced(prompt, entry_point, before)
    codes = _python_blocks(completion, _FENCE)
    listed = _python_blocks(completion, _LIST_FENCE)
    if len(listed) > len(codes) and not (
        any(defines(code, entry_point) for code in codes)
        or _is_continuation(prompt, completion)
        or parses(_without_prose(completion, entry_point))
    ):
        codes = listed
    if codes:
        return _fenced(prompt, entry_point, codes)
    return _unfenced(prompt, entry_point, completion)


def is_one_block(entry_point: str, completion: str) -> bool:
    """Return whether an answer has one block of Python, which defines the function."""
    if len(completion) > MAX_LENGTH:
        return False
    blocks = _python_blocks(completion.replace("\r\n", "\n"), _FENCE)
    return len(blocks) == 1 and defines(blocks[0], entry_point) and parses(blocks[0])


def _fenced(prompt: str, entry_point: str, codes: list[str]) -> str:
    chosen = next(
        (code for code in codes if defines(code, entry_point) and not is_stub(code, entry_point)),
        None,
    )
    if chosen is None:
        return prompt + codes[0]
    place = codes.index(chosen)
    needed = names_used(codes, entry_point)
    parts = [definitions(code, entry_point, needed) for code in codes]
    return _joined(prompt, "\n".join([*parts[:place], chosen, *parts[place + 1 :]]))


def _unfenced(prompt: str, entry_point: str, completion: str) -> str:
    if _is_continuation(prompt, completion):
        return prompt + _continuation(prompt, entry_point, completion)
    if defines(completion, entry_point):
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
    budget = PARSE_BUDGET
    for start in margin_lines(completion):
        budget -= len(prompt) + start
        if budget < 0:
            break
        if parses(prompt + completion[:start]):
            body, rest = completion[:start], search_program(completion[start:])[0]
            needed = names_used([prompt + body, rest], entry_point)
            return body + leading_definitions(rest, entry_point, needed)
    return completion


def _without_prose(completion: str, entry_point: str) -> str:
    """Return a completion that defines a function, without the prose before and after the code."""
    if parses(completion):
        return completion
    budget = PARSE_BUDGET
    searched = 0
    for start in margin_lines(completion):
        if start < searched or not _CODE_BEGINS.match(completion, start):
            continue
        code, parsed = search_program(completion[start:], budget)
        budget -= parsed
        if defines(code, entry_point):
            return code
        if budget < 0:
            break
        searched = start + len(code)  # code that begins inside this program ends where it does
    return completion
