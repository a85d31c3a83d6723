"""recipes/paper: the paper's five tasks score by the paper's metrics, here at a tiny size with local rows of the same columns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from judge_server import Judge, judge_server

from cpift.evaluation.recipe import evaluate_recipe
from cpift.metrics.answers import is_right, response
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run

FOLDER = Path(__file__).parents[1] / "recipes" / "paper"
BASES = ["gemma-3-1b", "gemma-7b", "llama-2-7b", "llama-3.1-8b", "mistral-7b", "qwen1.5-7b", "qwen3-4b", "qwen3-8b"]
METRICS = {
    "gsm8k": "exact_match",
    "codealpaca": "codebleu",
    "logiqa": "multiple_choice",
    "alpaca": "judge",
    "ultrachat": "judge",
}
# A row of each set, with its columns.
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "One and one?", "answer": "1+1 = <<1+1=2>>2.\n#### 2"},
    "codealpaca": {"instruction": "Add.", "input": "", "output": "def add(a, b):\n    c = a + b\n    return c"},
    "logiqa": {
        "context": "All birds sing.",
        "query": "Which follows?",
        "options": ["This bird sings.", "No bird sings.", "Some sing.", "None."],
        "correct_option": 0,
    },
    "alpaca": {"instruction": "Greet.", "input": "Ann", "output": "Hello, Ann.", "text": "Below is an instruction …"},
    "ultrachat": {
        "prompt": "Hi",
        "prompt_id": "0f",
        "messages": [
            {"content": "Hi", "role": "user"},
            {"content": "Hello.", "role": "assistant"},
            {"content": "Bye", "role": "user"},
            {"content": "See you.", "role": "assistant"},
        ],
    },
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv("CPIFT_CACHE", str(tmp_path / "cache"))


def values(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def small(folder: Path, judge: Judge, name: str = "gemma-3-1b") -> Recipe:
    """A recipe of the paper with a tiny base and local rows; columns, shapes, metrics and patterns are its own."""
    data = values(name)
    tiny.base(folder / "base", max_position_embeddings=512)
    for task, given in data["tasks"].items():
        numbered = [{**ROWS[task], "id": i} for i in range(6)]
        for at, row in enumerate(numbered):
            for key in ("question", "instruction", "query"):
                if key in row:
                    row[key] = f"{row[key]} ({at})"
        file = str(tiny.jsonl(folder / f"{task}.jsonl", numbered))
        for key in ("config", "revision", "split", "eval_split"):  # of the hub
            given.pop(key, None)
        given |= {"train": file, "eval": 2, "max_new_tokens": 3}
        if "metric_settings" in given:
            given["metric_settings"]["base_url"] = judge.url
    training = {"per_device_train_batch_size": 4, "bf16": False, "max_length": 512, "gradient_accumulation_steps": 1}
    data |= {"model": str(folder / "base"), "training": {**data["training"], **training}}
    del data["training"]["accelerator_config"]
    data |= {"probe": {"steps": 2}, "refine": {"examples_per_task": 2}, "chat_template": str(FOLDER / "chat.jinja")}
    return Recipe.parse(data)


def test_there_is_a_recipe_for_each_base_and_they_differ_by_it_alone() -> None:
    """Each is a recipe; its header states the cost."""
    assert sorted(file.stem for file in FOLDER.glob("*.yaml")) == BASES
    first = {**values(BASES[0]), "model": None}
    for name in BASES:
        recipe = Recipe.load(FOLDER / f"{name}.yaml")
        assert {task: asked.metric for task, asked in recipe.tasks.items()} == METRICS
        assert (recipe.region.percent, recipe.group.threshold) == (1.0, 0.1)  # all that the paper gives
        assert "### Response" in (recipe.chat.template or "")
        assert {**values(name), "model": None} == first
        header = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\nmodel:")[0]
        for what in (
            r"[\d,]{9,} parameters",
            r"training +\d+ GB on each of 8 GPUs",
            r"scoring +\d+ GB",
            r"disk +\d+ GB",
        ):
            assert re.search(what, header), (name, what)


def test_the_five_tasks_score_by_the_papers_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers as the rows do: right, the same code, and what the judge gives; options by likelihood."""

    def answered(network: Any, tokenizer: Any, rows: Any, *_: Any, **__: Any) -> list[tuple[str, int]]:
        return [(response(row), 3) for row in rows]

    monkeypatch.setattr("cpift.evaluation.scores.generate", answered)
    with judge_server(lambda number, text: "Score: 7") as judge:
        recipe = small(tmp_path, judge)
        scores = evaluate_recipe(tmp_path / "base", recipe)
        assert {task: entry["metric"] for task, entry in scores.items()} == METRICS
        expected = {"gsm8k": [1.0] * 2, "codealpaca": [1.0] * 2, "alpaca": [0.7] * 2, "ultrachat": [0.7] * 2}
        assert {task: scores[task]["items"] for task in expected} == {t: pytest.approx(v) for t, v in expected.items()}
        assert set(scores["logiqa"]["items"]) <= {0.0, 1.0}
        assert any("user: Hi\n\nassistant: Hello.\n\nuser: Bye" in text for text in judge.questions)


def test_rows_of_the_sets_become_what_the_paper_asks(tmp_path: Path) -> None:
    """The passage before the question; the text of the right option; the whole solution, of which the result counts."""
    from cpift.data.rows import load_rows
    from cpift.evaluation.task import EvalTask

    with judge_server(lambda number, text: "Score: 7") as judge:
        recipe = small(tmp_path, judge)
    rows = {name: load_rows(name, task, 0)[1][0] for name, task in recipe.tasks.items()}
    asked = {name: row["messages"][-2]["content"] for name, row in rows.items()}
    learnt = {name: row["messages"][-1]["content"] for name, row in rows.items()}
    assert re.fullmatch(r"All birds sing\.\nWhich follows\? \(\d\)", asked["logiqa"])
    assert learnt["logiqa"] == "This bird sings."
    assert asked["alpaca"].endswith("Ann")
    assert learnt["codealpaca"] == ROWS["codealpaca"]["output"]
    assert learnt["ultrachat"] == "See you."
    task = EvalTask.of(recipe.tasks["gsm8k"], [rows["gsm8k"]], "exact_match")
    assert is_right("So #### 2", rows["gsm8k"], task.answer_pattern)
    assert not is_right("So 2", rows["gsm8k"], task.answer_pattern)


@pytest.mark.long
def test_a_recipe_of_the_paper_runs_from_end_to_end(tmp_path: Path) -> None:
    """Probes, regions, groups, stages, fusion, refinement and the scores of every model."""
    with judge_server(lambda number, text: f"Score: {number % 11}") as judge:
        run(small(tmp_path, judge), tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["tasks"] == list(METRICS)
    for row in scores["models"].values():
        assert {task: entry["metric"] for task, entry in row.items()} == METRICS
    assert "judged, of 10" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.long
@pytest.mark.parametrize("name", BASES)
def test_the_header_is_what_plan_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made anew from the model's shapes."""
    monkeypatch.syspath_prepend(str(FOLDER.parents[1] / "scripts"))
    import paper_recipes

    assert paper_recipes.text(name) == (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
