"""Test that wrong solutions cannot pass, and that right ones do."""

import pytest
from sandboxes import LEVELS, run

from sft_lab.evaluation.sandbox.sandbox import Level, Program, ProgramResult, run_programs

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("level", LEVELS)]

# In HumanEval's style; the right answer is n + 1.
CHECK = """
import math
from statistics import mean

def check(candidate):
    assert isinstance(candidate(1), int)
    assert len([candidate(1)]) == 1
    assert abs(candidate(2) - 3) < 1e-6
    assert math.fabs(candidate(2) - 3) < 1e-6
    assert mean([candidate(2), candidate(2)]) == 3
    assert all(candidate(n) == n + 1 for n in range(3))
    assert not any(candidate(n) != n + 1 for n in range(3))
    assert sorted([candidate(4), candidate(3)]) == [4, 5]

check(f)
"""
RIGHT = "def f(n):\n    return n + 1\n"
WRONG = "def f(n):\n    return n + 2\n"


def test_a_right_solution_passes_and_a_wrong_one_fails(level: Level) -> None:
    right, wrong, empty, raising = run(
        level, RIGHT, WRONG, "def f(n):\n    pass", RIGHT + "1 / 0", test=CHECK
    )
    assert right == ProgramResult(True, "passed")
    assert wrong.reason.startswith("AssertionError")
    assert empty.reason.startswith("AssertionError")
    assert raising.reason == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "attack",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "exit()",
        "import atexit, os; atexit.register(os._exit, 0)",
        "def check(candidate): pass",
        "import __main__; __main__.check = lambda candidate: None",
        "print('passed', flush=True)",
        'print(\'{"passed": true, "reason": "passed"}\', flush=True)',
        "import os\nfor fd in range(64):\n  try: os.write(fd, b'+passed')\n  except OSError: 0",
        "import os\nfor fd in range(64):\n  try: os.write(fd, b'')\n  finally: os.close(fd)",
        "import os\nos.closerange(0, 64)",
        "import sys\nsys.modules['__main__'] = sys.modules['solution'] = None",
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["at its top level", "when called"])
def test_ending_early_or_printing_does_not_pass(level: Level, attack: str, inside: bool) -> None:
    if inside:
        body = "".join(f"    {line}\n" for line in attack.splitlines())
        solution = f"def f(n):\n{body}    return n + 2\n"
    else:
        solution = f"{WRONG}\n{attack}\n"
    failed, passed = run(level, solution, RIGHT, test=CHECK)
    assert not failed.passed
    assert passed.passed


BUILTINS = {
    "abs": "lambda x: 0",
    "all": "lambda x: True",
    "any": "lambda x: False",
    "len": "lambda x: 1",
    "isinstance": "lambda x, y: True",
    "sorted": "lambda x: [4, 5]",
    "range": "lambda n: []",
    "print": "None",
    "AssertionError": "type('Calm', (BaseException,), {})",
    "__build_class__": "None",
}


@pytest.mark.parametrize(
    "setting",
    [
        "import builtins\n{indent}builtins.{name} = {value}",
        "__builtins__['{name}'] = {value}",
        "globals()['{name}'] = {value}",
        "import sys\n{indent}sys.modules['builtins'].__dict__['{name}'] = {value}",
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["at its top level", "when called"])
def test_changed_builtins_do_not_reach_the_test(level: Level, setting: str, inside: bool) -> None:
    indent = "    " if inside else ""
    lines = [
        indent + setting.format(name=name, value=value, indent=indent)
        for name, value in BUILTINS.items()
    ]
    attack = "\n".join(lines)
    # Wrong in a way that a changed builtin could hide: n + 1 up to a fraction, and not an int.
    solution = f"def f(n):\n{attack}\n    return 7" if inside else f"{WRONG}{attack}"
    tests = [
        f"assert {line}"
        for line in (
            "abs(f(2) - 3) < 1e-6",
            "all(f(n) == n + 1 for n in (1, 2))",
            "not any(f(n) != n + 1 for n in (1, 2))",
            "len([f(2), f(3)]) == 1",
            "isinstance(f(2), str)",
            "sorted([f(5), f(4)]) == [4, 5]",
        )
    ]
    programs = [Program(solution, test) for test in tests]
    results = run_programs(programs, timeout_s=10, memory_mb=256, workers=1, level=level)
    assert [result.reason.rstrip() for result in results] == ["AssertionError:"] * len(tests)


def test_a_solution_s_own_names_do_not_hide_builtins(level: Level) -> None:
    solution = "def sum(a, b):\n    return a - b\ndef abs(x):\n    return 0"
    programs = [
        Program(solution, "assert abs(sum(5, 3)) == 2", entry_point="sum"),
        Program(solution, "assert sum([5, 3]) == 8"),
    ]
    results = run_programs(programs, timeout_s=10, memory_mb=256, workers=1, level=level)
    assert [result.passed for result in results] == [True, True]


@pytest.mark.parametrize(
    "attack",
    [
        "import math; math.fabs = lambda x: 0",
        "import statistics; statistics.mean = lambda x: 3",
        "import statistics; statistics._sum = lambda x: (int, 6, 2)",
        "import statistics; statistics.len = lambda x: 2; statistics.isinstance = print",
        "import sys\nclass M: fabs = lambda x: 0\nsys.modules['math'] = M",
        "import sys; sys.modules = {}",
        "import sys; del sys.modules['math']; sys.meta_path.clear()",
        "import fractions; fractions.Fraction.__eq__ = lambda *a: True",
        "import math\nmath.__dict__.clear()",
        "import builtins\nbuiltins.__import__ = lambda *_: type('M', (), {'fabs': int})",
        "import statistics\nstatistics.mean.__code__ = (lambda x: 3).__code__",
    ],
)
def test_changed_modules_are_restored(level: Level, attack: str) -> None:
    test = (
        "import math, statistics\nfrom fractions import Fraction\n"
        "assert math.fabs(-2) == 2\nassert statistics.mean([f(2), 5]) == 4\n"
        "assert Fraction(1, 2) != Fraction(1, 3)\nassert math.fabs(f(2) - 4) < 1e-6"
    )
    wrong, right = run(level, f"{RIGHT}\n{attack}", f"{WRONG}\n{attack}", test=test)
    assert wrong.reason.startswith("AssertionError")
    assert right.reason.startswith("AssertionError")


@pytest.mark.parametrize(
    "attack",
    [
        "sys.settrace(lambda *a: None)",
        "sys.setprofile(lambda *a: None)",
        "gc.get_objects()",
        "gc.get_referrers(sys)",
        "sys._current_frames()",
    ],
)
def test_access_to_the_grader_is_refused(level: Level, attack: str) -> None:
    (result,) = run(level, f"import gc, sys\n{attack}")
    assert result.reason.startswith("PermissionError: the sandbox does not allow")


def test_no_frame_and_no_module_holds_the_proof_of_a_pass(level: Level) -> None:
    forger = """
import sys, types

def walk(value, depth, seen):
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (bytes, bytearray)) and len(value) >= 16:
        proofs.append(bytes(value))
    if isinstance(value, types.FunctionType) and value.__closure__:
        for cell in value.__closure__:
            walk(cell.cell_contents, depth - 1, seen)
    if isinstance(value, dict):
        for inner in list(value.values()):
            walk(inner, depth - 1, seen)
    elif isinstance(value, (list, tuple, set)):
        for inner in list(value):
            walk(inner, depth - 1, seen)
    elif hasattr(value, '__dict__') and not isinstance(value, (type, types.ModuleType)):
        walk(vars(value), depth - 1, seen)

def f(n):
    global proofs
    proofs, frame, seen = [], sys._getframe(), set()
    while frame:
        walk(dict(frame.f_locals), 5, seen)
        if 'sandbox' in frame.f_code.co_filename:
            walk({k: v for k, v in frame.f_globals.items() if k != '__builtins__'}, 3, seen)
            frame.f_globals.update(FAILED=b'+', PASSED=b'', describe=lambda e: b'passed')
            if frame.f_locals.get('snapshots'):
                raise RuntimeError('a snapshot in reach')
        frame = frame.f_back
    import os
    for fd in range(3, 64):
        for proof in proofs:
            try: os.write(fd, proof + b'+')
            except OSError: break
    return n + 2

f(1)
"""
    failed, passed = run(level, forger, RIGHT, test=CHECK)
    assert failed.reason.endswith(
        "before its last line"
    )  # it found and wrote nothing that proves a pass
    assert passed.passed


def test_the_test_sees_the_solution_s_helpers_and_its_own_names_first(level: Level) -> None:
    solution = "import math\nLIMIT = 3\ndef helper(x):\n    return x * 2\ndef f(x):\n    return x"
    test = (
        "LIMIT = 4\ndef helper2(x):\n    return helper(x)\n"
        "assert helper2(f(2)) == 4 == LIMIT\nassert math.sqrt(4) == 2 and __name__ == 'test'"
    )
    assert run(level, solution, test=test) == [ProgramResult(True, "passed")]


@pytest.mark.parametrize(
    "solution",
    [
        "from __future__ import annotations\ndef f(n: Undefined):\n    return n + 1",
        "from collections import namedtuple\nP = namedtuple('P', 'x', defaults=[1])\n"
        "def f(n):\n    return n + P().x",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    n: int = 1\n"
        "def f(n):\n    return n + A().n",
        "import pickle\nclass A: n = 1\n"
        "def f(n):\n    return n + pickle.loads(pickle.dumps(A())).n",
        "import ctypes\ndef f(n):\n    return ctypes.c_int32(n + 1).value",
        "import numpy as np\ndef f(n):\n    return int(np.add(n, 1))",
        "import asyncio\nasync def g(n):\n    return n + 1\n"
        "def f(n):\n    return asyncio.run(g(n))",
        "import traceback\ndef f(n):\n    try: 1 / 0\n    except Exception: traceback.print_exc()\n"
        "    return n + 1",
        "import logging\ndef f(n):\n    logging.error(n)\n    return n + 1",
        "import xml.dom.minidom\n"
        "def f(n):\n    xml.dom.minidom.parseString('<a/>')\n    return n + 1",
        "count = 0\ndef f(n):\n    global count\n    count += 1\n    return n + 1",
        "import sys\nsys.setrecursionlimit(10**5)\n"
        "def g(n):\n    return n and 1 + g(n - 1)\ndef f(n):\n    return n + 1 + g(9999) - 9999",
        "if __name__ == '__main__':\n    1 / 0\ndef f(n):\n    return n + 1",
    ],
)
def test_honest_solutions_of_all_kinds_pass(level: Level, solution: str) -> None:
    assert run(level, solution, test=CHECK) == [ProgramResult(True, "passed")]
