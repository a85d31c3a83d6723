"""The reference of the command line, from typer's commands."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer
from text import plain, table

from cpift.cli.main import app


def page() -> str:
    """One section a command: what it does, how it is called, its arguments and options."""
    root = typer.main.get_command(app)
    parts = ["# Commands", "Made from the code of this version. `cpift COMMAND --help` shows the same."]
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        parts.append(_section(f"cpift {name}", command, 2))
        for sub, under in (inner or {}).items():
            parts.append(_section(f"cpift {name} {sub}", under, 3))
    return "\n\n".join(parts) + "\n"


def _section(name: str, command: Any, level: int) -> str:
    """Heading, help, usage and parameters of a command."""
    shown = [p for p in command.params if not getattr(p, "hidden", False) and "--help" not in p.opts]
    paragraphs = [plain(text) for text in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")) if text.strip()]
    parts = [f"{'#' * level} {name}", *paragraphs]
    if not hasattr(command, "commands"):
        parts.append(f"```text\n{_usage(name, shown)}\n```")
    if shown:
        parts.append(table(["argument or option", "default", "meaning"], [_row(p) for p in shown]))
    return "\n\n".join(parts)


def _usage(name: str, parameters: list[Any]) -> str:
    words = [_metavar(p) + ("..." if p.nargs == -1 else "") for p in parameters if p.param_type_name == "argument"]
    options = any(p.param_type_name == "option" for p in parameters)
    return " ".join([name, *(["[OPTIONS]"] if options else []), *words])


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _row(parameter: Any) -> list[str]:
    """A parameter's names, default and help."""
    if parameter.param_type_name == "argument":
        names = f"`{_metavar(parameter)}`"
    elif parameter.is_flag:
        names = ", ".join(f"`{opt}`" for opt in [*parameter.opts, *parameter.secondary_opts])
    else:
        names = ", ".join(f"`{opt}`" for opt in parameter.opts) + f" `{_metavar(parameter)}`"
    return [names, _default(parameter), plain(parameter.help or "")]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    value = parameter.default
    if value is None or value is False or value == () or value == [] or callable(value):
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(getattr(value, "value", value))
    return f"`{shown}`" if value is not True else "on"
