"""Where a run comes from: its recipe and the origin of each value, versions, hashes, and how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from cpift.metrics.comparison import ComparisonRecord
from cpift.report.facts import RunFacts, defaults_of
from cpift.report.html import Html, element, folded, heading, paragraph, table

_PATHS = ("model", "train", "eval", "from")


def provenance(run: RunFacts) -> list[Html]:
    """The section's content."""
    versions: dict[str, str] = next(
        (s.facts["versions"] for s in reversed(list(run.stages.values())) if s.facts.get("versions")), {}
    )
    several = sorted(
        {json.dumps(s.facts["versions"], sort_keys=True) for s in run.stages.values() if s.facts.get("versions")}
    )
    found = [
        heading("Repeat it"),
        paragraph("recipe.yaml in the run folder holds every value below, so this repeats the run:"),
        element("code", f"cpift run {run.name}/recipe.yaml --out {run.name}-again"),
        *_recipe([(key, value, _origin(run, key, value)) for key, value in flat(run.values)]),
        *_versions(versions),
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


def comparison_provenance(found: ComparisonRecord, name: str) -> list[Html]:
    """The same of ``comparison.json``, which tells a value's origin only by whether it is the default."""
    defaults = dict(flat(defaults_of(found["recipe"])))
    budgets = found["budgets"]
    methods = list(dict.fromkeys(m for results in budgets.values() for m in results))
    words = [
        "cpift",
        "compare",
        f"{name}/recipe.yaml",
        "--out",
        f"{name}-again",
        "--methods",
        *methods,
        "--seeds",
        *map(str, found["seeds"]),
    ]
    words += ["--budget", *budgets]
    if found["reference"] != "cpi_ft":
        words += ["--reference", found["reference"]]
    jobs = [[b, m, s, r.get("key")] for b, rs in budgets.items() for m, seeds in rs.items() for s, r in seeds.items()]
    return [
        heading("Repeat it"),
        paragraph("recipe.yaml in the folder holds every value below, so this repeats the comparison:"),
        element("code", shlex.join(words)),
        *_recipe([(key, value, _by_default(defaults, key, value)) for key, value in flat(found["recipe"])]),
        *_versions(found.get("versions") or {}),
        folded(
            "Hashes of what each result was made from", table(["budget", "method", "seed", "hash"], jobs, text=(1, 3))
        ),
    ]


def _recipe(rows: Sequence[tuple[str, object, str]]) -> list[Html]:
    """What someone gave stands first; defaults, of which there are many, are folded."""
    values = [[key, shown(key, value), origin] for key, value, origin in rows]
    given = [row for row in values if not row[2].endswith("default")]
    rest = [row for row in values if row[2].endswith("default")]
    headers = ["key", "value", "from"]
    return [
        heading("Recipe, and where each value came from"),
        table(headers, given, text=(1, 2)),
        folded(f"{len(rest)} values that are defaults", table(headers, rest, text=(1, 2))),
    ]


def _versions(versions: Mapping[str, str]) -> list[Html]:
    if not versions:
        return []
    return [heading("Versions"), table(["library", "version"], list(versions.items()), text=(1,))]


def flat(values: Mapping[str, object], where: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def shown(key: str, value: object) -> str:
    """A value as text; of a local path the name only, so that the page can be handed on."""
    if isinstance(value, str) and key.rsplit(".", 1)[-1] in _PATHS:
        return without_path(value)
    if isinstance(value, list):  # of sets, each with a path
        value = [{**one, "path": without_path(one["path"])} if _has_path(one) else one for one in value]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _has_path(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("path"), str)


def without_path(value: str) -> str:
    """The last part of an absolute path; a hub id stays."""
    return PurePath(value).name if value.startswith(("/", "~", ".")) or "\\" in value else value


def _origin(run: RunFacts, key: str, value: object) -> str:
    if run.origins is not None:
        for part in (key, *_parents(key)):
            if part in run.origins:
                return run.origins[part]
        return "default"
    return _by_default(dict(flat(run.defaults)), key, value)


def _by_default(defaults: Mapping[str, object], key: str, value: object) -> str:
    must = key == "model" or key.endswith((".generate", ".train", ".eval"))
    return "as by default" if not must and value == defaults.get(key, ...) else "recipe or command line"


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
