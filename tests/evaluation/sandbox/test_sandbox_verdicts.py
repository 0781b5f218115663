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


ENDINGS = [
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
]


@pytest.mark.parametrize("inside", [False, True], ids=["at its top level", "when called"])
def test_ending_early_or_printing_does_not_pass(level: Level, inside: bool) -> None:
    solutions = []
    for attack in ENDINGS:
        body = "".join(f"    {line}\n" for line in attack.splitlines())
        ended = f"def f(n):\n{body}    return n + 2\n" if inside else f"{WRONG}\n{attack}\n"
        solutions += [ended, RIGHT]  # the one after an attack passes
    results = run(level, *solutions, test=CHECK)
    for solution, result in zip(solutions, results, strict=True):
        assert result.passed is (solution == RIGHT), solution


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


CHANGES = [
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
]


def test_changed_modules_are_restored(level: Level) -> None:
    test = (
        "import math, statistics\nfrom fractions import Fraction\n"
        "assert math.fabs(-2) == 2\nassert statistics.mean([f(2), 5]) == 4\n"
        "assert Fraction(1, 2) != Fraction(1, 3)\nassert math.fabs(f(2) - 4) < 1e-6"
    )
    solutions = [f"{base}\n{change}" for change in CHANGES for base in (RIGHT, WRONG)]
    results = run(level, *solutions, test=test)
    for solution, result in zip(solutions, results, strict=True):
        assert result.reason.startswith("AssertionError"), solution


LOOKS = [
    "sys.settrace(lambda *a: None)",
    "sys.setprofile(lambda *a: None)",
    "gc.get_objects()",
    "gc.get_referrers(sys)",
    "sys._current_frames()",
]


def test_access_to_the_grader_is_refused(level: Level) -> None:
    results = run(level, *(f"import gc, sys\n{look}" for look in LOOKS))
    for look, result in zip(LOOKS, results, strict=True):
        assert result.reason.startswith("PermissionError: the sandbox does not allow"), look


CLAIMS = [
    "import numpy\nassert numpy.allclose(f(2), 3)",
    "assert f(2) == 3",
    "assert 3 == f(2)",
    "assert f(2) in [3]",
    "assert abs(f(2) - 3) < 1e-6",
    "assert all(f(n) == n + 1 for n in (1, 2))",
    "import math\nassert math.fabs(f(2) - 3) < 1e-6",
    "from fractions import Fraction\nassert Fraction(f(2)) == 3",
    "from fractions import Fraction\nassert Fraction(f(2), 2).numerator == 3",
    "from statistics import mean\nassert mean([f(2), f(2)]) == 3",
    "from statistics import NormalDist\nassert NormalDist.from_samples([f(2), f(2)]).mean == 3",
]


def test_a_right_solution_meets_every_claim(level: Level) -> None:
    programs = [Program(RIGHT, claim) for claim in CLAIMS]
    results = run_programs(programs, timeout_s=10, memory_mb=256, workers=1, level=level)
    assert all(result.passed for result in results)


CALLED = "def f(n):\n{body}\n    return n + 2\n"


ATTACKS = [
    # What the test uses, changed in ways that no restoring of modules would undo.
    WRONG + "import math, types\nclass M(types.ModuleType):\n"
    "    fabs = property(lambda self: lambda x: 0)\nmath.__class__ = M",
    WRONG + "import numpy\nnumpy.allclose = lambda *_: True",
    WRONG + "from fractions import Fraction\n"
    "Fraction.numerator.fget.__code__ = (lambda self: 3).__code__",
    WRONG + "from statistics import NormalDist\n"
    "NormalDist.from_samples.__func__.__code__ = (lambda cls, data: cls(3)).__code__",
    WRONG + "import statistics\nstatistics.mean.__defaults__ = (3,)",
    # The callers' frames, and their builtins.
    CALLED.format(
        body="    import sys\n    frame = sys._getframe(1)\n    while frame:\n"
        "        frame.f_globals.update(vars=dict, type=lambda *_: int, isinstance=print)\n"
        "        frame.f_builtins.update(abs=lambda x: 0, all=bool, AssertionError=Warning)\n"
        "        frame = frame.f_back"
    ),
    WRONG + "import signal\ndef change(*_):\n    import builtins\n"
    "    builtins.abs = lambda x: 0\n"
    "signal.signal(signal.SIGALRM, change)\nsignal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)",
    # Results that agree with everything.
    "class Any(int):\n    __eq__ = __lt__ = __gt__ = lambda *_: True\n"
    "    __sub__ = __rsub__ = lambda *_: 0\n    __hash__ = int.__hash__\n"
    "def f(n):\n    return Any(7)",
    "class Any:\n    __eq__ = __lt__ = __gt__ = __contains__ = lambda *_: True\n"
    "    __sub__ = __rsub__ = lambda *_: 0\n    __float__ = lambda self: 3.0\n"
    "    __hash__ = object.__hash__\ndef f(n):\n    return Any()",
    "class Any:\n    __array_interface__ = dict(shape=(), typestr='<i8', version=3, "
    "data=(id(1) + 24, True))\ndef f(n):\n    return Any()",
    # Verdicts and answers, written to every descriptor.
    CALLED.format(
        body="    import os\n    for end in range(3, 64):\n"
        "        for line in (b'+', b'+passed', b'[\"return\",3,null]', b'{}', b'[' * 9999):\n"
        "            try: os.write(end, line + b'\\n')\n            except OSError: break\n"
        "    os._exit(0)"
    ),
    # Its own interpreter, by machine code.
    CALLED.format(body="    import ctypes\n    ctypes.memset(id(AssertionError), 0, 8)"),
]


def test_a_solution_changes_nothing_of_its_test(level: Level) -> None:
    # The first claim imports numpy, which takes 0.2 s.
    tried = [
        (attack, claim)
        for attack in ATTACKS
        for claim in CLAIMS
        if claim is not CLAIMS[0] or "numpy" in attack or "array" in attack
    ]
    programs = [Program(attack, f"f(1)\n{claim}") for attack, claim in tried]
    results = run_programs(programs, timeout_s=10, memory_mb=256, workers=1, level=level)
    passed = [pair for pair, result in zip(tried, results, strict=True) if result.passed]
    assert passed == []


LIES = {
    "an enum": "import enum\nclass E(enum.IntEnum):\n    A = 3\n"
    "    __eq__ = lambda *_: True\ndef f(n): return E.A",
    "a class that says it is int": "class X:\n    __class__ = int\n    __eq__ = lambda *_: True\n"
    "    __sub__ = lambda *_: 1\ndef f(n): return X()",
    "a registered number": "import numbers\nclass X:\n    __int__ = lambda self: 3\n"
    "numbers.Integral.register(X)\ndef f(n): return X()",
    "an mro of its own": "class M(type):\n    mro = lambda c: [c, object]\n"
    "class X(metaclass=M):\n    __eq__ = lambda *_: True\ndef f(n): return X()",
    "a scalar that is its own item": "class X:\n    shape = ()\n    item = lambda s: s\n"
    "def f(n): return X()",
    "a Decimal that writes NaN": "import decimal\nclass D(decimal.Decimal):\n"
    "    __str__ = lambda _: 'sNaN'\ndef f(n): return D(1)",
    "a Fraction of objects": "import fractions\nclass F(fractions.Fraction):\n"
    "    numerator = property(lambda _: object())\ndef f(n): return F(1)",
    "an error that ends generators": "def f(n): raise GeneratorExit",
    "a renamed StopIteration": "def f(n): raise type('AssertionError', (StopIteration,), {})",
    "an exception group": "def f(n): raise BaseExceptionGroup('x', [KeyboardInterrupt()])",
    "an error without text": "class X(Exception):\n    __str__ = lambda _: exit()\n"
    "def f(n): raise X",
    "an error with an impossible name": "def f(n): raise type('a\\0', (Exception,), {})",
    "a list that holds itself": "def f(n):\n    x = []\n    x.append(x)\n    return x",
    "a message of hexadecimal digits": CALLED.format(
        body="    import os\n    for end in range(3, 64):\n        try: os.write(end, "
        "b'[\"return\",[\"int\",\"0x' + b'f' * 10**6 + b'\"],null]\\n')\n"
        "        except OSError: pass"
    ),
    "a call that asks for a module": CALLED.format(
        body="    import os\n    for end in range(3, 64):\n        try: os.write(end, "
        'b\'["call",["yours",-1],["list",["module","test.__main__"]],["dict"]]\\n\')\n'
        "        except OSError: pass"
    ),
    "more changed arguments than given": CALLED.format(
        body="    import os\n    for end in range(3, 64):\n        try: os.write(end, "
        'b\'["return",3,["list",9,9,9]]\\n\')\n        except OSError: pass'
    ),
}


def test_a_result_or_error_that_lies_fails(level: Level) -> None:
    results = run(level, *LIES.values(), test=CHECK)
    assert [name for name, result in zip(LIES, results, strict=True) if result.passed] == []


def test_a_solution_finds_no_test_in_its_memory(level: Level) -> None:
    search = r"""
import re
def f(own):
    found = set()
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split('-'))
            if ' rw' in line and end < 2 ** 63:
                memory.seek(start)
                found.update(re.findall(rb'SECRET-[0-9]+', memory.read(end - start)))
    return len(found)
"""
    if level == "isolated":  # without /proc, by addresses
        pytest.skip("the search needs /proc")
    tests = ["assert f(b'SECRET-1') == 1  # SECRET-2", "assert f(b'SECRET-3') == 1  # SECRET-4"]
    programs = [Program(search, test) for test in tests]
    results = run_programs(programs, timeout_s=10, memory_mb=256, workers=1, level=level)
    assert results == [ProgramResult(True, "passed")] * 2


def test_a_solution_that_ends_fails_even_if_the_test_catches_that(level: Level) -> None:
    test = "try: f(1)\nexcept BaseException: pass"
    programs = ["import os\ndef f(n): os._exit(0)", "def f(n): raise SystemExit"]
    assert [result.passed for result in run(level, *programs, test=test)] == [False, True]


def test_the_test_sees_the_solution_s_helpers_and_its_own_names_first(level: Level) -> None:
    solution = "import math\nLIMIT = 3\ndef helper(x):\n    return x * 2\ndef f(x):\n    return x"
    test = (
        "LIMIT = 4\ndef helper2(x):\n    return helper(x)\n"
        "assert helper2(f(2)) == 4 == LIMIT\nassert math.sqrt(4) == 2 and __name__ == 'test'"
    )
    assert run(level, solution, test=test) == [ProgramResult(True, "passed")]


HONEST = [
    "from __future__ import annotations\ndef f(n: Undefined):\n    return n + 1",
    "from collections import namedtuple\nP = namedtuple('P', 'x', defaults=[1])\n"
    "def f(n):\n    return n + P().x",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n    n: int = 1\n"
    "def f(n):\n    return n + A().n",
    "import pickle\nclass A: n = 1\ndef f(n):\n    return n + pickle.loads(pickle.dumps(A())).n",
    "import ctypes\ndef f(n):\n    return ctypes.c_int32(n + 1).value",
    "import numpy as np\ndef f(n):\n    return int(np.add(n, 1))",
    "import asyncio\nasync def g(n):\n    return n + 1\ndef f(n):\n    return asyncio.run(g(n))",
    "import traceback\ndef f(n):\n    try: 1 / 0\n    except Exception: traceback.print_exc()\n"
    "    return n + 1",
    "import logging\ndef f(n):\n    logging.error(n)\n    return n + 1",
    "import xml.dom.minidom\ndef f(n):\n    xml.dom.minidom.parseString('<a/>')\n    return n + 1",
    "count = 0\ndef f(n):\n    global count\n    count += 1\n    return n + 1",
    "import sys\nsys.setrecursionlimit(10**5)\n"
    "def g(n):\n    return n and 1 + g(n - 1)\ndef f(n):\n    return n + 1 + g(9999) - 9999",
    "if __name__ == '__main__':\n    1 / 0\ndef f(n):\n    return n + 1",
]


def test_honest_solutions_of_all_kinds_pass(level: Level) -> None:
    results = run(level, *HONEST, test=CHECK)
    for solution, result in zip(HONEST, results, strict=True):
        assert result == ProgramResult(True, "passed"), solution


VALUES = """
from collections import Counter, OrderedDict, defaultdict, namedtuple
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
VALUES = [
    2**100, -(2**63), 0.1, -0.0, float('inf'), 1 + 2j, True, None, '\\ud800\\n\\0"', b'\\xff',
    [1, [2]], (1, (2,)), {1: (2,), 'a': {}}, {3}, frozenset([4]), range(1, 9, 2), bytearray(b'a'),
    Decimal('1.10'), Fraction(1, 3), date(2020, 1, 2), datetime(2020, 1, 2, 3), timedelta(1), int,
    [1] * 10**5,
]
"""
NODE = """
class Node:
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __eq__(self, other): return self.n == other.n
    def __getitem__(self, key): return key
    def __str__(self): return 'node'
    def next(self): return Node(self.n + 1)
"""


PAIRS = [
    (
        f"{VALUES}def f(value):\n    return value",
        f"{VALUES}for value in VALUES:\n    assert f(value) == value\n"
        "    assert type(f(value)) is type(value) and repr(f(value)) == repr(value)",
    ),
    (
        f"{VALUES}P = namedtuple('P', 'x y')\n"
        "def f():\n"
        "    return Counter('aab'), P(1, 2), OrderedDict(a={1}), defaultdict(int, b=2)",
        "assert f() == ({'a': 2, 'b': 1}, (1, 2), {'a': {1}}, {'b': 2})",
    ),
    (
        "import numpy as np\ndef f():\n    return np.int64(3), np.bool_(True), np.eye(2)",
        "import numpy as np\na, b, c = f()\nassert a == 3 and b is True\n"
        "assert (c == np.eye(2)).all() and np.allclose(c, [[1, 0], [0, 1]])",
    ),
    ("def f(n):\n    return n * n", "assert f(10**4000) == 10**8000"),
    ("def f(x):\n    x.sort()\n    x[0] = [9]", "x = [3, 1]\nf(x)\nassert x == [[9], 3]"),
    ("def f(g, x):\n    return list(map(g, x))", "assert f(lambda n: [n], [1]) == [[1]]"),
    (
        "def f(g, x):\n    return g(x)",
        "import math\nassert f(math.sqrt, 4) == 2 == f(len, 'ab')",
    ),
    (
        "def f(n):\n    yield from range(n)",
        "assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0",
    ),
    ("def f(n):\n    return lambda m, k=1: n + m * k", "assert f(1)(2, k=3) == 7"),
    (
        "class E(ValueError): pass\ndef f():\n    raise E('no')",
        "try: f()\nexcept ValueError as e: assert str(e) == 'no'\nelse: assert False",
    ),
    (
        NODE,
        "a = Node(3)\na.left = Node(4)\nassert a.left == a.next() == Node(4) != a\n"
        "assert a.n == len(a) == 3 and a[7] == 7 and str(a) == 'node'\n"
        "assert isinstance(a, Node) and Node.next(a).n == 4",
    ),
    (
        "import sys\ndef f(x):\n    return sys.getsizeof(x)",
        "assert f((1, 2)) == sys.getsizeof((1, 2))",  # by the solution's import
    ),
]


def test_values_pass_between_solution_and_test_as_in_one_process(level: Level) -> None:
    programs = [Program(solution, test) for solution, test in PAIRS]
    results = run_programs(programs, timeout_s=10, memory_mb=256, workers=1, level=level)
    assert results == [ProgramResult(True, "passed")] * len(PAIRS)


FAULTS = [
    ("def f():\n    return 'x' * (17 << 20)", "f()", "ValueError: more than 16 MiB"),
    ("def f():\n    x = []\n    x.append(x)\n    return x", "f()", "RecursionError"),
    ("def f(x):\n    0", "class A: 0\nf(A())", "TypeError: a solution cannot be passed a A"),
    ("import numpy", "numpy.eye(2)", "NameError: name 'numpy' is not defined"),
    ("f = object()", "assert f == f\nassert f == 3", "AssertionError"),
    ("def f(n): raise StopIteration", "assert all(map(f, [1]))", "RuntimeError: StopIteration"),
    ("def f(): return 1 << 10**8", "f()", "ValueError: more than 16 MiB"),
    (
        "open('colorsys.py', 'w').write('rgb_to_hsv = lambda *_: 1')\nf = 1",
        "import colorsys\nassert colorsys.rgb_to_hsv(0, 0, 0) == f",
        "AssertionError",
    ),
    (
        "import os, time\ndef f():\n    for end in range(3, 64):\n"
        "        try: os.write(end, b'[\"return\",' + b'[' * 9999 + b'\\n')\n"
        "        except OSError: pass\n    time.sleep(60)",
        "f()",
        "sent no valid answer before its last line",
    ),
]


def test_what_cannot_pass_between_them_is_named(level: Level) -> None:
    programs = [Program(solution, test) for solution, test, _ in FAULTS]
    results = run_programs(programs, timeout_s=10, memory_mb=512, workers=1, level=level)
    for (_, _, reason), result in zip(FAULTS, results, strict=True):
        assert result.reason.startswith(reason)
