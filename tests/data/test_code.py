"""Code judged by running it: what solutions may do, and every attack on sandbox and tests as its own case."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.verify import confined
from data.verify.code import MAX_CODE, code_of, judge_functions, judge_program, lines
from data.verify.confined import Limits, check_isolation, run, unavailable

ROOT = Path(__file__).parents[2]
SECRET = Path("/var/tmp") / f"sagax_secret_{os.getpid()}"
LIMITS = Limits(seconds=1.5)
# For what is right: a loaded machine must not fail it.
PATIENT = Limits(seconds=20.0)
TESTS = "assert f(3) == 10\nassert f(4) == 17\nassert f(10) == 101\n"
GOOD = "def f(n):\n    return n * n + 1\n"
works = pytest.mark.skipif(bool(unavailable("namespaces")), reason=f"no sandbox here: {unavailable('namespaces')}")
unconfined = pytest.mark.skipif(bool(unavailable("none")), reason=f"not without one either: {unavailable('none')}")

FRAME = """import json, os
def frame(kind, message):
    payload = kind + json.dumps(message).encode()
    return len(payload).to_bytes(4, 'big') + payload
def send(first, *parts):
    for fd in range(first, 32):
        for part in parts:
            try: os.write(fd, part)
            except OSError: pass
"""
EQUAL = """class E({base}):
    def __eq__(self, other): return True
    __hash__ = {base}.__hash__
def f(n): return E({value})
"""
ON_FUNCTIONS = {
    "exits before the asserts": "import sys\nsys.exit(0)",
    "exits at the first call": "import sys\ndef f(n):\n    sys.exit(0)",
    "leaves without a word": "import os\nos._exit(0)",
    "leaves at the first call": "import os\ndef f(n):\n    os._exit(0)",
    "prints the marker": "print('all tests passed')\ndef f(n):\n    print('all tests passed')",
    "forges messages": FRAME + "send(0, *(frame(kind, None) for kind in (b'd', b'r', b's')))\ndef f(n): return 0",
    "forges replies ahead": FRAME
    + "send(3, *(frame(b'r', ['value', v]) for v in (None, True, 1)))\ndef f(n): return True",
    "is equal to everything": EQUAL.format(base="object", value=""),
    "is a number equal to everything": EQUAL.format(base="int", value="1"),
    "is a text equal to everything": EQUAL.format(base="str", value="'x'"),
    "returns not a number": "def f(n): return float('nan')",
    "ends the loop of the tests": "def f(n): raise StopIteration",
    "ends it with a kin of its own": "class S(StopIteration): pass\ndef f(n): raise S",
    "calls its error StopIteration": "class S(ValueError): pass\nS.__name__ = 'StopIteration'\ndef f(n): raise S",
    "raises a kin of what tests expect": "class S(AssertionError): pass\ndef f(n): raise S",
    "forges an error's classes": FRAME + "messages = ['value', None], ['error', 5, 5], ['error', [[]], {'object': 1}]\n"
    "send(3, *(frame(b'r', message) for message in messages))\ndef f(n): return 0",
    "forges an error without parts": FRAME + "send(3, frame(b'r', ['value', None]), frame(b'r', ['error']))",
    "raises what tests expect": "def f(n): raise AssertionError",
    "monkeypatches builtins": "import builtins\nbuiltins.__dict__['AssertionError'] = None\n"
    "builtins.all = lambda x: True\ndef f(n): return 0",
    "monkeypatches the harness": "import sys, json\nm = sys.modules['__main__']\n"
    "json.dumps = lambda *a, **k: 'null'\nm.pack = m.unpack = lambda *a: True\ndef f(n): return True",
    "reads the frames above": "import sys\ndef f(n):\n    frame = sys._getframe()\n    while frame:\n"
    "        for v in frame.f_locals.values():\n            if isinstance(v, str) and 'assert' in v: return 10\n"
    "        frame = frame.f_back\n    return 0",
    "reads all objects": "import gc\ndef f(n):\n"
    "    return 10 if [o for o in gc.get_objects() if isinstance(o, str) and 'assert f' in o] else 0",
    "reads the test file": "import os\ndef f(n):\n    for top in ('/tmp', '/var', '/work', '/proc', '/etc', '/dev'):\n"
    "        for folder, _, files in os.walk(top):\n            for name in files:\n"
    "                if b'assert f(3)' in open(os.path.join(folder, name), 'rb').read(): return 10\n    return 0",
    "runs for ever": "def f(n):\n    while True: pass",
    "sleeps for ever": "import time\ndef f(n): time.sleep(3600)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import threading, time\nwhile True:\n"
    "    try: threading.Thread(target=time.sleep, args=(99,)).start()\n    except RuntimeError: pass",
    "allocates a gigabyte": "x = bytearray(1 << 30)\ndef f(n): return n * n + 1",
    "returns a huge list": "def f(n): return list(range(10_000_000))",
    "returns a number without end": "def f(n): return 1 << (1 << 30)",
    "returns an endless iterator": "import itertools\ndef f(n): return itertools.count()",
    "returns a deep list": "def f(n):\n    x = []\n    for _ in range(100_000): x = [x]\n    return x",
    "returns itself": "def f(n):\n    x = []\n    x.append(x)\n    return x",
    "floods the channel": FRAME + "while True: send(3, bytes(65536))",
    "claims a huge message": FRAME + "send(3, b'\\xff' * 4)\ndef f(n): return 0",
    "deep source": "(" * 50_000,
    "no source": " \n",
    "too much source": GOOD + "#" * MAX_CODE,
    "surrogates": "'\ud800'",
    "kills all it can": "import os, signal\ndef f(n): os.kill(-1, signal.SIGKILL)",
    "calls another": "def g(n): return n * n + 1",
    "knows the shown one only": "def f(n): return 10",
}
ON_PROGRAMS = {
    "prints the first lines only": "print(1)",
    "prints the first lines and exits": "print(1)\nimport sys\nsys.exit(0)",
    "prints more": "print(1)\nprint(2)\nprint(3)",
    "prints it on one line": "print('1 2')",
    "prints it and fails": "print(1)\nprint(2)\nraise SystemExit(1)",
    "prints it and hangs": "print(1)\nprint(2, flush=True)\nimport time\ntime.sleep(3600)",
    "prints to the other stream": "import sys\nprint('1\\n2', file=sys.stderr)",
    "endless output": "while True: print('x' * 10_000)",
    "endless output without a newline": "import os\nwhile True: os.write(1, b'1' * 65536)",
    "closes its output": "import os, time\nos.close(1)\ntime.sleep(3600)",
    "does not read": "import time\ntime.sleep(3600)",
    "leaves a process behind": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3600)\nprint(1)",
    "writes a huge file": "open('/tmp/x', 'wb').write(bytes(1 << 26))\nprint(1)\nprint(2)",
    "many huge files": "for n in range(100):\n    open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))\nprint(1)\nprint(2)",
}
CLONE = {"aarch64": 220}.get(os.uname().machine, 56)
ESCAPES = {
    "reads a file outside": f"open({str(SECRET)!r}).read()",
    "writes a file outside": f"open({str(SECRET)!r}, 'a').write('x')",
    "reads the password file": "open('/etc/passwd').read()",
    "reads the project": f"open({str(ROOT / 'setup.py')!r}).read()",
    "reads another process": "open('/proc/1/environ', 'rb').read()",
    "writes to the interpreter": "open(sys.prefix + '/x', 'w').write('x')",
    "writes to the root": "open('/x', 'w').write('x')",
    "network": "socket.create_connection(('1.1.1.1', 53), 1)",
    "network of this machine": "socket.create_connection(('127.0.0.1', 22), 1)",
    "network of the host of a virtual machine": "socket.socket(40, socket.SOCK_STREAM)",
    "names": "socket.getaddrinfo('example.org', 80)",
    "sees the environment": "os.environ['HOME']",
    "sees a parent": "[][0] if os.getppid() == 0 else None",
    "becomes root": "os.setuid(0)",
    "makes namespaces": "[][0] if ctypes.CDLL(None).unshare(0x10000000) else None",
    "is born into namespaces": f"[][0] if ctypes.CDLL(None).syscall({CLONE}, 0x10000011, 0, 0, 0, 0) < 0 else None",
    "memory of no process": "os.memfd_create('x')",
    "a pair of sockets that send anywhere": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "a pair of raw sockets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)",
    "a handle of a process": "os.pidfd_open(os.getpid())",
    "traces": "[][0] if ctypes.CDLL(None).ptrace(0, 0, 0, 0) else None",
    "mounts": "[][0] if ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) else None",
}


@works
def test_a_right_solution_earns_its_reward() -> None:
    assert judge_functions(GOOD, TESTS, ["f"], PATIENT, "namespaces").score == 1.0
    assert judge_program(
        "n = int(input())\nprint(n)\nprint(2 * n)", [("1", "1\n2"), ("5", "5\n10\n")], PATIENT, "namespaces"
    ).score


@works
@pytest.mark.parametrize("attack", ON_FUNCTIONS, ids=str)
def test_attacks_on_tests_of_functions(attack: str) -> None:
    start = time.perf_counter()
    verdict = judge_functions(ON_FUNCTIONS[attack], TESTS, ["f"], LIMITS, "namespaces")
    assert (verdict.score, bool(verdict.reason)) == (0.0, True)
    assert time.perf_counter() - start < 2 * LIMITS.seconds + 2


@works
@pytest.mark.parametrize("attack", ON_PROGRAMS, ids=str)
def test_attacks_on_tests_of_programs(attack: str) -> None:
    start = time.perf_counter()
    verdict = judge_program(ON_PROGRAMS[attack], [("x" * 1_000_000, "1\n2")], LIMITS, "namespaces")
    assert (verdict.score, bool(verdict.reason)) == (0.0, True)
    assert time.perf_counter() - start < 2 * LIMITS.seconds + 2


@works
@pytest.mark.parametrize("escape", ESCAPES, ids=str)
def test_nothing_outside_is_within_reach(escape: str) -> None:
    SECRET.write_text("secret")
    SECRET.chmod(0o666)
    try:
        program = f"import ctypes, os, socket, sys\ntry:\n    {ESCAPES[escape]}\nexcept Exception: print('held')\n"
        outcome = run(program, b"", PATIENT, "namespaces")
        assert (outcome.stdout, outcome.status) == (b"held\n", 0)
        assert SECRET.read_text() == "secret"
    finally:
        SECRET.unlink()


@works
def test_a_sandbox_starts_empty_and_forgets() -> None:
    program = "import os\nprint(os.listdir('.'))\nopen('left', 'w').write('x')\nprint(sorted(os.listdir('.')))"
    for _ in range(2):
        assert run(program, b"", PATIENT, "namespaces").stdout == b"['main.py']\n['left', 'main.py']\n"


@works
def test_a_sandbox_dies_with_the_process_that_started_it() -> None:
    program = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from data.verify.confined import Confined, Limits\n"
        "running = Confined('import time; time.sleep(600)', Limits(seconds=600.0), 'namespaces')\n"
        "import time; time.sleep(1.0)\n"
        "print(running.process.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        parent.kill()
    assert children
    end = time.monotonic() + 5
    while time.monotonic() < end and any(Path(f"/proc/{n}").exists() for n in (pid, *children)):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{n}").exists() for n in children)


@works
@pytest.mark.parametrize(
    ("code", "tests"),
    [
        (
            "def f(): return (1, [2.5, {'a': {3}}], b'x', None, 1j)",
            "assert f() == (1, [2.5, {'a': {3}}], b'x', None, 1j)",
        ),
        ("def f(x): return map(str, x)", "assert list(f([1, 2])) == ['1', '2']\nassert f([1]) != ['1']"),
        (
            "def f(x): raise ValueError('no')",
            "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert 0",
        ),
        ("class P:\n    def __init__(self, a): self.a = a\ndef f(p): return p.a", "assert f(P(3)) == 3"),
        ("def f(x, *, y=1): return x + y", "assert f(1, y=2) == 3"),
        ("def f(x): return x / 3", "assert math.isclose(f(1), 0.3333, rel_tol=0.001)"),
        ("def f(x, t): return [v for v in x if type(v) is not t]", "assert f((4, 7.5), int) == [7.5]"),
        ("def f(x): return x", "import random\nfor _ in range(50):\n    n = random.random()\n    assert f(n) == n"),
    ],
)
def test_values_of_many_kinds_travel(code: str, tests: str) -> None:
    verdict = judge_functions(code, tests, ["f", "P"] if "P(" in tests else ["f"], PATIENT, "namespaces")
    assert verdict.score == 1.0, verdict.reason


@unconfined
def test_without_isolation_limits_hold_and_nothing_is_left() -> None:
    before = set(Path("/tmp").glob("sagax-code-*"))
    assert judge_functions(GOOD, TESTS, ["f"], PATIENT, "none").score == 1.0
    assert run("import os\nos.mkdir('a'); os.chmod('a', 0)\nx = bytearray(1 << 30)", b"", PATIENT, "none").status == 1
    assert run("import os\nos.chmod('.', 0)", b"", PATIENT, "none").status == 0
    assert run("while True: pass", b"", Limits(seconds=0.5), "none").stopped == "timeout"
    assert set(Path("/tmp").glob("sagax-code-*")) == before


def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "unavailable", lambda isolation: "unshare: Operation not permitted")
    with pytest.raises(RuntimeError, match=r"no sandbox with namespaces here: unshare.*isolation='none'"):
        check_isolation("namespaces")
    with pytest.raises(ValueError, match="Did you mean 'namespaces'"):
        run("", b"", PATIENT, "namespace")
    for bad in ({"seconds": 0.0}, {"memory": 0}):
        with pytest.raises(ValueError, match="above 0"):
            Limits(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```\nbetter:\n```py\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "x = 1"),
        ("```python\n```", ""),
    ],
)
def test_the_last_block_is_the_code(text: str, code: str) -> None:
    assert code_of(text) == code


def test_whole_outputs_are_compared() -> None:
    assert lines("1 \n2\n\n") == lines("1\n2")
    assert lines("1\n2") != lines("1") and lines("\n1") != lines("1") and lines("1 2") != lines("1\n2")
    for judge, empty in ((judge_program, []), (lambda c, n, *r: judge_functions(c, TESTS, n, *r), [])):
        with pytest.raises(ValueError, match="without"):
            judge(GOOD, empty, PATIENT, "namespaces")
