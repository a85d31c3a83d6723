"""What the numbers of ``cpift diff`` say, in words: for the terminal, which needs no report, and for the page."""

from __future__ import annotations

_DESCRIPTION = (
    "Overlap, sign and cosine describe where updates lie and where they point. "
    "They are a description, not a prediction of harm: where it was measured, on ten skills of three small models, more "
    "overlap went with somewhat less harm. What predicts it is the loss of one specialist on rows of the other "
    "(docs/results/m2.md)"
)
_MEASURED = (
    "Measured so far, on small models: top-1 % regions of short fine-tunings overlap by 0.003 to 0.05, mostly more than "
    "chance and below τ = 0.1, so that each task is a group of its own (docs/results/archive.md).",
    "With larger updates, of a learning rate of 1e-3, all five tasks of one suite overlapped by more than τ. "
    "So compare fine-tunes of like length and rate.",
)


def meaning(predicted: bool) -> tuple[str, ...]:
    """What the numbers do and do not predict, a sentence or two each.

    Args:
        predicted: stands a prediction beside them already? Otherwise how to get it is told.
    """
    how = "" if predicted else ": cpift diff BASE A B --rows A=ROWS shows that, for rows of what A has learnt"
    return (f"{_DESCRIPTION}{how}.", *_MEASURED)


def times(value: float, chance: float) -> str:
    """How many times chance a number is: 2.4 ×.

    Args:
        value: measured.
        chance: expected of random regions.
    """
    return f"{value / chance:.2g} ×" if chance else "– ×"
