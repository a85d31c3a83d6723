"""What one step measures. The file is written anew after each measurement, so that a killed step leaves what it had."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Measure:
    """One line of the table. ``value`` is None where the measurement was left out; ``note`` then says why."""

    what: str
    value: Value
    unit: str = ""
    note: str = ""


@dataclass
class Record:
    """The measures of a step, and what it found wrong.

    Args:
        file: where they are written.
        faults: results that are wrong. A step with a fault counts as failed, whatever else it measured.
        skipped: why the whole step was left out, or "".
    """

    file: Path
    measures: list[Measure] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    skipped: str = ""

    def add(self, what: str, value: Value, unit: str = "", note: str = "") -> None:
        self.measures.append(Measure(what, value, unit, note))
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        """A measurement that cannot be made here; the others of the step go on."""
        self.add(what, None, note=why)

    def fault(self, text: str) -> None:
        self.faults.append(text)
        self.write()

    def skip(self, why: str) -> None:
        self.skipped = why
        self.write()

    def write(self) -> None:
        data = {"measures": [asdict(m) for m in self.measures], "faults": self.faults, "skipped": self.skipped}
        write_whole(self.file, json.dumps(data))


def write_whole(file: Path, text: str) -> None:
    """The file holds the old text or the new one, never a part."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
