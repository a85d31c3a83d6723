"""The model card of a finished run: what the model is, on what data, with which scores, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from cpift.files import layout
from cpift.files.findings import read_findings
from cpift.metrics import described, intervals
from cpift.metrics.change import Change
from cpift.metrics.metric import PER_CENT
from cpift.report.guard import change_line, drift_line
from cpift.runs.card_data import data_block, is_hub_id, stated_of_base
from cpift.runs.stage import Run


def card(run: Run, result: Mapping[str, Any]) -> str:
    """Markdown with the metadata block that the hub expects."""
    last = list(result["models"])[-1]
    block = data_block(run, ["cpift", "trl", "sft", "multi-task"], result["models"][last])
    parts = [block, "# Model fine-tuned with CPI-FT", _method(run, result), "## Data and scores"]
    parts += [_scores(run, result["models"], last), _about_scores(), "## Limits", _limits(run, result, last)]
    parts += ["## Recipe", "```yaml\n" + _recipe(run).replace("```", "` ` `").rstrip() + "\n```"]
    return "\n\n".join(parts) + "\n"


def _method(run: Run, result: Mapping[str, Any]) -> str:
    groups = result["groups"] or []
    order = "; ".join(", ".join(map(plain, g)) for g in groups)
    frozen = "the core parameters of earlier groups frozen, " if run.recipe.refine.freeze and len(groups) > 1 else ""
    base = run.recipe.model if is_hub_id(run.recipe.model) else PurePath(run.recipe.model).name
    origin = f"{plain(base)}, its weights de-quantised," if base.endswith(".gguf") else plain(base)
    part = run.recipe.region
    core = f"the {part.percent:g} % of parameters {part.entry.label} were transplanted into a fused model"
    if not run.recipe.fuse.transplant:
        core = "the probes were fused into one model (without transplanting core parameters, as a control)"
    return (
        f"Fine-tuned from {origin} on {len(run.tasks)} tasks by Core Parameter Isolation Fine-Tuning "
        "([arXiv:2508.21741](https://arxiv.org/abs/2508.21741)) with `cpift`: each task was probed alone, "
        f"{core}, and that was refined group by group, {frozen}in this order: {order}."
    )


def _scores(run: Run, models: Mapping[str, Any], last: str) -> str:
    lines = [
        "| task | data | training rows | licence of the data | metric | base | own specialist | this model | 95 % interval |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, task in run.recipe.tasks.items():
        facts, mine = run.facts(layout.rows(name)), models[last][name]
        cells = [
            _number(models[m][name]["score"], mine["metric"])
            for m in (layout.BASE_MODEL, layout.probe_model(name), last)
        ]
        band = intervals.of_score(mine)
        noise = " … ".join(_number(v, mine["metric"]) for v in band) if band else "–"
        named = [] if task.generate else [str(_name(source.path)) for source in task.sources("train")]
        source = f"made by reasoning_gym: {task.generate}" if task.generate else ", ".join(named)
        licence = plain(task.licence or "not stated")
        lines.append(
            f"| {plain(name)} | {plain(source)} | {facts['train_rows']} | {licence} | {facts['metric']} | {' | '.join(cells)} | {noise} |"
        )
    return "\n".join(lines)


def _number(value: float, metric: str) -> str:
    unit = described(metric).unit
    return unit.number(value) + (f" {unit.short}" if unit == PER_CENT else "")


def _about_scores() -> str:
    return (
        "Exact match in per cent, loss in nats (less is better). Intervals are over the evaluation rows (Wilson's, or the normal one for "
        "losses); they do not tell how another seed would differ. The specialist of a task is the base fine-tuned on it alone, briefly."
    )


def _limits(run: Run, result: Mapping[str, Any], last: str) -> str:
    limits = [f"- One run with one seed ({run.recipe.seed}), scored on the evaluation rows of the recipe only."]
    changes = [Change(**change) for change in result.get("guard", {}).get("changes", {}).get(last, [])]
    if changes:
        said = [change_line(change) for change in changes]
        drift = result["guard"]["models"][last].get("drift")
        said += [drift_line(drift)] if drift else []
        limits.append("- Other abilities of the base may have been lost. On the guard set, against the base:")
        limits += [f"  - {plain(text)}" for text in said]
    else:
        limits.append("- Other abilities of the base may have been lost; none was measured.")
    licence = stated_of_base(run.given.folder).get("license")
    if licence:
        limits.append(
            f"- The licence above ({plain(str(licence))}) is the base model's; the data's, in the table, may ask for more."
        )
    else:
        limits.append(
            "- No licence is stated: it follows from the base model's, which is not known here, and the data's."
        )
    behind = result["summary"][last]["below_specialist"]
    limits.append(
        f"- {behind} of {len(run.tasks)} tasks ended more than 5 % of their score below their own specialist."
        if behind
        else "- No task ended more than 5 % of its score below its own specialist."
    )
    limits += [f"- {plain(found.text)}" for found in read_findings(result)]
    limits.append("- No test of safety, bias or truthfulness was made. The base model's limits hold for this one, too.")
    return "\n".join(limits)


def _recipe(run: Run) -> str:
    """As resolved, of local paths the file's name only."""
    values = run.recipe.model_dump(by_alias=True)
    values["model"] = _name(values["model"])
    values["backbone"]["from"] = _name(values["backbone"]["from"])
    for task in values["tasks"].values():
        task["train"], task["eval"] = _name(task["train"]), _name(task["eval"])
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _name(value: object) -> Any:
    if isinstance(value, list):
        return [{**source, "path": _name(source["path"])} for source in value]
    return PurePath(value).name if isinstance(value, str) and not is_hub_id(value) else value


def plain(value: str) -> str:
    """As plain text in Markdown, tables included."""
    signs = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    shown = "".join(signs.get(c) or ("\\" + c if c in "\\`*_{}[]|#" else c) for c in value)
    return " ".join(shown.split())
