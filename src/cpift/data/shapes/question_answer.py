"""Question and answer, as in openai/gsm8k: the answer is what is learnt, and the reference too."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import Row, Shape, chat, text_of

_USED = ("question", "context", "system")


def _convert(row: Mapping[str, object]) -> Row | None:
    parts = [text_of(row, "question"), text_of(row, "context")]
    prompt = "\n".join(part for part in parts if part.strip())
    return chat(row, _USED, text_of(row, "system"), prompt, text_of(row, "answer"))


QUESTION_ANSWER = Shape(
    name="question_answer",
    columns="question and answer (openai/gsm8k); context, system",
    trained="the answer, which is also the reference of the score",
    rank=1,
    uses=(*_USED, "answer"),
    recognises=lambda row: "question" in row and "answer" in row,
    convert=_convert,
)
