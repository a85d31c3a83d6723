"""The command line: parse, call, print. What takes long to import is imported where it is called."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cpift import __version__
from cpift.cli.compare import Lists, compare
from cpift.cli.data import data
from cpift.cli.options import Address, EngineName, GpusPerJob, RecipePath, Sets, overrides, terminal
from cpift.console import stopping
from cpift.errors import CpiftError, is_disk_full

app = typer.Typer(
    help="Fine-tune one language model on several unlike tasks without the seesaw (CPI-FT, arXiv:2508.21741).\n\n"
    "Start with: cpift init, then cpift plan recipe.yaml, then cpift run recipe.yaml --out runs/mine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"cpift {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


Tuned = Annotated[
    list[str],
    typer.Option("--tuned", metavar="NAME=CKPT", help="A fine-tuned checkpoint, with a name. One for each task."),
]
Base = Annotated[
    str,
    typer.Option(
        "--base", metavar="B", help="The checkpoint that all were fine-tuned from; or a hub id, maybe @revision."
    ),
]
RowsOf = Annotated[
    str,
    typer.Option("--vocabulary", metavar="same|union", help="union: a tuned vocabulary may be larger than the base's."),
]
Threads = Annotated[int | None, typer.Option(help="Worker threads; by default one a core. Changes speed only.")]


@app.command()
def run(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="The run folder. Called again with the same one, it goes on.")],
    sets: Sets = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Stop after probe, identify, group, backbone, fuse, refine or evaluate."),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Copy what is finished there (s3://…), and take back what the folder lacks."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is done and what would be done, and stop.")
    ] = False,
    engine: EngineName = "local",
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Probes, scores side by side; by default 1, under Ray what it has room for."),
    ] = None,
    address: Address = None,
    gpus_per_job: GpusPerJob = None,
) -> None:
    """Run the whole method: from a base model and several data sets to one model.

    Probes each task alone, finds their core regions, groups the tasks, trains a backbone, fuses, refines, and scores
    every model on every task. What is done and unchanged is skipped; killed and started again, it goes on.
    """
    from cpift.console.terminal import say, scores_table
    from cpift.distributed.engine import make_engine
    from cpift.recipe.recipe import Recipe
    from cpift.recipe.yaml import origins

    workers = make_engine(engine, jobs, address, gpus_per_job)
    loaded = Recipe.load(recipe, overrides(sets))
    from cpift.runs.pipeline import check
    from cpift.runs.pipeline import run as run_all

    if dry_run:
        check(loaded, out)
        if mirror is not None:
            from cpift.runs.mirror import Mirror

            held = Mirror(mirror, loaded, out).held
            say(f"the mirror holds {len(held)} finished stages; what fits is taken back, not made")
        _show_status(loaded, out)
        return
    with terminal() as shown:
        given = origins(recipe, overrides(sets))
        result = run_all(loaded, out, until=until, reporter=shown, given=given, engine=workers, mirror=mirror)
    if result:
        scores_table(result)
        if (out / "report.html").is_file():
            say(f"\nwhat happened to each task: {out / 'report.html'}")
        say(f"\nthe model is in {out / 'model'}; this line loads it:")
        say(f'from transformers import AutoModelForCausalLM as A; model = A.from_pretrained("{out / "model"}")')


@app.command()
def plan(
    recipe: RecipePath,
    sets: Sets = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few steps on this machine, and predict the rest.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(help="Memory of each of so many GPUs too, by sharding, and which cards hold it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A run folder: keep the plan there, for the report to set beside what it cost.")
    ] = None,
) -> None:
    """Tell what a run would cost: parameters, steps, tokens, memory, disk, and with --measure the time.

    Writes nothing, but for --out. Rows are loaded and tokenized to count them.
    """
    from cpift.console.terminal import say
    from cpift.planning.plan import plan as make_plan
    from cpift.planning.plan import show
    from cpift.recipe.recipe import Recipe

    result = make_plan(Recipe.load(recipe, overrides(sets)), measure=measure, gpus=gpus)
    if out is not None:
        _write_text(out / "plan.json", json.dumps(result) + "\n")
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        show(result, say)


@app.command()
def identify(
    base: Base,
    tuned: Tuned,
    out: Annotated[Path, typer.Option(help="Folder for NAME.region.safetensors.")],
    percent: Annotated[str, typer.Option(help="Share of all parameters that is core, in per cent.")] = "1",
    exclude: Annotated[
        list[str] | None, typer.Option(help="Parameters that do not count, as a shell-style pattern: '*embed*'.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Above this size, candidates go to a scratch file: 4GB.")
    ] = None,
    vocabulary: RowsOf = "same",
    threads: Threads = None,
) -> None:
    """Find the core region of each fine-tuned checkpoint: the parameters that it moved most.

    Reads every checkpoint once, the base included, tensor by tensor. Needs no GPU and no training.
    """
    from cpift.checkpoint.compatibility import check_compatible
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.checkpoint.writer import parse_size
    from cpift.console.terminal import Terminal, byte_progress, say, size
    from cpift.method.identify import identify as select
    from cpift.runs.stages import region_warnings

    if out.exists() and not out.is_dir():
        raise CpiftError(f"{out}: is a file; --out names a folder")
    _check_vocabulary(vocabulary)
    origin, models = checkpoint_place(base), _places(tuned)
    opened = {name: open_checkpoint(path) for name, path in models.items()}
    first = open_checkpoint(origin)
    for text in check_compatible(first, opened, union=vocabulary == "union"):
        Terminal().warning(text)
    total = first.nbytes + sum(model.nbytes for model in opened.values())
    limit = None if max_memory is None else parse_size(max_memory)
    regions = select(
        origin, models, percent, exclude=exclude or [], max_memory=limit, threads=threads,
        vocabulary="union" if vocabulary == "union" else "same", progress=byte_progress(total),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for name, region in regions.items():
        region.save(out / f"{name}.region.safetensors")
        told = region.statistics
        ratio = (
            f"{region.threshold / told['median']:.1f} × the median"
            if region.threshold and told["median"]
            else "no median"
        )
        say(
            f"{name}: {region.count} of {region.total} parameters, |Δ| >= {region.threshold or 0:.3g} ({ratio}); "
            f"zero updates {told['zero_share']:.1%}; candidates {size(told['candidate_bytes'])} in {told['candidates_in']}"
            + (", read twice" if told["reads"] > 1 else "")
        )
        for text in region_warnings(name, region):
            Terminal().warning(text)


@app.command()
def group(
    regions: Annotated[
        list[Path], typer.Argument(metavar="REGION...", help="Region files; the file's name is the task's.")
    ],
    threshold: Annotated[float, typer.Option(help="Jaccard overlap from which two tasks are grouped (τ).")] = 0.1,
    out: Annotated[Path, typer.Option(help="Where to write the result, JSON.")] = Path("groups.json"),
    seed: Annotated[int, typer.Option(help="Of the shuffled order of the groups.")] = 0,
) -> None:
    """Compare core regions, and group the tasks whose regions overlap.

    Shows the overlaps and how often updates agree in sign where they overlap: which tasks get in each other's way?
    """
    from cpift.console.terminal import say
    from cpift.method.group import group as compare
    from cpift.method.region import Region

    names = [path.name.removesuffix(".safetensors").removesuffix(".region") for path in regions]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise CpiftError(f"two region files are named {twice[0]}; names tell the tasks apart")
    found = compare({n: Region.load(p) for n, p in zip(names, regions, strict=True)}, threshold, seed=seed)
    _write_text(out, json.dumps(found.to_dict(), indent=1) + "\n")
    for i, a in enumerate(names):
        for j in range(i):
            signs = found.sign_agreement[i][j]
            told = "unknown" if signs is None else f"{signs:.0%}"
            say(f"{names[j]} – {a}: overlap {found.jaccard[i][j]:.4f}, same sign {told}")
    for number, members in enumerate(found.stages, start=1):
        say(f"stage {number}: {', '.join(members)}")


@app.command()
def fuse(
    base: Base,
    tuned: Tuned,
    out: Annotated[Path, typer.Option(help="The fused checkpoint, a new folder.")],
    backbone: Annotated[
        str | None, typer.Option(metavar="K", help="The model to fuse into; by default the base.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Core region of a tuned checkpoint; none: nothing is transplanted."),
    ] = None,
    overlap: Annotated[str, typer.Option(help="A position in several regions: largest, order or mean.")] = "largest",
    interpolation: Annotated[str, typer.Option(help="slerp, karcher, linear or sum.")] = "slerp",
    space: Annotated[str, typer.Option(help="What is interpolated: weights or updates.")] = "weights",
    vector: Annotated[str, typer.Option(help="What one interpolation is taken over: tensor or model.")] = "tensor",
    weight: Annotated[str, typer.Option(help="equal, or a fixed ω from 0 to 1.")] = "equal",
    vocabulary: RowsOf = "same",
    max_shard_size: Annotated[str, typer.Option(help="Largest file of the output.")] = "5GB",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default the widest of the inputs.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Fuse fine-tuned checkpoints into one, without training.

    Writes a plain Hugging Face checkpoint and fusion.json with angles, coefficients and counts per tensor. Reads
    every checkpoint twice, tensor by tensor; killed and started again, it goes on.
    """
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.console.terminal import Terminal, byte_progress, say
    from cpift.method.fuse import fuse as combine
    from cpift.recipe.parts import Fuse

    _check_vocabulary(vocabulary)
    origin, models = checkpoint_place(base), _places(tuned)
    start = None if backbone is None else checkpoint_place(backbone)
    options: dict[str, Any] = {"overlap": overlap, "interpolation": interpolation, "space": space, "vector": vector,
               "weight": weight if weight == "equal" else _number(weight, "--weight")}  # fmt: skip
    from cpift.recipe.recipe import check_part

    check_part(Fuse, options)
    reads = [origin, start or origin, *models.values()]
    report = combine(
        origin, models, out, backbone=start, vocabulary="union" if vocabulary == "union" else "same", regions=_named(region or [], "--region"), max_shard_size=max_shard_size,
        dtype=dtype, threads=threads, progress=byte_progress(2 * sum(open_checkpoint(p).nbytes for p in reads)), **options,
    )  # fmt: skip
    won = ", ".join(f"{task} {count}" for task, count in report["won"].items())
    for text in report.get("warnings", []):
        Terminal().warning(text)
    for group, source in report.get("companions", {}).items():
        say(f"{group}: {source}")
    for row in report.get("vocabulary", {}).get("copied", []):
        say(f"rows {row['rows'][0]} to {row['rows'][1] - 1} of the embedding: copied from {', '.join(row['from'])}")
    say(f"{out}: {report['total']} parameters, {report['core']} transplanted ({won}), {report['contested']} contested")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or a hub id, maybe @revision.")],
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Where to write the scores, JSON.")] = Path("scores.json"),
    sets: Sets = None,
) -> None:
    """Score any checkpoint on a recipe's tasks."""
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.console.terminal import Terminal, say
    from cpift.evaluation.recipe import evaluate_recipe
    from cpift.recipe.recipe import Recipe

    loaded = Recipe.load(recipe, overrides(sets))
    place = checkpoint_place(model, loaded.trust_remote_code)
    terminal = Terminal()
    try:
        scores = evaluate_recipe(place, loaded, terminal)
    finally:
        terminal.close()
    _write_text(out, json.dumps({"model": str(model), "tasks": scores}) + "\n")
    for task, score in scores.items():
        shown = f"{score['score']:.3f} nats" if score["metric"] == "loss" else f"{100 * score['score']:.1f} %"
        say(f"{task}: {score['metric']} {shown} ({len(score['items'])} rows)")


app.command(cls=Lists)(compare)
app.command()(data)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")],
) -> None:
    """Show a run's stages: done, running, missing or stale, and why."""
    from cpift.recipe.recipe import Recipe

    if not (folder / "recipe.yaml").is_file():
        raise CpiftError(f"{folder}: holds no run; cpift run RECIPE --out {folder} starts one")
    _show_status(Recipe.load(folder / "recipe.yaml"), folder)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or the folder of a comparison.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page to write; by default report.html in the folder.")
    ] = None,
) -> None:
    """Write one HTML page that shows what happened to each task: finished, still going on, or failed.

    The page is whole in itself: it needs no network. It is drawn from the JSON files of the folder.
    """
    from cpift.console.terminal import say
    from cpift.report import make_report

    say(f"wrote {make_report(folder, out)}")


@app.command()
def init(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from."""
    from importlib.resources import files

    if out.exists():
        raise CpiftError(f"{out}: exists; name another file, or remove it")
    _write_text(out, (files("cpift.recipe") / "template.yaml").read_text(encoding="utf-8"))
    print(f"wrote {out}; edit it, then: cpift plan {out}")


def _show_status(recipe: Any, folder: Path) -> None:
    from cpift.console.terminal import say
    from cpift.runs.status import stage_states

    for state in stage_states(recipe, folder):
        say(f"{state.state:8} {state.name}" + (f"  ({state.why})" if state.why else ""))


def _named(values: Sequence[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, sign, path = value.partition("=")
        if not sign or not path or not name or name != Path(name).name or name.startswith("."):
            raise CpiftError(f"{option} {value}: write it as NAME=PATH, the name without slashes")
        if name in found:
            raise CpiftError(f"{option}: the name {name} is given twice")
        found[name] = path
    return found


def _places(values: Sequence[str]) -> dict[str, Path]:
    from cpift.checkpoint.hub import checkpoint_place

    return {name: checkpoint_place(path) for name, path in _named(values, "--tuned").items()}


def _check_vocabulary(value: str) -> None:
    if value not in ("same", "union"):
        raise CpiftError(f"--vocabulary {value}: write same or union")


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CpiftError(f"{option} {text}: write equal or a number from 0 to 1") from None


def _write_text(path: Path, text: str) -> None:
    from cpift.files.manifest import write_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise CpiftError(f"{path}: cannot be written ({error.strerror})") from error


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars would tear ours
    stopping.listen()
    try:
        app()
    except CpiftError as error:
        from cpift.console.terminal import clean
        from cpift.distributed import ranks

        if not ranks.leads():
            sys.exit(2)  # the first process says it
        said = " ".join(clean(str(error)).split())
        print(f"cpift: {said if len(said) < 2500 else said[:1200] + ' … ' + said[-1200:]}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not is_disk_full(error):
            raise
        where = getattr(error, "filename", None) or "while writing"
        print(f"cpift: the disk is full ({where}); make room and run again", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
