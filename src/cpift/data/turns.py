"""What a chat template puts around an assistant's turn, and which tokens end it: determined by rendering probes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cpift.data.templates import Conversation, render, template_of, training_template
from cpift.errors import CpiftError
from cpift.typing import Network, Tokenizer

_QUESTION, _ANSWER, _REASONING = "cpiftquestion", "cpiftanswer", "cpiftreasoning"
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Turn:
    """The surroundings of an assistant turn.

    Attributes:
        prompt: all that the template renders before an answer is generated, for a one-word question.
        before: what stands between that and the content, in a turn without reasoning.
        continues: whether a rendered turn continues the generation prompt.
        lead: what ends the reasoning, such as ``</think>``; empty where the template has no place for it.
        tail: what follows the content of the last turn.
    """

    prompt: str = ""
    before: str = ""
    continues: bool = True
    lead: str = ""
    tail: str = ""

    @property
    def may_reason(self) -> bool:
        """Can reasoning come before the answer, after the generation prompt?"""
        return bool(self.lead) and not self.prompt.rstrip().endswith(self.lead.rstrip())


_turns: dict[tuple[str, str, str], Turn] = {}


def turn_of(tokenizer: Tokenizer, kwargs: Mapping[str, object] | None = None) -> Turn:
    """The surroundings of a turn by the tokenizer's template, with template variables ``kwargs``."""
    kwargs = {**getattr(tokenizer, "cpift_template_kwargs", {}), **(kwargs or {})}
    if not tokenizer.chat_template:
        return Turn()
    template = template_of(tokenizer)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    key = template, json.dumps(kwargs, sort_keys=True, default=str), special
    if key not in _turns:
        if len(_turns) > 256:  # variables that differ from row to row
            _turns.clear()
        _turns[key] = _probe(tokenizer, template, kwargs)
    return _turns[key]


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Number of leading items that both have."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _probe(tokenizer: Tokenizer, template: str, kwargs: Mapping[str, object]) -> Turn:
    question = {"role": "user", "content": _QUESTION}
    answer = {"role": "assistant", "content": _ANSWER}
    thought = {**answer, **dict.fromkeys(REASONING_KEYS, _REASONING)}
    try:
        prompt = render(Conversation([question], None, kwargs), tokenizer, add_generation_prompt=True)
        whole = render(Conversation([question, answer], None, kwargs), tokenizer, training_template(tokenizer))
    except CpiftError:  # a template that wants another order of roles: nothing can be learnt from a probe
        return Turn()
    before, marker, tail = whole.partition(_ANSWER)
    if not marker:
        return Turn(prompt)
    continues = before.startswith(prompt)
    before = before[len(prompt) :] if continues else ""
    return Turn(prompt, before, continues, _lead(tokenizer, template, kwargs, question, thought, before, prompt), tail)


def _lead(
    tokenizer: Tokenizer,
    template: str,
    kwargs: Mapping[str, object],
    question: Mapping[str, object],
    thought: Mapping[str, object],
    before: str,
    prompt: str,
) -> str:
    try:
        whole = render(Conversation([question, thought], None, kwargs), tokenizer, training_template(tokenizer))
    except CpiftError:
        whole = ""
    _, reasoned, rest = whole.partition(_REASONING)
    between = rest.partition(_ANSWER)[0] if _ANSWER in rest else ""
    if reasoned and between:
        # Without reasoning the same text may follow the generation prompt, as in gpt-oss: the common part is the mark.
        shared = between[len(between) - common_length(between[::-1], before[::-1]) :] if before else between
        return shared.lstrip() if shared.strip() else between.lstrip()
    if "</think>" in template and (prompt.rstrip().endswith("<think>") or prompt.rstrip().endswith("</think>")):
        return "</think>"  # the template opens the reasoning and drops it from what it renders, as R1's does
    return ""


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """Id of the token that ends a turn by the chat template: the first special one after the assistant's content."""
    tail = turn_of(tokenizer).tail
    if not tail.strip():
        return None
    special = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in special and tokenizer.decode([token]).strip():  # (Gemma has line breaks among its added tokens)
            return int(token)
    return None


def stop_ids(tokenizer: Tokenizer, model: Network | None = None) -> list[int]:
    """All ids that end an answer: the model's, the tokenizer's end token, and the template's end of turn.

    Ids of the generation configuration come first, in its order.
    """
    ends: list[int] = []
    sources = []
    if model is not None:
        sources.append(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
        sources.append(getattr(model.config.get_text_config(), "eos_token_id", None))
    for source in [*sources, tokenizer.eos_token_id, end_of_turn(tokenizer)]:
        ids = source if isinstance(source, (list, tuple)) else [source]
        ends += [int(i) for i in ids if i is not None and int(i) not in ends]
    return ends


def write_stop_ids(model: Network, tokenizer: Tokenizer) -> None:
    """Put all that ends an answer into the generation configuration that is saved with the model."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    ids = stop_ids(tokenizer, model)
    held = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if ids and set(ids) != {i for i in held if i is not None}:
        settings.eos_token_id = ids if len(ids) > 1 else ids[0]


def answer_text(text: str, turn: Turn, special_tokens: list[str]) -> str | None:
    """The answer within a generated text, special tokens included: what follows the reasoning.

    None where the text has neither reasoning nor what the template puts before the content.
    """
    if turn.lead and turn.lead.strip() in text:
        answer = text.rpartition(turn.lead)[2] if turn.lead in text else text.rpartition(turn.lead.strip())[2].lstrip()
    elif turn.before and text.startswith(turn.before):
        answer = text[len(turn.before) :]
    else:
        return None
    for token in special_tokens:
        answer = answer.replace(token, "")
    return answer
