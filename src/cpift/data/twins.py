"""Rows that the model cannot tell apart: evaluation rows that are training rows too."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cpift.data.row_checks import Row
from cpift.data.row_keys import MESSAGE_METADATA
from cpift.metrics.answers import composed


def shared_rows(train: Sequence[Row], evaluation: Sequence[Row]) -> int:
    """How many evaluation rows are training rows too. Memory: one hash for each evaluation row."""
    wanted = Counter(content_hash(row) for row in evaluation)
    met = {key for row in train if (key := content_hash(row)) in wanted}
    return sum(count for key, count in wanted.items() if key in met)


def content_hash(row: Row) -> str:
    """What makes two rows the same: all that the model reads, not metadata.

    Blanks around a text, and how its accents are coded, make no difference.
    """
    kept = {
        key: _read(row[key])
        for key in ("messages", "prompt", "completion", "tools", "chat_template_kwargs")
        if key in row
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _read(value: object) -> Any:
    if isinstance(value, str):
        return composed(value).strip()
    if isinstance(value, list):
        return [_read(item) for item in value]
    if isinstance(value, dict) and "role" in value:
        skipped = {*MESSAGE_METADATA, "weight", "train"}
        return {key: _read(item) for key, item in value.items() if key not in skipped and item is not None}
    return value
