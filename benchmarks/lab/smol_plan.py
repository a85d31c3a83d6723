"""What S and M1 on SmolLM2 are made of: suites, sizes, and the settings that each merge tries, seven each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lab.merges import Setting, grid

RATE = 3e-4
SHORTEST = 0.75  # share of a set's rows that is drawn from, the shortest: little padding
SUITES = {
    "real": ("snips", "banking77", "inflection"),
    "generated": ("letter_counting", "calendar_arithmetic", "number_sequence"),
}
STEPS = {
    "snips": 24, "banking77": 60, "inflection": 40, "letter_counting": 40, "calendar_arithmetic": 40, "number_sequence": 40,
}  # fmt: skip
SHARES = (1.0, 3.0, 10.0, 30.0)  # p of M1
STITCHES = grid(p=[1.0, 3.0, 5.0, 10.0, 20.0], overlap=["largest"], ω=[0.0])
WIDE = "stitch_wide"  # added when the first unit had its best p at the edge: 20
TRIALS: dict[str, tuple[list[Setting], list[Setting]]] = {  # settings, and what is then changed in the best so far
    "stitch": (STITCHES, [{"overlap": "mean"}, {"ω": 0.1}]),
    "stitch_random": (STITCHES, [{"overlap": "mean"}, {"ω": 0.1}]),
    "task_arithmetic": (grid(λ=[0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]), []),
    "ties": (grid(density=[0.03, 0.05, 0.1, 0.2], form=["mean"], λ=[1.0]), [{"form": "sum"}, {"λ": 0.5}, {"λ": 0.7}]),
    WIDE: (grid(p=[30.0, 50.0, 100.0], overlap=["largest"], ω=[0.0]), []),
    "dare": (grid(density=[0.5], λ=[0.2, 0.3, 0.5, 0.7, 1.0]), [{"density": 0.2}, {"density": 0.8}]),
}
USUAL: dict[str, tuple[str, Setting]] = {  # what people take without trials
    "soup": ("task_arithmetic", {"λ": 1 / 3}),
    "ties@usual": ("ties", {"density": 0.2, "form": "mean", "λ": 1.0}),
    "stitch@usual": ("stitch", {"p": 10.0, "overlap": "largest", "ω": 0.0}),
}


@dataclass(frozen=True)
class Size:
    """How much is trained and tried.

    Attributes:
        train: rows of a task.
        tune: rows of a task on which settings are chosen; of the training set, and not trained on.
        evaluation: rows of a task that tables are made of.
        steps: of a specialist of each task, until its loss hardly falls.
    """

    train: int = 320
    tune: int = 24
    evaluation: int = 64
    steps: Mapping[str, int] = field(default_factory=lambda: STEPS)


FULL = Size()
