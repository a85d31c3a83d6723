"""What ends a turn, in scoring and in what is saved; what of a row is honoured, refused, or left out of the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_templates
import parrot
import pytest
import tiny
import tiny_run
from chat_templates import AGAIN, ANSWER, CALL, RESULT, SECOND, TOOLS, USER, thinking
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cpift.data.encoding import IGNORED, encode, encode_all, notes_of
from cpift.data.row_checks import check_row
from cpift.data.row_keys import REFUSED_COLUMNS
from cpift.data.templates import ChatSettings
from cpift.data.turns import end_of_turn, stop_ids
from cpift.errors import CpiftError
from cpift.evaluation import opened
from cpift.evaluation import scores as evaluation
from cpift.evaluation.scores import EvalTask
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.stage import ModelRef, Run
from cpift.runs.stages.evaluate import score_stages
from cpift.train.models import load_tokenizer, save

# The end of a turn as the models' own cards and generation_config have it.
ENDS = {
    "qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>", "gemma3": "<end_of_turn>", "gemma4": "<turn|>", "phi3": "<|end|>",
    "llama3": "<|eot_id|>", "llama3_1": "<|eot_id|>", "gptoss": "<|return|>", "cohere": "<|END_OF_TURN_TOKEN|>",
    "glm4moe": "<|user|>", "deepseekv3": "<｜end▁of▁sentence｜>", "smolvlm": "<end_of_utterance>",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_turn_is_found_in_the_rendered_template(name: str) -> None:
    """Though the tokenizer's own end token is another one."""
    words = chat_templates.tokenizer(name)
    assert words.decode([end_of_turn(words)]) == ENDS[name]
    assert stop_ids(words) == [words.eos_token_id, end_of_turn(words)]


@pytest.mark.parametrize("metric", ["exact_match", "generate"])
@pytest.mark.parametrize("end", ["<|im_end|>", "<|return|>"])
def test_an_answer_ends_at_any_of_the_models_ends(metric: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template's, or another that the generation configuration lists; six of six are right."""
    words = chat_templates.tokenizer("qwen2_5")
    rows = [
        {
            "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}],
            "answer": f"a{i}",
        }
        for i in range(6)
    ]
    stop = words.convert_tokens_to_ids(end)
    learnt = [
        [stop if token == end_of_turn(words) else token for token in encode(row, words).input_ids] for row in rows
    ]
    for ids in learnt:  # only the answer's own end
        first = words.convert_tokens_to_ids("<|im_end|>")
        ids[:] = [first if token == stop and i < len(ids) - 3 else token for i, token in enumerate(ids)]
    model = parrot.Parrot.after(learnt, len(words))
    model.generation_config = GenerationConfig(eos_token_id=[stop, words.eos_token_id])
    monkeypatch.setattr(opened, "load_model", lambda *_: model)
    monkeypatch.setattr(opened, "load_tokenizer", lambda *_: words)
    score = evaluation.evaluate("unused", {"t": EvalTask(rows, metric, max_new_tokens=20)})["t"]
    expected = 0.0 if (metric, end) == ("exact_match", "<|return|>") else 1.0  # that is not the end it was taught
    assert score.score == expected
    assert max(score.tokens) < 10


def test_what_is_saved_stops_where_the_turns_end(tmp_path: Path) -> None:
    """The generation configuration lists both; the tokenizer's end token, which ends plain text, stays."""
    model = AutoModelForCausalLM.from_pretrained(tiny.base(tmp_path / "base"))
    words = tiny.tokenizer()
    save(model, words, tmp_path / "same")
    assert GenerationConfig.from_pretrained(tmp_path / "same").eos_token_id == words.eos_token_id
    words.eos_token = "<|pad|>"
    model.generation_config.eos_token_id = [7]
    save(model, words, tmp_path / "saved")
    found = GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id
    assert found[0] == 7
    assert set(found) == {7, words.convert_tokens_to_ids("<|im_end|>"), words.eos_token_id}
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").eos_token == "<|pad|>"


def marked(row: Any, words: Any) -> str:
    """What the loss is taken on, as text."""
    return str(words.decode([label for label in encode(row, words).labels if label != IGNORED]))


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}])
@pytest.mark.parametrize("name", ["qwen3", "phi3", "llama3_1", "gemma4", tiny.CHATML])
def test_a_turn_that_is_not_to_be_learnt_has_no_label(name: str, key: dict[str, Any]) -> None:
    """And the ids are the same: by TRL's marks and by ours."""
    words = chat_templates.tokenizer(name)
    row = {"messages": [USER, {**ANSWER, **key}, AGAIN, {**SECOND, "weight": 1, "train": True}]}
    check_row(row, "r")
    assert ANSWER["content"] not in marked(row, words)
    assert "six" in marked(row, words)
    assert encode(row, words).input_ids == encode({"messages": [USER, ANSWER, AGAIN, SECOND]}, words).input_ids


@pytest.mark.parametrize(
    ("row", "words"),
    [
        *(({"messages": [USER, ANSWER], column: "x"}, f"{column} is not supported") for column in REFUSED_COLUMNS),
        ({"prompt": "a", "completion": "b", "system": "be brief"}, "system is not supported"),
        ({"prompt": "a", "completion": "b", "tools": TOOLS}, "tools needs messages"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "tools is text, but not JSON"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": "no"}, "chat_template_kwargs must be an object"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "weight is 0.5"),
        ({"messages": [USER, {**ANSWER, "train": "no"}]}, "train is 'no'"),
        ({"messages": [{**USER, "train": True}, ANSWER]}, "train asks to learn a turn of the user"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "no assistant turn is learnt"),
        ({"messages": [USER, {**ANSWER, "refusal": "no"}]}, "a message has refusal, which is not known"),
        ({"messages": [{**USER, "images": ["a.png"]}, ANSWER]}, "a message has images"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "role and content"),
    ],
)
def test_what_would_change_the_training_is_refused_by_name(row: dict[str, Any], words: str) -> None:
    """Rather than ignored."""
    with pytest.raises(CpiftError, match=words):
        check_row(row, "rows.jsonl, line 1")


def test_metadata_and_empty_values_are_let_through() -> None:
    """As data sets from the hub have them: columns that are null, ids and dates of messages."""
    turns = [{**USER, "id": 3, "images": None, "tool_calls": []}, {**ANSWER, "timestamp": "now"}]
    row = {
        "messages": turns,
        "images": [],
        "system": None,
        "source": "x",
        "id": 7,
        "prompt_id": "y",
        "label": 1,
        "chosen": [1],
    }
    assert check_row(row, "r") is row
    check_row({"messages": [USER, CALL, RESULT, thinking(ANSWER)], "tools": json.dumps(TOOLS)}, "r")


def test_tools_and_variables_reach_the_template() -> None:
    """As columns of a row, tools also as JSON text, as TRL takes them; the recipe's variables lie below the row's."""
    words = chat_templates.tokenizer("qwen3")
    row = {"messages": [USER, CALL, RESULT, ANSWER], "tools": TOOLS}
    assert "Multiply two numbers." in words.decode(encode(row, words).input_ids)
    assert encode({**row, "tools": json.dumps(TOOLS)}, words) == encode(row, words)
    words = chat_templates.tokenizer("{{ tone }}|" + tiny.CHATML)
    ChatSettings(kwargs={"tone": "loud"}).apply(words)
    turns = {"messages": [USER, ANSWER]}
    assert words.decode(encode(turns, words).input_ids).startswith("loud|")
    assert words.decode(encode({**turns, "chat_template_kwargs": {"tone": "low"}}, words).input_ids).startswith("low|")
    with pytest.raises(CpiftError, match="no variable 'tome'"):
        encode({**turns, "chat_template_kwargs": {"tome": "low"}}, words)


R1 = "{{ bos_token }}" + chat_templates.TEMPLATES["deepseek_r1_distill"].replace("is defined", "is defined ")


INLINE = {**ANSWER, "content": "<think>\nsix sevens\n</think>\n\nforty two"}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("deepseek_r1_distill", {"prompt": [USER], "completion": [INLINE]}),
        ("deepseek_r1_distill", {"messages": [USER, thinking(ANSWER)]}),
        (R1, {"messages": [USER, INLINE]}),
        (R1, {"messages": [USER, thinking(ANSWER)]}),
        (R1, {"prompt": [USER], "completion": [INLINE]}),
    ],
)
def test_reasoning_that_the_template_cuts_out_is_refused(name: str, row: dict[str, Any]) -> None:
    """Of R1, and of a template like it that TRL does not know: within the content, or under a key of its own."""
    with pytest.raises(CpiftError, match="leaves the reasoning out"):
        encode(row, chat_templates.tokenizer(name))


def test_an_answer_that_begins_like_the_generation_prompt_is_learnt_whole() -> None:
    """``<b>`` and ``<think>`` have their first character in common."""
    for name in ("deepseek_r1_distill", R1):
        words = chat_templates.tokenizer(name)
        bold = {"role": "assistant", "content": "<b>six"}
        assert "<b>six" in marked({"prompt": [USER], "completion": [bold]}, words)
        assert "<b>six" in marked({"messages": [USER, bold]}, words)
    with pytest.raises(CpiftError, match="leaves the reasoning out"):  # not mistaken for the answer that it equals
        encode({"messages": [USER, {"role": "assistant", "content": "<think>six</think>six"}]}, words)


def test_reasoning_that_trls_template_keeps_for_r1_is_learnt() -> None:
    """In messages; without reasoning the user hears that such answers are not asked for in this way."""
    words = chat_templates.tokenizer("deepseek_r1_distill")
    kept, _ = encode_all([{"messages": [USER, INLINE]}, {"messages": [USER, ANSWER]}], words, None)
    learnt = marked({"messages": [USER, INLINE]}, words)
    assert learnt.endswith("<think>\nsix sevens\n</think>\n\nforty two<｜end▁of▁sentence｜>")
    assert kept[0].notes == ()
    assert notes_of(kept)[0].startswith(
        "1 of 2 rows: the template's generation prompt is not how a trained turn begins"
    )


def test_reasoning_that_the_template_keeps_is_learnt() -> None:
    """Under its key or within the content; that of earlier turns is reported where it is left out."""
    words = chat_templates.tokenizer("qwen3")
    assert marked({"messages": [USER, INLINE]}, words) == "<think>\nsix sevens\n</think>\n\nforty two<|im_end|>\n"
    words = chat_templates.tokenizer("gptoss")
    kept, _ = encode_all([{"messages": [USER, thinking(ANSWER), AGAIN, thinking(SECOND)]}], words, None)
    assert "reasoning of earlier turns" in notes_of(kept)[0]


def test_arguments_that_are_text_are_rendered_as_objects_are_or_refused() -> None:
    """OpenAI's rows have JSON text: Qwen 2.5's template would quote it once more, that of Qwen 3 takes it."""
    function = {"name": "multiply", "arguments": '{"a": 6, "b": 7}'}
    row = {"messages": [USER, {**CALL, "tool_calls": [{"type": "function", "function": function}]}], "tools": TOOLS}
    with pytest.raises(CpiftError, match="quotes once more"):
        encode(row, chat_templates.tokenizer("qwen2_5"))
    words = chat_templates.tokenizer("qwen3")
    assert encode(row, words) == encode({"messages": [USER, CALL], "tools": TOOLS}, words)


def test_content_that_the_template_leaves_out_is_refused() -> None:
    """A model that learns nothing but the end of its turns would score 100 %."""
    words = chat_templates.tokenizer("{% for m in messages %}<|im_start|>{{ m.role }}\n<|im_end|>\n{% endfor %}")
    with pytest.raises(CpiftError, match="leaves out the user's message"):
        encode({"messages": [USER, ANSWER]}, words)


def test_the_recipes_template_is_used_saved_and_part_of_the_keys(tmp_path: Path) -> None:
    """A whole run; unset, the stages' settings are what they were."""
    (tmp_path / "own.jinja").write_text("{{ tone }}: " + tiny.CHATML)
    changes = {"chat_template": str(tmp_path / "own.jinja"), "chat_template_kwargs": {"tone": "low"}}
    data = tiny.recipe(tmp_path, ("upper",), **changes)
    with tiny_run.one_thread():
        run(Recipe.parse(data), tmp_path / "out")
    for folder in (tmp_path / "out/model", tmp_path / "out/stages/01-probe/upper"):
        assert load_tokenizer(folder).chat_template.startswith("{{ tone }}")
    settings = Recipe.parse(data).chat.identity()
    assert set(settings) == {"chat_template", "chat_template_kwargs"}
    assert Recipe.parse(tiny.recipe(tmp_path, ("upper",))).chat.identity() == {}
    heard = tiny_run.Listener()
    with tiny_run.one_thread():
        run(
            Recipe.parse({**data, "chat_template_kwargs": {"tone": "loud"}}),
            tmp_path / "out",
            until="probe",
            reporter=heard,
        )
    assert heard.made == ["01-probe/upper"]
    stages = score_stages(Run(Recipe.parse(data), tmp_path / "out"), "base", ModelRef(tmp_path / "base"), "base")
    assert settings.items() <= stages[0].settings.items()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chat_template": "nowhere.jinja"}, "neither a file nor the text of a template"),
        ({"chat_template": "{% for m in %}"}, "the chat template refuses a row"),
        ({"chat_template": "{% for m in %}", "chat_template_kwargs": {"tone": 1}}, "the chat template is broken"),
        ({"chat_template_kwargs": {"tome": 1}}, "no variable 'tome'"),
        ({"training": {"eos_token": "<nowhere>"}}, "'<nowhere>' is not in the tokenizer's vocabulary"),
        ({"refine": {"training": {"eos_token": "<|pad|>"}}}, "refine.training.eos_token: give it in training"),
    ],
)
def test_settings_of_the_chat_that_cannot_work_are_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Before any training."""
    with pytest.raises(CpiftError, match=words):
        run(Recipe.parse(tiny.recipe(tmp_path, ("upper",), **changes)), tmp_path / "out")
    assert not (tmp_path / "out/stages/01-probe").exists()


def test_one_end_token_reaches_training_scores_and_what_is_saved(tmp_path: Path) -> None:
    """``training.eos_token`` ends plain text in the labels, and the saved model stops at it."""
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}", "answer": str(i + 1)} for i in range(4)]
    recipe = tiny.recipe(tmp_path, ("upper",))
    recipe["training"]["eos_token"] = "<|im_start|>"
    for part in ("train", "eval"):
        recipe["tasks"]["upper"][part] = str(tiny.jsonl(tmp_path / f"{part}.jsonl", rows))
    with tiny_run.one_thread():
        run(Recipe.parse(recipe), tmp_path / "out")
    words = load_tokenizer(tmp_path / "out/model")
    assert words.eos_token == "<|im_start|>"
    assert encode(rows[0], words).labels[-1] == words.convert_tokens_to_ids("<|im_start|>")
    assert words.eos_token_id in stop_ids(words, AutoModelForCausalLM.from_pretrained(tmp_path / "out/model"))
    saved = GenerationConfig.from_pretrained(tmp_path / "out/model").eos_token_id
    assert set(saved) == {words.eos_token_id, words.convert_tokens_to_ids("<|im_end|>")}


def test_named_templates_are_chosen_as_transformers_chooses_them() -> None:
    """The one for tools where a row has tools; without a default, the row is refused."""
    words = chat_templates.tokenizer("qwen3")
    words.chat_template = {"default": tiny.CHATML, "tool_use": chat_templates.TEMPLATES["qwen3"]}
    assert marked({"messages": [USER, ANSWER]}, words) == "forty two<|im_end|>\n"
    assert "<tool_call>" in marked({"messages": [USER, CALL], "tools": TOOLS}, words)
    words.chat_template = {"tool_use": tiny.CHATML}
    with pytest.raises(CpiftError, match="no default chat template"):
        encode({"messages": [USER, ANSWER]}, words)
