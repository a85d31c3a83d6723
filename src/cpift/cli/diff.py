"""``cpift diff``: which fine-tuned checkpoints collide, and where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpift.errors import CpiftError

if TYPE_CHECKING:
    from cpift.evaluation.collisions import Skill
    from cpift.method.compare_updates import Comparison
    from cpift.metrics.collision import Prediction


def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint that all were fine-tuned from.")],
    tuned: Annotated[
        list[str],
        typer.Argument(metavar="CKPT...", help="Fine-tuned checkpoints: folders or hub ids; NAME=CKPT gives a name."),
    ],
    percent: Annotated[str, typer.Option(help="Share of all parameters in a core region, in per cent.")] = "1",
    threshold: Annotated[float, typer.Option(help="Overlap from which two are grouped (τ).")] = 0.1,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Parameters that do not count, as a shell-style pattern: '*embed*'.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one HTML page that needs no network.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (cpift.diff/1) in place of the tables.")] = False,
    max_memory: Annotated[
        str | None, typer.Option(help="Above this size, candidates go to a scratch file: 4GB.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Worker threads; by default one a core.")] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--rows",
            metavar="NAME=ROWS",
            help="Rows of what a checkpoint has learnt: predicts which of the others would harm it most. Loads the models.",
        ),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows drawn of each --rows, at most.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the draw of --max-rows.")] = 0,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens after which a row of --rows is cut.")] = 1024,
) -> None:
    """Which of these fine-tunes collide, and where.

    For each pair: overlap of the core regions beside chance, sign agreement, cosine of the updates. For each model: where
    in the model its region lies. Reads every checkpoint once and writes nothing, but for --html. Needs no GPU.

    These describe. With --rows it predicts, too: by the loss of each checkpoint on the rows of another.
    """
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.checkpoint.writer import parse_size
    from cpift.cli.options import named_paths, write_text
    from cpift.console.terminal import BesideJson, Terminal, byte_progress, say
    from cpift.method.compare_updates import compare_updates

    places = {name: checkpoint_place(path) for name, path in named_models(tuned).items()}
    origin = checkpoint_place(base)
    skills: list[Skill] = []
    if rows:  # with the libraries of training, which take seconds to import
        from cpift.evaluation.collisions import predict_collisions, read_skills

        files = named_paths(rows, "--rows")
        skills = read_skills(origin, places, files, rows=max_rows, seed=seed, max_length=max_length)
    first = open_checkpoint(origin)
    total = first.nbytes + sum(open_checkpoint(path, first).nbytes for path in places.values())
    found = compare_updates(
        origin,
        places,
        percent,
        threshold,
        exclude=exclude or [],
        threads=threads,
        max_memory=None if max_memory is None else parse_size(max_memory),
        progress=(lambda nbytes: None) if as_json else byte_progress(total),
    )
    for text in found.warnings:
        Terminal().warning(text)
    predictions: list[Prediction] = []
    if skills:
        shown = Terminal()
        try:
            predictions = predict_collisions(origin, places, skills, BesideJson() if as_json else shown)
        finally:
            shown.close()
    if html is not None:
        from cpift.report.diff_page import diff_page  # with the libraries of training, too

        write_text(html, diff_page(found, _short(base), predictions))
    if as_json:
        print(json.dumps({**found.to_dict(), **(_prediction(predictions) if predictions else {})}, indent=1))
    else:
        _show(found, predictions)
        if html is not None:
            say(f"wrote {html}")


def named_models(values: Sequence[str]) -> dict[str, str]:
    """Names of checkpoints: as given, or the last part of the path."""
    found: dict[str, str] = {}
    for value in values:
        name, sign, path = value.partition("=")
        if not sign or "/" in name or Path(value).exists():
            name, path = _short(value), value
        if not name or not path:
            raise CpiftError(f"{value}: write it as NAME=CKPT")
        if name in found:
            raise CpiftError(f"two checkpoints are named {name}; write NAME=CKPT to tell them apart")
        found[name] = path
    return found


def _short(path: str) -> str:
    return Path(path).resolve().name if Path(path).exists() else path.rstrip("/").rpartition("/")[2]


def _show(found: Comparison, predictions: Sequence[Prediction]) -> None:
    from cpift.console.tables import numbers_table
    from cpift.console.terminal import say
    from cpift.method.overlap_meaning import meaning, times

    say(f"{found.total} parameters counted; core regions of {found.percent} %")
    if found.pairs:
        rows = [
            [
                f"{pair.first} – {pair.second}",
                f"{pair.overlap:.4f}",
                f"{pair.chance:.4f}",
                times(pair.overlap, pair.chance),
                "–" if pair.same_sign is None else f"{pair.same_sign:.0%}",
                "–" if pair.cosine is None else f"{pair.cosine:.3f}",
            ]
            for pair in found.pairs
        ]
        numbers_table(["pair", "overlap", "chance", "× chance", "same sign", "cosine"], rows)
    kinds = list(found.size_share.kinds)
    rows = [
        [model.name, f"{model.count}", *(f"{model.share.kinds.get(kind, 0.0):.1%}" for kind in kinds)]
        for model in found.models
    ]
    whole = ["all parameters", f"{found.total}", *(f"{found.size_share.kinds[kind]:.1%}" for kind in kinds)]
    numbers_table(["core region of", "positions", *kinds], [*rows, whole])
    if found.pairs:
        say(f"\ngroups at τ = {found.threshold:g}: " + " | ".join(", ".join(members) for members in found.groups))
    if predictions:
        _show_predictions(predictions, [model.name for model in found.models])
    say("\n" + "\n".join(meaning(bool(predictions))))


def _prediction(predictions: Sequence[Prediction]) -> dict[str, object]:
    """What ``--json`` prints of the predictions, with the evidence behind them."""
    from cpift.metrics.collision import EVIDENCE

    by = "loss of each fine-tune on the rows of another's skill, nats a token; the highest is predicted to harm it most"
    return {"prediction": {"by": by, "evidence": list(EVIDENCE), "skills": [one.to_dict() for one in predictions]}}


def _show_predictions(predictions: Sequence[Prediction], names: Sequence[str]) -> None:
    from cpift.console.tables import numbers_table
    from cpift.console.terminal import say
    from cpift.metrics.collision import EVIDENCE, sentence

    say("\nprediction, by the loss on the old skill's rows (nats a token, 95 % over rows)")
    table = []
    for found in predictions:
        losses = {loss.model: loss.text for loss in (found.own, *found.others)}
        table.append([f"{found.old} ({found.rows})", found.base.text, *(losses[name] for name in names)])
    numbers_table(["rows of", "base", *names], table)
    for found in predictions:
        say(sentence(found))
    say("\n".join(EVIDENCE))
