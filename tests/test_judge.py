"""Metrics `judge` and `judge_pairwise`, by a judge whose replies are written here. Expected values by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from judge_server import Judge, judge_server

from cpift.data.rows import metric_of
from cpift.errors import CpiftError
from cpift.evaluation.opened import Opened
from cpift.evaluation.scores import EvalTask, evaluate, left_out_warning, notes_message, scoring_identity
from cpift.evaluation.timing import measure_scoring
from cpift.metrics import METRICS, intervals, mean_unit
from cpift.metrics.judge import read_score
from cpift.metrics.judge_pairwise import outcome, read_letter
from cpift.metrics.metric import OF_TEN, PER_CENT, Asked, Judged
from cpift.metrics.score import ScoreEntry
from cpift.metrics.store import Store
from cpift.recipe.recipe import Recipe
from cpift.recipe.task import Task

KEY = "sk-not-to-be-found"
TEXTS = ["the blue answer", "the red answer", "a third {answer}"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("CPIFT_CACHE", str(tmp_path / "cache"))


def row(text: str = "the reference", question: str = "q") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text}]}


ROWS = [row(question=f"question {i}") for i in range(3)]


def judged(judge: Judge, name: str = "judge", texts: list[str] = TEXTS, **settings: Any) -> Judged:
    given = {"model": "m", "base_url": judge.url, "wait": 0, "parallel": 1, **settings}
    return METRICS[name].judged(Asked(settings=given), texts, ROWS[: len(texts)])


def kept(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.read_text()


# Replies


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Good.\nScore: 7", 7),
        ("score = 7.5/10", 7.5),
        ("**Score:** **8**", 8),
        ("Score: [[9]]", 9),
        ('{"score": 3}', 3),
        ("Score: 2 at first, but on reflection\nScore: 4", 4),
        ("<think>Score: 1</think>Score: 10", 10),
        ("6", 6),
        (" 6/10\n", 6),
        ("Score: 0", 0),
        ("Score: 11", None),
        ("Score: -1", None),
        ("I would give 7 points", None),
        ("", None),
        ("Score: <number>", None),
    ],
)
def test_the_rating_in_a_reply(reply: str, score: float | None) -> None:
    assert read_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("Fine.\nBetter: A", "A"), ("better = b", "B"), ("**Better:** [[C]]", "C"), ("B", "B"), ("Better: D", None), ("A B", None)],
)  # fmt: skip
def test_the_decision_in_a_reply(reply: str, letter: str | None) -> None:
    assert read_letter(reply) == letter


# Ratings


def test_ratings_become_shares_of_ten() -> None:
    """The judge sees question and answer as they are; what was used is counted."""
    with judge_server(lambda number, text: f"Score: {[8, 2.5, 10][number]}") as judge:
        result = judged(judge)
    assert result.items == [0.8, 0.25, 1.0]
    assert result.notes == {"requests": 3, "cached": 0, "prompt_tokens": 300, "completion_tokens": 30}
    assert "question 1" in judge.questions[1]
    assert "the red answer" in judge.questions[1]
    assert "a third {answer}" in judge.questions[2]  # what is put in is not looked through for names
    assert judge.bodies[0]["model"] == "m"
    assert (judge.bodies[0]["temperature"], judge.bodies[0]["max_tokens"]) == (0, 512)
    assert set(judge.keys) == {f"Bearer {KEY}"}
    assert METRICS["judge"].value(0.76) == "7.60 of 10"


def test_a_reply_is_asked_for_once(tmp_path: Path) -> None:
    """By content: another judge, or another answer, is asked again. No file holds the key."""
    with judge_server(lambda number, text: "Score: 5") as judge:
        judged(judge)
        again = judged(judge)
        assert len(judge.bodies) == 3
        assert again.items == [0.5] * 3
        assert again.notes == {"requests": 0, "cached": 3, "prompt_tokens": 0, "completion_tokens": 0}
        judged(judge, texts=["the blue answer", "another", "a third {answer}"])
        assert len(judge.bodies) == 4
        judged(judge, model="another")
        assert len(judge.bodies) == 7
        judged(judge, cache=str(tmp_path / "elsewhere"))
        assert len(judge.bodies) == 10
    files = [*kept(tmp_path / "cache"), *kept(tmp_path / "elsewhere")]
    assert len(files) == 10
    assert not any(KEY in text for text in files)


def test_an_empty_answer_scores_0_and_is_not_sent() -> None:
    with judge_server(lambda number, text: "Score: 5") as judge:
        assert judged(judge, texts=[" \n", "x"]).items == [0.0, 0.5]
        assert len(judge.bodies) == 1


def test_replies_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once more, with a reminder; then the row has no outcome. It never scores 0."""
    monkeypatch.setattr("cpift.evaluation.scores.generate", lambda *_, **__: [(text, 7) for text in TEXTS])
    replies = {"question 0": "Score: 8", "question 1": "No idea", "question 2": "Well"}

    def reply(number: int, text: str) -> str:
        if text.startswith("Reply with your rating"):
            return "Score: 3" if "Well" in str(judge.bodies[number]) else "Still none"
        return next(value for name, value in replies.items() if name in text)

    with judge_server(reply) as judge:
        settings = {"model": "m", "base_url": judge.url, "wait": 0}
        task = EvalTask(ROWS, "judge", settings=settings)
        score = evaluate(tiny.base(tmp_path / "base"), {"t": task})["t"]
    assert score.items == [0.8, 0.3]
    assert score.score == pytest.approx(0.55)
    assert (score.left_out, score.rows, score.tokens) == (1, [0, 2], [7, 7])
    assert score.notes["requests"] == 5
    assert "1 evaluation rows have no outcome by judge" in left_out_warning("t", score, None).text
    assert "requests 5, cached 0, prompt tokens 500, completion tokens 50" in str(notes_message("t", score))
    assert score.to_dict()["rows"] == [0, 2]


def test_no_reply_that_can_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpift.evaluation.scores.generate", lambda *_, **__: [("x", 1)])
    with judge_server(lambda number, text: "none") as judge:
        task = EvalTask(ROWS[:1], "judge", settings={"model": "m", "base_url": judge.url})
        with pytest.raises(CpiftError, match=r"tasks\.t: no reply of judge could be read; look at its prompt"):
            evaluate(tiny.base(tmp_path / "base"), {"t": task})


# Pairs


def test_positions_are_swapped() -> None:
    """A judge that always takes the first gives every answer a half; one that reads gives what is right."""
    with judge_server(lambda number, text: "Better: A") as judge:
        assert judged(judge, "judge_pairwise").items == [0.5] * 3
        assert len(judge.bodies) == 6
        first, second = judge.questions[:2]
        assert first.index("the blue answer") < first.index("the reference")
        assert second.index("the reference") < second.index("the blue answer")

    def likes_blue(number: int, text: str) -> str:
        a, b = text.partition("[Answer B]")[::2]
        return "Better: A" if "blue" in a else "Better: B" if "blue" in b else "Better: C" if "the red" in text else "?"

    with judge_server(likes_blue) as judge:
        assert judged(judge, "judge_pairwise").items == [1.0, 0.5, None]


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [("A", "B", 1), ("B", "A", 0), ("A", "A", 0.5), ("B", "B", 0.5), ("C", "C", 0.5), ("A", "C", 0.5), ("C", "A", 0.5)],
)
def test_the_outcome_of_two_orders(first: str, second: str, value: float) -> None:
    assert outcome(first, second) == value


# What goes wrong


@pytest.mark.parametrize("problem", [429, 500, 503, 0, (429, {"Retry-After": "0"}, "{}"), (200, {}, "no JSON")])
def test_what_may_pass_is_tried_again(problem: Any) -> None:
    with judge_server(lambda number, text: problem if number < 2 else "Score: 5") as judge:
        assert judged(judge, texts=["x"]).items == [0.5]
        assert len(judge.bodies) == 3


def test_after_the_last_try_it_ends_and_keeps_what_it_has() -> None:
    with judge_server(lambda number, text: "Score: 5" if "blue" in text else 503) as judge:
        with pytest.raises(CpiftError, match=r"no reply after 3 tries .HTTP 503.*start again to resume"):
            judged(judge, retries=2)
        assert len(judge.bodies) == 1 + 3
    with judge_server(lambda number, text: "Score: 5") as other:
        other.url = judge.url  # nobody is there any more: the first answer is on disk
        assert judged(other, texts=TEXTS[:1]).items == [0.5]
        with pytest.raises(CpiftError, match="no reply after 1 tries"):
            judged(other, retries=0)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ((401, {}, f'{{"error": "wrong key {KEY}"}}'), "refused the request, HTTP 401.*wrong key ….*OPENAI_API_KEY holds the key"),
        ((404, {}, "no such model"), "HTTP 404: no such model; look at base_url and model"),
        ((307, {"Location": "http://127.0.0.1:9/v1"}, ""), "HTTP 307"),
        ((200, {}, '{"choices": []}'), "replied otherwise than the chat completions API says"),
    ],
)  # fmt: skip
def test_what_will_not_pass_ends_at_once_and_shows_no_key(problem: Any, words: str) -> None:
    with judge_server(lambda number, text: problem) as judge:
        with pytest.raises(CpiftError, match=words) as caught:
            judged(judge)
        assert len(judge.bodies) == 1
    assert KEY not in str(caught.value)


def test_more_questions_than_allowed_are_refused_before_the_first() -> None:
    with judge_server(lambda number, text: "Score: 5") as judge:
        with pytest.raises(CpiftError, match=r"asked 3 questions, and metric_settings\.max_requests is 2"):
            judged(judge, max_requests=2)
        assert judge.bodies == []
        judged(judge, texts=TEXTS[:1])
        assert judged(judge, max_requests=2).items == [0.5] * 3  # one of three is on disk


def test_a_key_is_asked_for_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the default endpoint alone: one of one's own may need none."""
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(CpiftError, match=r"tasks\.t: metric judge: set the environment variable OPENAI_API_KEY"):
        metric_of("t", Task(train="x", eval="y", metric="judge", metric_settings={"model": "m"}), ROWS)
    with judge_server(lambda number, text: "Score: 5") as judge:
        own = {"model": "m", "base_url": judge.url}
        assert metric_of("t", Task(train="x", eval="y", metric="judge", metric_settings=own), ROWS) == "judge"
        judged(judge, texts=["x"])
        assert judge.keys == [None]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "metric_settings.model: Field required"),
        ({"model": "m", "base_url": "file:///etc/passwd"}, "base_url: must begin with http"),
        ({"model": "m", "base_url": "https://user:secret@host/v1"}, "the key goes into the environment variable"),
        ({"model": "m", "base_url": "https://host/v1?key=secret"}, "the key goes into the environment variable"),
        ({"model": "m", "api_key": "secret"}, "judge has no 'api_key'"),
        ({"model": "m", "request": {"stream": True}}, "cannot hold stream"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Task(train="x", eval="y", metric="judge", metric_settings=settings)


# Prompts


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    """Counted from the recipe's folder. Another text is another score; a limit on time is not."""
    (tmp_path / "own.txt").write_text("{question} | {answer} | {reference} | {other}")
    settings = {"model": "m", "prompt": "own.txt"}
    task = {"train": "x", "eval": "y", "metric": "judge", "metric_settings": settings}
    (tmp_path / "r.yaml").write_text(json.dumps({"model": "m", "tasks": {"t": task}}))
    loaded = Recipe.load(tmp_path / "r.yaml").tasks["t"]
    assert loaded.metric_settings["prompt"] == str(tmp_path / "own.txt")
    with judge_server(lambda number, text: "Score: 5") as judge:
        judged(judge, texts=["x {question}"], prompt=loaded.metric_settings["prompt"])
        assert judge.questions == ["question 0 | x {question} | the reference | {other}"]
    before = scoring_identity(loaded, "judge")
    slower = loaded.model_copy(update={"metric_settings": {**loaded.metric_settings, "timeout": 9}})
    assert scoring_identity(slower, "judge") == before
    (tmp_path / "own.txt").write_text("{question} {answer}")
    assert scoring_identity(loaded, "judge") != before
    (tmp_path / "own.txt").write_text("{question}")
    with pytest.raises(
        CpiftError, match=r"tasks\.t: metric judge: .*own\.txt has no \{answer\}; it may have \{question\}"
    ):
        metric_of("t", loaded, ROWS)


def test_earlier_turns_are_shown_with_their_roles() -> None:
    turns = [("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    with judge_server(lambda number, text: "Score: 5") as judge:
        asked = Asked(settings={"model": "m", "base_url": judge.url})
        METRICS["judge"].judged(asked, ["five"], rows)
        assert "system: be brief\n\nuser: one\n\nassistant: two\n\nuser: three" in judge.questions[0]
        assert "four" not in judge.questions[0]


# Around it


def test_plan_asks_no_judge(tmp_path: Path) -> None:
    """Scoring is timed without it."""
    with judge_server(lambda number, text: "Score: 5") as judge:
        task = EvalTask(ROWS, "judge", max_new_tokens=2, settings={"model": "m", "base_url": judge.url})
        _, seconds = measure_scoring(Opened(tiny.base(tmp_path / "base")), {"t": task}, None)
        assert seconds["t"] > 0
        assert judge.bodies == []


def test_differences_are_of_the_rows_that_both_have() -> None:
    """By hand: rows 1 and 3 are common; 0.5 − 0.9 and 0.3 − 0.4, mean −0.25."""
    a = ScoreEntry(metric="judge", score=0.6, items=[1.0, 0.5, 0.3], tokens=[1, 1, 1], rows=[0, 1, 3])
    b = ScoreEntry(metric="judge", score=0.6, items=[0.9, 0.5, 0.4], tokens=[1, 1, 1], rows=[1, 2, 3])
    found = intervals.of_difference(a, b)
    assert found is not None
    assert found[0] == pytest.approx(-0.25)
    whole = ScoreEntry(metric="judge", score=0.4, items=[0.1, 0.2, 0.9, 0.4], tokens=[1] * 4)
    found = intervals.of_difference(a, whole)
    assert found is not None
    assert found[0] == pytest.approx((0.9 + 0.3 - 0.1) / 3)


def test_means_over_tasks_take_ratings_in() -> None:
    assert mean_unit(["judge"]) == OF_TEN
    assert mean_unit(["judge", "exact_match", "loss"]) == PER_CENT
    assert mean_unit(["judge", "loss"]) == OF_TEN


def test_what_was_not_used_for_longest_is_removed(tmp_path: Path) -> None:
    """A limit of 1,000 bytes, files of 302: three fit; the one that was read is kept."""

    store = Store(tmp_path, limit=1000)
    for number in range(4):
        store.put(f"{number}" * 32, "x" * 300)
        os.utime(tmp_path / f"{number}{number}" / f"{f'{number}' * 32}.json", (number, number))
    assert store.get("0" * 32) == "x" * 300
    store.prune()
    assert [store.get(f"{number}" * 32) is not None for number in range(4)] == [True, False, False, True]
    (tmp_path / "00" / f"{'0' * 32}.json").write_text("{damaged")
    assert store.get("0" * 32) is None
