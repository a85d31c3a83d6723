"""Every chat template that TRL ships, one small tokenizer that knows their special tokens, and rows of each kind."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import tiny
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted(FOLDER.glob("*.jinja"))
    if not file.stem.endswith("_training")
}

USER, ANSWER = {"role": "user", "content": "how many are 6 x 7?"}, {"role": "assistant", "content": "forty two"}
AGAIN, SECOND = {"role": "user", "content": "and 2 x 3?"}, {"role": "assistant", "content": "six"}
SYSTEM = {"role": "system", "content": "be brief"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "Multiply two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer", "description": "One."}, "b": {"type": "integer", "description": "Two."}},
                "required": ["a", "b"],
            },
        },
    }
]  # fmt: skip
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "multiply", "arguments": {"a": 6, "b": 7}}}],
}
RESULT = {"role": "tool", "name": "multiply", "content": "it is 42"}


def thinking(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with its reasoning, under the names that templates read."""
    text = f"six sevens make {answer['content']}"
    return {**answer, "reasoning_content": text, "reasoning": text, "thinking": text}


ROWS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [USER, ANSWER]},
    "system": {"messages": [SYSTEM, USER, ANSWER]},
    "two turns": {"messages": [USER, ANSWER, AGAIN, SECOND]},
    "tool call": {"messages": [USER, CALL], "tools": TOOLS},
    "tools": {"messages": [USER, CALL, RESULT, ANSWER], "tools": TOOLS},
    "reasoning": {"messages": [USER, thinking(ANSWER)]},
    "two turns of reasoning": {"messages": [USER, thinking(ANSWER), AGAIN, thinking(SECOND)]},
}


@lru_cache
def _core() -> str:
    """Byte-level BPE with merges, made once."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    how = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*tiny.SPECIAL, "<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [str(row) for row in ROWS.values()] + ["\n\n", " positive negative\n\n", "Assistant: forty two six"]
    core.train_from_iterator(texts * 5, how)
    marks = sorted({m for text in TEMPLATES.values() for m in re.findall(_MARKS, text)})
    core.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return str(core.to_str())


_MARKS = (
    r"<\|[a-z_A-Z]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_(?:turn|utterance)>|<\|(?:turn|channel|tool_call|tool_response)>"
    r"|<(?:turn|channel|tool_call|tool_response)\|>|</?think>|</s>"
)


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """With a template; its end token is none that a template writes."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core()), pad_token="<|pad|>", bos_token="<bos>", eos_token="<eos>"
    )
    made.chat_template = TEMPLATES.get(template, template)
    return made
