"""What to do about each warning that a run raised."""

from __future__ import annotations

# A part of the warning's text, and the remedy. The first that fits counts.
_REMEDIES = (
    (
        "all tasks are one group",
        "Raise group.threshold (the overlap figure shows what each τ would give), or read the result as multi-task SFT with fusion: nothing was frozen.",
    ),
    (
        "tokens never seen",
        "Nothing: no core position can lie in these rows. To count them out of the region's size, add the embedding to region.exclude.",
    ),
    (
        "parameters that were not trained",
        "Nothing, if they were frozen on purpose; to count them out of the region's size, name them in region.exclude.",
    ),
    (
        "stored in fp32",
        "Train with fp32 weights (autocast over them, as cpift does): what was rounded away in the training is not in the checkpoint.",
    ),
    (
        "exactly zero",
        "Train and save the checkpoints in fp32: half precision rounds small updates away, and the region is then not the true one.",
    ),
    ("region is empty", "Raise region.percent."),
    (
        "filled by position",
        "Probe for longer (probe.steps) or at a higher learning rate, or lower region.percent: the region is larger than what moved.",
    ),
    (
        "fewer than examples_per_task",
        "Nothing, if the task has no more rows; otherwise give more rows or lower refine.examples_per_task, so that the sample is balanced.",
    ),
    (
        "longer than training.max_length",
        "Raise training.max_length, or shorten the rows: cpift data shows their lengths. What is cut off is not learnt.",
    ),
    (
        "have an empty response",
        "Nothing, if these rows are meant to have none; otherwise look at the column of the responses.",
    ),
    (
        "does not give the answer by the pattern",
        "Correct the pattern, or the answers: the score of these rows can only be 0.",
    ),
    (
        "no trained part after truncation",
        "Raise training.max_length, or shorten the prompts: these rows taught nothing.",
    ),
    ("also stand in the training rows", "Take these rows out of one of the two sets: the score flatters otherwise."),
    ("all are used", "Nothing, or give the task more rows: it was trained on fewer than the recipe asks for."),
)


def remedy(text: str) -> str:
    """What someone who reads the warning can do."""
    for part, what in _REMEDIES:
        if part in text:
            return what
    return "Look at the stage it names before you trust the scores."
