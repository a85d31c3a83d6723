"""Which rows stand together in a batch: by length for one task, shuffled where a stage has several."""

from __future__ import annotations

from collections.abc import Mapping

KEY = "train_sampling_strategy"


def with_sampling(training: Mapping[str, object], tasks: int) -> dict[str, object]:
    """A stage's settings with the order of its rows, where the recipe leaves it open and the stage has several tasks.

    Grouping by length sorts tasks of unlike length apart, so that a batch holds hardly more than one of them: each step
    then pulls towards one task. Shuffled batches mix the tasks, as the paper's do. For one task nothing is added:
    :data:`cpift.train.config.DEFAULTS` groups by length.

    Args:
        training: the recipe's settings for the stage.
        tasks: number of tasks whose rows the stage trains on, replayed ones included.
    """
    return {**training, KEY: "random"} if tasks > 1 and KEY not in training else dict(training)
