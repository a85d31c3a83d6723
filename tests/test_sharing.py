"""Rows scored by several processes: the batches of one process, each made once, and so the same bits."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import preloaded
import pytest
import tiny

from cpift.distributed import sharing
from cpift.distributed.sharing import ALONE, Share
from cpift.evaluation import batching, opened
from cpift.evaluation.batching import Room, batches, in_batches
from cpift.evaluation.guard import Guarded, questions, score_guard
from cpift.evaluation.scores import EvalTask, evaluate
from cpift.recipe.guard import GENERAL, NEUTRAL
from cpift.train.models import load_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("sharing") / "base")


def tasks() -> dict[str, EvalTask]:
    """By one pass, by options' likelihoods, and by generated answers."""
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in tiny.rows("double", 11, 0)]
    choices = [
        {"prompt": f"pick {a}", "completion": "de", "options": ["abc", "de", "f"], "answer": "de"} for a in "abcdefg"
    ]
    return {
        "loss": EvalTask(rows, "loss"),
        "options": EvalTask(choices, "multiple_choice"),
        "generated": EvalTask(tiny.rows("upper", 9, 1), "exact_match", pattern="(.+)", max_new_tokens=5),
    }


@dataclass(frozen=True)
class Threads(Share):
    """A share whose processes are threads of one: they meet at a barrier."""

    barrier: Any = None
    values: Any = None

    def gather(self, value: Any) -> list[Any]:
        self.values[self.index] = json.loads(json.dumps(value))
        self.barrier.wait()
        gathered = list(self.values)
        self.barrier.wait()
        return gathered


def shares(count: int) -> list[Threads]:
    barrier, values = threading.Barrier(count, timeout=60), [None] * count
    return [Threads(index, count, barrier, values) for index in range(count)]


def by_all(count: int, call: Any) -> list[Any]:
    """What ``call(share)`` returns in each of ``count`` threads."""
    outcomes: list[Any] = [None] * count

    def work(share: Threads) -> None:
        outcomes[share.index] = call(share)

    threads = [threading.Thread(target=work, args=(share,)) for share in shares(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.parametrize("count", [2, 3])
def test_every_batch_of_one_process_is_made_once(count: int) -> None:
    """Of the least room of all; rows that no other process has done are filled in."""
    lengths = [3, 9, 4, 4, 1, 7, 2, 8, 5, 6]
    room = Room(20, lambda length: length, rows=4)
    whole = [sorted(batch) for batch in batches(lengths, room)]

    def call(share: Share) -> tuple[list[list[int]], list[int]]:
        made: list[list[int]] = []
        more = replace(room, nbytes=room.nbytes + 7 * share.index)  # another card, with more memory free
        column = [0] * len(lengths)
        done = in_batches(lengths, more, made.append, share)
        for row in done:
            column[row] = 10 * row
        share.fill(done, column)
        return made, column

    outcomes = by_all(count, call)
    assert sorted(sorted(batch) for made, _ in outcomes for batch in made) == sorted(whole)
    assert all(made for made, _ in outcomes)
    assert all(column == [10 * row for row in range(len(lengths))] for _, column in outcomes)


def test_a_row_that_nobody_has_done_is_an_error() -> None:
    def call(share: Share) -> str:
        with pytest.raises(RuntimeError) as refused:
            share.fill([share.index], [0, 0, 0])
        return str(refused.value)

    assert by_all(2, call) == ["1 rows were scored by no process"] * 2


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of few rows."""
    monkeypatch.setattr(batching, "LOGITS", 15_000)
    monkeypatch.setattr(batching, "ROWS_ON_CPU", 2)


def scored(share: Share, base: Path) -> dict[str, Any]:
    return {name: score.to_dict() for name, score in evaluate(base, tasks(), share=share).items()}


@dataclass(frozen=True)
class InTurn(Share):
    """A share of two processes that score one after the other, the second first; ``log``: what it has filled in."""

    log: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.count

    def fill(self, done: Sequence[int], *columns: list[Any]) -> None:
        if self.index:
            self.log.append([(place, [column[place] for column in columns]) for place in done])
            return
        others = json.loads(json.dumps(self.log.pop(0)))
        assert sorted([*done, *(place for place, _ in others)]) == list(range(len(columns[0])))
        assert done
        assert others
        for place, values in others:
            for column, value in zip(columns, values, strict=True):
                column[place] = value


def test_two_score_as_one_does(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit: loss, options and generated answers. Only the first has the scores."""
    network = load_model(base).eval()
    monkeypatch.setattr(opened, "load_model", lambda *_: network)
    second = InTurn(1, 2)
    assert scored(second, base) == {}
    assert scored(InTurn(0, 2, second.log), base) == scored(ALONE, base)
    assert not second.log


def guarded(share: Share, base: Path) -> Any:
    """The built-in guard set, and a file of rows whose answers are generated."""
    rows = EvalTask(tiny.rows("upper", 7, 1), "exact_match", pattern="(.+)", max_new_tokens=5)
    guard = [
        Guarded(NEUTRAL, None),
        Guarded(GENERAL, EvalTask(questions()[:9], "multiple_choice")),
        Guarded("own", rows),
    ]
    return score_guard(base, guard, share=share)


def test_two_score_the_guard_as_one_does(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit: the text by the first alone, the rows of the others by both."""
    network = load_model(base).eval()
    monkeypatch.setattr(opened, "load_model", lambda *_: network)
    second = InTurn(1, 2)
    assert guarded(second, base) == {"scores": {}}
    assert len(second.log) == 2, "a part of the questions, and of the rows"
    assert guarded(InTurn(0, 2, second.log), base) == guarded(ALONE, base)
    assert set(guarded(ALONE, base)["scores"]) == {NEUTRAL, GENERAL, "own"}


def _in_a_process(base: Path, out: Path) -> None:
    batching.LOGITS, batching.ROWS_ON_CPU = 15_000, 2
    share = sharing.of_run()
    (out / str(share.index)).write_text(json.dumps(scored(share, base)))


@pytest.mark.long
def test_two_processes_score_as_one_does(base: Path, tmp_path: Path) -> None:
    """By the launcher's store, each with a model of its own."""
    preloaded.call_ranks(2, _in_a_process, base, tmp_path)
    assert json.loads((tmp_path / "0").read_text()) == json.loads(json.dumps(scored(ALONE, base)))
    assert (tmp_path / "1").read_text() == "{}"


def test_the_command_shares_the_rows_out(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two processes the scores of one; the second one writes nothing and is silent."""
    monkeypatch.undo()  # the processes have batches of the usual size: two of the options
    some = tasks()
    files = {name: tiny.jsonl(tmp_path / f"{name}.jsonl", list(some[name].rows)) for name in ("loss", "options")}
    given = ["evaluate", str(base), "--no-cache", "--metric", "loss=loss", "--metric", "options=multiple_choice"]
    given += [word for name, file in files.items() for word in ("--task", f"{name}={file}")]
    codes, said = preloaded.run_ranks(2, [*given, "--out", str(tmp_path / "two.json")], tmp_path / "said")
    assert codes == [0, 0], said[-3000:]
    assert (tmp_path / "said.1").read_text() == ""
    assert "loss: loss" in (tmp_path / "said.0").read_text()
    scores = evaluate(base, {name: some[name] for name in files})
    written = json.loads((tmp_path / "two.json").read_text())["tasks"]
    assert {name: entry["items"] for name, entry in written.items()} == {n: score.items for n, score in scores.items()}
