"""Alpaca's instruction, input and output, and its relatives: Dolly's context and response, LLaMA-Factory's history."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import Row, Shape, chat, text_of

_INPUTS, _OUTPUTS = ("input", "context"), ("output", "response")
# Alpaca's own text column is the same row again, written out.
_USED = ("instruction", *_INPUTS, *_OUTPUTS, "system", "history", "text")


def _recognises(row: Mapping[str, object]) -> bool:
    return "instruction" in row and any(name in row for name in _OUTPUTS)


def _convert(row: Mapping[str, object]) -> Row | None:
    if all(name in row for name in _OUTPUTS) or all(row.get(name) for name in _INPUTS):
        raise ValueError("has output and response, or input and context; columns: in the recipe says which one counts")
    parts = [text_of(row, "instruction"), text_of(row, *_INPUTS)]
    prompt = "\n".join(part for part in parts if part.strip())
    made = chat(row, _USED, text_of(row, "system"), prompt, text_of(row, *_OUTPUTS))
    if made is not None and row.get("history"):
        at = len(made["messages"]) - 2
        made["messages"][at:at] = _history(row["history"])
    return made


def _history(value: object) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError("history is no list of pairs of question and answer")
    return [
        {"role": role, "content": str(text)}
        for pair in value
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


ALPACA = Shape(
    name="alpaca",
    columns="instruction and output (or response); input (or context), system, history",
    trained="the output; with history every assistant turn",
    rank=1,
    uses=_USED,
    recognises=_recognises,
    convert=_convert,
)
