"""Stages that train: the probes, the backbone, and the baselines of ``cpift compare``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from cpift.checkpoint.files import INDEX
from cpift.checkpoint.reader import open_checkpoint, open_plain
from cpift.checkpoint.stream import Checkpoint
from cpift.checkpoint.updates import write_updates
from cpift.data.encoded import EncodedRows, joined
from cpift.data.encoding import Encoded, notes_of
from cpift.data.lengths import cut_warning, encode_measured
from cpift.data.mixture import drawn, pooled_rows
from cpift.data.row_checks import Row
from cpift.data.rows import sample
from cpift.distributed import ranks
from cpift.errors import CpiftError
from cpift.files import layout
from cpift.files.findings import Finding, finding
from cpift.method.freeze import regions_by_name
from cpift.method.region import Region
from cpift.metrics import named
from cpift.recipe.adapter import Adapter
from cpift.runs.arrival_findings import scored_elsewhere, seen_often
from cpift.runs.arrival_rows import rows_of_share
from cpift.runs.identity import settings_of
from cpift.runs.stage import Facts, ModelRef, Run, Stage
from cpift.runs.steps import probe_epochs, steps_for
from cpift.train.callbacks import Step
from cpift.train.config import max_length
from cpift.train.fine_tune import fine_tune, last_checkpoint
from cpift.train.limits import Rows, check_fits, check_tokenizer, limits_of_place
from cpift.train.models import load_tokenizer
from cpift.train.sampling import with_sampling
from cpift.train.settings import deciding
from cpift.train.spec import TrainSpec
from cpift.train.trackers import tracking
from cpift.typing import Tokenizer

CODE = 1  # raise it when the same settings and inputs would give another result


def probe_stage(run: Run, task: str, steps: int) -> Stage:
    """Fine-tunes the base on one task alone."""
    part = run.recipe.probe
    spec = spec_of(run, run.recipe.training_of("probe"), steps, (task,), adapter=part.adapter)
    spec = replace(spec, updates=run.recipe.output.probes == "updates")
    return train_stage(run, layout.probe(task), "probe", f"fine-tune the base on {task} alone", run.base, spec)


def backbone_stages(run: Run, groups: list[list[str]]) -> list[Stage]:
    """Train the backbone on the groups one after the other, or on all tasks at once; none where it is given."""
    parts = run.recipe.backbone.stages(groups, run.tasks)
    if not parts:
        return []
    training, given = run.recipe.training_of("backbone"), run.recipe.backbone.epochs
    epochs = probe_epochs(run) if given == "auto" else float(given)
    start, stages = run.base, list[Stage]()
    for number, tasks in enumerate(parts, start=1):
        steps = steps_for(epochs, sum(run.train_rows(task) for task in tasks), training)
        what = f"backbone, stage {number} of {len(parts)}: {', '.join(tasks)}"
        spec = spec_of(run, training, steps, tuple(tasks), **merged_adapter(run.recipe.backbone.adapter))
        stages.append(train_stage(run, layout.backbone(number), "backbone", what, start, spec))
        start = run.model(stages[-1].name)
    return stages


def merged_adapter(adapter: Adapter | None) -> dict[str, Any]:
    """The fields of :class:`TrainSpec` for a stage that trains an adapter and writes whole weights."""
    return {} if adapter is None else {"adapter": adapter, "merge": True}


def spec_of(run: Run, training: Mapping[str, Any], steps: int, tasks: tuple[str, ...], **more: Any) -> TrainSpec:
    """A training as the recipe's own keys have it.

    Args:
        run: for seed, chat template and trust in the checkpoint's code.
        training: the recipe's settings for this kind of stage.
        steps: optimizer steps.
        tasks: whose rows are trained on.
        more: other fields of :class:`TrainSpec`.
    """
    recipe, mix = run.recipe, run.recipe.mix
    training = with_sampling(training, len(tasks) + len(more.get("replay") or {}))
    shares = mix if isinstance(mix, str) else {task: mix[task] for task in tasks}
    return TrainSpec(
        training,
        steps,
        recipe.seed,
        tasks,
        mix=shares,
        chat=recipe.chat,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attn_implementation,
        dtype=recipe.dtype,
        device_map=recipe.device_map,
        **more,
    )


def train_stage(run: Run, name: str, kind: str, what: str, start: ModelRef, spec: TrainSpec) -> Stage:
    """A stage that fine-tunes a model.

    Args:
        run: its run.
        name: its name.
        kind: one of :data:`cpift.recipe.recipe.STAGES`.
        what: what it does, for people.
        start: the model that is fine-tuned.
        spec: how, and on which rows.
    """
    needs = [*map(layout.rows, spec.tasks), *start.needs]
    needs += [*spec.frozen, *spec.inside, *spec.unaveraged, *map(layout.rows, spec.replay)]
    needs += [rows for rows in map(layout.rows, spec.kept) if rows not in needs]

    def train(folders: Mapping[str, Path]) -> Facts:
        rows, facts = _rows_of(run, name, kind, start, spec)
        frozen, unaveraged = _frozen(run, start, spec), _joined(run, spec.unaveraged)

        def tick(event: Step) -> None:
            loss = f"loss {event['loss']:.3f}  " if event["loss"] is not None else ""
            run.reporter.progress(event["step"], event["steps"], f"{loss}{event['tokens_per_second']:.0f} tokens/s")

        work = folders[name] / layout.WORK_FOLDER
        try:
            with tracking(spec.training, run.out, name, spec.tasks, last_checkpoint(work) is not None) as training:
                trained = fine_tune(
                    start.path,
                    rows,
                    folders[name],
                    replace(spec, training=training),
                    frozen=frozen,
                    unaveraged=unaveraged,
                    kept=_kept_rows(run, start, spec),
                    work=work,
                    tick=tick,
                    smaller=lambda text: run.add(finding("batch-made-smaller", f"{name}: {text}", name)),
                )
        except CpiftError as error:
            raise CpiftError(f"{name} ({', '.join(spec.tasks)}): {error}") from error
        if spec.updates and ranks.leads():
            keep_updates(open_checkpoint(start.path), folders[name])
        adapter = {} if spec.adapter is None else {"adapter": spec.adapter.describe()}
        return {name: {**asdict(trained), **facts, **adapter}}

    settings = _settings(spec) | settings_of(start, "base")
    return Stage(name, kind, what, settings, tuple(needs), train, writes_model=True, trains=True, code=CODE)


def keep_updates(base: Checkpoint, folder: Path) -> None:
    """Put the update of the model in a folder in the place of its weights.

    Args:
        base: what it was trained from.
        folder: with whole weights.
    """
    tuned = open_plain(folder)
    write_updates(base, tuned, folder)
    for file in [*tuned.files, folder / INDEX]:
        file.unlink(missing_ok=True)


def _frozen(run: Run, start: ModelRef, spec: TrainSpec) -> Region | None:
    """What a training leaves unchanged: the regions of earlier stages, or all that lies outside some regions."""
    frozen, inside = _joined(run, spec.frozen), _joined(run, spec.inside)
    if inside is None:
        return frozen
    shapes = {name: tensor.shape for name, tensor in open_checkpoint(start.path).tensors.items()}
    outside = inside.detached().complement(shapes)
    outside = outside if frozen is None else outside | frozen.detached()
    if outside.count == sum(map(math.prod, shapes.values())):
        raise CpiftError("train: inside leaves no position to train: all of the core lies in frozen regions")
    return outside


def _joined(run: Run, stages: Sequence[str]) -> Region | None:
    """The union of the stages' regions; None where there is no stage."""
    return regions_by_name({s: Region.load(run.folder(s) / layout.REGION_FILE) for s in stages}, list(stages))


def _settings(spec: TrainSpec) -> dict[str, Any]:
    """What of a training decides about its result, for the stage's key; frozen regions count as needs."""
    settings: dict[str, Any] = {
        "training": deciding(spec.training),
        "steps": spec.steps,
        "seed": spec.seed,
        "tasks": list(spec.tasks),
        **spec.chat.identity(),
    }
    if spec.examples is not None:
        settings["examples"] = spec.examples
        if spec.draw > 1:
            settings["draw"] = spec.draw
    if spec.inside:
        settings["inside"] = True
    if spec.replay:
        settings["replay"] = dict(spec.replay)
        if spec.replay_share is not None:
            settings["replay_share"] = spec.replay_share
    if spec.mix != "rows" and len(spec.tasks) > 1:
        settings["mix"] = spec.mix
    if spec.anchor:
        settings["anchor"] = spec.anchor
    if spec.ewc:
        settings["ewc"] = {"strength": spec.ewc, "rows": dict(spec.kept)}
    if spec.average is not None:
        settings["average"] = asdict(spec.average)
    if spec.attention is not None:
        settings["attn_implementation"] = spec.attention
    if spec.updates:
        settings["kept_as"] = "updates"
    if spec.dtype != "float32":
        settings["dtype"] = spec.dtype
    if spec.osf is not None:
        settings["osf"] = spec.osf
    if spec.trainable is not None:
        settings["trainable"] = spec.trainable
    if spec.adapter is not None:
        settings["merged_adapter" if spec.merge else "adapter"] = spec.adapter.model_dump()
    return settings


def _rows_of(run: Run, name: str, kind: str, start: ModelRef, spec: TrainSpec) -> tuple[EncodedRows, dict[str, int]]:
    """The encoded rows of a training, and how many there are, were cut and were left out.

    Replayed rows are drawn from each earlier task by seed, ``spec.replay`` gives their number. They are repeated in
    order until they are about as many as the new rows, or ``spec.replay_share`` of all rows.
    """
    limit = max_length(spec.training)
    tokenizer = load_tokenizer(start.path, spec.trust_remote_code, spec.chat)
    parts: dict[str, EncodedRows] = {}
    tokens: dict[str, float] = {}
    left_out = cut = 0
    for task in spec.tasks:
        rows = run.rows(task, "train")
        if spec.examples is not None:
            if len(rows) < spec.examples:
                text = f"{name}: {task} has {len(rows)} training rows, fewer than examples_per_task {spec.examples}"
                run.add(finding("few-rows-to-refine", text, name))
            rows = sample(rows, spec.examples, spec.seed, task, spec.draw)
        try:
            kept, lengths = encode_measured(rows, tokenizer, limit)
        except CpiftError as error:
            raise CpiftError(f"{name}: tasks.{task}: {error}") from error
        if not kept:
            raise CpiftError(f"{name}: no row of {task} has a trained part left; raise training.max_length")
        tokens[task] = lengths.tokens
        parts[task], left_out, cut = kept, left_out + lengths.left_out, cut + lengths.cut
        if kind == "probe" or run.recipe.arrivals is not None:
            warnings = [finding("marks", f"task {task}: {note}") for note in notes_of(kept)]
            warnings += [warning] if (warning := cut_warning(task, lengths, limit)) else []
            for warning in warnings + _limits(run, task, start, tokenizer, spec):
                run.add(warning.of(name))
    counts = pooled_rows({task: len(kept) for task, kept in parts.items()}, tokens, spec.mix)
    encoded = joined([kept.take(drawn(counts[task], len(kept), spec.seed, task)) for task, kept in parts.items()])
    old = list[Row]()
    for task, wanted in spec.replay.items():
        old += sample(run.rows(task, "train"), wanted, spec.seed, task)
    if old:
        repeated, lengths = encode_measured(old, tokenizer, limit)
        left_out += lengths.left_out
        if repeated:
            count = max(1, round(len(encoded) / len(repeated))) * len(repeated)
            if spec.replay_share is not None:
                count = rows_of_share(len(encoded), spec.replay_share)
                for warning in seen_often(spec, len(encoded), len(repeated), count):
                    run.add(warning.of(name))
            encoded = joined([encoded, repeated.take(list(islice(cycle(range(len(repeated))), count)))])
    if run.recipe.arrivals is not None:
        for warning in scored_elsewhere(run, spec):
            run.add(warning.of(name))
    if left_out:
        text = f"{name}: {left_out} rows have no trained part after truncation and were left out"
        run.add(finding("rows-left-out", text, name))
    return encoded, {"rows": len(encoded), "rows_left_out": left_out, "rows_cut": cut}


def _kept_rows(run: Run, start: ModelRef, spec: TrainSpec) -> list[Encoded]:
    """The encoded rows by which EWC is measured; they are drawn as those that are replayed."""
    rows = [row for task, count in spec.kept.items() for row in sample(run.rows(task, "train"), count, spec.seed, task)]
    if not rows:
        return []
    tokenizer = load_tokenizer(start.path, spec.trust_remote_code, spec.chat)
    return list(encode_measured(rows, tokenizer, max_length(spec.training))[0])


def _limits(run: Run, task: str, start: ModelRef, tokenizer: Tokenizer, spec: TrainSpec) -> list[Finding]:
    """What of a task's rows, or of the tokenizer, the model was not made for; as the check before the run shows it."""
    asked, limits = run.recipe.tasks[task], limits_of_place(start.path, spec.trust_remote_code)
    metric = run.facts(layout.rows(task))["metric"]
    train, evaluation = run.rows(task, "train"), run.rows(task, "eval")
    limit = max_length(run.recipe.training)
    rows = Rows(task, train, evaluation, named(metric), asked.max_new_tokens, limit, asked.answer_pattern)
    found = check_tokenizer(tokenizer, limits, run.recipe.training)
    return found + check_fits(rows, tokenizer, limits, rows.generates(tokenizer))
