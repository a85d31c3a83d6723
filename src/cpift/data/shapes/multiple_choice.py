"""A question with options, as in cais/mmlu and allenai/ai2_arc: the text of the right option is what is learnt."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import OWN_COLUMNS, Row, Shape, chat, text_of
from cpift.metrics.multiple_choice import options_of, right_option

_USED = ("question", "context", "system", "options", "choices", "answer", "answerKey")


def _recognises(row: Mapping[str, object]) -> bool:
    options, answer = "options" in row or "choices" in row, "answer" in row or "answerKey" in row
    return "question" in row and options and answer and not any(name in row for name in OWN_COLUMNS)


def _convert(row: Mapping[str, object]) -> Row | None:
    try:
        options, right = options_of(row), right_option(row)
    except ValueError as error:
        raise ValueError(f"{error}; shape: question_answer takes the answer as it is") from error
    prompt = "\n".join(part for part in (text_of(row, "question"), text_of(row, "context")) if part.strip())
    made = chat(row, _USED, text_of(row, "system"), prompt, options[right])
    return made and {**made, "options": options, "answer": options[right]}


MULTIPLE_CHOICE = Shape(
    name="multiple_choice",
    columns="question, options (or choices), and answer (or answerKey): the right one's text, letter, or index from 0; "
    "context, system",
    trained="the text of the right option, which is also the reference of the score",
    rank=0,
    uses=_USED,
    recognises=_recognises,
    convert=_convert,
)
