"""Generated Python code, run with the tests of its row: rows of MBPP's shape and of HumanEval's."""

from __future__ import annotations

import ast
import os
import re
import secrets
from collections.abc import Mapping, Sequence

from cpift.errors import CpiftError
from cpift.metrics.answers import Row
from cpift.metrics.metric import Asked, Judge, Metric, Scoring
from cpift.metrics.sandbox import LIMITS, isolation_problem, run_python

ALLOWED = "CPIFT_RUN_CODE"
_OPEN = "open"  # the value that also allows code to run where it cannot be isolated
_BLOCK = re.compile(
    r"^[ \t]*```(?:python3?|py)[ \t]*\r?\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
# Each part is compiled alone: an open bracket or string in an answer cannot swallow the tests.
_PROGRAM = """\
names = {{"__name__": "answer"}}
for name, part in {parts!r}:
    exec(compile(part, name, "exec"), names)
print("\\n" + {sentinel!r}, flush=True)
"""


def _judge(asked: Asked) -> Judge:
    if (problem := _refused()) is not None:
        raise CpiftError(f"metric code {problem}")
    isolated, pattern = isolation_problem() is None, asked.pattern

    def judge(text: str, row: Row) -> float:
        answer = _code(text) if pattern is None else pattern.find(text)
        if answer is None:
            return 0.0
        sentinel = secrets.token_hex(16)  # an answer that exits before its tests cannot have printed it
        program = _PROGRAM.format(parts=_parts(answer, row), sentinel=sentinel)
        outcome = run_python(program, isolated, LIMITS)
        return float(outcome.code == 0 and outcome.output.rstrip().endswith(sentinel))

    return judge


def _code(text: str) -> str:
    """The last Python block of a text, else the whole text."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1]) if blocks else text


def _parts(answer: str, row: Row) -> list[tuple[str, str]]:
    """What is run, in order, each with its name."""
    if "test_list" in row:
        parts = [("set-up", str(row.get("test_setup_code") or "")), ("answer", answer)]
        return parts + [("test", test) for test in row["test_list"]]
    return [("answer", _prompt(row) + answer), ("test", row["test"]), ("check", f"check({row['entry_point']})")]


def _prompt(row: Row) -> str:
    """The code that an answer continues, or defines anew: the row's prompt, else its last question."""
    prompt = row.get("prompt", row.get("messages"))
    if isinstance(prompt, list):
        prompt = next((turn.get("content") for turn in reversed(prompt) if turn.get("role") == "user"), "")
    code = _code(prompt) if isinstance(prompt, str) else ""
    return code if code[-1:].isspace() else f"{code}\n"


def _refused() -> str | None:
    """Why no code is run, or None."""
    allowed = os.environ.get(ALLOWED, "")
    if os.name != "posix":
        return "runs code within limits that only Linux and macOS have"
    if allowed not in ("1", _OPEN):
        return (
            "would run the Python code that the model writes, with each row's tests, in a subprocess on this machine; "
            f"set the environment variable {ALLOWED}=1 to allow it (docs/metrics.md)"
        )
    if allowed != _OPEN and (problem := isolation_problem()) is not None:
        return (
            f"cannot keep generated code from the network and from your files here ({problem}); "
            f"{ALLOWED}={_OPEN} runs it all the same"
        )
    return None


def _check(rows: Sequence[Row], asked: Asked) -> str | None:
    for number, row in enumerate(rows, 1):
        if (problem := _row_problem(row)) is not None:
            return f"metric code: row {number} {problem}"
    problem = _refused()
    return problem and f"metric code {problem}"


def _row_problem(row: Row) -> str | None:
    if "test_list" in row:
        tests = row["test_list"]
        whole = isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests)
        return None if whole else "needs test_list as a list of at least one text"
    if "test" not in row or "entry_point" not in row:
        return "needs test_list, or prompt, test and entry_point"
    if not isinstance(row["test"], str):
        return "needs test as text"
    if not isinstance(row["entry_point"], str) or not row["entry_point"].isidentifier():
        return "needs entry_point as the name of a function"
    try:
        ast.parse(_prompt(row))
    except (SyntaxError, ValueError) as error:  # every answer would fail with it in front
        return f"needs a prompt of Python code, alone or in a ```python block ({error})"
    return None


def _identity(asked: Asked) -> Mapping[str, str]:
    return {"code_limits": str(LIMITS)}


CODE = Metric(
    name="code",
    label="tests passed",
    summary=f"the generated Python code passes all of its row's tests, which are run; only with {ALLOWED}=1",
    rows="`test_list`, maybe `test_setup_code`, as MBPP; or `prompt`, `test` and `entry_point`, as HumanEval",
    scoring=Scoring.GENERATED,
    axis="passed, %",
    card_type="pass@1",
    check=_check,
    judge=_judge,
    identity=_identity,
)
