"""The first run on a GPU: what is there, does it run, how fast, how much memory. Any step may fail; the others run.

python benchmarks/gpu/first_contact.py --budget 300 --model MODEL --data DATA

MODEL: a folder or a GGUF file, such as SmolLM2-135M. DATA: a folder with SET/train.jsonl and SET/eval.jsonl for each set.
Without them the steps that need them are skipped, or use a random model of that shape. Writes first_contact.json, .md and
.log to --out after each step, and prints one table. Exit code 1 where a step failed, 2 for arguments that cannot be used.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from step import MODES
from steps import ROOT, Outcome, StepPlan, run_steps, table, write_results

STEPS = (
    StepPlan("machine", "machine.py", 12, "card, driver, versions, which libraries import"),
    StepPlan("freeze", "freeze_on_device.py", 20, "frozen bits and the time of freezing, by optimizer and share"),
    StepPlan("run-tiny", "whole_run.py", 16, "cpift run on a tiny model, all stages"),
    StepPlan("run-real", "whole_run.py", 25, "the same on the model and sets that are given", ("--real",)),
    StepPlan("training", "training_speed.py", 20, "tokens/s of a probe beside TRL alone, at two batch sizes"),
    StepPlan("scoring", "scoring_speed.py", 10, "rows/s, teacher-forced and generated"),
    StepPlan("merge", "merge_speed.py", 20, "identify and fuse at 0.4B and 1.1B, by threads"),
    StepPlan("tests", "run_tests.py", 12, "the tests of freeze, selection and fusion"),
)
NAMES = [plan.name for plan in STEPS]


def parse(arguments: Sequence[str] | None, names: Sequence[str] = NAMES) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for all steps (default 300)")
    parser.add_argument("--out", type=Path, default=ROOT / "scratch" / "gpu", help="folder for the results")
    parser.add_argument("--scratch", type=Path, help="where checkpoints go, 10 GB, removed at the end (default: /tmp)")
    parser.add_argument("--steps", nargs="+", metavar="STEP", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to try this script on a CPU")
    parser.add_argument("--model", type=Path, help="a checkpoint's folder or a GGUF file")
    parser.add_argument(
        "--whole-model", action="store_true", help="with --tiny: --model as it is, not a small one of its architecture"
    )
    parser.add_argument("--data", type=Path, help="a folder with SET/train.jsonl and SET/eval.jsonl")
    parser.add_argument(
        "--sets", nargs="+", metavar="SET", default=[], help="two sets or more of --data (default: the first ones)"
    )
    parser.add_argument("--commit", help="commit to note in the results (default: git's)")
    parser.add_argument("--break", dest="broken", action="append", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.budget <= 0:
        parser.error(f"--budget: {given.budget} is no time; give seconds above 0")
    for option, path in (("--model", given.model), ("--data", given.data)):
        if path is not None and not path.exists():
            parser.error(f"{option}: there is no {path}")
    if len(given.sets) == 1:
        parser.error("--sets: give two sets or more")
    for name in given.sets:
        if given.data is None or not (given.data / name / "train.jsonl").is_file():
            parser.error(f"--sets: there is no {name}/train.jsonl in --data {given.data}")
    broken = {}
    for text in given.broken:  # STEP or STEP=HOW
        name, _, how = text.partition("=")
        if name not in names or (how or "raise") not in MODES:
            parser.error(f"--break: {text} is not STEP or STEP={'|'.join(MODES)}")
        broken[name] = how or "raise"
    given.broken = broken
    return given


def main(arguments: Sequence[str] | None = None, name: str = "first_contact", steps: Sequence[StepPlan] = STEPS) -> int:
    """Run the steps of a script by this name; the exit code says whether any failed."""
    given = parse(arguments, [plan.name for plan in steps])
    given.out.mkdir(parents=True, exist_ok=True)
    log = given.out / f"{name}.log"
    log.write_bytes(b"")
    head: dict[str, object] = {
        "card": "",
        "commit": given.commit or commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "budget": given.budget,
        "tiny": given.tiny,
    }
    if given.scratch is not None:
        given.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="cpift-gpu-", dir=given.scratch))
    flags = {"--tiny": given.tiny, "--whole-model": given.whole_model}
    common = ["--results", str(given.out.absolute()), *(flag for flag, on in flags.items() if on)]
    for option, path in (("--model", given.model), ("--data", given.data)):
        common += [option, str(path.absolute())] if path else []
    common += ["--sets", *given.sets] if given.sets else []

    def after(outcomes: list[Outcome]) -> None:
        head["card"] = head["card"] or card(outcomes)
        write_results(given.out, name, head, outcomes)
        last = outcomes[-1]
        print(f"{last.name}: {last.state}, {last.seconds:.1f} of {last.limit:.0f} s  {last.reason}", flush=True)
        for line in last.last_lines:
            print(f"    {line}", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step under way is ended, too
    plans = [plan for plan in steps if plan.name in given.steps]
    try:
        outcomes = run_steps(plans, given.budget, scratch, log, common=common, broken=given.broken, after=after)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"\n{table(outcomes)}\n\n{given.out / f'{name}.json'}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def card(outcomes: Sequence[Outcome]) -> str:
    """The card's name as the first step read it."""
    measures = {measure.what: measure.value for outcome in outcomes for measure in outcome.measures}
    return str(measures.get("card") or "")


def commit() -> str:
    """Of this checkout; "" where it is none."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
