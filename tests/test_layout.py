"""Names and paths of a run folder, and the way back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cpift.files import layout
from cpift.files.layout import Kind, RunLayout, StageName

SOURCE = Path(layout.__file__).parents[1]

# As docs/design.md shows the folder.
NAMES = {
    "00-base": StageName(Kind.BASE),
    "00-tasks/gsm8k": StageName(Kind.ROWS, task="gsm8k"),
    "01-probe/my task-1": StageName(Kind.PROBE, task="my task-1"),
    "02-identify/00-base": StageName(Kind.REGION, task="00-base"),
    "03-group": StageName(Kind.GROUP),
    "04-backbone/12": StageName(Kind.BACKBONE, number=12),
    "05-fuse": StageName(Kind.FUSE),
    "06-refine/1": StageName(Kind.REFINE, number=1),
    "07-evaluate/probe-a-b/a-b": StageName(Kind.SCORE, task="a-b", model="probe-a-b"),
    "07-guard/refine-2": StageName(Kind.GUARD, model="refine-2"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_name_is_read_into_its_parts_and_back(name: str) -> None:
    assert layout.parse(name) == NAMES[name]
    assert str(NAMES[name]) == name
    place = RunLayout(Path("runs/x"))
    assert place.stage(name) == Path("runs/x/stages") / name
    assert place.name_of(place.stage(name)) == name


def test_names_are_made_from_tasks_numbers_and_models() -> None:
    made = [
        layout.BASE, layout.rows("gsm8k"), layout.probe("my task-1"), layout.region("00-base"), layout.GROUP,
        layout.backbone(12), layout.FUSE, layout.refine(1), layout.score("probe/a-b", "a-b"), layout.guard("refine/2"),
    ]  # fmt: skip
    assert made == list(NAMES)


@pytest.mark.parametrize(
    "name", ["multi_task", "retrain/1", "merge/probe/a", "01-probe", "04-backbone/x", "06-refine/0", "05-fuse/1", "07-evaluate/base", "07-guard", ""],
)  # fmt: skip
def test_a_stage_that_is_none_of_the_methods_own_has_no_parts(name: str) -> None:
    assert layout.parse(name) is None


def test_a_stage_tells_what_its_model_is_called() -> None:
    stages = {"00-base": "base", "01-probe/a-b": "probe/a-b", "04-backbone/3": "backbone", "05-fuse": "fused"}
    assert {stage: layout.model_of(stage) for stage in stages} == stages
    assert layout.model_of("06-refine/2") == "refine/2"
    with pytest.raises(ValueError, match="03-group"):
        layout.model_of("03-group")


def test_stages_that_are_half_made_or_being_replaced_are_not_finished(tmp_path: Path) -> None:
    place = RunLayout(tmp_path)
    for folder in ("05-fuse", "01-probe/b", "01-probe/.a.partial", ".03-group.old", "06-refine/.2.partial"):
        (place.stages / folder).mkdir(parents=True)
        (place.stages / folder / "stage.json").touch()
    assert list(place.finished()) == ["01-probe/b", "05-fuse"]
    assert place.under_way() == ["01-probe/a", "06-refine/2"]


def test_no_module_but_the_layout_spells_a_stage_folder() -> None:
    """One place for each decision: a literal such as "01-probe/" elsewhere would not follow a change of the layout."""
    spelt = {
        file.name
        for file in SOURCE.rglob("*.py")
        if file != SOURCE / "files/layout.py" and re.search(r"\b0\d-[a-z]", file.read_text())
    }
    assert spelt == set()
