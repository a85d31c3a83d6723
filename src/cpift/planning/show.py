"""A plan, printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cpift.console.terminal import duration, size
from cpift.files.records import DataEntry, GpuPlan, GpuTraining, PlanRecord
from cpift.planning.memory import CARDS

Write = Callable[[str], None]


def show(record: PlanRecord, say: Write) -> None:
    """Print a plan.

    Args:
        record: the plan.
        say: prints a line.
    """
    for text in record["warnings"]:
        say(f"warning: {text}")
    counted, core = f"{record['counted']:,} counted", f"{record['core']:,} core per task"
    say(f"parameters   {record['parameters']:,} trained, {counted}, {core}")
    for name, task in record["data"].items():
        say(f"data         {name}: {_data(task)}")
    for line in record["mixture"]:
        say(f"{'mixture' if not line.startswith(' ') else '':12} {line}")
    for part in record["stages"]:
        took = f"  {duration(part['seconds'])}" if "seconds" in part else ""
        done = f"{part['steps']:,} steps, {part['tokens']:,} tokens" if "steps" in part else "no training"
        say(f"{part['stage']:12} {done}{took}")
    if "region_tokens" in record:
        say(f"regions      gradients of {record['region_tokens']:,} tokens, row by row")
    took = f"  {duration(record['evaluate_seconds'])}" if "evaluate_seconds" in record else ""
    say(f"evaluate     {record['evaluated_models']} models, {record['evaluated_tokens']:,} tokens{took}")
    if "guard_tokens" in record:
        each, models = record["guard_tokens"], record["evaluated_models"]
        took = f"  {duration(models * record['measured']['guard_seconds'])} of these" if "measured" in record else ""
        say(f"guard        {models} models, {models * each:,} tokens{took}")
    dtype = "bf16" if record.get("dtype") == "bfloat16" else "fp32"
    how = (
        "peak of a trial" if "measured" in record else f"weights, gradients and AdamW in {dtype}; activations are extra"
    )
    say(f"memory       {size(record['memory'])} ({how})")
    if "measured" in record and "peak_device_memory" in record["measured"]:
        measured = record["measured"]
        say(f"device       {size(measured['peak_device_memory'])} (peak of a trial on {measured['device']})")
    if "adapter" in record:
        adapter = record["adapter"]
        trained = f"{adapter['parameters']:,} parameters trained; activations come on top"
        say(f"probes       {size(adapter['memory'])} as adapters ({trained})")
    say(f"disk         {size(record['disk'])} ({record['checkpoints']} checkpoints in {dtype})")
    if "measured" in record:
        speed = record["measured"]["train_tokens_per_second"]
        say(f"start        rows, checks and the libraries  {duration(record['other_seconds'])}")
        say(f"time         {duration(record['seconds'])} ({speed:.0f} tokens/s in training)")
    else:
        say("time         add --measure to time a few steps on this machine")
    if "gpus" in record:
        _show_gpus(record["gpus"], say)
    say("Each task is taken as a group of its own. Generated answers are part of the time, not of the tokens.")


def _data(task: DataEntry) -> str:
    train, shapes = task["train"], ", ".join(task["shapes"]) or "generated"
    return (
        f"{train['rows']:,} rows, {train['tokens']:,} tokens, "
        f"the longest {train['longest']:,}, {train['cut_share']:.1%} cut; {shapes}"
    )


def _show_gpus(plan: GpuPlan, say: Write) -> None:
    say(f"on {plan['gpus']} GPUs, each:")
    for sharding, part in plan["training"].items():
        say(f"  {sharding:13} {size(part['peak']):>8}  ({part['stage']}: {_parts(part)}); {cards(part['fits'])}")
        others = [f"{stage} {size(peak)}" for stage, peak in part["stages"].items() if stage != part["stage"]]
        if others and len(set(part["stages"].values())) > 1:
            say(f"  {'':13} {'':>8}   {', '.join(others)}")
    scoring, main = plan["scoring"], plan["main"]
    whole = "each GPU holds the whole model, in fp32"
    say(f"  scoring       {size(scoring['peak']):>8}  ({whole}); {cards(scoring['fits'])}")
    say(
        f"  main memory   {size(main['loading'])} as a training loads, if all GPUs are in one node; "
        f"identify {size(main['identify'])}, fuse {size(main['fuse'])}"
    )
    say("AdamW and transformers of the Llama kind are assumed; formulas: docs/plan.md")


def _parts(part: GpuTraining) -> str:
    sizes = {
        "weights": part["weights"],
        "moments": part["moments"],
        "gradients": part["gradients"],
        "buckets": part["buckets"],
        "unsharded": part["unsharded"],
        "frozen": part["frozen"],
        "copies": part["copies"],
        "activations": part["activations"],
        "logits": part["logits"],
    }
    return ", ".join(f"{name} {size(nbytes)}" for name, nbytes in sizes.items() if nbytes)


def cards(fitting: Sequence[int]) -> str:
    """Which of the common cards are large enough.

    Args:
        fitting: their memory, in GB.
    """
    return f"fits a card of {' or '.join(map(str, fitting))} GB" if fitting else f"fits no card up to {max(CARDS)} GB"
