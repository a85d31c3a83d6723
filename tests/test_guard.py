"""The guard set: what must not be lost, its scores, its drift, and where they are shown."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from cpift.compare.statistics import summary as summary_of
from cpift.compare.table import markdown
from cpift.console.scores import scores_table
from cpift.errors import CpiftError
from cpift.evaluation.drift import Comparison, divergences
from cpift.evaluation.guard import Guarded, guard_tokens, questions, read_guard, score_guard
from cpift.evaluation.neutral import parts, text
from cpift.evaluation.options import encoded_option, shared_passes
from cpift.evaluation.scores import score_task
from cpift.evaluation.task import EvalTask
from cpift.metrics.guard import guard_changes, guard_record
from cpift.metrics.summary import summary
from cpift.recipe.guard import GENERAL, NEUTRAL
from cpift.recipe.recipe import Recipe
from cpift.report.comparison import comparison_parts
from cpift.report.page import page
from cpift.runs.stage import Run
from cpift.runs.stages.evaluate import guard_stages
from cpift.train.models import load_model, load_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and another model of the same shape: its weights a little moved."""
    folder = tmp_path_factory.mktemp("models")
    before, after = tiny.base(folder / "before"), tiny.base(folder / "after", seed=1)
    return before, after


def recipe(folder: Path, guard: Any) -> Recipe:
    rows = tiny.jsonl(folder / "rows.jsonl", tiny.rows("first", 6, 0))
    data = {"model": "none", "tasks": {"a": {"train": str(rows), "eval": 2}}}
    return Recipe.parse(data if guard is None else {**data, "guard": guard})


def test_the_questions_are_sound() -> None:
    """40 to 60 of them, four different options each, the right one at each place equally often; none twice."""
    found = questions()
    assert 40 <= len(found) <= 60
    places = Counter(row["options"].index(row["answer"]) for row in found)
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) == min(places.values())
    assert all(len(set(row["options"])) == 4 for row in found)
    assert len({row["prompt"] for row in found}) == len(found)
    longest = max(len(row["prompt"].split()) + len(option.split()) for row in found for option in row["options"])
    assert longest < 40, "short: about a token a word"


def test_a_question_is_scored_by_its_likelihood_over_characters(models: tuple[Path, Path]) -> None:
    """By transformers alone: the log-likelihood of the option's tokens after the prompt, over its length."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(models[0]).eval(), tiny.tokenizer()
    expected = []
    for row in questions()[:5]:
        values = []
        for option in row["options"]:
            prompt, whole = (tokenizer(t)["input_ids"] for t in (row["prompt"], f"{row['prompt']} {option}"))
            with torch.no_grad():
                logits = network(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            tokens = range(len(prompt), len(whole))
            values.append(sum(float(logits[i - 1, whole[i]]) for i in tokens) / len(option))
        expected.append(float(np.argmax(values) == row["options"].index(row["answer"])))
    guard = read_guard(recipe(models[0].parent, [GENERAL]).guard)
    assert score_guard(models[0], guard)["scores"][GENERAL]["items"][:5] == expected


def test_options_that_differ_in_their_last_token_share_a_pass(models: tuple[Path, Path]) -> None:
    """One forward for all of them, and the outcome that transformers gives for each alone."""
    network, tokenizer = load_model(models[0]), load_tokenizer(models[0])
    options, rows, best = ["pa", "pb", "pc", "pd", "pa longer one"], [], []
    for prompt in ("x:", "why?", "a b c", "7 +", "so"):
        values = []
        for option in options[:4]:
            ids, start = tokenizer(f"{prompt} {option}")["input_ids"], len(tokenizer(prompt)["input_ids"])
            with torch.inference_mode():
                log = network(torch.tensor([ids])).logits[0].log_softmax(-1)
            values.append(sum(float(log[i - 1, ids[i]]) for i in range(start, len(ids))))
        best.append(int(np.argmax(values)))
        rows.append({"prompt": prompt, "completion": " pa", "options": options[:4], "answer": options[best[-1]]})
    assert set(best) != {0}, "not the first of equals"
    encoded = [encoded_option(rows[0], option, tokenizer, [tokenizer.eos_token_id]) for option in options]
    assert sorted(map(len, shared_passes(encoded))) == [1, 4]
    with torch.inference_mode():
        assert score_task(network, tokenizer, EvalTask(rows, "multiple_choice"), None).items == [1.0] * len(rows)


def test_the_loss_on_the_text_is_that_of_transformers(models: tuple[Path, Path]) -> None:
    """A paragraph that fits is what the model's own loss says of it."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(models[0]).eval(), tiny.tokenizer()
    score = score_guard(models[0], [Guarded(NEUTRAL, None)])["scores"][NEUTRAL]
    ids = tokenizer(text().split("\n\n")[1].strip())["input_ids"]
    total = 0.0
    for start in range(0, len(ids) - 1, 128):  # the tiny model's positions
        part = torch.tensor([ids[start : start + 129]])
        with torch.no_grad():
            logits = network(part[:, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum"))
    assert score["items"][1] == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_the_drift_is_the_divergence_by_numpy(models: tuple[Path, Path], tmp_path: Path) -> None:
    """KL(before ‖ after), mean over all tokens of the text; zero against itself."""
    guard, file = [Guarded(NEUTRAL, None)], tmp_path / "logits.safetensors"
    assert "drift" not in score_guard(models[0], guard, record=file)
    drift = score_guard(models[1], guard, before=file)["drift"]
    network, tokenizer = load_model(models[0], False, None, None), load_tokenizer(models[0], False)
    read = parts(network, tokenizer)
    total = count = 0.0
    both = [AutoModelForCausalLM.from_pretrained(model).eval() for model in models]
    for part in read:
        logs = []
        for model in both:
            with torch.no_grad():
                out = model(torch.tensor([part.ids[:-1]])).logits[0]
            logits = out.double().numpy()
            logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
        total += float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())
        count += len(part.ids) - 1
    assert drift["kl"] == pytest.approx(total / count, rel=1e-4)
    assert drift["low"] < drift["kl"] < drift["high"]
    assert sum(drift["tokens"]) == count
    assert score_guard(models[0], guard, before=file)["drift"]["kl"] == pytest.approx(0, abs=1e-6)


def test_the_divergence_is_torchs_own() -> None:
    """Of many tokens, taken in pieces; the direction is that of the model before."""
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(200, 31, generator=generator) for _ in range(2))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=before), torch.distributions.Categorical(logits=after)
    )
    assert divergences(before, after).numpy() == pytest.approx(expected.double().numpy(), rel=1e-4)


def test_models_with_other_tokens_have_no_drift(models: tuple[Path, Path], tmp_path: Path) -> None:
    """No number that means nothing."""
    file = tmp_path / "logits.safetensors"
    score_guard(models[0], [Guarded(NEUTRAL, None)], record=file)
    network, tokenizer = load_model(models[0], False, None, None), load_tokenizer(models[0], False)
    read = parts(network, tokenizer)
    comparison = Comparison(file, [*read[:-1], type(read[-1])(read[-1].paragraph, read[-1].first, read[-1].ids[:-1])])
    comparison.see(read[0], torch.zeros(len(read[0].ids) - 1, 259))
    assert comparison.result() is None


def test_questions_longer_than_the_model_are_left_out(tmp_path: Path) -> None:
    """And counted; a set of which nothing remains is left out whole."""
    guard = [entry for entry in read_guard(recipe(tmp_path, None).guard) if entry.task]
    some = score_guard(tiny.base(tmp_path / "short", max_position_embeddings=75), guard)["scores"][GENERAL]
    assert 0 < len(some["items"]) < len(questions())
    assert len(some["items"]) + some["left_out"] == len(questions())
    assert score_guard(tiny.base(tmp_path / "tiny", max_position_embeddings=16), guard)["scores"] == {}


def test_what_a_recipe_may_say(tmp_path: Path) -> None:
    """The default is written out; a name, a file, nothing; what is wrong is one line with the way out."""
    assert [entry.name for entry in recipe(tmp_path, None).guard] == [NEUTRAL, GENERAL]
    assert recipe(tmp_path, "none").guard == recipe(tmp_path, []).guard == []
    whole = recipe(tmp_path, None)
    assert Recipe.parse(json.loads(json.dumps(whole.model_dump(by_alias=True)))).guard == whole.guard
    file = tiny.jsonl(tmp_path / "facts.jsonl", tiny.rows("upper", 5, 0))
    (entry,) = recipe(tmp_path, [{"eval": str(file), "metric": "loss", "limit": 3}]).guard
    assert entry.name == "facts"
    (held,) = read_guard([entry])
    assert held.task is not None
    assert (len(held.task.rows), held.task.metric) == (3, "loss")
    for guard, said in {
        "on": "guard: is none, or a list of sets",
        ("neutral txt",): "did you mean 'neutral text'",
        ("neutral text", "neutral text"): "listed twice",
    }.items():
        with pytest.raises(CpiftError, match=said):
            recipe(tmp_path, list(guard) if isinstance(guard, tuple) else guard)
    with pytest.raises(CpiftError, match="'a' is the name of a guard set, too"):
        recipe(tmp_path, [{"name": "a", "eval": str(file)}])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As one of the guard, no task."""
    with pytest.raises(CpiftError, match=r"^guard facts: .*facts\.jsonl") as told:
        read_guard(recipe(tmp_path, [{"eval": str(tmp_path / "facts.jsonl")}]).guard)
    assert "\n" not in str(told.value)
    rows = tiny.jsonl(tmp_path / "plain.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(CpiftError, match=r"^guard plain: metric exact_match needs an answer"):
        read_guard(recipe(tmp_path, [{"eval": str(rows), "metric": "exact_match"}]).guard)


def test_the_content_of_a_file_decides_about_a_stage(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Other rows are another key; another place of the same rows is not. No guard, no stage."""
    given = recipe(tmp_path, None)
    data = given.model_dump(by_alias=True) | {"model": str(models[0])}

    def settings(guard: Any) -> Any:
        current = Run(Recipe.parse({**data, "guard": guard}), tmp_path / "out")
        return [stage.settings for stage in guard_stages(current, {"base": current.base})]

    first = tiny.jsonl(tmp_path / "one" / "facts.jsonl", tiny.rows("upper", 5, 0))
    moved = tiny.jsonl(tmp_path / "two" / "facts.jsonl", tiny.rows("upper", 5, 0))
    other = tiny.jsonl(tmp_path / "three" / "facts.jsonl", tiny.rows("upper", 5, 1))
    one, two, three = (settings([{"eval": str(file), "metric": "loss"}]) for file in (first, moved, other))
    assert one == two != three
    assert settings("none") == []


def test_a_change_is_paired_by_row_and_marked() -> None:
    """Two questions lost of four: the difference, and no task."""
    before = {"general questions": {"metric": "multiple_choice", "score": 1.0, "items": [1.0] * 4, "tokens": [1] * 4}}
    after = {
        "general questions": {
            "metric": "multiple_choice",
            "score": 0.5,
            "items": [1.0, 0.0, 0.0, 1.0],
            "tokens": [1] * 4,
        }
    }
    (change,) = guard_changes(before, after)  # type: ignore[arg-type]
    assert (change.difference, change.rows, change.guard, change.new) == (-0.5, 4, True, False)
    record = guard_record("base", {"base": {"scores": before}, "end": {"scores": after}})  # type: ignore[typeddict-item]
    assert record["changes"].keys() == {"end"}
    assert math.isclose(record["changes"]["end"][0]["difference"], -0.5)


def results(right: list[int], kl: float) -> dict[str, Any]:
    """A method with two seeds: how many of 40 questions each gets right, where the base gets 30."""

    def entry(count: int) -> dict[str, Any]:
        items = [1.0] * count + [0.0] * (40 - count)
        score = {"metric": "multiple_choice", "score": count / 40, "items": items, "tokens": [1] * 40}
        return {"scores": {GENERAL: score}}

    made = {}
    for seed, count in enumerate(right):
        models = {"base": entry(30), "end": {**entry(count), "drift": {"kl": kl}}}
        scores = {"a": {"metric": "exact_match", "score": 0.5, "items": [0.0, 1.0], "tokens": [1, 1]}}
        made[str(seed)] = {
            "scores": scores,
            "tokens": 10,
            "seconds": 1.0,
            "guard": {"against": "base", "models": models},
        }
    return made


def test_a_comparison_says_what_each_method_lost() -> None:
    """Means over seeds against the base, in the statistics, the table and the page; a method without is left out."""
    tasks = {"a": {"metric": "exact_match", "rows": 2}}
    budget: dict[str, Any] = {"cpi_ft": results([20, 10], 0.25), "multi_task": results([30, 30], 0.5)}
    budget["single_task"] = {seed: {k: v for k, v in r.items() if k != "guard"} for seed, r in budget["cpi_ft"].items()}
    summary = {name: summary_of(r, tasks, None) for name, r in budget.items()}  # type: ignore[arg-type]
    lost = summary["cpi_ft"]["guard"][GENERAL]
    assert lost["difference"] == pytest.approx(((20 - 30) + (10 - 30)) / 40 / 2)
    assert lost["low"] < lost["difference"] < lost["high"], "of two seeds, far apart"
    assert summary["multi_task"]["guard"][GENERAL]["difference"] == 0
    assert summary["cpi_ft"]["drift"]["mean"] == 0.25
    assert "guard" not in summary["single_task"]
    record: Any = {
        "format": "cpift.comparison/1", "state": "done", "recipe": {"model": "m", "tasks": {"a": {"train": "a", "eval": 1}}},
        "tasks": tasks, "seeds": [0, 1], "reference": "cpi_ft", "budgets": {"paper": budget},
        "summary": {"paper": summary}, "differences": {"paper": []}, "forgetting": {},
    }  # fmt: skip
    text = markdown(record)
    assert "| method | general questions, points | drift, nats a token |" in text
    (line,) = [line for line in text.split("general ability")[1].splitlines() if "`cpi_ft`" in line]
    assert line.startswith("| `cpi_ft` | -37.5 (")
    assert line.endswith("| 0.250 |")
    assert "single_task" not in text.split("general ability")[1]
    assert "General ability, against the base" in page(comparison_parts(record, "x"))


def test_the_terminal_says_what_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """A line a set under the scores, with its interval; then the drift."""
    guard = results([20], 0.25)["0"]["guard"]
    guard["changes"] = guard_record("base", guard["models"])["changes"]
    task = {"a": {"metric": "exact_match", "score": 0.5, "items": [0.0, 1.0], "tokens": [1, 1]}}
    models = {"base": task, "end": task}
    scores_table({"tasks": ["a"], "groups": None, "models": models, "summary": summary(models, ["a"]), "guard": guard})  # type: ignore[typeddict-item,arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  general questions: lost (75.0 → 50.0 %, 95 % -") for line in lines)
    assert "  drift from the base: 0.250 nats a token" in lines


def test_the_cost_of_a_guard_is_counted(tmp_path: Path) -> None:
    """Tokens that one model reads: of the text, and of each question with each option and the end of the text."""
    tokenizer = tiny.tokenizer()
    some = {name: [entry] for name in (NEUTRAL, GENERAL) for entry in read_guard(recipe(tmp_path, [name]).guard)}
    assert guard_tokens(some[NEUTRAL], tokenizer) == len(text().replace("\n", "").encode())
    expected = [len(f"{row['prompt']} {option}".encode()) + 1 for row in questions() for option in row["options"]]
    assert guard_tokens(some[GENERAL], tokenizer) == sum(expected)
