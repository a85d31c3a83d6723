"""The page of a comparison: methods × tasks over seeds, and what beats what."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from cpift.compare.methods import METHODS, Role, has_role, is_form_of, method_of
from cpift.console.terminal import duration
from cpift.metrics import described
from cpift.metrics.comparison import ComparisonRecord, Difference, MethodDifference, MethodSummary
from cpift.metrics.metric import Unit
from cpift.report import figures_comparison, wording
from cpift.report.figures_comparison import SPECIALIST, unit
from cpift.report.html import Html, element, heading, paragraph, table
from cpift.report.parts import Clause, Figure, Parts, Section
from cpift.report.provenance import comparison_provenance, without_path
from cpift.report.tuning import tuning_table

KEYS = ("state", "recipe", "tasks", "seeds", "reference", "budgets", "summary", "differences")
_BUDGETS = {"equal_tokens": "equal tokens", "paper": "the paper's settings", "incremental": "tasks arriving one by one"}
_WHERE = {
    "equal_tokens": "at equal tokens",
    "paper": "at the paper's settings",
    "incremental": "with tasks arriving one by one",
}


def comparison_parts(record: ComparisonRecord, name: str) -> Parts:
    """All parts of the page of ``comparison.json``."""
    sections = []
    for budget in _ordered(record):
        title = _BUDGETS.get(budget, budget)
        content: list[Html | Figure | None] = [
            figures_comparison.scores(record, budget),
            figures_comparison.differences(record, budget),
            figures_comparison.arrivals(record, budget),
            figures_comparison.forgetting(record) if budget == "incremental" else None,
            _guard(record, budget),
            _cost(record, budget),
        ]
        kept = [part for part in content if part]
        if kept:
            sections.append(Section(f"{budget}-part", f"Comparison: {title}", kept))
    if tried := tuning_table(record):
        sections.append(Section("tuning-part", "Learning rates", tried))
    sections.append(Section("provenance-part", "Provenance", comparison_provenance(record, name)))
    state = "finished" if record["state"] == "done" else "running"
    model = without_path(str(record["recipe"].get("model", "")))
    seeds = ", ".join(map(str, record["seeds"]))
    kicker = element(
        "kicker", f"cpift compare {name} · base {model} · {len(record['tasks'])} tasks · seeds {seeds}", state, state
    )
    top = [part for part in (_missing(record), *_board(record)) if part]
    return Parts(f"{name}: cpift comparison", kicker, headline(record), _lead(record), top, (), sections)


def headline(record: ComparisonRecord) -> list[Clause]:
    """One sentence, a clause a budget: the reference against the best baseline of that budget."""
    clauses = [
        (where if i else where[0].upper() + where[1:], said) for i, (where, said) in enumerate(_verdicts(record))
    ]
    return clauses or [("", f"Nothing can be said yet: {record['reference']} or its baselines have no scores.")]


def _verdicts(record: ComparisonRecord) -> Iterator[tuple[str, str]]:
    """Which budget, and what is said of it; equal tokens first, whatever was asked for first."""
    reference = record["reference"]
    for budget in _ordered(record):
        best, difference = _best(record, budget)
        if not difference or "mean" not in difference:
            continue
        gap = difference["mean"]  # the other minus the reference
        value, low, high = -gap["difference"], -gap["high"], -gap["low"]
        verdict = "beats" if low > 0 else "loses to" if high < 0 else "shows no difference beyond noise from"
        tasks = difference.get("tasks", {})
        won = [t for t, d in tasks.items() if d["high"] < 0]
        lost = [t for t, d in tasks.items() if d["low"] > 0]
        tasks_said = "".join(
            f"; {word} on {_which(some, tasks)}" for word, some in (("ahead", won), ("behind", lost)) if some
        )
        seeds = difference.get("seeds", len(record["seeds"]))
        yield (
            _WHERE.get(budget, budget),
            f"{reference} {verdict} {best}, the best baseline (mean {wording.gap(value, unit(record))}, 95 % "
            f"{wording.interval(low, high, unit(record))}, {seeds} seed{'s' * (seeds != 1)}){tasks_said}",
        )


def _which(some: list[str], known: Sized) -> str:
    return f"all {len(some)} tasks" if len(some) == len(known) > 2 else wording.names(some)


def _ordered(record: ComparisonRecord) -> list[str]:
    return sorted(record["budgets"], key=lambda b: list(_BUDGETS).index(b) if b in _BUDGETS else len(_BUDGETS))


def _lead(record: ComparisonRecord) -> list[Html]:
    """What was forgotten, and what in the method matters, where the methods asked for tell it."""
    reference, sentences = record["reference"], []
    for budget in _ordered(record):
        row = record["summary"].get(budget, {}).get(reference)
        if row and row.get("seesaw") is not None:
            worst = row.get("worst_task")
            share = row.get("shares", {}).get(worst) if worst else None
            at = f"; furthest: {worst}" + (
                f", {wording.percent(share, 0)} of its specialist's score, seed by seed" if share else ""
            )
            sentences.append(
                f"Against the specialists, {_WHERE.get(budget, budget)}: {reference} ends behind on {row['seesaw']} of {len(record['tasks'])} tasks{at if worst else ''}."
            )
            break
    sentences += [f"At each arrival the older tasks change by {text}." for text in [_arrival_costs(record)] if text]
    for budget in _ordered(record):
        parts = [
            (d, ablation.without)
            for d in record["differences"].get(budget, [])
            if "mean" in d
            and (ablation := METHODS.get(d["method"]))
            and ablation.without
            and ablation.variant_of == reference
        ]
        if parts:
            said = "; ".join(f"{name} {_size(d['mean'], unit(record))}" for d, name in parts)
            sentences.append(
                f"What its parts are worth, each taken away in turn, {_WHERE.get(budget, budget)}: {said}."
            )
            break
    return [paragraph(text, "lead") for text in sentences]


def _size(gap: Difference, unit: Unit) -> str:
    noise = (
        " (within noise)"
        if gap["low"] <= 0 <= gap["high"]
        else f" (95 % {wording.interval(gap['low'], gap['high'], unit)})"
    )
    return wording.gap(gap["difference"], unit) + noise


def _arrival_costs(record: ComparisonRecord) -> str:
    """The reference and the method that forgets least beside it."""
    rows = (record.get("forgetting") or {}).items()
    olds = {m: row["old"] for m, row in rows if row and "old" in row and (m == record["reference"] or not _retrains(m))}
    mine = olds.pop(record["reference"], None)
    if mine is None:
        return ""
    sentences = [f"{_size(mine, unit(record))} in {record['reference']}"]
    if olds:
        least = max(olds, key=lambda m: float(olds[m]["difference"]))
        sentences.append(f"{_size(olds[least], unit(record))} in {least}, the best of the others")
    return "; ".join(sentences)


def _retrains(name: str) -> bool:
    """Does a method train on all rows again at each arrival? It is the upper bound, of another budget."""
    method = method_of(name)
    return method is not None and method.retrains


def _best(record: ComparisonRecord, budget: str) -> tuple[str, MethodDifference | None]:
    """The best method that is no form of the reference, neither the base nor the specialists; and its difference."""
    summary = record.get("summary", {}).get(budget, {})
    others = {
        m: s["mean"]["mean"]
        for m, s in summary.items()
        if not is_form_of(m, record["reference"])
        and not has_role(m, Role.FLOOR)
        and not has_role(m, Role.SPECIALIST)
        and s["mean"]["mean"] is not None
        and not (budget == "incremental" and _retrains(m))
    }
    if not others:
        return "", None
    best = max(others, key=lambda m: others[m])
    return best, next((d for d in record["differences"].get(budget, []) if d["method"] == best), None)


def _missing(record: ComparisonRecord) -> Html | None:
    if record["state"] == "done":
        return None
    wanted, sentences = len(record["seeds"]), []
    for budget, methods in record["budgets"].items():
        short: dict[int, list[str]] = {}
        for method, results in methods.items():
            if len(results) < wanted:
                short.setdefault(len(results), []).append(method)
        for done, names in sorted(short.items()):
            which = "all methods" if len(names) == len(methods) else ", ".join(names)
            sentences.append(f"{_BUDGETS.get(budget, budget)}: {done} of {wanted} seeds of {which}")
    return paragraph(
        "Still running. "
        + ("Incomplete so far: " + "; ".join(sentences) + "." if sentences else "Some methods have not begun."),
        "soft",
    )


def _board(record: ComparisonRecord) -> list[Html]:
    """Methods × tasks of the first budget, best first."""
    budget = next(iter(_ordered(record)), None)
    if budget is None:
        return []
    summary, tasks = record["summary"].get(budget, {}), list(record["tasks"])
    gaps = {d["method"]: d for d in record["differences"].get(budget, [])}
    rows = []
    for method, row in sorted(
        summary.items(), key=lambda p: -(p[1]["mean"]["mean"] if p[1]["mean"]["mean"] is not None else -1e9)
    ):
        note = "a model for each task" if method == SPECIALIST else ""
        name = element("strong", method) if method == record["reference"] else element("method", method, note)
        cells = (
            [_cell(_mean_of(row, t), described(record["tasks"][t]["metric"]).unit) for t in tasks]
            if len(tasks) <= 8
            else []
        )
        rows.append(
            [
                name,
                _cell(row["mean"]["mean"], unit(record)),
                *cells,
                row.get("worst_task"),
                _against(gaps.get(method), unit(record)),
            ]
        )
    headers = ["method", "mean", *(tasks if len(tasks) <= 8 else []), "worst task", f"against {record['reference']}"]
    seeds = len(record["seeds"])
    note = (
        f"Scores {_WHERE.get(budget, budget)}: means over {seeds} seed{'s' * (seeds != 1)}; differences to {record['reference']} with 95 % intervals, "
        "paired by seed and evaluation row; within noise: the interval holds zero. Worst task: the least share of its specialist's score."
        + ("" if seeds > 1 else " With one seed they do not tell how another would differ.")
    )
    return [table(headers, rows, kind="cards"), paragraph(note, "soft")] if rows else []


def _mean_of(row: MethodSummary, task: str) -> float | None:
    return row["tasks"][task]["mean"] if task in row["tasks"] else None


def _cell(value: float | None, unit: Unit) -> str | None:
    return None if value is None else wording.score(abs(value), unit)


def _against(difference: MethodDifference | None, unit: Unit) -> Html | None:
    if not difference or "mean" not in difference:
        return None
    g = difference["mean"]
    word, kind = (
        ("▲ better", "won") if g["low"] > 0 else ("▼ worse", "lost") if g["high"] < 0 else ("≈ within noise", "soft")
    )
    numbers = f"{wording.gap(g['difference'], unit)} ({wording.interval(g['low'], g['high'], unit)})"
    return element("difference", kind, word, numbers, False)


def _guard(record: ComparisonRecord, budget: str) -> Html | None:
    """What each method cost in general ability: against the base, on each set of the guard."""
    summary = {m: s for m, s in record["summary"].get(budget, {}).items() if s.get("guard")}
    sets = {name: described(gap["metric"]).unit for s in summary.values() for name, gap in s["guard"].items()}
    if not summary:
        return None
    rows = []
    for method, row in summary.items():
        gaps = [row["guard"].get(name) for name in sets]
        cells = [gap and _size(gap, unit) for gap, unit in zip(gaps, sets.values(), strict=True)]
        drift = row["drift"]["mean"] if "drift" in row else None
        rows.append([method, *cells, None if drift is None else f"{drift:.3f} nats a token"])
    return heading("General ability, against the base; more is better") + table(["method", *sets, "drift"], rows)


def _cost(record: ComparisonRecord, budget: str) -> Html | None:
    summary = record["summary"].get(budget, {})
    rows = [[m, round(s["tokens"]), duration(s["seconds"]), s.get("seesaw")] for m, s in summary.items()]
    return (
        heading("Cost") + table(["method", "tokens trained", "time", "tasks behind the specialist"], rows)
        if rows
        else None
    )
