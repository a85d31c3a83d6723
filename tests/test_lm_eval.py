"""Tasks of lm-eval on a model in memory, and its scores beside ours on the same rows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from transformers import AutoModelForCausalLM

from cpift.errors import CpiftError
from cpift.evaluation import harness
from cpift.evaluation.guard import guard_identity, questions, read_guard, score_guard
from cpift.evaluation.scores import score_task
from cpift.evaluation.task import EvalTask
from cpift.metrics import lm_eval as entry
from cpift.metrics import packages
from cpift.recipe.recipe import Recipe
from cpift.train.models import load_model, load_tokenizer

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and ``tasks``: a folder of task files with their data, as lm-eval reads them."""
    folder = tmp_path_factory.mktemp("lm-eval")
    tiny.base(folder / "base")
    choice = [{"question": r["prompt"], "options": r["options"], "answer": r["answer"]} for r in questions()[:12]]
    written(folder, "tiny_choice", choice, {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{options}}",
        "doc_to_target": "{{options.index(answer)}}", "metric_list": [mean("acc"), mean("acc_norm")],
    })  # fmt: skip
    written(folder, "tiny_exact", exact_rows(folder / "base"), {
        "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"max_gen_toks": 6, "do_sample": False, "until": ["<none>"]},
        "filter_list": [{"name": "first", "filter": [
            {"function": "regex", "regex_pattern": "(?s)^(..)"}, {"function": "take_first"}]}],
        "metric_list": [mean("exact_match")],
    })  # fmt: skip
    return folder


def mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def written(folder: Path, name: str, rows: list[dict[str, Any]], task: dict[str, Any]) -> None:
    data = tiny.jsonl(folder / f"{name}.jsonl", rows)
    config = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
        **task,
    }  # fmt: skip
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(config))


def exact_rows(model: Path) -> list[dict[str, Any]]:
    """The answer to every other prompt is what the model says, its first two characters; to the others it is not."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), tiny.tokenizer()
    made = []
    for number, prompt in enumerate(("one", "two", "three apples", "say it", "why", "a longer prompt")):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = network.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        made.append({"prompt": prompt, "answer": text[:2] if number % 2 == 0 else "zz"})
    return made


def by_lm_eval(place: Path, name: str) -> list[float]:
    network, tokenizer = load_model(place / "base"), load_tokenizer(place / "base")
    task = EvalTask([], f"lm_eval:{name}", folder=str(place / "tasks"))
    with torch.inference_mode():
        return score_task(network, tokenizer, task, None).items


def test_multiple_choice_agrees_item_by_item(place: Path) -> None:
    ours = EvalTask(questions()[:12], "multiple_choice")
    with torch.inference_mode():
        own = score_task(load_model(place / "base"), load_tokenizer(place / "base"), ours, None).items
    theirs = by_lm_eval(place, "tiny_choice")
    assert own == theirs
    assert 0 < sum(theirs) < len(theirs), "both outcomes occur"


def test_exact_match_agrees_item_by_item(place: Path) -> None:
    rows = [{**row, "completion": row["answer"]} for row in exact_rows(place / "base")]
    ours = EvalTask(rows, "exact_match", "(?s)^(..)", max_new_tokens=6, match="first")
    with torch.inference_mode():
        own = score_task(load_model(place / "base"), load_tokenizer(place / "base"), ours, None).items
    assert own == by_lm_eval(place, "tiny_exact") == [1.0, 0.0] * 3


def test_a_guard_of_lm_eval(place: Path) -> None:
    """Its first rows, of the loaded model; files of tasks decide about the stage."""
    data = {"model": "m", "tasks": {"a": {"train": "a.jsonl", "eval": 2}}, "lm_eval_tasks": str(place / "tasks")}
    recipe = Recipe.parse({**data, "guard": ["lm_eval:tiny_choice", {"metric": "lm_eval:tiny_exact", "limit": 4}]})
    scores = score_guard(place / "base", read_guard(recipe.guard, recipe.lm_eval_tasks))["scores"]
    assert {name: len(score["items"]) for name, score in scores.items()} == {
        "lm_eval:tiny_choice": 12,
        "lm_eval:tiny_exact": 4,
    }
    assert scores["lm_eval:tiny_exact"]["score"] == 0.5
    before = guard_identity(recipe.guard, recipe.lm_eval_tasks)
    file = place / "tasks" / "tiny_exact.yaml"
    whole = file.read_text()
    file.write_text(whole + "# changed\n")
    assert guard_identity(recipe.guard, recipe.lm_eval_tasks) != before
    file.write_text(whole)


def test_seeds_and_tokenizer_are_left_alone(place: Path) -> None:
    network, tokenizer = load_model(place / "base"), load_tokenizer(place / "base")
    side, state = tokenizer.padding_side, torch.random.get_rng_state()
    task = EvalTask([], "lm_eval:tiny_choice", folder=str(place / "tasks"), limit=2)
    with torch.inference_mode():
        score_task(network, tokenizer, task, None)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert tokenizer.padding_side == side


def test_what_is_missing_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that there is not; a task's metric; the library."""
    data: dict[str, Any] = {"model": "m", "tasks": {"a": {"train": "a.jsonl", "eval": 2}}}
    monkeypatch.setattr(harness, "_index", lambda folder, defaults: type("Index", (), {"all_tasks": ["arc_easy"]}))
    with pytest.raises(CpiftError, match=r"^lm_eval:nothing: lm-eval has no task nothing; lm_eval_tasks names") as told:
        read_guard(Recipe.parse({**data, "guard": ["lm_eval:nothing"]}).guard)
    assert "\n" not in str(told.value)
    with pytest.raises(
        CpiftError, match="metric lm_eval:x has rows of its own, not those of a task; list it under guard"
    ):
        Recipe.parse({**data, "tasks": {"a": {"train": "a.jsonl", "eval": 2, "metric": "lm_eval:x"}}})
    with pytest.raises(CpiftError, match="lm_eval:x has rows of its own; leave out eval"):
        Recipe.parse({**data, "guard": [{"metric": "lm_eval:x", "eval": "a.jsonl"}]})
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(CpiftError, match=r"guard lm_eval:x: needs the package lm_eval.*pip install 'cpift\[eval\]'"):
        read_guard(Recipe.parse({**data, "guard": ["lm_eval:x"]}).guard)
    assert entry.is_lm_eval("lm_eval:x")
    assert importlib.import_module("cpift.metrics").named("lm_eval:x").unit.short == "%"
