import time
from textwrap import indent

import pytest

from sft_lab.evaluation.benchmarks.code_answers import solution

PROMPT = 'import math\n\n\ndef half(x):\n    """Halve x."""\n'
BODY = "    return x / 2\n"
WHOLE = "def half(x):\n    return x / 2\n"
FENCED = f"```python\n{WHOLE}```"


def halves(completion: str, x: float = 3) -> object:
    """Run the program of a completion, without its tests."""
    namespace: dict[str, object] = {}
    exec(solution(PROMPT, "half", completion), namespace)
    return namespace["half"](x)  # type: ignore[operator]


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        "\n" + BODY,
        f"{BODY}\n\ndef other():\n    retur",  # cut off in the next function
        f"{BODY}\nprint(undefined)\n",
        f"{BODY}\nThis halves x.\n",
        f"{BODY}\n# It does.\n",
        "    return helper(x)\n\n\ndef helper(x):\n    return x / 2\n\n\nprint(undefined)\n",
        "    return x / K\n\n\nK = 2\nif K:\n    half(undefined)\n",
        '    """Half.\n\n    ```\n    half(2)\n    ```\n    """\n' + BODY,
        '    """Half.\n\n    ```python\n    half(2)\n    ```\n    """\n' + BODY,
        "    return x / 2\n\0",
        "    return x / 2\n\0\0garbage\n",
        "    return x / 2\0",
        "    return x / 2\n\0\n\0",
        f"{BODY}```\n",  # closes what the prompt had opened
        f"{BODY}```\n\nThis halves x.\n",
        f"{BODY}\ndef half(x):\n    return 0\n",  # rambling on
        '    """\nAt the margin\n"""\n' + BODY,
        "    # half\n# of it\n" + BODY,
        "    return sum([\n x / 2,\n])\n",
        "    return helper(x)\n\n\ndef helper(x):\n    return x / 2\n",
        "    return x / TWO\n\n\nTWO = int('2')\ny = half(undefined)\n",
    ],
)
def test_a_continuation_ends_at_the_next_statement_at_the_margin(completion: str) -> None:
    assert halves(completion) == 1.5


@pytest.mark.parametrize(
    "completion",
    [
        WHOLE,
        f"Here you are:\n\n{WHOLE}",
        f"{WHOLE}\nThis halves x (it's simple).\n",
        f"Sure! Let's see.\n\nfrom math import floor\n\n{WHOLE}\nDone: half(2) is 1.",
        f"{WHOLE}\nfor x in range(2)\n",
        "def half(x):\n    return math.fabs(x) / 2\n",  # by the prompt's import
        f"class Unused:\n    pass\n\n\n{WHOLE}",
        f"{WHOLE}```\n",
        f"python\n{WHOLE}```\n",
        f"{WHOLE}```\nThis halves x.\n",
        f"from __future__ import annotations\n\n\n{WHOLE}",
        "half = lambda x: x / 2\n",
        'def half(x):\n    """Half.\n\n    ```\n    half(2)\n    ```\n    """\n' + BODY,
        'def half(x):\n    """Half.\n\n    ```python\n    half(2)\n    ```\n    """\n' + BODY,
        f"{WHOLE}\0",
        f"{WHOLE}\0\0garbage",
        f"So:\n\n{WHOLE}\0",
    ],
)
def test_prose_around_a_restated_function_is_removed(completion: str) -> None:
    assert halves(completion) == 1.5


@pytest.mark.parametrize(
    "completion",
    [
        f"```python\n{WHOLE}```",
        f"```\n{WHOLE}```\nThis halves x.",
        f"Halving:\n\n```py\n{WHOLE}\n```\n\nUse it:\n\n```python\nhalf(undefined)\n```",
        f"~~~python\n{WHOLE}~~~",
        f"```python\n{WHOLE}",  # cut off after the code
        f"1. So:\n   ```python\n{WHOLE}   ```",
        f"```bash\npip install numpy\n```\n```python\n{WHOLE}```",
        "```python\nTWO = 2\n```\nThen\n```python\ndef half(x):\n    return x / TWO\n```",
        f"```python\n{BODY}```",  # the body alone
        f"Halving:\n\n```python\n{WHOLE}```\n".replace("\n", "\r\n"),
        f"Here is the code: ```python\n{WHOLE}```\nThis halves x.",
        "1. Do it:\n   ```python\n   def half(x):\n       return x / 2\n   ```\n",
        f"```python\nassert half(2) == 1\n```\n```python\n{WHOLE}```",
        f"```bash\nmake\n```\n```python\n{WHOLE}```",
        f'```json\n{{"a": true}}\n```\n```python\n{WHOLE}```',
        f"```\nd = a - b\n```\n```python\n{WHOLE}```",
        f"```python\n{PROMPT}```\nbecomes\n```python\n{WHOLE}```",  # the prompt, echoed
        *(
            f"```py\ndef half(x):\n    'Halve.'\n    raise {stub}\n```\nthen\n```py\n{WHOLE}```"
            for stub in ("NotImplementedError", "NotImplementedError('later')")
        ),
        "```py\nS = 'a\u2028b\x0c'\nTWO = 2\n```\n```py\ndef half(x):\n    return x / TWO\n```",
        "```py\nTWO = int('2')\n```\n```py\ndef half(x):\n    return x / TWO\n```",
        "```py\nTABLE = dict(two=2)\nTWO: int = TABLE['two']\n```\n"
        "```py\ndef half(x):\n    return x / TWO\n```",
        f"```py\n{WHOLE}```\nUse it:\n```py\nx = int(input())\ny = half(x)\nhalf = y\n```",
        f"```py\n{WHOLE}```\nFaster:\n```py\nhalf = lambda x: undefined\n```",
        "```py\ndef half(x):\n  return div(x)\n```\n```py\ndef div(x):\n  return x / 2\n```",
        "```python\nimport operator\n```\n```python\nhalf = lambda x: operator.truediv(x, 2)\n```",
        f"```python\nfrom __future__ import annotations\n\n{WHOLE}```",
        '```python\ndef half(x):\n    """\n    ```\n    half(2)\n    ```\n    """\n' + f"{BODY}```",
        f"````md\n```\n````\n~~~py\n{WHOLE}~~~",
        f"```python\n{WHOLE}```\nor\n```python\ndef half(x):\n    return 0\n```",
        f"1. Do it:\n\n{indent(FENCED, '    ')}",  # any indentation of a list's items
        f"1. So:\n   - do it:\n\n{indent(FENCED, '      ')}\nDone.\n",
        f"1. Do it:\n\n{indent(FENCED, chr(9))}",
        f"1. Do it:\n\n{indent(FENCED.removesuffix('```'), '    ')}",  # cut off
        f"1. Do it:\n\n    ```python\n{WHOLE}    ```\n",  # only the fence is indented
        "- Do it:\n\n" + indent(f"~~~\n{WHOLE}~~~", "    "),
        f"1. Do it:\n\n    ```python\n{indent(BODY, '    ')}    ```\n",  # the body alone
        "```bash\nmake\n```\n1. Do it:\n\n" + indent(FENCED, "    "),
        "```python\nhalf(undefined)\n```\nby\n\n1. this:\n\n" + indent(FENCED, "    "),
        f"{FENCED}\0",
        "1. a\n\n    ```py\n    def half(x):\n        y = x\n\n        return y / 2\n    ```\n",
        f"1. a\n\n{indent(FENCED, '    ')}\n2. b\n\n    ```py\n    half(",
        '```python\ndef half(x):\n    """\n\t```\n\thalf(2)\n\t```\n    """\n' + f"{BODY}```",
    ],
)
def test_fenced_code_is_taken(completion: str) -> None:
    assert halves(completion) == 1.5


@pytest.mark.parametrize(
    "completion",
    [
        "return x / 2",  # without its indentation
        "```python\nreturn x / 2\n```",
        "    return (x / 2",
        "  return x / 2\n    pass",
        "def half(x)\n    return x / 2\n",
        "```python\ndef half(x):\n  return x / 2\n   x\n```",
        "I would return x / 2.",
        "\0",
        "(" * 100_000,
    ],
)
def test_nothing_is_repaired(completion: str) -> None:
    with pytest.raises((SyntaxError, ValueError, MemoryError, RecursionError)):
        halves(completion)


@pytest.mark.parametrize("completion", ["", "\n", "    pass\n", "    ...\n\nreturn x / 2"])
def test_an_empty_body_gives_nothing(completion: str) -> None:
    assert halves(completion) is None


def test_a_long_answer_is_parsed_quickly() -> None:
    prose = "".join(f"Line {n} isn't code.\n" for n in range(2000))
    assert halves(f"{prose}{WHOLE}{prose}") == 1.5


def test_without_a_prompt_an_answer_stays_as_it_is() -> None:
    assert solution("", "f", "  x = 1") == "  x = 1"
    assert solution("", "f", "f = lambda: 1") == "f = lambda: 1"


@pytest.mark.parametrize(
    "answer",
    [
        "def half(:\n" + "import x y\n" * 20_000,
        "    x = (\n" + "Some prose here\n" * 20_000,
        "if you see this line\n" * 20_000 + WHOLE,
        "1. if you see\n    ```python\n" * 5_000,
        "1. if you see\n    ```python\n    ```\n" * 5_000,
        "~" * 100_000 + "`",  # 25 s, where it grew with the cube of 4,000
        "```" + " " * 50_000 + "x" * 50_000 + "`",
        " " * 100_000 + "~~~`",
        "x:```py" + " " * 100_000 + "y",
        "```py\n~~~" + "~" * 100_000 + " " * 50_000 + "y",
        "~~~\n" * 25_000,
        "async\n" * 15_000 + WHOLE,
        "half " * 20_000 + "\n" * 50_000,
        "\n" * 100_000 + "x",
        "@a\n" * 30_000 + WHOLE,
        "x = 1\n" * 10_000 + "x y\n" + WHOLE,
        ("x = 1\n" * 20 + "x y\n") * 700 + WHOLE,
    ],
)
def test_a_hostile_answer_is_parsed_in_seconds(answer: str) -> None:
    started = time.process_time()
    solution(PROMPT, "half", answer)
    assert time.process_time() - started < 8  # minutes, where it grew with the square


def test_a_very_long_answer_is_not_searched_for_code() -> None:
    prose = "Line by line.\n" * 20_000
    assert solution(PROMPT, "half", f"{prose}{FENCED}") == f"{PROMPT}{prose}{FENCED}"
