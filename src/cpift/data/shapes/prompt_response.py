"""One prompt and one response under the other names that sets and tools have for them."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import Row, Shape, chat, text_of

PAIRS = (
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("prompt", "generation"),
    ("query", "response"),
    ("query", "output"),
    ("question", "response"),
    ("problem", "solution"),
    ("input", "output"),
    ("INSTRUCTION", "RESPONSE"),
)
_SYSTEM = ("system", "system_prompt")


def _pairs(row: Mapping[str, object]) -> list[tuple[str, str]]:
    # With an instruction, input is only a part of the prompt.
    return [pair for pair in PAIRS if pair[0] in row and pair[1] in row and "instruction" not in row]


def _convert(row: Mapping[str, object]) -> Row | None:
    prompts = _pairs(row)
    if len(prompts) > 1:
        choices = "; ".join(" and ".join(pair) for pair in prompts)
        raise ValueError(f"could be {choices}; columns: {{question: …, answer: …}} in the recipe says which")
    prompt, response = prompts[0]
    used = (prompt, *_SYSTEM, *(() if response == "answer" else (response,)))
    return chat(row, used, text_of(row, *_SYSTEM), text_of(row, prompt), text_of(row, response))


PROMPT_RESPONSE = Shape(
    name="prompt_response",
    columns="; ".join(" and ".join(pair) for pair in PAIRS) + "; system (or system_prompt)",
    trained="the response",
    rank=1,
    uses=tuple(dict.fromkeys([*(name for pair in PAIRS for name in pair), *_SYSTEM])),
    recognises=lambda row: bool(_pairs(row)),
    convert=_convert,
)
