"""Scores: teacher-forced exact match, generation, loss; shares of the specialists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import LlamaForCausalLM

from cpift.data.encoding import IGNORED, encode
from cpift.evaluation import batching, forced
from cpift.evaluation.scores import EvalTask, evaluate, generate
from cpift.metrics.answers import AnswerPattern, normalise
from cpift.metrics.summary import summary
from cpift.train.fine_tune import fine_tune
from cpift.train.models import load_model, load_tokenizer
from cpift.train.spec import TrainSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learnt to answer with a letter, now and then the right one."""
    folder = tmp_path_factory.mktemp("evaluation")
    words = tiny.tokenizer()
    data = [encode(row, words) for row in tiny.rows("first", 64, 0)]
    settings = {"per_device_train_batch_size": 16, "bf16": False, "learning_rate": 1e-2}
    fine_tune(tiny.base(folder / "base"), data, folder / "model", TrainSpec(settings, 60, 0))
    return folder / "model"


def test_teacher_forced_exact_match_is_what_generation_gives(model: Path) -> None:
    """On 240 items, right and wrong ones among them, not one outcome differs."""
    rows = tiny.rows("first", 240, 1)
    forced = evaluate(model, {"t": EvalTask(rows, "exact_match")})["t"]
    with torch.inference_mode():
        answers = generate(load_model(model).eval(), load_tokenizer(model), rows, max_new_tokens=8)
    generated = [float(text == row["answer"] and count < 8) for (text, count), row in zip(answers, rows, strict=True)]
    assert forced.items == generated
    assert 10 < sum(generated) < 230
    assert forced.score == pytest.approx(sum(generated) / 240)


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows whole words, 2 to 6 letters, of the rows it was trained on, and few others."""
    folder = tmp_path_factory.mktemp("parrot")
    data = [encode(row, tiny.tokenizer()) for row in tiny.rows("upper", 60, 0)]
    settings = {"per_device_train_batch_size": 20, "bf16": False, "learning_rate": 3e-3}
    fine_tune(tiny.base(folder / "base", hidden_size=64), data, folder / "model", TrainSpec(settings, 250, 0))
    return folder / "model"


def test_exact_match_of_whole_words_is_what_generation_gives(parrot: Path) -> None:
    """Answers of many tokens, learnt and new, alone and as a second turn: 240 items, no disagreement."""
    rows = tiny.rows("upper", 60, 0) + tiny.rows("upper", 140, 1)
    pairs = zip(tiny.rows("upper", 40, 2), rows, strict=False)
    rows += [{"messages": a["messages"] + b["messages"], "answer": b["answer"]} for a, b in pairs]
    forced = evaluate(parrot, {"t": EvalTask(rows, "exact_match")})["t"]
    with torch.inference_mode():
        answers = generate(load_model(parrot).eval(), load_tokenizer(parrot), rows, max_new_tokens=20)
    generated = [float(text == row["answer"] and count < 20) for (text, count), row in zip(answers, rows, strict=True)]
    differ = [i for i, (a, b) in enumerate(zip(forced.items, generated, strict=True)) if a != b]
    print(f"{len(rows)} items, {sum(generated):.0f} right, {len(differ)} disagreements")
    assert differ == []
    assert len(rows) == len(forced.items) == len(forced.tokens) == 240
    assert 20 < sum(generated) < 220


def test_the_loss_is_the_mean_over_the_assistants_tokens(model: Path) -> None:
    """As computed row by row, without padding."""
    rows = tiny.rows("reverse", 9, 2)
    got = evaluate(model, {"t": EvalTask(rows, "loss")})["t"]
    network, words = load_model(model).eval(), load_tokenizer(model)
    total = count = 0.0
    for i, row in enumerate(rows):
        e = encode(row, words)
        with torch.inference_mode():
            logs = network(input_ids=torch.tensor([e.input_ids])).logits[0].log_softmax(-1)
        own = [-float(logs[j - 1, label]) for j, label in enumerate(e.labels) if label != IGNORED]
        assert got.items[i] == pytest.approx(sum(own) / len(own), rel=1e-5)
        total, count = total + sum(own), count + len(own)
    assert got.score == pytest.approx(total / count, rel=1e-5)


def test_the_loss_is_as_exact_as_its_precision() -> None:
    """With a real vocabulary, against float64: the kernel for transposed logits was off by 5e-5."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((40, 50_000), generator=generator) * 3
    target = torch.randint(0, 50_000, (40,), generator=generator)
    counted = torch.arange(40) % 3 > 0
    exact = -logits.double().log_softmax(-1)[counted].gather(1, target[counted][:, None]).mean()
    assert float(forced.mean_loss(logits, target, counted)) == pytest.approx(float(exact), rel=2e-6)
    assert float(forced.mean_loss(logits, target, counted & False)) == 0.0


def test_logits_of_prompts_are_not_made(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcomes are those of whole logits, for a model that can leave them out and for one that cannot."""
    rows = [*tiny.rows("first", 9, 3), *tiny.rows("reverse", 3, 3)]
    tasks = {"match": EvalTask(rows, "exact_match"), "loss": EvalTask(rows, "loss")}
    made: list[tuple[int, int]] = []
    forward = LlamaForCausalLM.forward

    def short(self: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int = 0) -> Any:
        out = forward(self, input_ids, attention_mask, logits_to_keep=logits_to_keep)
        made.append((out.logits.shape[1], input_ids.shape[1]))
        return out

    def whole(self: Any, input_ids: Any, attention_mask: Any) -> Any:
        return forward(self, input_ids, attention_mask)

    monkeypatch.setattr(LlamaForCausalLM, "forward", short)
    less = evaluate(model, tasks)
    assert made
    assert all(some < all_ / 2 for some, all_ in made)
    monkeypatch.setattr(LlamaForCausalLM, "forward", whole)
    more = evaluate(model, tasks)
    for name in tasks:
        assert less[name].items == pytest.approx(more[name].items, rel=1e-6)
        assert less[name].tokens == more[name].tokens


def test_batches_change_no_outcome(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, or all at once."""
    rows = [*tiny.rows("first", 25, 3), *tiny.rows("reverse", 5, 3)]
    tasks = {
        "match": EvalTask(rows, "exact_match"),
        "made": EvalTask(rows, "generate", max_new_tokens=9),
        "loss": EvalTask(rows, "loss"),
    }
    together = evaluate(model, tasks)
    monkeypatch.setattr(batching, "LOGITS", 1)
    monkeypatch.setattr(batching, "CACHE", 1)
    alone = evaluate(model, tasks)
    assert alone["match"].items == together["match"].items
    assert (alone["made"].items, alone["made"].tokens) == (together["made"].items, together["made"].tokens)
    assert alone["loss"].items == pytest.approx(together["loss"].items, rel=1e-5)
    assert all(len(score.items) == len(score.tokens) == 30 for score in alone.values())


def test_generated_answers_are_judged_after_normalising(model: Path) -> None:
    """Case, blanks and a full stop do not count; another letter does."""
    rows = tiny.rows("first", 60, 1)
    plain = evaluate(model, {"t": EvalTask(rows, "generate", max_new_tokens=8)})["t"]
    assert plain.items == evaluate(model, {"t": EvalTask(rows, "exact_match")})["t"].items
    assert 0 < sum(plain.items) < 60
    loud = [{**row, "answer": f" {row['answer'].upper()}. "} for row in rows]
    other = [{**row, "answer": "?"} for row in rows]
    assert evaluate(model, {"t": EvalTask(loud, "generate", max_new_tokens=8)})["t"].items == plain.items
    assert sum(evaluate(model, {"t": EvalTask(other, "generate", max_new_tokens=8)})["t"].items) == 0


def test_answers_that_are_part_of_the_text_are_generated_and_extracted(model: Path) -> None:
    """By the pattern, as in gsm8k."""
    rows = tiny.rows("first", 60, 1)
    plain = evaluate(model, {"t": EvalTask(rows, "exact_match")})["t"]
    assert sum(plain.items) > 0
    wordy = [
        {
            "messages": [r["messages"][0], {"role": "assistant", "content": f"it is #### {r['answer']}"}],
            "answer": r["answer"],
        }
        for r in rows
    ]
    got = evaluate(model, {"t": EvalTask(wordy, "exact_match", pattern=r"(\w)", max_new_tokens=8)})["t"]
    assert sum(got.items) >= sum(plain.items)
    assert (
        sum(evaluate(model, {"t": EvalTask(wordy, "exact_match", pattern=r"#### (\w)", max_new_tokens=8)})["t"].items)
        == 0
    )


def test_extraction_and_normalising() -> None:
    """The last match's group; nothing where nothing matches; case, space, full stop, thousands do not count."""
    pattern = AnswerPattern.of(r"#### (\d)")
    assert pattern is not None
    assert pattern.find("1 #### 2 #### 3") == "3"
    assert pattern.find("none") is None
    assert normalise("  The\nAnswer. ") == "the answer"
    assert normalise("1,234,567.") == "1234567"
    assert normalise("1, 2") == "1, 2"


def test_reasoning_gyms_own_scorer_judges_generated_tasks(model: Path) -> None:
    """metric: generate on a generated task."""
    from cpift.data.rows import load_rows
    from cpift.recipe.task import Task

    _, rows, _ = load_rows("t", Task(generate="letter_counting", train=1, eval=4), 0)
    got = evaluate(model, {"t": EvalTask(rows, "generate", max_new_tokens=4, generator="letter_counting")})["t"]
    assert len(got.items) == 4
    assert all(0 <= item <= 1 for item in got.items)


def test_shares_of_the_specialists() -> None:
    """1.0 is as good as the specialist; loss counts the other way round; what is worse by over 5 % is counted."""

    def row(a: float, b: float) -> dict:
        return {"a": {"metric": "exact_match", "score": a}, "b": {"metric": "loss", "score": b}}

    table = {"base": row(0.1, 3.0), "probe/a": row(0.8, 4.0), "probe/b": row(0.0, 2.0), "model": row(0.6, 2.05)}
    told = summary(table, ["a", "b"])["model"]
    assert told["shares"] == {"a": pytest.approx(0.75), "b": pytest.approx(2.0 / 2.05)}
    assert (told["worst_task"], told["below_base"], told["below_specialist"]) == ("a", 0, 1)
    assert told["mean_score"] == 0.6
    assert summary(table, ["a", "b"])["probe/b"]["below_base"] == 1
