"""JSON on disk by content: what was paid for once, an answer of a judge or a scored row, is not paid for again.

One file a key, each written whole. Any file can be removed at any time: what it held is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

LIMIT = 2 * 10**9  # bytes; beyond them the files that were not used for longest are removed


def digest(content: object) -> str:
    """Of anything that JSON can hold: 32 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()[
        :32
    ]


class Store:
    """Values by key in a folder. A folder that cannot be written keeps nothing: everything is made anew.

    Args:
        folder: made when the first value is kept.
        limit: bytes of all files, beyond which :meth:`prune` removes some.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> object:
        """The value of a key, or None. One that was damaged counts as absent.

        Args:
            key: as :func:`digest` gives it.
        """
        file = self._file(key)
        try:
            value: object = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        with suppress(OSError):
            os.utime(file)  # prune goes by the last use
        return value

    def put(self, key: str, value: object) -> None:
        """Keep a value, in place of the one before.

        Args:
            key: as :func:`digest` gives it.
            value: what JSON can hold.
        """
        file = self._file(key)
        with suppress(OSError):  # a full or read-only disk: scores do not depend on what is kept
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".partial")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as opened:
                    json.dump(value, opened, ensure_ascii=False)
                os.replace(name, file)
            except OSError:
                os.unlink(name)

    def prune(self) -> None:
        """Remove the files that were not used for longest, until the rest is within nine tenths of the limit."""
        files = [(status.st_mtime, status.st_size, file) for file, status in self._files()]
        total = sum(size for _, size, _ in files)
        if total <= self.limit:
            return
        for _, size, file in sorted(files):
            with suppress(OSError):
                file.unlink()
            total -= size
            if total <= self.limit * 9 // 10:
                return

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for file in self.folder.glob("*/*"):
            with suppress(OSError):  # another process has removed it
                found.append((file, file.stat()))
        return found
