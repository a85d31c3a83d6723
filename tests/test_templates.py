"""Every chat template that TRL ships: marked as TRL marks, generated as teacher-forced, or refused for a true reason."""

from __future__ import annotations

from typing import Any

import chat_templates
import parrot
import pytest
import torch
from chat_templates import ROWS, TEMPLATES
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import prepare_multimodal_messages

from cpift.data.encoding import IGNORED, encode
from cpift.data.templates import ChatSettings, takes_parts
from cpift.data.turns import end_of_turn, turn_of
from cpift.errors import CpiftError
from cpift.evaluation import opened
from cpift.evaluation import scores as evaluation
from cpift.evaluation.scores import EvalTask, generate

# Why a template cannot take a kind of row. Each was looked up in the template's text.
NO_REASONING = "leaves the reasoning out"  # it reads no key of reasoning, or only that of tool calls (Gemma 4)
NO_TOOLS = "leaves out tool_calls"  # it never reads them
_WITHOUT_REASONING = [
    "cohere",
    "cohere2",
    "deepseek_r1_distill",
    "deepseekv3",
    "gemma",
    "gemma3",
    "gemma4",
    "gemma4_v2",
    "gemma4_v3",
    "gemma4_v4",
    "idefics3",
    "lfm2",
    "lfm2_v2",
    "llama3",
    "llama3_1",
    "llama3_2",
    "llava_next",
    "phi3",
    "phi3_5",
    "qwen2_5",
    "qwen2_5_vl",
    "qwen3_instruct_2507",
    "qwen3_vl",
    "smolvlm",
]
_WITHOUT_TOOLS = [
    "cohere",
    "cohere2",
    "deepseek_r1_distill",
    "gemma",
    "gemma3",
    "idefics3",
    "lfm2",
    "llama3",
    "llava_next",
    "phi3",
    "phi3_5",
    "qwen2_5_vl",
    "smolvlm",
]
REFUSED: dict[tuple[str, str], str] = {
    **{(name, kind): NO_REASONING for name in _WITHOUT_REASONING for kind in ("reasoning", "two turns of reasoning")},
    **{(name, kind): NO_TOOLS for name in _WITHOUT_TOOLS for kind in ("tool call", "tools")},
    **{(name, "tools"): "must alternate" for name in ("cohere", "cohere2", "gemma", "gemma3")},
    ("llava_next", "tools"): "Only user and assistant roles",
    ("gemma", "system"): "System role not supported",
    ("gemma4_v5", "two turns of reasoning"): "rewrites earlier turns",  # only the last turn keeps its reasoning
}
# Of prompt and completion, rendered by the model's own template, as TRL does: faults that its training templates mend,
# and rows that the own template takes.
BY_OWN_TEMPLATE: dict[tuple[str, str], str | None] = {
    **{("deepseekv3", kind): 'concatenate str .not "dict"' for kind in ("tool call", "tools")},
    ("gemma4_v5", "two turns of reasoning"): None,
}
KNOWN_TO_TRL = [n for n in TEMPLATES if not n.startswith("gemma4") and n not in ("llama3_1", "llama3_2")]


def by_trl(row: dict[str, Any], words: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Ids and labels as SFTTrainer makes them with assistant_only_loss."""
    messages = [{**m, "content": m["content"] or ""} for m in row["messages"]]
    if takes_parts(words.chat_template):
        messages = prepare_multimodal_messages(messages)
    template = None if has_generation_markers(words.chat_template) else get_training_chat_template(words)
    made = words.apply_chat_template(
        messages, tools=row.get("tools"), chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(made["input_ids"], made["assistant_masks"], strict=True)
    return list(made["input_ids"]), [token if mask else IGNORED for token, mask in pairs]


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_marked_as_trl_marks_them(name: str) -> None:
    """Token by token, with TRL's training template where it has one; or refused, as the table has it."""
    words = chat_templates.tokenizer(name)
    for kind, row in ROWS.items():
        reason = REFUSED.get((name, kind))
        if reason is not None:
            with pytest.raises(CpiftError, match=reason):
                encode(row, words)
            continue
        ours = encode(row, words)
        if name in KNOWN_TO_TRL:
            assert (ours.input_ids, ours.labels) == by_trl(row, words), kind
        else:  # TRL has no marks: the words of the assistant, and what ends them, and nothing of the others
            learnt = words.decode([label for label in ours.labels if label != IGNORED])
            for message in row["messages"]:
                text = message["content"] or "multiply"
                assert (text in learnt) == (message["role"] == "assistant"), (kind, learnt)
            assert "assistant" not in learnt
            assert "model" not in learnt


def completion(row: dict[str, Any]) -> dict[str, Any]:
    """The same row as prompt and completion."""
    rest = {key: value for key, value in row.items() if key != "messages"}
    return {**rest, "prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


@pytest.mark.parametrize("name", TEMPLATES)
def test_completions_are_marked_as_trl_marks_them(name: str) -> None:
    """By the model's own template: from where the ids of prompt and of prompt with completion part."""
    words = chat_templates.tokenizer(name)
    for kind, row in ROWS.items():
        reason = BY_OWN_TEMPLATE.get((name, kind), REFUSED.get((name, kind)))
        if reason is not None:
            with pytest.raises(CpiftError, match=reason):
                encode(completion(row), words)
            continue
        ours = encode(completion(row), words)
        messages = [{**m, "content": m["content"] or ""} for m in row["messages"]]
        if takes_parts(words.chat_template):
            messages = prepare_multimodal_messages(messages)
        whole = words.apply_chat_template(messages, tools=row.get("tools"), return_dict=False)
        prompt = words.apply_chat_template(
            messages[:-1], tools=row.get("tools"), add_generation_prompt=True, return_dict=False
        )
        shared = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        assert ours.input_ids == whole, kind
        assert ours.labels == [IGNORED] * shared + whole[shared:], kind


ASKED = [("how many?", "forty two"), ("what colour?", "blue"), ("where to?", "six sevens"), ("again?", "no")]


CLOSED = [name for name, text in TEMPLATES.items() if "enable_thinking" in text and not name.startswith("gemma4")]
CLOSED.remove("diffusion_gemma")  # its variable is of the system message, not of the generation prompt


@pytest.mark.parametrize(("name", "thinking"), [*((n, None) for n in TEMPLATES), *((n, False) for n in CLOSED)])
def test_what_is_generated_is_what_is_scored(name: str, thinking: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has learnt two rows, and two others wrongly, scores 1 1 0 0: generated, and by whichever way is taken.

    But where the template's generation prompt is not how its turns begin: there nothing that was learnt is asked for.
    """
    words = chat_templates.tokenizer(name)
    if thinking is not None:
        ChatSettings(kwargs={"enable_thinking": thinking}).apply(words)
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "answer": a}
        for q, a in ASKED
    ]
    learnt = [*rows[:2], *({"messages": [r["messages"][0], {"role": "assistant", "content": "red"}]} for r in rows[2:])]
    model = parrot.Parrot.after([encode(row, words).input_ids for row in learnt], len(words))
    monkeypatch.setattr(opened, "load_model", lambda *_: model)
    monkeypatch.setattr(opened, "load_tokenizer", lambda *_: words)
    scored = evaluation.evaluate("unused", {"t": EvalTask(rows, "exact_match", max_new_tokens=40)})["t"]
    with torch.inference_mode():
        texts = generate(model, words, rows, max_new_tokens=40)
    generated = [
        float(text.strip() == row["answer"] and count < 40) for (text, count), row in zip(texts, rows, strict=True)
    ]
    assert scored.items == generated
    ends = end_of_turn(words) is not None or "eos_token" in words.chat_template
    assert ends
    assert generated == ([1.0, 1.0, 0.0, 0.0] if turn_of(words).continues else [0.0] * 4)
    if thinking is False:  # nothing can come between the prompt and the answer
        assert turn_of(words).continues
        assert not turn_of(words).may_reason


@pytest.mark.parametrize(
    "name", ["qwen3", "gptoss", "muse_glimmer", "glm4moe", "lfm2_2_5", "gemma4_v5", "nemotron_3_nano"]
)
def test_an_answer_behind_its_reasoning_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that reasons before it answers, where the row only has the answer: the reasoning does not count."""
    words = chat_templates.tokenizer(name)
    row = {**ROWS["one turn"], "answer": "forty two"}
    model = parrot.Parrot.after([encode(ROWS["reasoning"], words).input_ids], len(words))
    monkeypatch.setattr(opened, "load_model", lambda *_: model)
    monkeypatch.setattr(opened, "load_tokenizer", lambda *_: words)
    tasks = {m: EvalTask([row], m, max_new_tokens=60) for m in ("exact_match", "generate")}
    assert [score.score for score in evaluation.evaluate("unused", tasks).values()] == [1.0, 1.0]
