"""The page of a run, part by part."""

from __future__ import annotations

from collections.abc import Sequence

from cpift.console.terminal import duration
from cpift.files import layout
from cpift.metrics.metric import Unit
from cpift.report import figures_cost, figures_fusion, figures_regions, figures_scores, predictions, wording
from cpift.report.facts import RunFacts
from cpift.report.forgetting import drops, transitions
from cpift.report.guard import guard_parts, guard_sentence
from cpift.report.html import Html, bullets, element, folded, heading, paragraph, table
from cpift.report.parts import Figure, Parts, Section
from cpift.report.provenance import provenance, without_path
from cpift.report.verdicts import BASELINE, Gap, Verdict, headline, judged

LEAD = 3  # drops on the first screen
BOARD = 8  # tasks in the table there
_STATES = {"finished": "finished", "running": "running", "failed": "failed", "stopped": "stopped before its end"}


def run_parts(run: RunFacts) -> Parts:
    """All parts of the page."""
    found = [
        _section("seesaw-part", "The seesaw", [*_forgotten(run), *figures_scores.seesaw(run)]),
        _section("forgetting-part", "Forgetting", [figures_scores.forgetting(run)]),
        _section("guard-part", "General ability", [*guard_parts(run)]),
        _section("overlap-part", "Overlap", _overlap(run)),
        _section("prediction-part", "Predicted collisions", [*predictions.run_parts(run)]),
        _section(
            "regions-part",
            "Core regions",
            [*figures_regions.regions(run), _titled("Threshold and median", figures_regions.statistics(run))],
        ),
        _section(
            "fusion-part",
            "Fusion",
            [paragraph(figures_fusion.said(run)) if run.fusion else None, *figures_fusion.fusion(run)],
        ),
        _section("training-part", "Training", [figures_cost.training(run), figures_cost.trainings(run)]),
        _section("cost-part", "Cost", [figures_cost.cost(run)]),
        _section("provenance-part", "Provenance", list(provenance(run))),
    ]
    model = without_path(run.recipe.model)
    took = f" · {duration(run.seconds)} of work" if run.seconds else ""
    tasks = f"{len(run.tasks)} task{'s' * (len(run.tasks) != 1)}"
    origin = f"cpift run {run.name} · base {model} · {tasks} · seed {run.recipe.seed}{took}"
    return Parts(
        title=f"{run.name}: cpift report",
        kicker=element("kicker", origin, run.state, _STATES[run.state]),
        headline=headline(run),
        lead=_lead(run),
        top=[*_progress(run), *_board(run)],
        warnings=[(found.text, found.remedy) for found in run.findings],
        sections=[s for s in found if s],
    )


def _section(name: str, title: str, content: list[Html | Figure | None]) -> Section | None:
    kept = [part for part in content if part]
    return Section(name, title, kept) if kept else None


def _titled(title: str, part: Html | None) -> Html | None:
    return heading(title) + part if part else None


def _lead(run: RunFacts) -> list[Html]:
    """What was forgotten, and why: of the first screen, so the worst few."""
    if not judged(run):
        return []
    found, guard = drops(run), [paragraph(said, "lead") for said in [guard_sentence(run)] if said]
    if not found:
        text = "Forgotten on the way: nothing. No task dropped beyond noise from one model to the next."
        return [paragraph(text, "lead"), *guard]
    lost = sum(not f.recovered for f in found)
    more = (
        f" ({lost} still behind, {len(found) - lost} won back; the worst are below, all under The seesaw)"
        if len(found) > LEAD
        else ""
    )
    items = [("won" if f.recovered else "lost", f.outcome, f.text) for f in found[:LEAD]]
    return [paragraph(f"Forgotten on the way, and why{more}:", "lead"), element("marked_bullets", items), *guard]


def _board(run: RunFacts) -> list[Html]:
    """One line a task: what won and what was lost, with intervals; of many tasks those that lost stand first."""
    found = judged(run)
    if not found:
        return []
    many = len(found) > BOARD
    if many:
        found.sort(
            key=lambda v: ("down", "up", "same").index(v.gaps["specialist"].way) if "specialist" in v.gaps else 3
        )
    rest = folded(f"The other {len(found) - BOARD} tasks", _lines(run, found[BOARD:], many)) if many else None
    size = sorted({len(run.models[str(run.final)][v.task]["items"]) for v in found})
    rows_said = f"{size[0]}" if len(size) == 1 else f"{size[0]} to {size[-1]}"
    note = f"Scores on {rows_said} evaluation rows a task; differences with 95 % intervals, paired by row; within noise: the interval holds zero. One run with one seed: another seed would differ, too."
    return [_lines(run, found[:BOARD], many), *([rest] if rest else []), paragraph(note, "soft")]


def _lines(run: RunFacts, found: Sequence[Verdict], many: bool) -> Html:
    last = str(run.final)
    others = ["base", "specialist", *([BASELINE] if BASELINE in run.models else [])]
    rows = []
    for v in found:
        models = [layout.probe_model(v.task) if name == "specialist" else name for name in others]
        known = [run.models.get(m, {}).get(v.task) for m in models]
        cells = [wording.score(entry["score"], v.metric.unit) if entry else None for entry in known]
        mine = element("strong", wording.score(run.models[last][v.task]["score"], v.metric.unit))
        rows.append([v.task, *cells, mine, _gap(v, "base", many), _gap(v, "specialist", many)])
    return table(["task", *others, "this model", "against the base", "against the specialist"], rows, kind="cards")


def _gap(verdict: Verdict, other: str, short: bool) -> Html | None:
    found = verdict.gaps.get(other)
    if found is None:
        return None
    word, kind = {
        "up": ("▲ better", "won"),
        "down": ("▼ lost", "lost"),
        "same": ("≈ within noise", "soft"),
    }[found.way]
    numbers = wording.gap(found.value, verdict.metric.unit) if short else _numbers(found, verdict.metric.unit)
    return element("difference", kind, word, numbers, short)


def _numbers(found: Gap, unit: Unit) -> str:
    return f"{wording.gap(found.value, unit)} ({wording.interval(found.low, found.high, unit)})"


def _forgotten(run: RunFacts) -> list[Html]:
    """All falls, where the lead has not the room for them; and how many would be by chance."""
    found = drops(run) if judged(run) else []
    if not found:
        return []
    parts = []
    if len(found) > LEAD:
        lost, back = [f.text for f in found if not f.recovered], [f.text for f in found if f.recovered]
        parts += [paragraph("Lost on the way, and why:"), bullets(lost)] if lost else []
        parts += [folded(f"Lost on the way, and won back: {len(back)} tasks", bullets(back))] if back else []
    chance = 0.025 * transitions(run)
    by_chance = f"about {chance:.0f} of the {transitions(run)} steps looked at" if chance >= 1 else "less than one"
    parts.append(
        paragraph(
            f"Listed are drops whose 95 % interval excludes zero; {by_chance} would drop as far by chance alone.",
            "soft",
        )
    )
    return parts


def _overlap(run: RunFacts) -> list[Html | Figure | None]:
    found = figures_regions.overlap(run.groups)
    if not found:
        return []
    return [
        paragraph(figures_regions.overlap_sentence(run)),
        *found,
        _titled("Groups at other thresholds", figures_regions.merges(run)),
    ]


def _progress(run: RunFacts) -> list[Html]:
    """Of a run that is not finished: what is done, what is under way, where it failed."""
    if run.state == "finished":
        return []
    done: dict[str, int] = {}
    for name in run.stages:
        kind = layout.folder_of(name)
        done[kind] = done.get(kind, 0) + 1
    lines = []
    if run.state == "failed":
        lines.append(element("failure", run.error_stage))
    rows = [[kind, count, ", ".join(n for n in run.now if n.startswith(kind)) or None] for kind, count in done.items()]
    rows += [[layout.folder_of(n), 0, n] for n in run.now if layout.folder_of(n) not in done]
    what = "under way" if run.state == "running" else "begun, not finished"
    return [*lines, table(["stage", "done", what], rows, text=(2,))] if rows else lines
