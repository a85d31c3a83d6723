"""Tables of S, E3, E4 and B1, whose cells are one model each: mean scores over tasks, and contrasts over units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, median

from cpift.compare.units import over_units
from lab.batches import LABELS as ORDERS
from lab.contrasts import RESULTS, Cell, cells, complete, contrasts, shown
from lab.forms import FORMS
from lab.merges import MERGES
from lab.paper_form import THRESHOLD
from lab.tuning import share_right

Units = dict[int, dict[str, Cell]]


def finished(page: str, experiment: str) -> Units:
    """Units that have every label; none where the experiment was not run."""
    found = [cell for cell in cells(page) if cell["experiment"] == experiment]
    return complete(found, experiment) if found else {}


def score(cell: Cell) -> float:
    """Mean over the tasks, in points."""
    return 100 * fmean(share_right(bits) for bits in cell["right"].values())


def scores_of(units: Units) -> dict[str, list[float]]:
    """Scores by label, one a unit."""
    return {label: [score(unit[label]) for unit in units.values()] for label in next(iter(units.values()))}


def gap(values: Mapping[str, Sequence[float]], one: str, other: str) -> str:
    """A contrast of two labels with its interval."""
    return shown(over_units([a - b for a, b in zip(values[one], values[other], strict=True)]))


def table(
    units: Units, labels: Mapping[str, str], reference: str, primary: str,
    columns: Mapping[str, Callable[[list[Cell]], str]],
) -> Iterator[str]:  # fmt: skip
    """Labels by their mean score, with the contrast to a reference.

    Args:
        units: finished units.
        labels: how the table names those that it shows.
        reference: what is subtracted.
        primary: the label of the primary contrast; the others are adjusted by Holm's method.
        columns: heads, and what stands below them, of all cells of a label.
    """
    values = {label: row for label, row in scores_of(units).items() if label in labels}
    against = contrasts(values, reference, primary)
    yield f"| method | {' | '.join(columns)} | score | minus {labels[reference]} | p |"
    yield "|---" * (len(columns) + 4) + "|"
    for label, row in sorted(values.items(), key=lambda item: -fmean(item[1])):
        own = [unit[label] for unit in units.values()]
        estimate, p = against.get(label, (None, ""))
        middle = " | ".join(made(own) for made in columns.values())
        yield f"| {labels[label]} | {middle} | {fmean(row):.1f} | {shown(estimate)} | {p} |"


def setting(own: list[Cell]) -> str:
    """The setting that most units chose, and how many."""
    text, count = Counter(str(cell.get("setting", "")) for cell in own).most_common(1)[0]
    return f"{text} ({count} of {len(own)})" if text and len(own) > 1 else text


def s(kind: str) -> Iterator[str]:
    """Merges of given specialists."""
    units = finished("s", f"s-{kind}")
    if not units:
        yield "Not run."
        return
    labels = {"base": "the model before", "specialists": "each specialist on its own skill"}
    labels |= {label: merge.label for label, merge in MERGES.items()}
    labels |= {f"{label}@usual": f"{merge.label}, not tuned" for label, merge in MERGES.items() if merge.usual}
    values = scores_of(units)
    yield f"{len(units)} units, five specialists each.\n"
    yield from table(units, labels, "task_arithmetic", "stitch", {"setting": setting})
    yield "\n| stitched cores minus | difference, not adjusted |\n|---|---|"
    for other in ("stitch_random", "stitch_fisher", "stitch_tensor", "ties", "base"):
        yield f"| {labels[other]} | {gap(values, 'stitch', other)} |"
    yield "\nStitching with one rule at overlaps, tuned over p alone:\n"
    yield "| rule | p | score | minus the largest |\n|---|---|---|---|"
    for label in (label for label in values if label.startswith("stitch@") and label != "stitch@usual"):
        own = [unit[label] for unit in units.values()]
        against = "" if label == "stitch@largest" else gap(values, label, "stitch@largest")
        percents = ", ".join(sorted({str(cell["setting"]).split(",")[0].removeprefix("p ") for cell in own}, key=float))
        yield f"| {label.removeprefix('stitch@')} | {percents} | {fmean(values[label]):.1f} | {against} |"


def rate(own: list[Cell]) -> str:
    """Learning rate."""
    return f"{own[0]['rate']:g}"


def tokens(own: list[Cell]) -> str:
    """Characters trained on."""
    return f"{fmean(cell['tokens'] for cell in own):,.0f}"


def groups(own: list[Cell]) -> str:
    """Number of stages, as the units have it; none where all tasks are mixed."""
    staged = (form := FORMS.get(str(own[0]["label"]))) is not None and form.stages
    return ", ".join(map(str, sorted({cell["groups"] for cell in own}))) if staged else ""


def forms(experiment: str, name: str, primary: str) -> Iterator[str]:
    """Forms at equal steps."""
    units = finished(experiment, name)
    if not units:
        yield "Not run."
        return
    labels = {"specialists": "each specialist on its own task"} | {label: form.label for label, form in FORMS.items()}
    values = scores_of(units)
    yield f"{len(units)} units.\n"
    yield from table(units, labels, "multi", primary, {"rate": rate, "stages": groups, "tokens": tokens})
    jaccard = [x for unit in units.values() for x in unit["specialists"]["overlaps"]]
    above = sum(x >= THRESHOLD for x in jaccard)
    yield (
        f"\nThe cores of two specialists overlap by {median(jaccard):.3f} (median of {len(jaccard)} pairs; by chance 0.053); "
        f"{above} pairs reach τ = {THRESHOLD:g}.\n"
    )
    yield "| what alone differs | difference, not adjusted |\n|---|---|"
    for one, other, text in (
        ("stitch_frozen", "stitch_stages", "cores frozen in later stages, stitched cores"),
        ("paper", "paper_free", "cores frozen in later stages, the paper's form"),
        ("stitch_mixed", "soup_mixed", "cores stitched in place of probes averaged, refined mixed"),
        ("stitch_mixed", "half", "cores stitched before half the steps of multi-task SFT"),
    ):
        if one in values and other in values:
            yield f"| {text} | {gap(values, one, other)} |"


def share(own: list[Cell]) -> str:
    """Share of the most frequent task in a batch."""
    return f"{fmean(cell['largest_share'] for cell in own):.2f}"


def b1() -> Iterator[str]:
    """Orders of rows."""
    units = finished("b1", "b1")
    yield f"{len(units)} units.\n"
    columns = {"rate": rate, "largest task's share of a batch": share, "tokens": tokens}
    yield from table(units, ORDERS, "grouped", "random", columns)
    yield f"\nRandom minus the same grouped batches in random order: {gap(scores_of(units), 'random', 'grouped_shuffled')}."


TABLES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "s-acquainted": ("s.md", lambda: s("acquainted")),
    "s-plain": ("s.md", lambda: s("plain")),
    "e3-small": ("e3.md", lambda: forms("e3", "e3-small", "stitch_frozen")),
    "e3-large": ("e3.md", lambda: forms("e3", "e3-large", "")),
    "e4": ("e4.md", lambda: forms("e4", "e4", "stitch_mixed")),
    "b1": ("b1.md", b1),
}
PRIMARY = (
    ("s", "s-acquainted", "stitch", "task_arithmetic", "stitched cores minus task arithmetic, no training"),
    ("e3", "e3-small", "stitch_frozen", "multi", "cores stitched, refined in stages, frozen, minus multi-task SFT"),
    ("e4", "e4", "stitch_mixed", "multi", "cores stitched, refined mixed, minus multi-task SFT"),
    ("b1", "b1", "random", "grouped", "random batches minus batches grouped by length"),
)


def findings() -> Iterator[str]:
    """Rows of the primary contrasts, for the index."""
    for page, experiment, one, other, text in PRIMARY:
        if not (RESULTS / f"{page}.jsonl.gz").exists():
            continue
        if not (units := finished(page, experiment)):
            continue
        values = scores_of(units)
        estimate = over_units([a - b for a, b in zip(values[one], values[other], strict=True)])
        if estimate is not None:
            yield f"| [{page.upper()}]({page}.md) | {text} | {shown(estimate)} | {estimate.p:.2g} | {len(units)} |"
