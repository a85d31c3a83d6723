"""Methods that train a part of the model, drawn at random without a probe: as multi-task SFT, or task by task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cpift.compare.methods.arriving import allowance, arrival
from cpift.compare.methods.method import Arrival, Method
from cpift.metrics.score import Scores

if TYPE_CHECKING:
    from cpift.compare.workbench import Work
    from cpift.runs.stage import ModelRef


def drawn(name: str, draw: str, use: Literal["kept", "inside"], *, summary: str, trains: str, source: str) -> Method:
    """A method that trains with a region that is drawn; at every arrival it draws another.

    Args:
        name: what ``--methods`` calls it.
        draw: a name in :data:`cpift.compare.draws.DRAWS`.
        use: ``kept``: the region is frozen; ``inside``: it alone is trained.
        summary: one line for help and docs.
        trains: what it trains, for people.
        source: where it comes from.
    """

    def train(work: Work, part: str, start: ModelRef, tasks: list[str], tokens: float) -> ModelRef:
        region = [work.draw(draw, part)]
        if use == "kept":
            return work.train(f"{part}/trained", start, tasks, tokens, kept=region)
        return work.train(f"{part}/trained", start, tasks, tokens, inside=region)

    def run(work: Work) -> Scores:
        return work.score(name, train(work, name, work.base, work.tasks, work.budget))

    def arrive(work: Work) -> list[Arrival]:
        arrivals, current = list[Arrival](), work.base
        for i, task in enumerate(work.tasks):
            part = f"{name}/{i + 1}"
            current = train(work, part, current, [task], allowance(work, task))
            arrivals.append(arrival(work, task, part, current, work.spent(f"{part}/")))
        return arrivals

    return Method(name=name, summary=summary, trains=trains, source=source, run=run, arrive=arrive)
