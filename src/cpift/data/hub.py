"""Sets that ``datasets`` loads: from the hub, from a folder of files, or from what ``save_to_disk`` has written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from cpift.data.files import Located, from_arrow
from cpift.data.loading import loaded


def read_set(source: str, split: str, config: str | None, revision: str | None) -> Iterator[Located]:
    """The rows of one split of a set.

    Args:
        source: a hub id, or a folder.
        split: its split, or an expression such as ``train[:2000]``.
        config: its configuration; None: the only one.
        revision: a branch, tag or commit on the hub.

    Raises:
        CpiftError: there is no such set, configuration or split.
    """
    more = {key: value for key, value in (("name", config), ("revision", revision)) if value is not None}
    if _saved(source):
        data = loaded(f"{source} (split {split})", lambda: _from_disk(source, split))
    else:
        asked = ", ".join([*([f"config {config}"] if config else []), f"split {split}"])
        data = loaded(f"{source} ({asked})", lambda: datasets.load_dataset(source, split=split, **more))
    for i, row in enumerate(data):
        yield f"{source}, row {i}", from_arrow(row)


def _saved(source: str) -> bool:
    return any(os.path.isfile(Path(source) / name) for name in ("state.json", "dataset_dict.json"))


def _from_disk(source: str, split: str) -> Any:
    data = datasets.load_from_disk(source)
    name, bracket, rows = split.partition("[")
    if isinstance(data, datasets.DatasetDict):
        if name not in data:
            raise ValueError(f"it has the splits {', '.join(data)}")
        data = data[name]
    if bracket:
        raise ValueError(f"a part of a split ({bracket}{rows}) is not read from a folder of save_to_disk")
    return data
