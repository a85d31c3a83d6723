"""Rows that are cut, and ``cpift data``: counted by hand, in plan, run and data alike."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
import torch
from transformers import AutoModelForCausalLM

from cpift.data.lengths import Bin, cut_warning, encode_measured, histogram
from cpift.data.store import write_jsonl
from cpift.evaluation.scores import EvalTask, evaluate
from cpift.files import manifest
from cpift.metrics.intervals import of_score
from cpift.planning.plan import plan
from cpift.recipe.recipe import Recipe
from cpift.runs.executor import Runner
from cpift.runs.stage import Run
from cpift.runs.stages.graph import first_stages

LIMIT = 40
# One token a byte, and the end: 5 + 4 + 1; 50 + 4 + 1, nothing left to learn; 5 + 50 + 1, the end cut off.
SHORT = {"prompt": "p" * 5, "completion": "c" * 4}
BEYOND = {"prompt": "p" * 50, "completion": "c" * 4}
LONG = {"prompt": "p" * 5, "completion": "c" * 50}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    data = tiny.recipe(folder, ("reverse",), **changes)
    tiny.jsonl(folder / "cut.jsonl", [SHORT] * 7 + [BEYOND] + [LONG] * 2)
    tiny.jsonl(folder / "cut.eval.jsonl", [{**SHORT, "prompt": "q"}, {**BEYOND, "prompt": "q" * 50}])
    data["tasks"]["cut"] = {"train": str(folder / "cut.jsonl"), "eval": str(folder / "cut.eval.jsonl")}
    data["training"]["max_length"] = LIMIT
    return data


def test_what_is_counted() -> None:
    """By hand."""
    kept, lengths = encode_measured([SHORT] * 7 + [BEYOND] + [LONG] * 2, tiny.tokenizer(), LIMIT)
    assert [len(row.input_ids) for row in kept] == [10] * 7 + [LIMIT] * 2
    assert (lengths.rows, lengths.cut, lengths.left_out, lengths.longest) == (10, 3, 1, 56)
    assert (lengths.tokens, lengths.trained) == (7 * 10 + 2 * LIMIT, 7 * 5 + 2 * (LIMIT - 5))
    assert lengths.cut_share == 0.3
    assert lengths.histogram == (Bin(1, 16, 7), Bin(17, 32, 0), Bin(33, 64, 3))
    assert histogram([]) == ()
    assert histogram([17, 33]) == (Bin(17, 32, 1), Bin(33, 64, 1))
    assert encode_measured([LONG], tiny.tokenizer(), None)[1].cut == 0
    assert encode_measured([LONG], tiny.tokenizer(), 56)[1].cut == 0
    assert encode_measured([LONG], tiny.tokenizer(), 55)[1].cut == 1


def test_the_warning_is_given_from_one_per_cent() -> None:
    """With task, share, longest row and the key."""
    few = encode_measured([SHORT] * 100 + [LONG], tiny.tokenizer(), LIMIT)[1]
    assert cut_warning("t", few, LIMIT) is None
    warning = cut_warning("t", encode_measured([SHORT] * 99 + [LONG], tiny.tokenizer(), LIMIT)[1], LIMIT)
    assert warning is not None
    for part in ("task t: 1 of 100 training rows (1.0%)", "training.max_length 40", "the longest has 56 tokens"):
        assert part in warning.text
    assert cut_warning("t", few, None) is None


def test_rows_without_a_token_are_left_out_of_a_loss(tmp_path: Path) -> None:
    """And are no 0.0 among the items: mean and interval are those of the other rows."""
    base = tiny.base(tmp_path / "base")
    got = evaluate(base, {"t": EvalTask([SHORT, BEYOND, LONG], "loss")}, max_length=LIMIT)["t"]
    assert (len(got.items), got.tokens, got.left_out) == (2, [5, LIMIT - 5], 1)
    alone = evaluate(base, {"t": EvalTask([SHORT, LONG], "loss")}, max_length=LIMIT)["t"]
    assert (alone.items, alone.score, alone.left_out) == (got.items, got.score, 0)
    ids = tiny.tokenizer()(SHORT["prompt"] + SHORT["completion"])["input_ids"] + [tiny.tokenizer().eos_token_id]
    with torch.inference_mode():
        logs = AutoModelForCausalLM.from_pretrained(base)(torch.tensor([ids])).logits[0].log_softmax(-1)
    own = [-float(logs[i - 1, ids[i]]) for i in range(5, 10)]
    assert got.items[0] == pytest.approx(sum(own) / 5, rel=1e-5)
    assert of_score(got.to_dict()) == of_score(alone.to_dict())
    assert math.isfinite(got.score)


def test_run_counts_and_warns_once(tmp_path: Path) -> None:
    """Before anything is trained; the probe keeps the warning for the report."""
    data = Recipe.parse(recipe(tmp_path))
    listener = tiny_run.Listener()
    from cpift.runs.pipeline import run

    run(data, tmp_path / "out", until="probe", reporter=listener)
    told = [text for text in listener.said if "task cut" in text and "max_length" in text]
    assert len(told) == 2, told
    assert "task cut: 3 of 10 training rows (30.0%) are longer" in told[0]
    assert "1 rows have nothing left to be learnt" in told[0]
    assert "task cut: 1 of 2 evaluation rows (50.0%)" in told[1]
    made = manifest.read(tmp_path / "out/stages/01-probe/cut")
    assert made is not None
    assert (made.facts["rows_cut"], made.facts["rows_left_out"]) == (3, 1)
    texts = [found["text"] for found in made.facts["findings"]]
    assert any("3 of 10 training rows" in text for text in texts)
    again = tiny_run.Listener()
    run(data, tmp_path / "out", until="probe", reporter=again)
    assert sum("3 of 10 training rows" in text for text in again.said) == 1


def test_plan_and_data_have_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From one function."""
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(tmp_path)))
    planned = plan(Recipe.load(tmp_path / "r.yaml"))
    code, out, _ = tiny_run.call(capsys, "data", tmp_path / "r.yaml", "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["max_length"] == LIMIT
    for name, task in shown["tasks"].items():
        assert len(task.pop("examples")) == 3
        assert {
            key: value for key, value in json.loads(json.dumps(planned["data"][name])).items() if key != "examples"
        } == task
    cut = shown["tasks"]["cut"]
    assert (cut["train"]["cut"], cut["train"]["cut_share"], cut["train"]["tokens"]) == (3, 0.3, 150)
    assert (cut["metric"], cut["shapes"]) == ("loss", {"prompt_completion": 12})
    assert cut["row_share"] == 9 / 25  # one row is left out
    other = shown["tasks"]["reverse"]["train"]["tokens"]
    assert cut["token_share"] == 150 / (150 + other)
    assert any("3 of 10" in text for text in planned["warnings"])
    code, out, _ = tiny_run.call(capsys, "plan", tmp_path / "r.yaml")
    assert "data         cut: 10 rows, 150 tokens" in out
    assert "mixture      where tasks are trained together, by rows:" in out
    assert "  cut: 36% of the rows (9), " in out
    assert "30.0% cut; prompt_completion" in out


def test_what_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Histogram, shape and rendered rows, the trained part in brackets; the warnings on the other stream."""
    data = recipe(tmp_path)
    tiny.jsonl(tmp_path / "a.jsonl", [{"instruction": "say", "input": "x", "output": "y"}] * 4)
    data["tasks"]["alpaca"] = {"train": [{"path": str(tmp_path / "a.jsonl"), "weight": 2}], "eval": 1}
    data["training"]["max_length"] = 64
    data["tasks"].pop("cut")
    (tmp_path / "r.yaml").write_text(json.dumps(data))
    before = set(tmp_path.rglob("*"))
    code, out, err = tiny_run.call(capsys, "data", tmp_path / "r.yaml", "--examples", "1")
    assert code == 0
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("alpaca: 6 training rows, "))
    assert "  shape      alpaca (4 rows)" in lines[at:]
    assert f"  source     {tmp_path / 'a.jsonl'}: 3 rows, used as 6" in lines[at:]
    shown = lines[
        lines.index("  example 1, 27 tokens:") + 1 : lines.index("where tasks are trained together, by rows:")
    ]
    assert [line.strip() for line in shown if line.strip()] == [
        "<|im_start|>user", "say", "x<|im_end|>", "<|im_start|>assistant", "⟦y<|im_end|>", "⟧"
    ]  # fmt: skip
    assert "evaluation rows also stand in the training rows" in err
    assert set(tmp_path.rglob("*")) == before
    code, out, _ = tiny_run.call(capsys, "data", tmp_path / "r.yaml", "--set", "tasks.alpaca.columns={output: say}")
    assert code == 2


def test_the_trained_part_is_green_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in brackets under NO_COLOR; what a row holds does not steer the terminal."""
    from cpift.cli.data import show_example
    from cpift.runs.survey import Example, Piece

    example = Example(3, (Piece("ask \x1b[2J", False), Piece("[bold]say", True)))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    show_example(example)
    assert "\x1b[32m[bold]say\x1b[0m" in (shown := capsys.readouterr().out)
    assert "\x1b[2J" not in shown
    monkeypatch.setenv("NO_COLOR", "1")
    show_example(example)
    assert "⟦[bold]say⟧" in capsys.readouterr().out


def test_facts_of_the_rows(tmp_path: Path) -> None:
    """The stage of a task keeps shapes and sources."""
    current = Run(Recipe.parse(recipe(tmp_path)), tmp_path / "out")
    Runner(current).make(first_stages(current))
    facts = current.facts("00-tasks/cut")
    assert facts["shapes"] == {"prompt_completion": 12}
    assert facts["sources"] == [{"path": str(tmp_path / "cut.jsonl"), "rows": 10, "used": 10}]


def test_rows_with_values_that_json_lacks_are_written(tmp_path: Path) -> None:
    """A table may hold dates beside the text."""
    import datetime

    write_jsonl(tmp_path / "d.jsonl", [{**SHORT, "made": datetime.date(2020, 1, 2)}])
    assert json.loads((tmp_path / "d.jsonl").read_text())["made"] == "2020-01-02"
