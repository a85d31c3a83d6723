"""Metric `code`: tests that pass, tests that do not, and code that means harm. Expected values by hand."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cpift.data.rows import metric_of
from cpift.errors import CpiftError
from cpift.metrics import METRICS, code
from cpift.metrics.metric import Asked
from cpift.metrics.sandbox import Limits, isolation_problem, run_python
from cpift.recipe.task import Task

MBPP = {"text": "Add two numbers.", "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]}
HUMAN = {
    "prompt": 'def add(a, b):\n    """Their sum."""\n',
    "completion": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}
RIGHT = "def add(a, b):\n    return a + b\n"
isolated_only = pytest.mark.skipif(isolation_problem() is not None, reason="no namespaces for this user")


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(code.ALLOWED, "1" if isolation_problem() is None else "open")


def judged(text: str, row: dict[str, Any]) -> float:
    return METRICS["code"].judge(Asked())(text, row)


def conversation(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}], **more}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        (RIGHT, True),
        (f"First\n```python\nwrong(\n```\nor\n```python\n{RIGHT}```\nDone.", True),  # the last block
        ("from __future__ import annotations\n" + RIGHT, True),
        (RIGHT + "if __name__ == '__main__':\n    input()\n", True),
        ("def add(a, b):\n    return a - b\n", False),
        ("def add(a, b):\n    return 3\n", False),  # one of two tests
        ("def add(a, b) return", False),
        (RIGHT + "x = '''", False),
        ("import sys\nsys.exit(0)", False),
        ("import os\nos._exit(0)", False),
        ("", False),
    ],
)
def test_all_tests_of_a_row_pass(text: str, passed: bool) -> None:
    assert judged(text, MBPP) == float(passed)


def test_set_up_comes_before_the_answer() -> None:
    row = {"test_setup_code": "class Node:\n    value = 3", "test_list": ["assert f(Node()) == 3"]}
    assert judged("def f(node: Node) -> int:\n    return node.value", row) == 1.0


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("    return a + b\n", True),
        ("    return a\n", False),
        (RIGHT, True),
        (f"Here:\n```python\n{RIGHT}```", True),
        ("```python\n    return a + b\n```", True),
    ],
)
def test_the_prompts_code_stands_before_the_answer(text: str, passed: bool) -> None:
    assert judged(text, HUMAN) == float(passed)
    question = [{"role": "user", "content": f"Complete:\n```python\n{HUMAN['prompt']}```"}]
    chat = {**HUMAN, "prompt": question, "completion": [{"role": "assistant", "content": "x"}]}
    assert judged(text, chat) == float(passed)


# Code that means harm: each scores 0, soon


@pytest.mark.parametrize(
    "text",
    [
        "while True: pass",
        "import time\ntime.sleep(100)",
        "x = bytearray(1 << 31)",
        "while True: print('x' * 10000)",
        "open('large', 'wb').write(bytes(1 << 25))",
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'while True: pass'])\nwhile True: pass",
    ],
)
def test_limits_hold(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "LIMITS", Limits(seconds=1))
    start = time.monotonic()
    assert judged(f"{RIGHT}{text}", MBPP) == 0.0
    assert time.monotonic() - start < 6


@isolated_only
@pytest.mark.parametrize(
    "text",
    [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "x = bytearray(10 << 30)",
        "x = []\nwhile True: x.append(bytearray(1 << 24))",
        "import os\nassert os.environ['A_SECRET']",
        "open('/proc/1/environ', 'rb').read().index(b'A_SECRET')",
        "open({file!r}, 'w').write('changed')",
        "import os\nos.chmod({file!r}, 0)",
        "open('/dev/shm/outside', 'w').write('x')",
        "import os\nos.write(1, b'x' * (3 << 30))",
        "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)",
        "import os\nos.mkdir('/sys/fs/cgroup/outside')",
    ],
)
def test_each_hostile_answer_scores_0_and_touches_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a row is right, but for what it does beside."""
    monkeypatch.setattr(code, "LIMITS", Limits(seconds=1))
    monkeypatch.setenv("A_SECRET", "secret")
    file = tmp_path / "file"
    file.write_text("kept")
    before, start = file.stat(), time.monotonic()
    assert judged(f"{RIGHT}{text.format(file=str(file))}", MBPP) == 0.0
    assert time.monotonic() - start < 6
    assert file.read_text() == "kept"
    assert file.stat().st_mode == before.st_mode
    assert not Path("/dev/shm/outside").exists()


def test_memory_is_limited() -> None:
    outcome = run_python("x = bytearray(1 << 28)", isolation_problem() is None, Limits(memory=1 << 27))
    assert "MemoryError" in outcome.output


def processes() -> int:
    return sum(entry.isdigit() for entry in os.listdir("/proc"))


@isolated_only
def test_a_fork_bomb_is_limited_and_ends() -> None:
    before = processes()
    outcome = run_python(
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", True, Limits(seconds=1)
    )
    assert outcome.code != 0
    time.sleep(0.2)
    assert processes() < before + 30  # others start processes, too


@isolated_only
def test_nothing_outside_is_touched(tmp_path: Path) -> None:
    """Files, the network, other processes and the environment; a detached child ends with its program."""
    file = tmp_path / "file"
    file.write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"""
import os, socket, sys, signal
def fails(do):
    try: do()
    except OSError: return True
assert fails(lambda: open({str(file)!r}, "w"))
assert fails(lambda: os.remove({str(file)!r}))
assert fails(lambda: socket.create_connection(("127.0.0.1", {port}), 1))
assert fails(lambda: os.kill({os.getpid()}, 0))
assert fails(lambda: open("/proc/{os.getpid()}/environ").read())
assert "{code.ALLOWED}" not in os.environ
open("own", "w").write("x")
os.system("setsid sleep 54321 &")
print("all refused")
"""
        outcome = run_python(program, isolated=True)
    assert outcome.output.strip() == "all refused"
    assert file.read_text() == "kept"
    commands = [Path(f"/proc/{entry}/cmdline") for entry in os.listdir("/proc") if entry.isdigit()]
    assert not any(b"54321" in command.read_bytes() for command in commands if command.exists())


# What is refused


def test_nothing_is_run_without_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(code.ALLOWED)
    with pytest.raises(CpiftError, match=r"tasks\.t: metric code would run the Python code .* CPIFT_RUN_CODE=1"):
        metric_of("t", Task(train="x", eval="y", metric="code"), [conversation(**MBPP)])
    with pytest.raises(CpiftError, match="CPIFT_RUN_CODE=1"):
        judged(RIGHT, MBPP)


def test_no_isolation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(code.ALLOWED, "1")
    monkeypatch.setattr(code, "isolation_problem", lambda: "unshare: Operation not permitted")
    with pytest.raises(CpiftError, match=r"unshare: Operation not permitted.*CPIFT_RUN_CODE=open"):
        judged(RIGHT, MBPP)
    monkeypatch.setenv(code.ALLOWED, "open")
    assert judged(RIGHT, MBPP) == 1.0
    assert judged("", MBPP) == 0.0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "row 1 needs test_list, or prompt, test and entry_point"),
        ({"test_list": []}, "test_list as a list"),
        ({"test_list": "assert f()"}, "test_list as a list"),
        ({"prompt": "def f():\n    pass\n", "test": 3, "entry_point": "f"}, "needs test as text"),
        ({"prompt": "def f():\n    pass\n", "test": "", "entry_point": "f()"}, "entry_point as the name"),
        ({"prompt": "Write a function.", "test": "", "entry_point": "f"}, "needs a prompt of Python code"),
    ],
)
def test_rows_without_tests_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(CpiftError, match=words):
        metric_of("t", Task(train="x", eval="y", metric="code"), [conversation(**more)])
