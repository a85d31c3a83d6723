"""Small models in numbers: what tasks gain and keep as others arrive, tens of seeds on one card. Options as of first_contact.py.

python benchmarks/gpu/arrivals.py --budget 540

Nothing need be given: the models are pre-trained on the card. Writes arrivals.json, .md and .log to --out, and every item's
outcome to lab/ and arrivals/. Called again with the same --out, it resumes.
"""

from __future__ import annotations

import sys

from first_contact import main
from steps import StepPlan

STEPS = (
    StepPlan("machine", "machine.py", 3, "card, driver, versions, which libraries import"),
    StepPlan("lab", "lab_experiments.py", 57, "the laboratory's experiments, many units"),
    StepPlan("arrivals", "compare_methods.py", 40, "cpift compare, tasks arriving", ("--what", "arrivals")),
)

if __name__ == "__main__":
    sys.exit(main(name="arrivals", steps=STEPS))
