"""The report: one self-contained HTML page of a run or a comparison, drawn only from the JSON files that these write."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from cpift.errors import CpiftError
from cpift.files.layout import RunLayout
from cpift.files.manifest import write_whole
from cpift.metrics.addition import FILE
from cpift.metrics.comparison import ComparisonRecord
from cpift.report.arrivals import ARRIVALS, arrivals_parts
from cpift.report.comparison import KEYS, comparison_parts
from cpift.report.facts import read_run
from cpift.report.files import maybe_json, read_json
from cpift.report.page import page
from cpift.report.run_page import run_parts


def make_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder or a comparison folder, finished or not; returns its path.

    Args:
        folder: what ``cpift run --out`` or ``cpift compare --out`` named.
        out: the file to write, by default ``report.html`` in the folder.

    Raises:
        CpiftError: the folder holds neither; a file in it cannot be read; ``out`` cannot be written.
    """
    folder = Path(folder)
    if (folder / "comparison.json").is_file():
        record = cast(ComparisonRecord, read_json(folder / "comparison.json", KEYS))
        parts = comparison_parts(record, folder.resolve().name)
    elif RunLayout(folder).recipe.is_file():
        run, result = read_run(folder), maybe_json(RunLayout(folder).scores)
        added = result if result and result.get("format") == ARRIVALS else None
        parts = (
            run_parts(run)
            if added is None
            else arrivals_parts(added, run.recipe, folder.resolve().name, maybe_json(folder / FILE))
        )
    else:
        raise CpiftError(f"{folder}: holds neither a run nor a comparison; cpift run RECIPE --out {folder} starts one")
    target = Path(out) if out is not None else RunLayout(folder).report
    try:
        write_whole(target, page(parts))
    except OSError as error:
        raise CpiftError(f"{target}: cannot be written ({error.strerror})") from error
    return target
