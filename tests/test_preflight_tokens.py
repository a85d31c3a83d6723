"""Rows that the model has no room for, and tokens that it lacks: refused before anything is trained, with task, row and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
from transformers import GPT2Config, GPT2LMHeadModel

from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.planning.plan import plan
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.preflight import read_rows
from cpift.runs.stage import Run
from cpift.train.fine_tune import fine_tune
from cpift.train.limits import limits_of_place
from cpift.train.spec import TrainSpec


def gpt2(folder: Path, positions: int) -> Path:
    """A model with a learnt vector for each position."""
    words = tiny.tokenizer()
    config = GPT2Config(
        vocab_size=len(words), n_positions=positions, n_embd=16, n_layer=1, n_head=2, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def tried(place: Path, **changes: Any) -> list[str]:
    """Warnings of what is checked before a run, with the base that lies there."""
    listener = tiny_run.Listener()
    read_rows(Run(Recipe.parse(tiny.recipe(place, ("reverse", "upper"), **changes)), place / "out", listener))
    return listener.said


def long(place: Path, part: str, letters: int, task: str = "upper") -> None:
    """Make row 2 of a task long."""
    tiny.recipe(place, ("reverse", "upper"))
    rows = tiny.rows(task, 6, 0)
    rows[1]["messages"][0]["content"] = "x" * letters
    tiny.jsonl(place / f"{task}.{part}.jsonl", rows)


def recipe_of(place: Path, **changes: Any) -> dict[str, Any]:
    """A recipe with the rows that lie there, other than :func:`tiny.recipe`, which writes them anew."""
    tasks = {t: {p: str(place / f"{t}.{p}.jsonl") for p in ("train", "eval")} for t in ("reverse", "upper")}
    training = {"per_device_train_batch_size": 4, "bf16": False, **changes.pop("training", {})}
    for key, value in changes.pop("task", {}).items():
        tasks["upper"][key] = value
    return {"model": str(place / "base"), "tasks": tasks, "training": training, **changes}


def checked(place: Path, **changes: Any) -> list[str]:
    listener = tiny_run.Listener()
    read_rows(Run(Recipe.parse(recipe_of(place, **changes)), place / "out", listener))
    assert not (place / "out").exists()
    return listener.said


def test_nothing_is_wrong_with_the_tiny_recipe(tmp_path: Path) -> None:
    assert tried(tmp_path) == []


def test_a_token_beyond_the_embedding_is_named(tmp_path: Path) -> None:
    """Of a tokenizer with a token more than the model has rows; rows without that token can be trained on."""
    tiny.recipe(tmp_path, ("reverse", "upper"))
    words = tiny.tokenizer()
    words.add_tokens(["qqq"])
    words.save_pretrained(tmp_path / "base")
    assert checked(tmp_path) == []
    for part, name in (("train", "training"), ("eval", "evaluation")):
        rows = tiny.rows("upper", 6, 0)
        rows[2]["messages"][0]["content"] += " qqq"
        tiny.jsonl(tmp_path / f"upper.{part}.jsonl", rows)
        with pytest.raises(
            CpiftError, match=rf"tasks.upper: {name} row 3 has the token 'qqq' with id {len(words) - 1}.*resize_token"
        ):
            checked(tmp_path)
        tiny.jsonl(tmp_path / f"upper.{part}.jsonl", tiny.rows("upper", 6, 0))


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("train", {}, r"tasks.upper: training row 2 has 1\d\d tokens, and the model positions for 100; set training.max_length to 100"),
        ("eval", {"training": {"max_length": 100}}, "evaluation row 2 has .* for 100; leave it out, or shorten it"),
        ("eval", {"task": {"metric": "loss"}}, "evaluation row 2 has .* for 100; set training.max_length to 100"),
        ("eval", {"task": {"metric": "generate", "max_new_tokens": 90}, "training": {"max_length": 100}}, "evaluation row 1: its prompt of .* lower tasks.upper.max_new_tokens"),
    ],
)  # fmt: skip
def test_rows_beyond_a_table_of_positions_are_refused(
    tmp_path: Path, part: str, changes: dict[str, Any], words: str
) -> None:
    """GPT-2's: the forward would fail within the training, or in the scores hours later."""
    gpt2(tmp_path / "base", 100)
    long(tmp_path, part, 120)
    with pytest.raises(CpiftError, match=words):
        checked(tmp_path, **changes)


def test_rows_that_are_cut_to_the_table_can_be_trained_on(tmp_path: Path) -> None:
    gpt2(tmp_path / "base", 100)
    long(tmp_path, "train", 120)
    (warning,) = checked(tmp_path, training={"max_length": 100})
    assert "longer than training.max_length 100 and are cut" in warning


def test_rows_longer_than_a_rotary_model_was_made_for_are_a_warning(tmp_path: Path) -> None:
    """It can go on; the recipe may mean it."""
    tiny.recipe(tmp_path, ("reverse", "upper"))
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 100}))
    long(tmp_path, "train", 120)
    (warning,) = checked(tmp_path)
    assert "tasks.upper: training rows: 1 of 6 are longer than the 100 tokens" in warning
    assert limits_of_place(tmp_path / "base").absolute is False


def test_a_training_refuses_them_as_well(tmp_path: Path) -> None:
    """Rows of a generated task are made too late for the check before a run."""
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 4, 0)]
    with pytest.raises(CpiftError, match=r"row 1 has .* tokens, and the model positions for 8"):
        fine_tune(gpt2(tmp_path / "base", 8), rows, tmp_path / "o", TrainSpec({"bf16": False}, 1, 0))


def without(place: Path, *tokens: str) -> None:
    """The tokenizer of the base, without its end or pad token."""
    tiny.recipe(place, ("reverse", "upper"))
    file = place / "base" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in settings.items() if key not in tokens}))


def test_a_tokenizer_without_pad_or_end(tmp_path: Path) -> None:
    """The end token pads, which is named; without either nothing can be trained; the recipe can name both."""
    without(tmp_path, "pad_token")
    assert checked(tmp_path) == [
        "model: its tokenizer has no pad token; '<|im_end|>', its end token, pads (set training.pad_token)"
    ]
    assert checked(tmp_path, training={"pad_token": "<|pad|>"}) == []
    with pytest.raises(CpiftError, match=r"training.pad_token: '<none>' is not in the tokenizer's vocabulary"):
        checked(tmp_path, training={"pad_token": "<none>"})
    without(tmp_path, "pad_token", "eos_token")
    with pytest.raises(CpiftError, match=r"neither a pad token nor an end token; name .* training.pad_token"):
        checked(tmp_path)
    (warning,) = checked(tmp_path, training={"pad_token": "<|pad|>"})
    assert "has no end token; set training.eos_token" in warning


def test_stop_strings_are_refused_where_answers_are_generated(tmp_path: Path) -> None:
    """transformers asks for them with a traceback, after all trainings."""
    tiny.recipe(tmp_path, ("reverse", "upper"))
    file = tmp_path / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stop_strings": ["###"]}))
    assert checked(tmp_path) == []
    with pytest.raises(
        CpiftError, match=r"generation_config.json: stop_strings .* tasks.upper generates .* take stop_strings out"
    ):
        checked(tmp_path, task={"metric": "generate"})


def test_stop_strings_are_refused_where_the_chat_may_reason_first(tmp_path: Path) -> None:
    """Such answers are generated, though exact match has no pattern: the scores decide so, and the check asks them."""
    tiny.recipe(tmp_path, ("reverse", "upper"))
    file = tmp_path / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stop_strings": ["###"]}))
    template = tiny.CHATML.replace(
        "{{ message['content'] }}",
        "{% if message['reasoning_content'] %}<think>{{ message['reasoning_content'] }}</think>{% endif %}{{ message['content'] }}",
    )
    with pytest.raises(CpiftError, match=r"stop_strings .* tasks.reverse generates"):
        checked(tmp_path, chat_template=template)


def test_plan_makes_the_checks_of_a_run(tmp_path: Path) -> None:
    """What a run would refuse, or warn of, before it trains."""
    gpt2(tmp_path / "base", 100)
    long(tmp_path, "eval", 120)
    with pytest.raises(CpiftError, match=r"evaluation row 2 has .* for 100; leave it out, or shorten it"):
        plan(Recipe.parse(recipe_of(tmp_path, training={"max_length": 100})))
    tiny.base(tmp_path / "base")
    without(tmp_path, "pad_token")
    warnings = plan(Recipe.parse(recipe_of(tmp_path)))["warnings"]
    assert any("its tokenizer has no pad token; '<|im_end|>'" in text for text in warnings)


def test_answers_that_are_longer_than_what_is_generated_are_a_warning(tmp_path: Path) -> None:
    """They are cut, so that a pattern at their end finds nothing. Exact match without a pattern generates as much."""
    tiny.recipe(tmp_path, ("reverse", "upper"))
    (warning,) = checked(tmp_path, task={"metric": "generate", "max_new_tokens": 5})
    assert "tasks.upper: 2 of 6 evaluation answers are longer than max_new_tokens 5" in warning
    assert "raise tasks.upper.max_new_tokens" in warning
    assert checked(tmp_path, task={"metric": "generate", "max_new_tokens": 6}) == []
    assert checked(tmp_path, task={"max_new_tokens": 2}) == []


def test_an_empty_prompt_has_no_answer_to_generate(tmp_path: Path) -> None:
    """A plain text whose prompt is "": fine to train on and to score by loss."""
    tiny.recipe(tmp_path, ("reverse", "upper"))
    rows = [{"prompt": "a", "completion": "b", "answer": "b"}, {"prompt": "", "completion": "b", "answer": "b"}]
    tiny.jsonl(tmp_path / "upper.eval.jsonl", rows)
    assert checked(tmp_path, task={"metric": "loss"}) == []
    with pytest.raises(
        CpiftError, match=r"tasks.upper: evaluation row 2 has an empty prompt.*tasks.upper.metric to loss"
    ):
        checked(tmp_path, task={"metric": "generate"})


def test_too_few_rows_for_a_whole_batch_are_refused(tmp_path: Path) -> None:
    """Where the last batch is dropped, a task of 16 rows makes no step of 20, nor 4 examples one of 8."""
    tiny.recipe(tmp_path, ("reverse", "upper"))
    drop = {"dataloader_drop_last": True, "per_device_train_batch_size": 20}
    with pytest.raises(CpiftError, match=r"dataloader_drop_last: tasks.reverse has 16 rows, fewer than the 20"):
        checked(tmp_path, training=drop)
    with pytest.raises(CpiftError, match=r"refine.examples_per_task leaves tasks.reverse 4 rows, fewer than the 8"):
        checked(tmp_path, training=drop | {"per_device_train_batch_size": 8}, refine={"examples_per_task": 4})


def test_a_routers_loss_without_a_router_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    tiny.recipe(tmp_path, ("reverse", "upper"))
    with pytest.raises(CpiftError, match="router_aux_loss_coef: llama has no router; leave it out"):
        run(Recipe.parse(recipe_of(tmp_path, training={"router_aux_loss_coef": 0.1})), tmp_path / "out")
    assert not (tmp_path / "out").exists()
