"""A comparison as text: Markdown tables for a page, the same in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cpift.metrics import described, mean_unit
from cpift.metrics.comparison import ComparisonRecord, Difference, MethodSummary, Spread
from cpift.metrics.metric import Unit

_NONE: Spread = {"mean": None, "sd": None}


def markdown(comparison: ComparisonRecord) -> str:
    """All budgets of a comparison. Scores in their units; intervals are 95 % over seeds, ± one sd."""
    return "\n".join(line for budget in comparison["budgets"] for line in _budget(comparison, budget))


def _budget(comparison: ComparisonRecord, budget: str) -> Iterator[str]:
    tasks, reference = comparison["tasks"], comparison["reference"]
    unit = mean_unit(task["metric"] for task in tasks.values())
    found = comparison["summary"][budget]
    against = {d["method"]: d for d in comparison["differences"][budget]}
    done, wanted = min(row["seeds"] for row in found.values()), len(comparison["seeds"])
    yield (
        f"\n**{budget}**, {wanted} seeds\n" if done == wanted else f"\n**{budget}**, {done} of {wanted} seeds so far\n"
    )
    yield f"| method | mean | {' | '.join(tasks)} | minus {reference}: mean | p (Holm) | wins–ties–losses | below specialist | tokens |"
    yield "|---" * (len(tasks) + 7) + "|"
    for method, row in sorted(found.items(), key=lambda item: -(_mean(item[1]) or -1e9)):
        cells = [_cell(row["mean"], unit)]
        cells += [
            _cell(row["tasks"].get(t, {"mean": None, "sd": None}), described(tasks[t]["metric"]).unit) for t in tasks
        ]
        gap = against.get(method)
        if gap and "mean" in gap:
            adjusted = gap.get("p_holm")
            cells += [_signed(gap["mean"], unit), "" if adjusted is None else f"{adjusted:.2g}"]
            cells += [f"{gap['wins']}–{gap['ties']}–{gap['losses']}"]
        else:
            cells += ["", "", ""]
        cells += [str(row.get("seesaw", "")), f"{row['tokens']:,.0f}"]
        yield f"| `{method}` | {' | '.join(cells)} |"
    yield from _tuning(comparison)
    yield from _guard(found)
    if budget == "incremental":
        yield from _forgetting(comparison)


def _tuning(comparison: ComparisonRecord) -> Iterator[str]:
    """Which learning rates were chosen, and where that was the last one tried."""
    tuned = comparison.get("tuning", {})
    if tuned:
        yield "\nlearning rates, times the recipe's, chosen on rows held out from training\n"
        yield "| method | chosen | mean score at each |\n|---|---|---|"
    for method, trials in tuned.items():
        edge = " (at the edge: a higher --tune tries more)" if trials["at_the_edge"] else ""
        scores = ", ".join(f"× {factor}: {score:.3f}" for factor, score in trials["scores"].items())
        yield f"| `{method}` | × {trials['factor']:.4g}{edge} | {scores} |"


def _guard(found: Mapping[str, MethodSummary]) -> Iterator[str]:
    """What each method cost in general ability: the last model minus the base on each set of the guard, and its drift."""
    sets = {name: described(gap["metric"]).unit for row in found.values() for name, gap in row.get("guard", {}).items()}
    if not sets:
        return
    drifts = any("drift" in row for row in found.values())
    titles = [f"{name}, {unit.difference}" for name, unit in sets.items()] + ["drift, nats a token"] * drifts
    yield "\ngeneral ability (guard set), the model minus the base; more is better\n"
    yield f"| method | {' | '.join(titles)} |"
    yield "|---" * (len(titles) + 1) + "|"
    for method, row in found.items():
        gaps = row.get("guard", {})
        if gaps:
            cells = [_signed(gaps[name], unit, unit.digits) if name in gaps else "–" for name, unit in sets.items()]
            cells += [f"{mean:.3f}" if (mean := row.get("drift", _NONE)["mean"]) is not None else "–"] * drifts
            yield f"| `{method}` | {' | '.join(cells)} |"


def _forgetting(comparison: ComparisonRecord) -> Iterator[str]:
    """What each arrival costs the tasks that were there, and gives the one that comes."""
    unit = mean_unit(task["metric"] for task in comparison["tasks"].values())
    yield "\n| method | old tasks, at each arrival | the new task |"
    yield "|---|---|---|"
    for method, row in sorted(
        comparison["forgetting"].items(), key=lambda item: -item[1]["old"]["difference"] if item[1] else 0
    ):
        if row:
            yield f"| `{method}` | {_signed(row['old'], unit)} | {_signed(row['new'], unit)} |"


def _signed(value: Difference, unit: Unit, digits: int = 1) -> str:
    low, middle, high = (unit.scale * bound for bound in (value["low"], value["difference"], value["high"]))
    return f"{middle:+.{digits}f} ({low:+.{digits}f} … {high:+.{digits}f})"


def _mean(row: MethodSummary) -> float | None:
    mean: float | None = row["mean"]["mean"]
    return mean


def _cell(value: Spread, unit: Unit) -> str:
    if value["mean"] is None:
        return "–"
    spread = f" ± {unit.number(sd)}" if (sd := value.get("sd")) is not None else ""
    return unit.number(abs(value["mean"])) + spread
