"""Preference sets, which are not for supervised fine-tuning: refused by name."""

from __future__ import annotations

from collections.abc import Mapping


def refuse_preferences(row: Mapping[str, object]) -> None:
    """Refuse a row that pairs a good with a bad answer, or marks an answer as good or bad.

    Raises:
        ValueError: with what to do.
    """
    if "chosen" in row and "rejected" in row:
        raise ValueError(
            "has chosen and rejected: a preference set, for DPO and the like; to learn the chosen answers, name them "
            "in the recipe, such as columns: {messages: chosen} or columns: {question: prompt, answer: chosen}"
        )
    if "completion" in row and isinstance(row.get("label"), bool):
        raise ValueError(
            "has a completion and a label that is true or false: an unpaired preference set, for KTO; keep the rows "
            "whose label is true, without the column label"
        )
