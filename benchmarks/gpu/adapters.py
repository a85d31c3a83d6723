"""Adapters as probes: regions, agreement and loss of LoRA beside a whole model. Options as of first_contact.py.

python benchmarks/gpu/adapters.py --budget 540 --model MODEL --data DATA

Writes adapters.json, .md and .log to --out.
"""

from __future__ import annotations

import sys

from first_contact import main
from steps import StepPlan

STEPS = (
    StepPlan("machine", "machine.py", 5, "card, driver, versions, which libraries import"),
    StepPlan("adapter-probes", "adapter_probes.py", 95, "probes full and LoRA r = 8 and 64"),
)

if __name__ == "__main__":
    sys.exit(main(name="adapters", steps=STEPS))
