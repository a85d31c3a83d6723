"""Tables of what people extend: interpolations, overlap rules and the like. A new entry is one file and one line.

Command help, the recipe's check, the template, the report's labels and the docs are all made from the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from cpift.errors import CpiftError, did_you_mean


class Entry(Protocol):
    """What every entry of a table has."""

    @property
    def name(self) -> str:
        """The name, as the recipe and the command line write it."""

    @property
    def summary(self) -> str:
        """One short phrase for help, recipe and docs."""


E = TypeVar("E", bound=Entry)


class Table(Mapping[str, E]):
    """Entries by name, in the order in which they are shown.

    Args:
        kind: what the entries are, in the singular, for messages: "interpolation".
        entries: the built-in ones.
    """

    def __init__(self, kind: str, entries: Iterable[E]) -> None:
        self.kind = kind
        self._entries: dict[str, E] = {}
        for entry in entries:
            self.register(entry)

    def register(self, entry: E) -> E:
        """Add an entry; a package of one's own calls this when it is imported.

        Args:
            entry: the new entry.

        Returns:
            The same entry.

        Raises:
            CpiftError: the name is taken.
        """
        if entry.name in self._entries:
            raise CpiftError(f"{self.kind} {entry.name}: the name is taken; choose another")
        self._entries[entry.name] = entry
        return entry

    def __getitem__(self, name: str) -> E:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def choose(self, name: str, key: str) -> E:
        """The entry of this name.

        Args:
            name: what the user wrote.
            key: where it was written, for the message: "fuse.interpolation".

        Raises:
            CpiftError: there is none of this name; with the nearest one.
        """
        try:
            return self._entries[self.check(name)]
        except ValueError as error:
            raise CpiftError(f"{key}: {name} {error}") from None

    def check(self, name: str) -> str:
        """The same name, for a validator of the recipe. Raises ValueError where no entry has it."""
        if name not in self._entries:
            raise ValueError(f"is none of {', '.join(self._entries)}{did_you_mean(str(name), self._entries)}")
        return name

    def names(self, separator: str = " | ") -> str:
        """All names on one line."""
        return separator.join(self._entries)

    def help(self) -> str:
        """All names with their summaries, on one line."""
        return "; ".join(f"{entry.name}: {entry.summary}" for entry in self._entries.values())
