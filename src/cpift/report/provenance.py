"""Where a run comes from: its recipe and the origin of each value, versions, hashes, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from cpift.report.facts import RunFacts
from cpift.report.parts import Html, e, folded, heading, paragraph, table

_PATHS = ("model", "train", "eval", "from")


def provenance(run: RunFacts) -> list[Html]:
    """The section's content."""
    rows = [[key, shown(key, value), _origin(run, key, value)] for key, value in flat(run.recipe)]
    versions: dict[str, str] = next(
        (s.facts["versions"] for s in reversed(list(run.stages.values())) if s.facts.get("versions")), {}
    )
    several = sorted(
        {json.dumps(s.facts["versions"], sort_keys=True) for s in run.stages.values() if s.facts.get("versions")}
    )
    found = [
        heading("Repeat it"),
        paragraph("recipe.yaml in the run folder holds every value below, so this repeats the run:"),
        Html(f'<pre tabindex="0">{e(f"cpift run {run.name}/recipe.yaml --out {run.name}-again")}</pre>'),
        heading("Recipe, and where each value came from"),
        table(["key", "value", "from"], rows, text=(1, 2)),
        heading("Versions"),
        table(["library", "version"], [[k, v] for k, v in versions.items()] or [["–", "–"]], text=(1,)),
    ]
    if len(several) > 1:
        found.append(
            paragraph(
                f"The stages were made with {len(several)} different sets of versions; the last is shown. Remove a stage's folder and run again to redo it."
            )
        )
    hashes = [[name, s.digest, s.facts.get("seed")] for name, s in run.stages.items()]
    if hashes:
        found.append(
            folded(
                "Hashes of what each stage wrote, and seeds",
                table(["stage", "hash of its files", "seed"], hashes, text=(1,)),
            )
        )
    return found


def flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def shown(key: str, value: Any) -> str:
    """A value as text; of a local path the name only, so that the page can be handed on."""
    if isinstance(value, str) and key.rsplit(".", 1)[-1] in _PATHS:
        return without_path(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def without_path(value: str) -> str:
    """The last part of an absolute path; a hub id stays."""
    return PurePath(value).name if value.startswith(("/", "~", ".")) or "\\" in value else value


def _origin(run: RunFacts, key: str, value: Any) -> str:
    if run.origins is not None:
        for part in (key, *_parents(key)):
            if part in run.origins:
                return run.origins[part]
        return "default"
    default = dict(flat(run.defaults)).get(key, ...)
    return (
        "as by default"
        if value == default and key != "model" and not key.endswith((".generate", ".train", ".eval"))
        else "recipe or command line"
    )


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
