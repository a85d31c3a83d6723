"""Tasks that are trained together: shares by rows, by tokens, alike, or by weight; the numbers are worked out by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run

from cpift.data.encoding import Encoded
from cpift.data.mixture import drawn, pooled_rows
from cpift.errors import CpiftError
from cpift.planning.padding import padding, shuffled_padding
from cpift.planning.plan import plan
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.stages import train as stages

ROWS = {"a": 12, "b": 6, "c": 2}
TOKENS = {"a": 120.0, "b": 120.0, "c": 80.0}  # 10, 20 and 40 tokens a row


@pytest.mark.parametrize(
    ("mix", "rows"),
    [
        ("rows", {"a": 12, "b": 6, "c": 2}),
        ("equal", {"a": 7, "b": 7, "c": 6}),  # 20 / 3, the remainders to the first
        ("tokens", {"a": 11, "b": 6, "c": 3}),  # as 4 : 2 : 1, 20 rows: 11.43, 5.71, 2.86
        ({"a": 1, "b": 1, "c": 8}, {"a": 2, "b": 2, "c": 16}),
        ({"a": 1, "b": 1, "c": 1e6}, {"a": 1, "b": 1, "c": 18}),
    ],
)
def test_how_many_rows_each_task_gives(mix: Any, rows: dict[str, int]) -> None:
    """As many in all as there are, at least one of each."""
    assert pooled_rows(ROWS, TOKENS, mix) == rows
    assert sum(rows.values()) == 20
    assert pooled_rows({"a": 5}, {"a": 50.0}, mix) == {"a": 5}


def test_rows_are_repeated_as_evenly_as_can_be() -> None:
    """Seven of three: each twice, one a third time, by seed; rows stay in order."""
    counts = Counter(drawn(7, 3, 0, "a"))
    assert sorted(counts.values()) == [2, 2, 3]
    assert drawn(3, 3, 0, "a") == [0, 1, 2]
    assert drawn(7, 3, 0, "a") == drawn(7, 3, 0, "a") == sorted(drawn(7, 3, 0, "a"))
    assert len({tuple(drawn(2, 9, seed, task)) for seed in range(4) for task in "ab"}) > 4


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ("tokns", "mix: is none of rows, tokens, equal, nor a weight for each task .*tokns"),
        ({"reverse": 1}, "mix: has no weight for upper"),
        ({"reverse": 1, "upper": 1, "uper": 2}, "mix: uper is no task; tasks are reverse, upper"),
        ({"reverse": 1, "upper": 0}, "mix: the weight of upper is 0"),
        ({"reverse": 1, "upper": float("nan")}, "mix: the weight of upper is nan"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(tmp_path: Path, mix: Any, words: str) -> None:
    with pytest.raises(CpiftError, match=words):
        Recipe.parse({**tiny.recipe(tmp_path, ("reverse", "upper")), "mix": mix})


def test_a_run_trains_on_the_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the multi-task backbone is given, and what ``data`` and ``plan`` announce: a fifth and four fifths of the rows."""
    seen: dict[str, list[int]] = {}

    def train(start: Path, rows: list[Encoded], out: Path, *given: Any, **named: Any) -> Any:
        seen[out.parent.name + out.name] = [len(row.input_ids) for row in rows]
        raise CpiftError("enough")

    settings = tiny.recipe(tmp_path, ("reverse", "upper"), backbone={"from": "multi_task"})
    for task, letters in (("reverse", 1), ("upper", 3)):  # rows of one length a task
        question = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y" * letters}]
        tiny.jsonl(tmp_path / f"{task}.train.jsonl", [{"messages": question}] * 10)
    settings |= {"mix": {"reverse": 4, "upper": 1}}
    run(Recipe.parse(settings), tmp_path / "out", until="group")
    monkeypatch.setattr(stages, "fine_tune", train)
    with tiny_run.one_thread(), pytest.raises(CpiftError, match="enough"):
        run(Recipe.parse(settings), tmp_path / "out", until="backbone")
    ((_, lengths),) = seen.items()
    short, long = sorted(set(lengths))
    assert Counter(lengths) == {short: 16, long: 4}
    (tmp_path / "r.json").write_text(json.dumps(settings))
    _, out, _ = tiny_run.call(capsys, "data", tmp_path / "r.json", "--examples", "0")
    assert "by weights reverse 4, upper 1:" in out
    share = 4 * long / (4 * long + 16 * short)
    assert f"  upper: 20% of the rows (4), {share:.0%} of the tokens" in out
    assert "  upper: 20% of the rows (4)" in "\n".join(plan(Recipe.parse(settings))["mixture"])


def test_padding_of_shuffled_tasks() -> None:
    """Rows of 2 and of 10 tokens: in batches of a length none; shuffled, nearly each batch of 8 is 10 wide."""
    assert padding([10] * 8 + [2] * 8, 8) == 1
    assert padding([10, 2, 10, 2], 2) == 40 / 24
    rows = {"a": [Encoded([1] * 2, [1] * 2)] * 300, "b": [Encoded([1] * 10, [1] * 10)] * 100}
    expected = 10 * (1 - 0.75**8) + 2 * 0.75**8  # mean width: a batch is 2 wide where no long row is in it
    assert shuffled_padding(rows, {"a": 3000, "b": 1000}, 8) == pytest.approx(expected / 4, rel=0.03)
    assert shuffled_padding(rows, {"a": 1, "b": 400}, 8) == pytest.approx(1, abs=0.01)
