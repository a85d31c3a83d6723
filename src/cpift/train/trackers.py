"""Experiment trackers (``report_to``) over a whole run: one group of runs, one run a training, and one with the scores.

The Trainer's own callbacks log the steps. Left alone they would put all trainings of a run into one run of the service,
where steps begin anew, or into runs without a name; and TensorBoard's files would go with the trainer's scratch folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.integrations import get_available_reporting_integrations

from cpift.checkpoint.library import library, optional_library
from cpift.files.layout import RunLayout

_PROJECT = "huggingface"  # where transformers' callbacks log by default


def services(training: Mapping[str, Any]) -> list[str]:
    """Names of the services that a training reports to; the installed ones for ``all``."""
    given = training.get("report_to") or []
    names = [given] if isinstance(given, str) else list(given)
    if "all" in names:
        return list(get_available_reporting_integrations())
    return [name for name in names if name != "none"]


def run_name(training: Mapping[str, Any], out: Path) -> str:
    """What the services call the whole run: ``training.run_name``, or the name of its folder."""
    return str(training.get("run_name") or out.resolve().name)


@contextmanager
def tracking(
    training: Mapping[str, Any], out: Path, stage: str, tasks: Sequence[str], resumed: bool
) -> Iterator[dict[str, Any]]:
    """Within it a training is a run of its own, named ``RUN/STAGE``, in the group ``RUN``, with its tasks as tags.

    Args:
        training: the recipe's settings.
        out: the run folder; TensorBoard's files go to a folder of the stage in it, or to one of the run's and stage's
            name in ``TENSORBOARD_LOGGING_DIR``.
        stage: its name.
        tasks: that it trains on.
        resumed: does it resume a training that was cut off? If not, TensorBoard's files of an earlier one are removed
            from the run folder.

    Yields:
        The settings to train with.
    """
    asked = services(training)
    if not asked:
        yield dict(training)
        return
    group = run_name(training, out)
    board = _boards(group, RunLayout(out)) / stage
    if "tensorboard" in asked and not resumed and board.is_relative_to(out):  # elsewhere, others' files may lie there
        shutil.rmtree(board, ignore_errors=True)
    with _environment(_variables(group, stage, tasks, board)), _ended(asked):
        yield {**training, "run_name": f"{group}/{stage}"}


def _boards(group: str, layout: RunLayout) -> Path:
    """Where TensorBoard's files of a run lie; in a folder that is shared, under the run's name."""
    shared = os.environ.get("TENSORBOARD_LOGGING_DIR")
    return Path(shared) / group if shared else layout.tensorboard


def _variables(group: str, stage: str, tasks: Sequence[str], board: Path) -> dict[str, str]:
    tags = {**_given_tags(), "cpift.run": group, "cpift.stage": stage, "cpift.tasks": ", ".join(tasks)}
    return {
        "WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP") or group,
        "WANDB_JOB_TYPE": stage.partition("/")[0],
        "WANDB_TAGS": ",".join(["cpift", *(task.replace(",", " ")[:64] for task in tasks)]),
        "MLFLOW_TAGS": json.dumps(tags),
        "TENSORBOARD_LOGGING_DIR": str(board),
    }


def _given_tags() -> dict[str, str]:
    try:
        given = json.loads(os.environ.get("MLFLOW_TAGS") or "{}")
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _ended(asked: Sequence[str]) -> Iterator[None]:
    """The services' runs end with the training, or the next one would go on in them. One that was open stays open."""
    wandb = optional_library("wandb") if "wandb" in asked else None
    own = wandb is not None and wandb.run is None
    failed = True
    try:
        yield
        failed = False
    finally:
        if own and wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=int(failed))
        if failed and "mlflow" in asked and (mlflow := sys.modules.get("mlflow")) and mlflow.active_run():
            mlflow.end_run("FAILED")
        if failed and "trackio" in asked and (trackio := sys.modules.get("trackio")):
            trackio.finish()


@dataclass(frozen=True)
class Outcome:
    """What is logged at the end of a run.

    Attributes:
        name: of the whole run.
        project: that trackio logs to.
        rows: model, task, metric, score.
        layout: paths of the run folder.
    """

    name: str
    project: str
    rows: list[tuple[str, str, str, float]]
    layout: RunLayout

    @property
    def values(self) -> dict[str, float]:
        """Scores by a name that every service takes."""
        return {
            re.sub(r"[^0-9A-Za-z_\-. :/]", "_", f"scores/{model}/{task}"): score for model, task, _, score in self.rows
        }


def _wandb(outcome: Outcome) -> None:
    wandb = library("wandb")
    if wandb.run is not None:
        wandb.log(outcome.values)
        return
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    group = os.environ.get("WANDB_RUN_GROUP") or outcome.name
    run = wandb.init(project=project, name=f"{outcome.name}/scores", group=group, job_type="scores")
    table = wandb.Table(columns=["model", "task", "metric", "score"], data=[list(row) for row in outcome.rows])
    run.log({**outcome.values, "scores": table})
    if outcome.layout.report.is_file():
        run.log({"report": wandb.Html(outcome.layout.report.read_text(encoding="utf-8"), inject=False)})
    wandb.finish()


def _mlflow(outcome: Outcome) -> None:
    mlflow = library("mlflow")
    if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=f"{outcome.name}/scores", nested=mlflow.active_run() is not None):
        mlflow.set_tags({**_given_tags(), "cpift.run": outcome.name, "cpift.stage": "scores"})
        mlflow.log_metrics(outcome.values)
        for file in (outcome.layout.scores, outcome.layout.report):
            if file.is_file():
                mlflow.log_artifact(str(file))


def _trackio(outcome: Outcome) -> None:
    trackio = library("trackio")
    trackio.init(project=outcome.project, name=f"{outcome.name}/scores", resume="allow")
    trackio.log(outcome.values)
    trackio.finish()


def _tensorboard(outcome: Outcome) -> None:
    board = optional_library("torch.utils.tensorboard") or library("tensorboardX")
    root = _boards(outcome.name, outcome.layout)
    if root == outcome.layout.tensorboard:
        shutil.rmtree(root / "scores", ignore_errors=True)
    writer = board.SummaryWriter(log_dir=str(root / "scores"))
    for name, value in outcome.values.items():
        writer.add_scalar(name, value, 0)
    lines = [f"| {model} | {task} | {metric} | {score:.4g} |" for model, task, metric, score in outcome.rows]
    writer.add_text("scores", "\n".join(["| model | task | metric | score |", "|---|---|---|---|", *lines]), 0)
    writer.close()


SCORES: dict[str, Callable[[Outcome], None]] = {
    "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio, "tensorboard": _tensorboard,
}  # fmt: skip
"""Services that get the scores of a run, and the report where they can hold a page."""


def track_scores(training: Mapping[str, Any], out: Path, result: Mapping[str, Any]) -> None:
    """Log the scores of a finished run, and its report, as one more run of the group. Other services are left out.

    Args:
        training: the recipe's settings.
        out: the run folder.
        result: what ``scores.json`` holds.
    """
    rows = [
        (model, task, str(score["metric"]), float(score["score"]))
        for model, scores in result["models"].items()
        for task, score in scores.items()
    ]
    outcome = Outcome(run_name(training, out), str(training.get("project") or _PROJECT), rows, RunLayout(out))
    for service in services(training):
        if service in SCORES:
            SCORES[service](outcome)
