"""``cpift evaluate`` without a recipe: files, several models, differences by row, JSON. Expected values by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from tiny_run import call

from cpift.evaluation.side_by_side import SideBySide
from cpift.metrics.score import ScoreEntry


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and two files of rows."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.base(folder / "one", initializer_range=0.3)
    tiny.base(folder / "two", seed=1, initializer_range=0.3)
    for task in ("upper", "first"):
        tiny.jsonl(folder / f"{task}.jsonl", tiny.rows(task, 5, 1))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_models_side_by_side_on_files(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two models, two tasks, metrics of all and of one; the second call scores nothing anew."""
    tasks = [f"--task={name}={place / name}.jsonl" for name in ("upper", "first")]
    arguments = [
        "evaluate",
        place / "one",
        f"b={place / 'two'}",
        *tasks,
        "--metric",
        "loss",
        "--metric=first=exact_match",
    ]
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    assert not (tmp_path / "scores.json").exists()
    got = json.loads(out)
    assert list(got["models"]) == ["one", "b"]
    scores = {name: each["tasks"] for name, each in got["models"].items()}
    assert [scores["one"][task]["metric"] for task in ("upper", "first")] == ["loss", "exact_match"]
    by_task = {row["task"]: row for row in got["differences"]}
    assert (by_task["upper"]["model"], by_task["upper"]["against"]) == ("b", "one")
    expected = scores["b"]["upper"]["score"] - scores["one"]["upper"]["score"]
    assert by_task["upper"]["difference"] == pytest.approx(expected)
    assert by_task["upper"]["low"] < expected < by_task["upper"]["high"]
    code, out, err = call(capsys, *arguments)
    assert code == 0
    assert "10 of 10 rows were scored before" in out + err
    assert "b − one, upper: " in out
    assert json.loads((tmp_path / "scores.json").read_text()) == got
    assert call(capsys, *arguments, "--no-cache", "--rows=3", "--json")[1].count('"rows"') == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT about transformers
def test_an_adapter_and_rows_of_another_shape(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of PEFT's over its base; columns by --set; 3 rows drawn."""
    pytest.importorskip("peft")
    from adapters import adapter

    adapter(tmp_path / "lora", place / "one")
    tiny.jsonl(tmp_path / "q.jsonl", [{"problem": f"p{i}", "solution": "s"} for i in range(5)])
    columns = "tasks.q.columns={question: problem, answer: solution}"
    arguments = [f"--task=q={tmp_path / 'q.jsonl'}", "--metric=loss", "--set", columns, "--rows", 3, "--json"]
    code, out, err = call(capsys, "evaluate", place / "one", tmp_path / "lora", *arguments)
    assert code == 0, err
    got = {name: each["tasks"]["q"] for name, each in json.loads(out)["models"].items()}
    assert len(got["one"]["items"]) == 3
    assert got["one"]["score"] != got["lora"]["score"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["one"], "no task is given: add --task NAME=FILE, or a recipe"),
        (["r.yaml"], "no model is given"),
        (["one", "r.yaml", "--task", "t=x.jsonl"], "--task: r.yaml gives the tasks already"),
        (["one", "--task", "x.jsonl"], "--task x.jsonl: write it as NAME=PATH"),
        (["one", "--task", "t=none.jsonl"], "none.jsonl"),
        (["one", "--task", "t=x.jsonl", "--metric", "u=loss"], "--metric u=loss: u is none of the tasks (t)"),
        (["one", "--task", "t=x.jsonl", "--metric", "los"], "did you mean 'loss'"),
        (["one", "a/../one", "--task", "t=x.jsonl"], "two checkpoints are named one"),
        (["nowhere", "--task", "t=x.jsonl"], "nowhere"),
    ],
)
def test_what_is_refused(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, nothing written."""
    tiny.jsonl(tmp_path / "x.jsonl", tiny.rows("upper", 2, 1))
    code, _, err = call(capsys, "evaluate", *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl"}


def test_tables_by_hand() -> None:
    """2 of 4 and 3 of 4 right, one row gained: (1.5 − 0.5) / 6 ± 1.96 · √(2 − 1/6) / 6, which holds zero."""

    def entry(items: list[float]) -> ScoreEntry:
        return ScoreEntry(metric="exact_match", score=sum(items) / 4, items=items, tokens=[1] * 4)

    shown = SideBySide({"a": "a", "b": "b"}, {"a": {"t": entry([1, 1, 0, 0])}, "b": {"t": entry([1, 1, 1, 0])}})
    assert shown.table()[0] == ["task", "metric", "a", "b"]
    assert shown.table()[1][2].startswith("50.0 % (15.0 to 85.0)")
    half = 1.959964 * (2 - 1 / 6) ** 0.5 / 6
    low, high = (100 * (1 / 6 + sign * half) for sign in (-1, 1))
    expected = f"b − a, t: +25.0 points ({low:.1f} to {high:.1f}), no difference beyond noise"
    assert shown.difference_lines() == [expected]
