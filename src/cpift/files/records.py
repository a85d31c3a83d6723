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
        peak_memory: bytes of the process.
        device: name of the accelerator.
        peak_device_memory: bytes on it.
        device_memory_after: bytes still on it at the end.
        rows: training rows.
        steps: optimizer steps.
        tokens: tokens of the training rows, padding not included.
        train_seconds: of the training loop alone.
        losses: step, mean loss since the last entry, learning rate.
        frozen: elements that were kept as they were.
        count: positions of a core region.
        threshold: smallest \|Δ\| in the region.
        median: of all \|Δ\| that are not zero.
        zero_share: share of the updates that are exactly zero.
        by_parameter: core positions of each parameter.
        sizes: elements of each parameter.
        loss: in nats, on the neutral text.
        warnings: what to know before trusting it.
    """

    seconds: float
    disk: int
    seed: int
    versions: dict[str, str]
    precision: str
    peak_memory: int
    device: str
    peak_device_memory: int
    device_memory_after: int
    rows: int
    steps: int
    tokens: int
    train_seconds: float
    losses: list[tuple[int, float, float]]
    frozen: int
    count: int
    threshold: float
    median: float
    zero_share: float
    by_parameter: dict[str, int]
    sizes: dict[str, int]
    loss: float
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


class Measured(TypedDict):
    """What a short trial took on this machine, in seconds and bytes.

    Attributes:
        start_seconds: from the command to its first line of work.
        prepare_seconds: checks of the models, conversion of the base.
        load_rows_seconds: reading the rows.
        encode_seconds: tokenizing them once.
        train_tokens_per_second: of the training loop.
        train_padding: tokens computed for each token of the rows.
        train_overhead_seconds: a training's loading, warm-up and saving.
        finish_seconds: hashing and syncing a stage's files.
        identify_seconds: for all tasks.
        fuse_seconds: for all tasks.
        load_seconds: loading a model to score it.
        row_seconds: scoring one row, by task.
        neutral_seconds: scoring the neutral text.
        peak_memory: the largest of the following four.
        train_peak: of training.
        identify_peak: of selection.
        fuse_peak: of fusion.
        score_peak: of scoring.
        device: name of the accelerator.
        peak_device_memory: bytes on it.
        device_memory_after: bytes still on it at the end.
    """

    start_seconds: float
    prepare_seconds: float
    load_rows_seconds: float
    encode_seconds: float
    train_tokens_per_second: float
    train_padding: float
    train_overhead_seconds: float
    finish_seconds: float
    identify_seconds: float
    fuse_seconds: float
    load_seconds: float
    row_seconds: dict[str, float]
    neutral_seconds: float
    peak_memory: int
    train_peak: int
    identify_peak: int
    fuse_peak: int
    score_peak: int
    device: NotRequired[str]
    peak_device_memory: NotRequired[int]
    device_memory_after: NotRequired[int]


class GpuTraining(TypedDict):
    """Bytes on each GPU in the training that takes most, and which common cards have them."""

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


PLAN_FORMAT = "cpift.plan/1"


class PlanRecord(TypedDict):
    """What a run costs: ``plan.json``, and what ``cpift plan --json`` prints.

    Attributes:
        format: :data:`PLAN_FORMAT`; plans of earlier versions have none.
        parameters: of the model.
        counted: those that the region's share is taken of.
        core: positions of a task's region.
        stages: the parts of the run.
        tokens: of all trainings.
        evaluated_models: models that are scored.
        evaluated_tokens: tokens that are scored.
        memory: bytes: peak of a trial, or of weights, gradients and AdamW in fp32.
        disk: bytes.
        checkpoints: checkpoints on the disk at the end.
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
    evaluated_models: int
    evaluated_tokens: int
    memory: int
    disk: int
    checkpoints: int
    data: dict[str, dict[str, object]]
    mixture: list[str]
    warnings: list[str]
    gpus: NotRequired[GpuPlan]
    measured: NotRequired[Measured]
    evaluate_seconds: NotRequired[float]
    other_seconds: NotRequired[float]
    seconds: NotRequired[float]
