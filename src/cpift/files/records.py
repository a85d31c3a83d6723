"""What the JSON files of a run folder hold: the facts of a stage, and the plan."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Facts(TypedDict, total=False):
    r"""What ``stage.json`` says of a stage that was made. Each kind of stage writes those that it has.

    Attributes:
        seconds: wall time.
        disk: bytes of its files.
        seed: the recipe's.
        versions: of Python and the libraries, by name.
        precision: ``fp32``, ``bf16 autocast`` or ``fp16 autocast``.
        device_batch: rows of a pass of one process, in a training.
        accumulation: passes in a step of a training.
        peak_memory: bytes of the process.
        device: name of the accelerator.
        peak_device_memory: bytes on it.
        device_memory_after: bytes still on it at the end.
        rows: training rows.
        adapter: what was trained in place of all parameters.
        steps: optimizer steps.
        tokens: tokens of the training rows, padding not included.
        train_seconds: of the training loop alone.
        losses: step, mean loss since the last entry, learning rate.
        frozen: elements that were kept as they were.
        count: positions of a core region.
        threshold: smallest \|Δ\| in the region.
        median: of all \|Δ\| that are not zero.
        zero_share: share of the updates that are exactly zero.
        scores: what ``threshold`` is of, where it is not of updates.
        by_parameter: core positions of each parameter.
        sizes: elements of each parameter.
        guard: scores on the guard set, by set.
        drift: KL divergence from the model before on the neutral text, nats a token.
        train_rows: training rows of a task.
        eval_rows: evaluation rows of a task.
        metric: name of the metric of a task.
        shapes: rows given in each shape.
        threads: of the process that made it.
        trained_tokens: tokens that the loss was taken on.
        load_seconds: of loading the model and the tokenizer.
        save_seconds: of saving the model.
        frozen_changed: frozen elements that changed, which ends a training.
        rows_left_out: rows with no trained part.
        rows_cut: rows longer than ``training.max_length``.
        total: elements that count, of a region or a fusion.
        stages: tasks by group, in the order of the stages.
        score: of a model on a task.
        left_out: evaluation rows with nothing to score.
        findings: what to know before trusting it (:mod:`cpift.files.findings`).
        warnings: the same as text, in folders of earlier versions.
    """

    seconds: float
    disk: int
    seed: int
    versions: dict[str, str]
    precision: str
    device_batch: int
    accumulation: int
    peak_memory: int
    device: str
    peak_device_memory: int
    device_memory_after: int
    rows: int
    adapter: str
    steps: int
    tokens: int
    train_seconds: float
    losses: list[tuple[int, float, float]]
    frozen: int
    count: int
    threshold: float
    median: float
    zero_share: float
    scores: str
    by_parameter: dict[str, int]
    sizes: dict[str, int]
    guard: dict[str, float]
    drift: float
    train_rows: int
    eval_rows: int
    metric: str
    shapes: dict[str, int]
    threads: int
    trained_tokens: int
    load_seconds: float
    save_seconds: float
    frozen_changed: int
    rows_left_out: int
    rows_cut: int
    total: int
    stages: list[list[str]]
    score: float
    left_out: int
    findings: list[dict[str, str]]
    warnings: list[str]


class PlannedPart(TypedDict):
    """One part of a run: a probe, the backbone, a merge.

    Attributes:
        stage: its name.
        stages: stages that it consists of.
        steps: optimizer steps, of a training.
        tokens: of a training.
        seconds: with ``--measure``.
    """

    stage: str
    stages: int
    steps: NotRequired[int]
    tokens: NotRequired[int]
    seconds: NotRequired[float]


class DeviceUse(TypedDict, total=False):
    """What was on the accelerator; empty without one.

    Attributes:
        device: its name.
        peak_device_memory: bytes.
        device_memory_after: bytes still on it at the end.
    """

    device: str
    peak_device_memory: int
    device_memory_after: int


class TrainingTrial(TypedDict):
    """A few steps of training.

    Attributes:
        train_tokens_per_second: of the training loop.
        train_padding: tokens computed for each token of the rows.
        train_overhead_seconds: loading, warm-up and saving.
        finish_seconds: hashing and syncing a stage's files.
        train_peak: bytes.
    """

    train_tokens_per_second: float
    train_padding: float
    train_overhead_seconds: float
    finish_seconds: float
    train_peak: int


class MergingTrial(TypedDict):
    """Selection and fusion with one task, extrapolated to all of them; peaks in bytes."""

    identify_seconds: float
    fuse_seconds: float
    identify_peak: int
    fuse_peak: int


class ScoringTrial(TypedDict):
    """Scoring a few rows.

    Attributes:
        load_seconds: loading the model.
        row_seconds: of one row, by task; where the metric has rows of its own, of all of them.
        guard_seconds: of the guard set.
        score_peak: bytes.
    """

    load_seconds: float
    row_seconds: dict[str, float]
    guard_seconds: float
    score_peak: int


class Preparation(TypedDict):
    """Seconds before the first stage.

    Attributes:
        prepare_seconds: checks of the models, conversion of the base.
        load_rows_seconds: reading the rows.
        encode_seconds: tokenizing them once.
    """

    prepare_seconds: float
    load_rows_seconds: float
    encode_seconds: float


class Measured(DeviceUse, TrainingTrial, MergingTrial, ScoringTrial, Preparation):
    """What a short trial took on this machine.

    Attributes:
        start_seconds: from the command to its first line of work.
        peak_memory: the largest of the four peaks, in bytes.
    """

    start_seconds: float
    peak_memory: int


class GpuTraining(TypedDict):
    """Bytes on each GPU in the training that takes most, and which common cards have them.

    Attributes:
        stage: the kind of stage that takes most.
        stages: peak of each kind of stage that trains.
    """

    weights: int
    moments: int
    gradients: int
    buckets: int
    unsharded: int
    frozen: int
    copies: int
    activations: int
    logits: int
    accumulates: bool
    stage: str
    stages: dict[str, int]
    peak: int
    fits: list[int]


class GpuScoring(TypedDict):
    """Bytes on the GPU that scores, and which common cards have them."""

    peak: int
    fits: list[int]


class MainMemory(TypedDict):
    """Bytes of main memory: as a training loads, in selection, in fusion."""

    loading: int
    identify: int
    fuse: int


class GpuPlan(TypedDict):
    """Memory on several GPUs, by sharding."""

    gpus: int
    training: dict[str, GpuTraining]
    scoring: GpuScoring
    main: MainMemory


class LengthsEntry(TypedDict):
    """Rows of a task; the keys that are read by name."""

    rows: int
    tokens: int
    longest: int
    cut_share: float


class DataEntry(TypedDict):
    """The data of a task, as ``cpift data --json`` has it; the keys that are read by name."""

    shapes: dict[str, int]
    train: LengthsEntry


PLAN_FORMAT = "cpift.plan/1"


class AdapterPlan(TypedDict):
    """A probe that is an adapter.

    Attributes:
        parameters: trained.
        memory: bytes in training, without activations.
    """

    parameters: int
    memory: int


class PlanRecord(TypedDict):
    """What a run costs: ``plan.json``, and what ``cpift plan --json`` prints.

    Attributes:
        format: :data:`PLAN_FORMAT`; plans of earlier versions have none.
        parameters: of the model.
        counted: those that the region's share is taken of.
        core: positions of a task's region.
        stages: the parts of the run.
        tokens: of all trainings.
        region_tokens: of rows that core regions are chosen by, where they are.
        evaluated_models: models that are scored.
        evaluated_tokens: tokens that are scored.
        guard_tokens: that one model reads of the guard set.
        memory: bytes: peak of a trial, or of weights, gradients and AdamW.
        dtype: of the weights in training, where it is not float32.
        disk: bytes.
        checkpoints: checkpoints on the disk at the end.
        adapter: of a probe, where probes are adapters.
        data: each task's rows and lengths, as ``cpift data --json`` has them.
        mixture: how tasks are mixed where they are trained together, as lines.
        warnings: of the data.
        gpus: with ``--gpus``.
        measured: with ``--measure``, as all of the following.
        evaluate_seconds: of all scores.
        other_seconds: of the start and of reading the rows.
        seconds: of the whole run.
    """

    format: NotRequired[str]
    parameters: int
    counted: int
    core: int
    stages: list[PlannedPart]
    tokens: int
    region_tokens: NotRequired[int]
    evaluated_models: int
    evaluated_tokens: int
    guard_tokens: NotRequired[int]
    memory: int
    dtype: NotRequired[str]
    disk: int
    checkpoints: int
    data: dict[str, DataEntry]
    mixture: list[str]
    warnings: list[str]
    gpus: NotRequired[GpuPlan]
    adapter: NotRequired[AdapterPlan]
    measured: NotRequired[Measured]
    evaluate_seconds: NotRequired[float]
    other_seconds: NotRequired[float]
    seconds: NotRequired[float]
