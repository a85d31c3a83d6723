"""Which characters of a rendered conversation are learnt: by the template's own marks, or by rendering its beginnings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cpift.data.templates import Conversation, Message, render, render_marked, training_template
from cpift.data.turns import REASONING_KEYS, common_length, turn_of
from cpift.errors import CpiftError
from cpift.typing import Tokenizer

OTHER_CONTEXT = (
    "the template's generation prompt is not how a trained turn begins: the model learns to answer in another context "
    "than it is asked in; give reasoning in the rows, or set chat_template_kwargs, such as enable_thinking: false"
)
REASONING_LEFT_OUT = "the chat template leaves the reasoning of earlier turns out; it is not learnt"
NO_END = "nothing ends a turn of the chat template: the model does not learn where to stop"

_REWRITES = (
    "the chat template rewrites earlier turns, so that no turn can be marked as the assistant's; "
    "give the rows as prompt and completion, one turn each, or a chat_template that leaves them as they were"
)

Span = tuple[int, int]
Tokens = Callable[[str], tuple[list[int], list[tuple[int, int]]]]


@dataclass(frozen=True)
class Marked:
    """A rendered conversation.

    Attributes:
        text: all of it.
        spans: characters that are learnt, from first to behind the last.
        prompt: what the answer is asked for by, where the row is prompt and completion.
        notes: what the user should know about the row.
    """

    text: str
    spans: list[tuple[int, int]]
    prompt: str | None = None
    notes: tuple[str, ...] = ()


def is_trained(message: Message) -> bool:
    """Is this a turn that is learnt? Not with ``weight: 0`` or ``train: false``."""
    return message["role"] == "assistant" and message.get("weight") != 0 and message.get("train") is not False


def mark_turns(conversation: Conversation, tokenizer: Tokenizer, tokens: Tokens, first: int = 0) -> Marked:
    """Mark the trained assistant turns from message ``first`` on, each with its end of turn.

    By ``{% generation %}`` where the template, or the one that TRL has for it, marks them.

    Raises:
        CpiftError: the template refuses the row, rewrites earlier turns, or leaves out what should be learnt.
    """
    assistants = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    trained = [i for i in assistants if i >= first and is_trained(conversation.messages[i])]
    template = training_template(tokenizer, conversation.tools)
    if template is None:
        text = render(conversation, tokenizer)
        spans = {i: [_by_beginnings(conversation, i, text, tokenizer, tokens)] for i in trained}
    else:
        text, marked = render_marked(conversation, tokenizer, template)
        by_turn = _by_turn(marked, assistants, trained)
        spans = {i: by_turn[i] for i in trained}
    notes = check_content(conversation, text, spans)
    last = len(conversation.messages) - 1
    if last in spans:
        notes += _notes_of_last(conversation, tokenizer, _cut(text, spans[last]))
    return Marked(text, sorted({span for turn in spans.values() for span in turn}), None, notes)


def mark_completion(conversation: Conversation, tokenizer: Tokenizer) -> Marked:
    """Mark the last message, the completion of the others, as TRL does: all that the prompt does not have.

    Raises:
        CpiftError: the template refuses the row, renders the prompt in another way once it is answered, or leaves
            the answer out.
    """
    asked = conversation.part(conversation.messages[:-1])
    text = render(conversation, tokenizer)
    prompt = render(asked, tokenizer, add_generation_prompt=True)
    start = _border(conversation, text, prompt, render(asked, tokenizer), len(conversation.messages) - 1)
    if start is None:
        raise CpiftError("the chat template renders the prompt in another way once it is answered; " + _ADVICE)
    span = (start, len(text))
    notes = check_content(conversation, text, {len(conversation.messages) - 1: [span]})
    return Marked(text, [span], prompt, notes + _notes_of_last(conversation, tokenizer, text[start:]))


def _by_turn(marked: list[Span], assistants: list[int], trained: list[int]) -> dict[int, list[Span]]:
    """The marked spans of each assistant turn; some templates mark one in pieces that touch, such as its end apart."""
    joined: list[Span] = []
    for start, end in marked:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    if len(joined) == len(assistants):
        return {i: [span] for i, span in zip(assistants, joined, strict=True)}
    if trained != assistants:
        raise CpiftError(
            f"the chat template marks {len(joined)} turns as the assistant's, the row has {len(assistants)}: "
            "no turn can be left out by weight or train; join the assistant turns that follow one another"
        )
    return dict.fromkeys(trained, joined)


_HAS_IT = "what it leaves out is neither read nor learnt; give a chat_template that has it"
_ADVICE = "give a chat_template that leaves earlier turns as they were"


def _by_beginnings(
    conversation: Conversation, i: int, text: str, tokenizer: Tokenizer, tokens: Tokens
) -> tuple[int, int]:
    """Characters of assistant turn ``i``: the conversation up to it is rendered, and the one that ends with it."""
    messages = conversation.messages
    start: int | None
    if i == 0:
        start = _opening(conversation, text, tokenizer)
    else:
        asked = conversation.part(messages[:i])
        before = render(asked, tokenizer, add_generation_prompt=True)
        start = _border(conversation, text, before, render(asked, tokenizer), i)
        if start is None:
            raise CpiftError(_REWRITES)
    if i == len(messages) - 1:
        return start, len(text)
    after = render(conversation.part(messages[: i + 1]), tokenizer)
    end = len(after) if text.startswith(after) else _common_end(text, after, tokens)
    if end <= start or _squeezed(_plain(messages[i].get("content"))) not in _squeezed(text[start:end]):
        raise CpiftError(_REWRITES)
    return start, end


def _border(conversation: Conversation, text: str, prompt: str, history: str, i: int) -> int | None:
    """Where message ``i`` begins behind its prompt; None where what stands before it is rendered in another way.

    A generation prompt may have more than a rendered turn has, such as an opened ``<think>``.
    """
    if text.startswith(prompt):
        return len(prompt)
    start, past = common_length(text, prompt), common_length(history, prompt)
    content = _plain(conversation.messages[i].get("content")).strip()
    at = text.find(content, past) if content else -1
    return None if start < past else min(start, at) if at >= 0 else start  # "<b>" and "<think>" begin alike


def _common_end(text: str, after: str, tokens: Tokens) -> int:
    """Where the last token ends that both have: a template may end the last turn in a way of its own."""
    ids, places = tokens(text)
    others, _ = tokens(after)
    shared = common_length(ids, others)
    return places[shared - 1][1] if shared else 0


def _opening(conversation: Conversation, text: str, tokenizer: Tokenizer) -> int:
    """Characters before the words of an assistant turn that opens its conversation: templates refuse an empty one."""
    first = conversation.part(conversation.messages[:1])
    alone = render(first, tokenizer)
    header = render(first, tokenizer, add_generation_prompt=True)[len(alone) :]
    at = text.find(header) if header else -1
    content = str(conversation.messages[0].get("content") or "")
    return at + len(header) if 0 <= at <= text.find(content) else 0


def check_content(conversation: Conversation, text: str, spans: Mapping[int, list[Span]]) -> tuple[str, ...]:
    """See that all content is in the rendered text, and what is learnt within its span; notes of what may be missing.

    White space does not count: templates trim. Turns that are not learnt may lose their reasoning, as they do when
    the model is asked.

    Raises:
        CpiftError: content, reasoning or tool calls are not there.
    """
    notes: list[str] = []
    whole, last = _squeezed(text), max(spans, default=-1)
    for i, message in enumerate(conversation.messages):
        content = _plain(message.get("content"))
        if message["role"] != "assistant":
            if not _holds(whole, content):
                raise CpiftError(f"the chat template leaves out the {message['role']}'s message; {_HAS_IT}")
            continue
        learnt = i in spans
        part = _squeezed(_cut(text, spans[i])) if learnt else _squeezed(text[_end_of(text, conversation, i - 1) :])
        *thoughts, answer = re.split(r"<think>|</think>", content) if "</think>" in content else [content]
        thoughts += [str(message[key]) for key in REASONING_KEYS if message.get(key)]
        calls = [call.get("function") or call for call in message.get("tool_calls") or []]
        if not _holds(part, answer):
            raise CpiftError(f"the chat template leaves out the assistant's content; {_HAS_IT}")
        if not all(_holds(part, str(call.get("name", ""))) for call in calls):
            raise CpiftError(f"the chat template leaves out tool_calls; {_HAS_IT}")
        for given in (call.get("arguments") for call in calls):
            if isinstance(given, str) and '"' in given and _squeezed(json.dumps(given)) in part:
                raise CpiftError(
                    "the arguments of a tool call are text, which the chat template quotes once more; give an object"
                )
        if not learnt:
            continue
        before = part.rpartition(_squeezed(answer))[0] if answer.strip() else part
        if not all(_holds(before, thought) for thought in thoughts):
            if i == last:
                raise CpiftError(
                    "the chat template leaves the reasoning out of the assistant's turn, so that it would not be learnt; "
                    "give a chat_template that has it, or rows without reasoning; for R1's own template, give messages"
                )
            notes.append(REASONING_LEFT_OUT)
    return tuple(dict.fromkeys(notes))


def _notes_of_last(conversation: Conversation, tokenizer: Tokenizer, part: str) -> tuple[str, ...]:
    turn, message = turn_of(tokenizer, conversation.kwargs), conversation.messages[-1]
    notes = []
    thought = "</think>" in _plain(message.get("content")) or any(message.get(key) for key in REASONING_KEYS)
    if not turn.continues and not thought:
        notes.append(OTHER_CONTEXT)
    if part.rstrip().endswith(_plain(message.get("content")).rstrip() or "\0"):
        notes.append(NO_END)
    return tuple(notes)


def _plain(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def _holds(squeezed: str, content: str) -> bool:
    """Is the content there, as it is or as JSON writes it?"""
    written = (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
    return any(_squeezed(form) in squeezed for form in written)


def _end_of(text: str, conversation: Conversation, i: int) -> int:
    """About where message ``i`` ends: tools are described before it, and called behind it."""
    content = _plain(conversation.messages[i].get("content")).strip() if i >= 0 else ""
    return max(0, text.find(content)) if content else 0


def _cut(text: str, spans: list[Span]) -> str:
    return "".join(text[start:end] for start, end in spans)


def _squeezed(text: str) -> str:
    return "".join(text.split())
