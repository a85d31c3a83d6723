"""The page of ``cpift diff``: which fine-tuned checkpoints collide, and where."""

from __future__ import annotations

from collections.abc import Sequence

from cpift.method.compare_updates import Comparison
from cpift.method.group import Grouping
from cpift.method.overlap_meaning import meaning, times
from cpift.metrics.collision import Prediction
from cpift.report import figures_regions, wording
from cpift.report.html import Html, bullets, paragraph, table
from cpift.report.page import page
from cpift.report.parts import Figure, Parts, Section
from cpift.report.predictions import prediction_parts


def diff_page(found: Comparison, base: str, predictions: Sequence[Prediction] = ()) -> str:
    """The whole page, self-contained.

    Args:
        found: the comparison.
        base: name of the base, as people know it.
        predictions: of harm, where rows were given.
    """
    names = [model.name for model in found.models]
    cores = {model.name: model.core for model in found.models}
    layered = figures_regions.by_layer(_percent(found), cores, found.sizes) if _percent(found) else None
    where: list[Html | Figure] = [figures_regions.shares(cores), *([layered] if layered else [])]
    sections = [
        Section("meaning-part", "What these numbers say", [bullets(meaning(bool(predictions)))]),
        Section("models-part", "The updates", [_models(found)]),
        Section("regions-part", "Where the core regions lie", where),
    ]
    if found.pairs:
        overlaps: list[Html | Figure] = [
            _pairs(found),
            *figures_regions.overlap(_grouping(found)),
            _cosines(found),
            _where(found),
        ]
        sections.insert(1, Section("overlap-part", "Two by two", overlaps))
    if predictions:
        title = "Which is predicted to harm which"
        sections.insert(0, Section("prediction-part", title, prediction_parts(predictions)))
    return page(
        Parts(
            title=f"{wording.names(names)}: cpift diff",
            kicker=Html.escape(f"cpift diff · base {base} · {len(names)} fine-tuned · top {found.percent} %"),
            headline=[("", sentence(found))],
            warnings=[(text, "see docs/diff.md") for text in found.warnings],
            sections=sections,
        )
    )


def sentence(found: Comparison) -> str:
    """The result in one sentence."""
    if not found.pairs:
        return f"The core region of {found.models[0].name} has {wording.count(found.models[0].count)} positions"
    most = max(found.pairs, key=lambda pair: pair.overlap)
    largest = (
        f"{most.first} and {most.second} overlap most: {most.overlap:.4f}, {times(most.overlap, most.chance)} chance"
    )
    groups = " | ".join(", ".join(members) for members in found.groups)
    return f"{largest}. Groups at τ = {found.threshold:g}: {groups}"


def _percent(found: Comparison) -> float:
    """Per cent of the elements that are core, on average over the models."""
    return 100 * sum(model.count for model in found.models) / max(1, len(found.models) * found.total)


def _grouping(found: Comparison) -> Grouping:
    """The overlaps and groups, as ``cpift group`` has them."""
    signs: dict[tuple[str, str], float | None] = {}
    for pair in found.pairs:
        signs[pair.first, pair.second] = signs[pair.second, pair.first] = pair.same_sign
    names = [model.name for model in found.models]
    agreement = [[signs.get((a, b)) for b in names] for a in names]
    groups = [list(members) for members in found.groups]
    return Grouping(names, found.overlaps(), agreement, groups, list(range(len(groups))), found.threshold)


def _pairs(found: Comparison) -> Html:
    rows = [
        [
            f"{pair.first} – {pair.second}",
            f"{pair.overlap:.4f}",
            f"{pair.chance:.4f}",
            f"{pair.chance_by_tensor:.4f}",
            pair.shared,
            None if pair.same_sign is None else wording.percent(pair.same_sign),
            None if pair.cosine is None else f"{pair.cosine:.4f}",
        ]
        for pair in found.pairs
    ]
    headers = ["pair", "overlap", "chance", "chance, tensor by tensor", "common positions", "same sign", "cosine"]
    chance = "Chance is the overlap of two random regions. Tensor by tensor, each keeps its share of every tensor."
    return paragraph(chance) + table(headers, rows)


def _cosines(found: Comparison) -> Figure:
    names = [model.name for model in found.models]
    cells = []
    for pair in found.pairs:
        for x, y in ((pair.first, pair.second), (pair.second, pair.first)):
            cells.append({"x": x, "y": y, "v": pair.cosine, "t": "" if pair.cosine is None else f"{pair.cosine:.2f}"})
    top = max((abs(pair.cosine) for pair in found.pairs if pair.cosine is not None), default=0.0) or 1.0
    return Figure(
        id="cosines",
        title="Cosine of the whole updates",
        describe="Heatmap: cosine of the updates of each two models; zero is chance.",
        drawing={
            "kind": "heat",
            "panels": [{"rows": cells}],
            "xs": names,
            "ys": names,
            "domain": [-top, 0, top],
            "diverging": True,
        },
        headers=["model", "other model", "cosine"],
        rows=[[p.first, p.second, p.cosine] for p in found.pairs],
        note="Over all counted parameters, not only the core. Near zero the updates are unrelated; below zero they oppose.",
    )


def _where(found: Comparison) -> Figure:
    rows = [
        {"y": f"{pair.first} – {pair.second}", "s": kind, "v": share}
        for pair in found.pairs
        for kind, share in pair.shared_share.kinds.items()
    ]
    kinds = list(dict.fromkeys(row["s"] for row in rows))
    return Figure(
        id="where",
        title="Where the common positions lie",
        describe="Bars: share of embedding, attention, MLP and norm parameters in the common positions.",
        drawing={
            "kind": "bars",
            "panels": [{"rows": rows}],
            "ys": list(dict.fromkeys(row["y"] for row in rows)),
            "series": kinds,
            "percent": True,
            "xLabel": "share of the common positions, %",
            "small": len(found.pairs) > 8,
        },
        headers=["pair", "part", "share of the common positions"],
        rows=[[row["y"], row["s"], row["v"]] for row in rows],
    )


def _models(found: Comparison) -> Html:
    headers = ["model", "core positions", "threshold of |Δ|", "norm of Δ", "unchanged"]
    rows: list[Sequence[object]] = [
        [m.name, m.count, m.threshold, m.norm, wording.percent(m.zero_share)] for m in found.models
    ]
    return table(headers, rows)
