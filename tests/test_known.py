"""Scored rows are kept by content: a second scoring computes only what is new, and gives the same score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from cpift.checkpoint.identity import checkpoint_identity
from cpift.evaluation import opened
from cpift.evaluation import scores as evaluation
from cpift.evaluation.known import Known
from cpift.evaluation.scores import EvalTask, evaluate
from cpift.evaluation.task import Score
from cpift.metrics.store import Store


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("known") / "base", initializer_range=0.3)


class Watched:
    """Counts the models that are loaded, and the rows that a model reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loads, self.rows = 0, 0
        load = opened.load_model
        forced, options, generate = (
            getattr(evaluation, name) for name in ("teacher_forced", "score_options", "generate")
        )

        def counted(function: Any, number: int) -> Any:
            def call(*given: Any, **more: Any) -> Any:
                rows = given[number]
                self.rows += len(rows if isinstance(rows, Sequence) else rows.rows)
                return function(*given, **more)

            return call

        def loaded(*given: Any) -> Any:
            self.loads += 1
            return load(*given)

        monkeypatch.setattr(opened, "load_model", loaded)
        monkeypatch.setattr(evaluation, "teacher_forced", counted(forced, 3))
        monkeypatch.setattr(evaluation, "score_options", counted(options, 2))
        monkeypatch.setattr(evaluation, "generate", counted(generate, 2))

    def since(self) -> tuple[int, int]:
        """Loads and rows since the last call."""
        seen = self.loads, self.rows
        self.loads = self.rows = 0
        return seen


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def options(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"q{i} ", "completion": "ab", "options": ["ab", "c"], "answer": i % 2} for i in range(count)]


TASKS = {
    "loss": EvalTask(tiny.rows("upper", 6, 1), "loss"),
    "exact": EvalTask(tiny.rows("upper", 6, 1), "exact_match"),
    "options": EvalTask(options(6), "multiple_choice"),
    "chrf": EvalTask(tiny.rows("upper", 6, 1), "chrf", max_new_tokens=4),
}


def scored(base: Path, store: Path, tasks: dict[str, EvalTask], **settings: Any) -> dict[str, Score]:
    known = Known(checkpoint_identity(base), settings, Store(store))
    return evaluate(base, tasks, max_length=64, known=known)


@pytest.mark.parametrize("name", list(TASKS))
def test_only_new_rows_are_scored(name: str, base: Path, tmp_path: Path, watched: Watched) -> None:
    """4 rows, then the same again, then 6 of which 4 are known, in another order: as without anything kept."""
    task = TASKS[name]
    some = {"t": replace(task, rows=task.rows[:4])}
    first = scored(base, tmp_path, some)["t"]
    assert watched.since() == (1, 4)
    assert first == evaluate(base, some, max_length=64)["t"]
    watched.since()
    again = scored(base, tmp_path, some)["t"]
    assert watched.since() == (0, 0)
    assert again == replace(first, reused=4)
    more = scored(base, tmp_path, {"t": replace(task, rows=task.rows[::-1])})["t"]
    assert watched.since() == (1, 2)
    assert more.reused == 4
    alone = evaluate(base, {"t": replace(task, rows=task.rows[::-1])}, max_length=64)["t"]
    assert more.items == pytest.approx(alone.items, abs=1e-5)
    assert more.score == pytest.approx(alone.score, abs=1e-5)
    assert more.tokens == alone.tokens


def test_answers_are_generated_once_for_all_metrics(
    base: Path, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two metrics in one call; a third one later, for which no model is loaded."""
    rows = tiny.rows("upper", 5, 1)
    two = {name: EvalTask(rows, name, max_new_tokens=4) for name in ("chrf", "generate")}
    evaluate(base, two)
    assert watched.since() == (1, 5)
    scored(base, tmp_path, two)
    assert watched.since() == (1, 5)
    (tmp_path / "late.py").write_text("def metric(text, row):\n    return len(text) / 100")
    monkeypatch.chdir(tmp_path)
    late = scored(base, tmp_path, {"g": EvalTask(rows, "late:metric", max_new_tokens=4)})["g"]
    assert watched.since() == (0, 0)
    assert len(late.items) == late.reused == 5


def test_what_decides_about_an_outcome_is_part_of_its_key(base: Path, tmp_path: Path, watched: Watched) -> None:
    """Another row, reference, limit, setting, model or precision is scored anew; of answers, the reference is not read."""
    task = EvalTask(tiny.rows("upper", 3, 1), "exact_match")
    other = [
        {**row, "answer": "x", "messages": [row["messages"][0], {"role": "assistant", "content": "x"}]}
        for row in task.rows
    ]
    scored(base, tmp_path, {"t": task})
    assert watched.since() == (1, 3)
    scored(base, tmp_path, {"t": replace(task, rows=other)})
    assert watched.since() == (1, 3)
    scored(base, tmp_path, {"t": task}, attn_implementation="eager")
    assert watched.since() == (1, 3)
    loss = replace(task, metric="loss")
    for limit in (64, 32):
        evaluate(base, {"t": loss}, max_length=limit, known=Known("m", {}, Store(tmp_path)))
        assert watched.since() == (1, 3)
    evaluate(base, {"t": loss}, max_length=32, known=Known("another", {}, Store(tmp_path)))
    assert watched.since() == (1, 3)
    chrf = EvalTask(task.rows, "chrf", max_new_tokens=3)
    scored(base, tmp_path, {"t": chrf})
    assert watched.since() == (1, 3)
    scored(base, tmp_path, {"t": replace(chrf, rows=other)})
    assert watched.since() == (0, 0)
    scored(base, tmp_path, {"t": replace(chrf, max_new_tokens=5)})
    assert watched.since() == (1, 3)


def test_a_damaged_or_unwritable_store_costs_time_alone(base: Path, tmp_path: Path, watched: Watched) -> None:
    task = {"t": EvalTask(tiny.rows("upper", 3, 1), "exact_match")}
    first = scored(base, tmp_path / "store", task)
    for file in (tmp_path / "store").rglob("*.json"):
        file.write_text('{"x": [1], "y": "z"}')
    assert scored(base, tmp_path / "store", task) == first
    (tmp_path / "file").write_text("")
    assert scored(base, tmp_path / "file", task) == first
    assert watched.since() == (3, 9)
