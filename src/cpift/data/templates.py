"""Chat templates: the recipe's settings, rendering, and which template marks the assistant's part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _get_template_variables, render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from cpift.data.chat import ChatSettings as ChatSettings
from cpift.errors import CpiftError
from cpift.typing import Tokenizer

Message = Mapping[str, Any]

_PROBE = "cpiftprobe"
_SET_BY_CPIFT = frozenset({"messages", "tools", "documents", "add_generation_prompt", "conversation", "chat_template"})


@dataclass(frozen=True)
class Conversation:
    """The messages of a row with what else its chat template reads."""

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def part(self, messages: Sequence[Message]) -> Conversation:
        """Other messages in the same setting."""
        return Conversation(messages, self.tools, self.kwargs)


def template_kwargs(tokenizer: Tokenizer) -> dict[str, object]:
    """The variables of the chat template that the recipe sets for all rows."""
    return dict(getattr(tokenizer, "cpift_template_kwargs", {}))


def conversation_of(row: Mapping[str, Any], tokenizer: Tokenizer) -> Conversation:
    """The messages of a row, its tools, and template variables: the recipe's with the row's own on top.

    Raises:
        CpiftError: no chat template; a variable that the template does not read.
    """
    messages = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    tools = row.get("tools") or None
    if isinstance(tools, str):  # as TRL takes them: lists of unlike objects do not fit one Arrow column
        tools = json.loads(tools) or None
    own = {k: v for k, v in (row.get("chat_template_kwargs") or {}).items() if v is not None}
    kwargs = {**template_kwargs(tokenizer), **own}
    template = template_of(tokenizer, tools)
    for key in kwargs:
        if key in _SET_BY_CPIFT:
            raise CpiftError(f"chat_template_kwargs: {key} is set by cpift; give it as a column of the row")
        if key not in _variables(template) | _variables(training_template(tokenizer, tools) or ""):
            raise CpiftError(
                f"chat_template_kwargs: the chat template has no variable {key!r}; remove it or correct it"
            )
    return Conversation(messages, tools, kwargs)


def template_of(tokenizer: Tokenizer, tools: Sequence[Any] | None = None) -> str:
    """The template that a conversation is rendered with. Raises :class:`CpiftError` where there is none."""
    if not tokenizer.chat_template:
        raise CpiftError(
            "the tokenizer has no chat template; give the rows as prompt and completion, or set chat_template"
        )
    try:
        return str(tokenizer.get_chat_template(None, tools))
    except ValueError as error:  # several by name, and none is the default
        raise CpiftError(f"the tokenizer has no default chat template ({error}); set chat_template") from error


def training_template(tokenizer: Tokenizer, tools: Sequence[Any] | None = None) -> str | None:
    """The template that marks the assistant's part by ``{% generation %}``: its own, or the one that TRL has for it.

    None where neither does.
    """
    return _training_template(template_of(tokenizer, tools))


@lru_cache(maxsize=64)
def _training_template(template: str) -> str | None:
    if has_generation_markers(template):
        return template
    try:
        marked = get_training_chat_template(_Named(template))
    except ValueError:  # TRL does not know the template
        return None
    return str(marked) if marked else None


class _Named:
    """Stands for a tokenizer where TRL compares templates: a template without marks is looked up by its text alone."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, *given: object, **options: object) -> str:
        raise TemplateError("not rendered: TRL then takes it for one without tools, and compares texts")


def render(
    conversation: Conversation, tokenizer: Tokenizer, template: str | None = None, add_generation_prompt: bool = False
) -> str:
    """The text of a conversation. Raises :class:`CpiftError` with the template's own reason where it refuses."""
    return _render(conversation, tokenizer, template, add_generation_prompt, False)[0]


def render_asked(conversation: Conversation, tokenizer: Tokenizer, add_generation_prompt: bool = False) -> str:
    """The text as the model is asked: by its own template, or TRL's where that has faults that TRL's mends."""
    try:
        return render(conversation, tokenizer, None, add_generation_prompt)
    except CpiftError:
        template = training_template(tokenizer, conversation.tools)
        if template is None:
            raise
        return render(conversation, tokenizer, template, add_generation_prompt)


def render_marked(conversation: Conversation, tokenizer: Tokenizer, template: str) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the spans of characters that the template's ``{% generation %}`` blocks make."""
    return _render(conversation, tokenizer, template, False, True)


def _render(
    conversation: Conversation, tokenizer: Tokenizer, template: str | None, add_generation_prompt: bool, marked: bool
) -> tuple[str, list[tuple[int, int]]]:
    used = template or template_of(tokenizer, conversation.tools)
    if not conversation.messages:
        return "", []
    messages = [_without_own_keys(message) for message in conversation.messages]
    try:
        return _text_and_spans(messages, conversation, tokenizer, used, add_generation_prompt, marked)
    except Exception as error:  # templates are programs: they refuse roles, or are broken in any way
        reason = error
    if any(message.get("content") is None for message in messages):  # many read a content that a tool call lacks
        filled = [{**message, "content": message.get("content") or ""} for message in messages]
        try:
            return _text_and_spans(filled, conversation, tokenizer, used, add_generation_prompt, marked)
        except Exception as error:
            reason = error
    raise CpiftError(f"the chat template refuses a row ({' '.join(str(reason).split())[:300]})") from reason


def _text_and_spans(
    messages: list[dict[str, object]],
    conversation: Conversation,
    tokenizer: Tokenizer,
    used: str,
    add_generation_prompt: bool,
    marked: bool,
) -> tuple[str, list[tuple[int, int]]]:
    if takes_parts(used):
        messages = [_in_parts(message) for message in messages]
    if not marked:
        text: str = tokenizer.apply_chat_template(
            messages,
            tools=conversation.tools,
            chat_template=used,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **conversation.kwargs,
        )
        return text, []
    texts, spans = render_jinja_template(
        conversations=[[{k: v for k, v in message.items() if v is not None} for message in messages]],
        tools=conversation.tools,
        documents=None,
        chat_template=used,
        return_assistant_tokens_mask=True,
        continue_final_message=False,
        add_generation_prompt=False,
        **{**tokenizer.special_tokens_map, **conversation.kwargs},
    )
    return texts[0], [(int(start), int(end)) for start, end in spans[0]]


def _without_own_keys(message: Message) -> dict[str, object]:
    """``weight`` and ``train`` say what is learnt; no template should see them."""
    return {key: value for key, value in message.items() if key not in ("weight", "train")}


def _in_parts(message: Mapping[str, object]) -> dict[str, object]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(message)


@lru_cache(maxsize=64)
def takes_parts(template: str) -> bool:
    """Does the template read content as a list of parts alone, as those of vision models do?"""
    return not _shows(template, _PROBE) and _shows(template, [{"type": "text", "text": _PROBE}])


def _shows(template: str, content: object) -> bool:
    message = {"role": "user", "content": content}
    try:
        texts, _ = render_jinja_template(conversations=[[message]], chat_template=template, bos_token="", eos_token="")
    except Exception:  # whatever the template trips over, it does not show the content
        return False
    return _PROBE in texts[0]


@lru_cache(maxsize=64)
def _variables(template: str) -> frozenset[str]:
    try:
        return frozenset(_get_template_variables(template))
    except Exception as error:  # no template at all
        raise CpiftError(f"the chat template is broken ({' '.join(str(error).split())[:300]})") from error
