"""The table of commands; each is imported when it is called or shown, so that a start does not wait for the others."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "run": "runs",
    "add": "add",
    "plan": "runs",
    "identify": "checkpoints",
    "group": "checkpoints",
    "fuse": "fuse",
    "evaluate": "evaluate",
    "compare": "compare",
    "data": "data",
    "diff": "diff",
    "protect": "protect",
    "export": "exports",
    "apply": "exports",
    "push": "push",
    "status": "runs",
    "report": "runs",
    "init": "runs",
    "patch": "patch",
}
"""In the order of ``cpift --help``: the module of ``cpift.cli`` that has a function, or a group, of the command's name."""
PARSERS = {
    "compare": ("compare", "Lists"),
    "data": ("tables", "DataHelp"),
    "evaluate": ("tables", "EvaluateHelp"),
    "fuse": ("tables", "FuseHelp"),
}
"""Commands whose arguments are read, or whose help is written, in a way of their own: module and class."""


class Commands(TyperGroup):
    """The commands of ``cpift``, without the modules that they are in."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Imported()


class _Imported(MutableMapping[str, Any]):
    """Commands as typer takes them, by name; each is imported and made when it is first looked at."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = dict.fromkeys(COMMANDS)

    def __getitem__(self, name: str) -> Any:
        if self._made[name] is None:
            self._made[name] = _command(name)
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def _command(name: str) -> Any:
    """A command from the table. typer makes it of the function's signature, or of a group as it stands."""
    found = getattr(import_module(f"cpift.cli.{COMMANDS[name]}"), name)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        module, kind = PARSERS.get(name, ("", ""))
        alone.command(name, cls=getattr(import_module(f"cpift.cli.{module}"), kind) if kind else None)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command
