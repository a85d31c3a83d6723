"""Models of 1B and 3B parameters through probe, identify, fuse and refine, beside the plan. Options as of first_contact.py.

python benchmarks/gpu/size.py --budget 540 --scratch FOLDER

The 3B model needs 40 GB of disk. Writes size.json, .md and .log to --out.
"""

from __future__ import annotations

import sys

from first_contact import main
from steps import StepPlan

STEPS = (
    StepPlan("machine", "machine.py", 5, "card, driver, versions, which libraries import"),
    StepPlan("size", "size_steps.py", 95, "1B and 3B of Qwen3's shape, memory and time beside the plan"),
)

if __name__ == "__main__":
    sys.exit(main(name="size", steps=STEPS))
