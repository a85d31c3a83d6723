"""The stages of a run: what each needs, what it is made of, and the function that makes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cpift.checkpoint.hub import locate
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import fingerprint
from cpift.console.reporter import Reporter
from cpift.data.encoding import Encoded, encode_all, notes_of
from cpift.data.lengths import cut_warning, encode_measured
from cpift.data.mixture import drawn, pooled_rows
from cpift.data.rows import TaskRows, answer_warnings, load_task, metric_of, read_jsonl, sample, write_jsonl
from cpift.data.sources import file_settings
from cpift.errors import CpiftError
from cpift.files import manifest
from cpift.files.layout import RunLayout
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe
from cpift.train.models import convert_gguf
from cpift.train.sampling import with_sampling

# Given the folders to fill (by stage name), returns facts for each.
Action = Callable[[Mapping[str, Path]], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Stage:
    """One folder below ``stages/``. Stages with the same ``together`` that are to be made are made by one call."""

    name: str
    kind: str
    what: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...]
    action: Action
    together: str = ""
    writes_model: bool = False
    trains: bool = False  # with all processes of the run


@dataclass
class Run:
    """A run's recipe and folder, and what has been found out so far."""

    recipe: Recipe
    out: Path
    reporter: Reporter = field(default_factory=Reporter)
    warnings: list[str] = field(default_factory=list)
    shared: tuple[Path, ...] = ()  # other run folders; a stage that one of them has made is taken over
    cut_reported: set[str] = field(default_factory=set)  # tasks whose rows are known to be cut, and were warned of
    loaded: dict[str, TaskRows] = field(default_factory=dict)  # what load_task gave, kept until its stage stores it

    @property
    def layout(self) -> RunLayout:
        """The paths of the run folder."""
        return RunLayout(self.out)

    def folder(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.layout.stage(stage)

    @property
    def tasks(self) -> list[str]:
        return list(self.recipe.tasks)

    @property
    def base(self) -> Path:
        """The folder of θ⁰."""
        model = locate(self.recipe.model, self.recipe.revision, self.recipe.trust_remote_code)
        return self.folder("00-base") if model.suffix == ".gguf" else model

    def rows(self, task: str, part: str) -> list[dict[str, Any]]:
        """``train`` or ``eval`` rows of a task whose stage is done."""
        return read_jsonl(self.folder(f"00-tasks/{task}") / f"{part}.jsonl")

    def facts(self, stage: str) -> dict[str, Any]:
        """Facts of a finished stage."""
        made = manifest.read(self.folder(stage))
        assert made is not None, stage
        return made.facts

    def groups(self) -> list[list[str]] | None:
        """The stages' groups of tasks, once they are known."""
        file = self.folder("03-group") / "groups.json"
        if manifest.read(self.folder("03-group")) is None:
            return None
        try:
            found = json.loads(file.read_text())
            return [found["groups"][i] for i in found["order"]]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CpiftError(f"{file}: is damaged ({error}); remove {file.parent} and run again to redo it") from error

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.reporter.warning(text)


def first_stages(run: Run) -> list[Stage]:
    """The base, where it must be converted, and the tasks' rows."""
    stages = []
    model = locate(run.recipe.model, run.recipe.revision, run.recipe.trust_remote_code)
    if model.suffix == ".gguf":

        def convert(folders: Mapping[str, Path]) -> Mapping[str, Mapping[str, Any]]:
            convert_gguf(model, folders["00-base"])
            return {"00-base": {}}

        settings = {"gguf": manifest.file_hash(model)}
        stages.append(Stage("00-base", "probe", "convert the base model", settings, (), convert, writes_model=True))
    stages += [_task_stage(run, name) for name in run.tasks]
    return stages


def base_needs(run: Run) -> tuple[str, ...]:
    return (
        ("00-base",)
        if locate(run.recipe.model, run.recipe.revision, run.recipe.trust_remote_code).suffix == ".gguf"
        else ()
    )


def base_settings(run: Run) -> dict[str, Any]:
    """What stands for θ⁰ in the settings of a stage, where it is no stage itself."""
    return {} if base_needs(run) else {"base": checkpoint_identity(run.base)}


identities: dict[Path, tuple[Any, str]] = {}  # what checkpoint_identity knows: state of the files, identity


def checkpoint_identity(path: Path) -> str:
    """Fingerprint of weights, configuration and tokenizer of a checkpoint; read once in a process."""
    checkpoint = open_checkpoint(path)
    files = checkpoint.files
    state = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    if path not in identities or identities[path][0] != state:
        parts = [fingerprint(checkpoint)]
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            parts.append(manifest.file_hash(path / name) if (path / name).is_file() else "")
        identities[path] = state, "-".join(part[:16] for part in parts)
    return identities[path][1]


def _task_stage(run: Run, name: str) -> Stage:
    task, seed = run.recipe.tasks[name], run.recipe.seed
    settings: dict[str, Any] = {"task": task.settings(), "seed": seed}
    if task.generate is None:
        settings["task"] |= file_settings(task)
    if task.generate is not None:
        import importlib.metadata

        settings["reasoning_gym"] = importlib.metadata.version("reasoning_gym")
    stage = f"00-tasks/{name}"

    def load(folders: Mapping[str, Path]) -> Mapping[str, Mapping[str, Any]]:
        rows = run.loaded.pop(name, None) or load_task(name, task, seed)
        facts = {
            "train_rows": len(rows.train),
            "eval_rows": len(rows.evaluation),
            "metric": metric_of(name, task, rows.evaluation),
            "shapes": rows.shapes,
            "sources": [asdict(source) for source in rows.sources],
            "warnings": [*rows.warnings, *answer_warnings(name, task, rows.evaluation)],
        }
        write_jsonl(folders[stage] / "train.jsonl", rows.train)
        write_jsonl(folders[stage] / "eval.jsonl", rows.evaluation)
        return {stage: facts}

    return Stage(stage, "probe", f"rows of {name}", settings, (), load)


def probe_steps(run: Run) -> int:
    """Steps of each probe. ``auto`` is settled once in a run folder, so that a task added later has the same budget."""
    from cpift.train.fine_tune import batch_rows

    if run.recipe.probe.steps != "auto":
        return int(run.recipe.probe.steps)
    rows = {task: run.facts(f"00-tasks/{task}")["train_rows"] for task in run.tasks}
    batch = batch_rows(run.recipe.training_of("probe"))
    steps: int = max(1, math.ceil(sum(rows.values()) / len(rows) / batch))
    file = run.out / "state.json"
    if file.is_file():
        kept = _kept_steps(file)
        if kept.get("batch") == batch and set(kept["rows"]) != set(rows):
            if kept["probe_steps"] != steps:
                run.reporter.message(
                    f"probe.steps: auto stays at {kept['probe_steps']}, as when this run began, so that earlier probes "
                    f"stand; of all tasks it would be {steps} (--set probe.steps={steps})"
                )
            return int(kept["probe_steps"])
        if kept.get("batch") == batch and kept["rows"] == rows:
            return int(kept["probe_steps"])
    manifest.write_whole(file, json.dumps({"probe_steps": steps, "batch": batch, "rows": rows}))
    return steps


def _kept_steps(file: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(file.read_text())
        if int(kept["probe_steps"]) < 1 or not isinstance(kept["rows"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CpiftError(f"{file}: is damaged; remove it and run again, to settle the probes' steps anew") from error
    return kept


def probe_epochs(run: Run) -> float:
    """Passes that a probe makes over the rows of the mean task: what the backbone makes over every task's, all seen alike."""
    from cpift.train.fine_tune import batch_rows

    rows = [run.facts(f"00-tasks/{task}")["train_rows"] for task in run.tasks]
    return float(probe_steps(run) * batch_rows(run.recipe.training_of("probe")) / (sum(rows) / len(rows)))


def trained_stage(
    run: Run,
    name: str,
    kind: str,
    what: str,
    start: tuple[str, Path],
    tasks: list[str],
    training: Mapping[str, Any],
    steps: int,
    *,
    examples: int | None = None,
    draw: int = 1,
    frozen: list[str] | None = None,
    replay: Mapping[str, int] | None = None,
    trainable: str | None = None,
) -> Stage:
    """A stage that fine-tunes ``start`` (stage name or "", folder) on the rows of ``tasks``.

    examples: only so many rows of each, drawn by seed; draw: which such sample, from 1. frozen: tasks whose core regions stay as they are.
    replay: other tasks, with how many of their rows are mixed in; these are repeated to be half of all rows, together.
    trainable: shell-style pattern of the only parameters that are trained.
    """
    seed = run.recipe.seed
    training = with_sampling(training, len(tasks) + len(replay or {}))
    settings: dict[str, Any] = {"training": training, "steps": steps, "seed": seed, "tasks": tasks}
    needs = [f"00-tasks/{task}" for task in tasks]
    if start[0]:
        needs.append(start[0])
    else:
        settings |= base_settings(run)
    if examples is not None:
        settings["examples"] = examples
        if draw > 1:
            settings["draw"] = draw
    needs += [f"02-identify/{task}" for task in frozen or []]
    if replay:
        settings["replay"] = dict(replay)
        needs += [f"00-tasks/{task}" for task in replay]
    if trainable is not None:
        settings["trainable"] = trainable
    if run.recipe.mix != "rows" and len(tasks) > 1:
        mix = run.recipe.mix
        settings["mix"] = mix if isinstance(mix, str) else {task: mix[task] for task in tasks}
    settings |= run.recipe.chat.identity()

    def train(folders: Mapping[str, Path]) -> Mapping[str, Mapping[str, Any]]:
        from cpift.method.freeze import regions_by_name
        from cpift.train.fine_tune import fine_tune, max_length
        from cpift.train.models import load_tokenizer

        tokenizer = load_tokenizer(start[1], run.recipe.trust_remote_code, run.recipe.chat)
        parts: dict[str, list[Encoded]] = {}
        empty = cut = 0
        for task in tasks:
            rows = run.rows(task, "train")
            if examples is not None:
                if len(rows) < examples:
                    run.warn(f"{name}: {task} has {len(rows)} training rows, fewer than examples_per_task {examples}")
                rows = sample(rows, examples, seed, task, draw)
            try:
                kept, lengths = encode_measured(rows, tokenizer, max_length(training))
            except CpiftError as error:
                raise CpiftError(f"{name}: tasks.{task}: {error}") from error
            for note in notes_of(kept) if kind == "probe" else ():
                run.warn(f"task {task}: {note}")
            if not kept:
                raise CpiftError(f"{name}: no row of {task} has a trained part left; raise training.max_length")
            parts[task], empty, cut = kept, empty + lengths.left_out, cut + lengths.cut
            text = cut_warning(task, lengths, max_length(training)) if kind == "probe" else None
            if text is not None and task in run.cut_reported:
                run.warnings.append(f"{name}: {text}")  # kept for the report, and not shown twice
            elif text is not None:
                run.warn(f"{name}: {text}")
        counts = pooled_rows(
            {task: len(kept) for task, kept in parts.items()},
            {task: sum(len(row.input_ids) for row in kept) for task, kept in parts.items()},
            run.recipe.mix,
        )
        encoded = [kept[i] for task, kept in parts.items() for i in drawn(counts[task], len(kept), seed, task)]
        old = [
            row for task, count in (replay or {}).items() for row in sample(run.rows(task, "train"), count, seed, task)
        ]
        repeated, dropped = encode_all(old, tokenizer, max_length(training))
        if repeated:
            encoded = encoded + repeated * max(1, round(len(encoded) / len(repeated)))
        empty += dropped
        if empty:
            run.warn(f"{name}: {empty} rows have no trained part after truncation and were left out")
        regions = {task: Region.load(run.folder(f"02-identify/{task}") / "region.safetensors") for task in frozen or []}

        def tick(event: Mapping[str, Any]) -> None:
            loss = f"loss {event['loss']:.3f}  " if event["loss"] is not None else ""
            run.reporter.progress(event["step"], event["steps"], f"{loss}{event['tokens_per_second']:.0f} tokens/s")

        try:
            trained = fine_tune(
                start[1],
                encoded,
                folders[name],
                training,
                steps=steps,
                seed=seed,
                frozen=regions_by_name(regions, frozen or []),
                work=folders[name] / "work",
                tick=tick,
                trust_remote_code=run.recipe.trust_remote_code,
                trainable=trainable,
                chat=run.recipe.chat,
            )
        except CpiftError as error:
            raise CpiftError(f"{name} ({', '.join(tasks)}): {error}") from error
        return {name: {**asdict(trained), "rows": len(encoded), "rows_left_out": empty, "rows_cut": cut}}

    return Stage(name, kind, what, settings, tuple(needs), train, writes_model=True, trains=True)
