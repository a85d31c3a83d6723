"""``cpift add --compare``: the same addition made by simpler means, at equal tokens. One table; a new one is one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpift.console.reporter import Reporter
from cpift.distributed import ranks
from cpift.errors import CpiftError
from cpift.files import layout, manifest
from cpift.metrics.addition import FILE, FORMAT, OURS, Addition
from cpift.metrics.change import Change
from cpift.recipe.arrivals import OSF_SHARE
from cpift.recipe.recipe import Recipe
from cpift.report.arrivals import changes_of
from cpift.runs.arrival_outcome import scores_after
from cpift.runs.equal_tokens import equal_epochs, trainings
from cpift.runs.pipeline import run
from cpift.runs.stage import Run
from cpift.runs.steps import row_tokens
from cpift.train.config import DEFAULTS
from cpift.train.orthogonal import check_osf

FOLDER = "compare"  # within the run folder

_PLAIN: Mapping[str, Any] = {
    "protect.replay": 0,
    "protect.freeze": False,
    "protect.transplant": False,
    "protect.average": 1,
    "protect.every": None,
    "protect.anchor": 0,
    "protect.ewc": 0,
    "arrivals.train": "all",
    "arrivals.adapter": None,
    "arrivals.osf": None,
}


@dataclass(frozen=True)
class Alternative:
    """Another way to add the same tasks.

    Attributes:
        name: of its folder.
        label: in tables.
        changes: keys of the recipe that differ, from the recipe.
    """

    name: str
    label: str
    changes: Callable[[Recipe], Mapping[str, Any]]


AVERAGE = 0.75  # weight of the trained model, where the recipe averages nothing
LORA_RATE = 10  # times the rate of full fine-tuning, as is usual for adapters (arXiv:2405.09673)


def _at_rate(recipe: Recipe, factor: float) -> Mapping[str, Any]:
    """The arrivals' own rate, which comes before the common one, as a multiple of what it is."""
    rate = recipe.training_of("arrivals").get("learning_rate", DEFAULTS["learning_rate"])
    return {**_PLAIN, "arrivals.training.learning_rate": factor * float(rate)}


def _lora(recipe: Recipe) -> Mapping[str, Any]:
    return {**_at_rate(recipe, LORA_RATE), "arrivals.adapter": {"type": "lora", "r": 16}}


ALTERNATIVES: tuple[Alternative, ...] = (
    Alternative("sft", "SFT on the new rows", lambda recipe: _PLAIN),
    Alternative("sft_half_rate", "SFT at half the learning rate", lambda recipe: _at_rate(recipe, 0.5)),
    Alternative("lora", "LoRA (rank 16) on the new rows, at ten times the learning rate", _lora),
    Alternative(
        "osf",
        "OSF by PEFT on the new rows, half of the directions kept",
        lambda recipe: {**_PLAIN, "arrivals.osf": OSF_SHARE},
    ),
    Alternative("replay", "SFT with replay", lambda recipe: {**_PLAIN, "protect.replay": recipe.protect.replay}),
    Alternative(
        "replay_average",
        "SFT with replay, averaged with the model before, weight 0.75 or as given",
        lambda recipe: {
            **_PLAIN,
            "protect.replay": recipe.protect.replay,
            "protect.average": recipe.protect.average if recipe.protect.average < 1 else AVERAGE,
            "protect.every": recipe.protect.every,
        },
    ),
)


def compare_additions(recipe: Recipe, out: Path, reporter: Reporter) -> list[Addition]:
    """Make the addition by each alternative, beside the finished one in ``out``; called again, it resumes.

    Args:
        recipe: the recipe of ``out``, with arrivals.
        out: a finished run folder.
        reporter: receives progress and warnings.

    Returns:
        All ways, those that are ahead first.

    Raises:
        CpiftError: several processes at this run; what :func:`cpift.runs.pipeline.run` raises.
    """
    check_alternatives()
    ours = Run(recipe, out)
    lengths = {task: row_tokens(ours, task, recipe.training_of("arrivals")) for task in ours.tasks}
    counts, budget = {task: ours.train_rows(task) for task in ours.tasks}, _spent(ours)
    reference = scores_after(ours)
    rows = [Addition(OURS, "cpift add", budget, _changes(ours))]
    for alternative in ALTERNATIVES:
        changed = recipe.changed(alternative.changes(recipe))
        epochs = equal_epochs(recipe, changed, counts, lengths)
        changed = changed.changed({"arrivals.epochs": epochs})
        folder = out / FOLDER / alternative.name
        reporter.message(f"{alternative.label}, {epochs:.3g} passes over the new rows: the same tokens")
        run(changed, folder, reporter=reporter, shared=(out,))
        made = Run(changed, folder)
        after = scores_after(made)
        against = [Change.between(name, reference[name], after[name], False) for name in reference]
        rows.append(Addition(alternative.name, alternative.label, _spent(made), _changes(made), against))
    rows.sort(key=lambda row: (-row.net_wins, -row.mean_gain))
    manifest.write_whole(out / FILE, json.dumps({"format": FORMAT, "rows": [asdict(row) for row in rows]}))
    return rows


def check_alternatives() -> None:
    """Check that all ways can be made here, before anything is trained.

    Raises:
        CpiftError: a library that one of them needs is missing; several processes, as a comparison is several runs.
    """
    if ranks.size() > 1:
        raise CpiftError(
            "--compare: trains several models, one after the other, in one process. Leave it out here; then repeat the "
            "command with --compare and without torchrun: the addition is not made again"
        )
    check_osf("--compare")


def _changes(made: Run) -> list[Change]:
    return changes_of(json.loads(made.layout.scores.read_text()))


def _spent(made: Run) -> int:
    """Tokens that the arrivals of a finished run were trained on."""
    arrivals = made.recipe.additions
    numbers = range(1, len(arrivals.order) + 1)
    stages = [layout.arrival(number, part) for number in numbers for part in trainings(made.recipe)]
    return sum(int(made.facts(stage)["tokens"]) for stage in stages)
