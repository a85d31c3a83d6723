"""Tasks of lm-eval on a model in memory, and its scores beside ours on the same rows."""

from __future__ import annotations

import importlib
import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import yaml
from test_sharing import by_all
from tiny_run import Listener, call
from transformers import AutoModelForCausalLM

from cpift.errors import CpiftError
from cpift.evaluation import harness
from cpift.evaluation.guard import guard_identity, questions, read_guard, score_guard
from cpift.evaluation.harness import check_own_rows
from cpift.evaluation.harness_batches import likelihood_batches, share_requests
from cpift.evaluation.known import Known
from cpift.evaluation.scores import score_task
from cpift.evaluation.task import EvalTask, Score
from cpift.files import layout
from cpift.metrics import lm_eval as entry
from cpift.metrics import packages
from cpift.metrics.store import Store
from cpift.planning.plan import plan
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.survey import survey
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
    sums = [
        {"q": f"{a}+{b}=", "options": [str(a + b + d) for d in (0, 1, 3, 7)], "right": 0}
        for a in range(5)
        for b in range(4)
    ]
    written(folder, "tiny_shots", sums, {
        "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{options}}", "doc_to_target": "right",
        "num_fewshot": 3, "fewshot_split": "test", "metric_list": [mean("acc")],
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
    task = EvalTask([], "lm_eval:tiny_choice", folder=str(place / "tasks"), settings={"limit": 2})
    with torch.inference_mode():
        score_task(network, tokenizer, task, None)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert tokenizer.padding_side == side


def test_what_is_missing_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that there is not, of a guard and of a task; keys that are not read; the library."""
    data: dict[str, Any] = {"model": "m", "tasks": {"a": {"train": "a.jsonl", "eval": 2}}}
    monkeypatch.setattr(harness, "_index", lambda folder, defaults: type("Index", (), {"all_tasks": ["arc_easy"]}))
    with pytest.raises(CpiftError, match=r"^guard lm_eval:nothing: lm-eval has no task nothing; lm_eval_tasks") as told:
        read_guard(Recipe.parse({**data, "guard": ["lm_eval:nothing"]}).guard)
    assert "\n" not in str(told.value)
    task: dict[str, Any] = {"train": "a.jsonl", "metric": "lm_eval:nothing"}
    with pytest.raises(CpiftError, match=r"^tasks\.a\.metric: lm_eval:nothing: lm-eval has no task nothing"):
        check_own_rows(Recipe.parse({**data, "tasks": {"a": task}}))
    for key, value in {"eval": 2, "pattern": "(.)", "max_new_tokens": 5}.items():
        with pytest.raises(
            CpiftError, match=f"metric lm_eval:nothing has rows and answers of its own; leave out {key}"
        ):
            Recipe.parse({**data, "tasks": {"a": {**task, key: value}}})
    with pytest.raises(CpiftError, match=r"tasks\.a: eval is missing: a file, or a number of rows to split off"):
        Recipe.parse({**data, "tasks": {"a": {"train": "a.jsonl"}}})
    with pytest.raises(CpiftError, match="lm_eval:x has rows of its own; leave out eval"):
        Recipe.parse({**data, "guard": [{"metric": "lm_eval:x", "eval": "a.jsonl"}]})
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(CpiftError, match=r'guard lm_eval:x: needs the package lm_eval.*pip install "cpift\[eval\]"'):
        read_guard(Recipe.parse({**data, "guard": ["lm_eval:x"]}).guard)
    with pytest.raises(CpiftError, match=r"tasks.a.metric: lm_eval:nothing: needs the package lm_eval"):
        check_own_rows(Recipe.parse({**data, "tasks": {"a": task}}))
    assert entry.is_lm_eval("lm_eval:x")
    assert importlib.import_module("cpift.metrics").named("lm_eval:x").unit.short == "%"


@pytest.fixture(scope="module")
def scored(place: Path) -> dict[str, Any]:
    """The data of a recipe whose second task is scored by lm-eval, and which has been run."""
    data = tiny.recipe(place, ("reverse", "upper"), lm_eval_tasks=str(place / "tasks"), guard="none")
    data["tasks"]["upper"] = {"train": data["tasks"]["upper"]["train"], "metric": "lm_eval:tiny_choice"}
    run(Recipe.parse(data), place / "run")
    return data


ALL_MODELS = {"base", "probe/reverse", "probe/upper", "backbone", "fused", "refine/1", "refine/2"}


@pytest.mark.usefixtures("scored")
def test_a_task_trains_on_its_rows_and_is_scored_by_lm_eval(place: Path) -> None:
    """All of its training rows are used; the base's items are lm-eval's own, without a line of ours in between."""
    result = json.loads((place / "run" / "scores.json").read_text())
    rows = place / "run" / "stages" / "00-tasks" / "upper"
    assert len((rows / "train.jsonl").read_text().splitlines()) == 16
    assert (rows / "eval.jsonl").read_text() == ""
    expected = lm_eval_alone(place, "tiny_choice")
    assert result["models"]["base"]["upper"]["items"] == expected
    assert result["models"]["base"]["upper"]["metric"] == "lm_eval:tiny_choice"
    assert set(result["models"]) == ALL_MODELS
    for name in ALL_MODELS:
        assert len(result["models"][name]["upper"]["items"]) == len(expected)
    page = (place / "run" / "report.html").read_text()
    assert "tiny_choice" in page
    card = (place / "run" / "model" / "README.md").read_text()
    assert "lm_eval:tiny_choice" in card


def lm_eval_alone(place: Path, name: str) -> list[float]:
    """The outcome of each item by lm-eval as its own command takes it: a folder, one row at a time."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(place / "tasks"), include_defaults=False)
    result = simple_evaluate("hf", f"pretrained={place / 'base'},dtype=float32", [name], task_manager=manager,
                             device="cpu", batch_size=1, bootstrap_iters=0)  # fmt: skip
    samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
    return [sample["acc_norm" if "acc_norm" in sample else "acc"] for sample in samples]


def test_examples_in_prompts_are_those_that_lm_eval_draws(place: Path) -> None:
    items = by_lm_eval(place, "tiny_shots")
    assert items == lm_eval_alone(place, "tiny_shots")
    assert 0 < sum(items) < len(items)


def test_a_run_is_resumed_unless_a_task_file_changes(scored: dict[str, Any], place: Path) -> None:
    """Then the scores by lm-eval are made again, and nothing else."""
    file = place / "tasks" / "tiny_choice.yaml"
    whole = file.read_text()
    again = Listener()
    run(Recipe.parse(scored), place / "run", reporter=again)
    assert again.made == []
    file.write_text(whole + "# changed\n")
    run(Recipe.parse(scored), place / "run", reporter=again)
    file.write_text(whole)
    assert set(again.made) == {layout.score(model, "upper") for model in ALL_MODELS}


def test_evaluate_takes_a_benchmark_in_place_of_a_file(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a file of rows, two models with their paired difference; --rows takes the first items."""
    other = tiny.base(tmp_path / "other", seed=3)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows("upper", 5, 1))
    out = tmp_path / "scores.json"
    given = ["evaluate", place / "base", other, "--task", "bench=lm_eval:tiny_choice", "--task", f"rows={rows}",
             "--metric", "loss", "--rows", "4", "--set", f"lm_eval_tasks={place / 'tasks'}", "--out", out,
             "--cache", tmp_path / "cache"]  # fmt: skip
    assert call(capsys, *given)[0] == 0
    result = json.loads(out.read_text())
    first, second = (model["tasks"]["bench"]["items"] for model in result["models"].values())
    assert first == lm_eval_alone(place, "tiny_choice")[:4]
    assert result["models"]["base"]["tasks"]["rows"]["metric"] == "loss"
    (difference,) = [one for one in result["differences"] if one["task"] == "bench"]
    assert difference["difference"] == (sum(second) - sum(first)) / 4
    assert difference["low"] <= difference["difference"] <= difference["high"]
    refused = call(capsys, *given, "--metric", "bench=loss")
    assert (refused[0], refused[2].count("\n")) == (2, 1)
    assert "--metric bench=loss: bench is scored by lm_eval:tiny_choice; leave it out" in refused[2]


def test_a_plan_and_the_data_command_take_it(place: Path, tmp_path: Path) -> None:
    data = tiny.recipe(tmp_path, ("reverse",), lm_eval_tasks=str(place / "tasks"), guard="none")
    data["tasks"]["reverse"] = {"train": data["tasks"]["reverse"]["train"], "metric": "lm_eval:tiny_choice"}
    recipe = Recipe.parse(data)
    assert plan(recipe)["evaluated_tokens"] == 0
    (task,) = survey(recipe).values()
    assert (task.train.rows, task.evaluation.rows) == (16, 0)
    network, tokenizer = load_model(place / "base"), load_tokenizer(place / "base")
    timed = EvalTask([], "lm_eval:tiny_choice", folder=str(place / "tasks"))
    began = time.perf_counter()
    with torch.inference_mode():
        assert 0 < harness.seconds_of(network, tokenizer, timed) <= time.perf_counter() - began


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_exact"])
def test_what_lm_eval_asked_before_is_not_asked_again(place: Path, tmp_path: Path, name: str) -> None:
    """Of a later call with more items only the new ones; of the same call none; each as lm-eval alone has it."""
    network, tokenizer = load_model(place / "base"), load_tokenizer(place / "base")
    passes: list[int] = []
    network.register_forward_pre_hook(lambda module, given: passes.append(1))

    def scored(limit: int | None, model: str = "one") -> Score:
        task = EvalTask([], f"lm_eval:{name}", folder=str(place / "tasks"), settings={"limit": limit} if limit else {})
        passes.clear()
        with torch.inference_mode():
            return score_task(network, tokenizer, task, None, known=Known(model, {}, Store(tmp_path)))

    assert len(scored(4).items) == 4
    some = len(passes)
    whole = scored(None)
    assert passes, "new items"
    assert whole.items == by_lm_eval(place, name)
    assert (whole.reused, scored(None).reused) == (0, len(whole.items))
    assert scored(None).items == whole.items
    assert not passes
    scored(4, "another")
    assert len(passes) == some, "another model has nothing of this one"


def requests(count: int) -> list[tuple[None, list[int], list[int]]]:
    """Of unlike lengths, some that differ in their last token alone."""
    rng = random.Random(0)
    made: list[tuple[None, list[int], list[int]]] = []
    for _ in range(count):
        before = [rng.randrange(3, 200) for _ in range(rng.randint(1, 30))]
        made += [(None, before, [*before[:2], rng.randrange(3, 200)]) for _ in range(rng.randint(1, 3))]
    return rng.sample(made, len(made))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_processes_answer_lm_evals_requests_with_the_bits_of_one(place: Path, count: int) -> None:
    """Likelihoods and texts, equal to those of lm-eval's own batches; every batch is made once."""
    network, tokenizer = load_model(place / "base"), load_tokenizer(place / "base")
    asked, passes = requests(25), []
    texts = [SimpleNamespace(args=(f"say {i * 'a'}", {"until": ["<none>"], "max_gen_toks": 3 + i % 2, "do_sample": False}))
             for i in range(9)]  # fmt: skip

    def model() -> Any:
        return importlib.import_module("lm_eval.models.huggingface").HFLM(network, tokenizer=tokenizer, batch_size=4)

    def answered(share: Any) -> Any:
        one = model()
        forward = one._model_call
        one._model_call = lambda *given, **more: (passes.append(1), forward(*given, **more))[1]
        share_requests(one, 4, share)
        with torch.inference_mode():
            return one._loglikelihood_tokens(asked), one.generate_until(texts)

    with torch.inference_mode():
        expected = model()._loglikelihood_tokens(asked), model().generate_until(texts)
    assert by_all(count, answered) == [expected] * count
    assert len(passes) == len(likelihood_batches(asked, 4)), "each batch once"
    assert len({value for value, _ in expected[0]}) > 20
