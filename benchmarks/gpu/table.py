"""The table: methods of cpift compare on real data, three seeds; then merges of the same probes. Options as of first_contact.py.

python benchmarks/gpu/table.py --budget 540 --model MODEL --data DATA

All training methods see equal tokens. The merges need mergekit. The number of rows comes from the time. Writes table.json,
.md and .log to --out, and every item's outcome to table/ and stitching/. Called again with the same --out and --data, it
resumes: finished methods are not trained again.
"""

from __future__ import annotations

import sys

from first_contact import main
from steps import StepPlan

STEPS = (
    StepPlan("machine", "machine.py", 3, "card, driver, versions, which libraries import"),
    StepPlan("table", "compare_methods.py", 62, "methods at equal tokens, three seeds", ("--what", "table")),
    StepPlan("stitching", "compare_methods.py", 35, "cores put on the base, beside merges", ("--what", "stitching")),
)

if __name__ == "__main__":
    sys.exit(main(name="table", steps=STEPS))
