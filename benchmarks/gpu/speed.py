"""It runs, and how fast: five real sets through all stages, beside TRL alone and the plan. Options as of first_contact.py.

python benchmarks/gpu/speed.py --budget 360 --model MODEL --data DATA

DATA: five sets, up to 2,000 rows of each are trained on. Writes speed.json, .md and .log to --out.
"""

from __future__ import annotations

import sys

from first_contact import main
from steps import StepPlan

STEPS = (
    StepPlan("machine", "machine.py", 3, "card, driver, versions, which libraries import"),
    StepPlan("training", "training_speed.py", 15, "tokens/s of a probe beside TRL alone, at two batch sizes"),
    StepPlan("frozen", "frozen_training.py", 10, "step time and memory with 0, 1, 3, 30 and 90 % frozen"),
    StepPlan("scoring", "scoring_speed.py", 7, "rows/s, teacher-forced and generated"),
    StepPlan("merge", "merge_speed.py", 10, "identify and fuse at 0.4B and 1.1B, by threads"),
    StepPlan("run", "five_sets.py", 55, "cpift run on five sets, all stages, beside the plan"),
)

if __name__ == "__main__":
    sys.exit(main(name="speed", steps=STEPS))
