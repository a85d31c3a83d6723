"""make bench: its parts keep to their time, its ratios are of pairs, and at tiny size all of it works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from bench import KEPT, Bench, Entry, ratios  # noqa: E402
from measure import Measured, run  # noqa: E402


def took(wall: float) -> Measured:
    return Measured(wall, wall, 1, 1, wall)


def test_ratios_are_taken_round_by_round() -> None:
    """Of 8/2, 9/1 and a run that was stopped: the median of two, with both."""
    assert ratios([took(8), took(9), None], [took(2), took(1), took(1)]) == "6.5 (4.0–9.0) ×"
    assert ratios([], [took(1)]) == "not measured"


def test_a_command_that_takes_too_long_is_ended() -> None:
    assert run([sys.executable, "-S", "-c", "import time; time.sleep(60)"], 1, limit=0.2) is None


def test_commands_run_in_turn_and_what_would_not_end_in_time_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds after a warm-up; the third command takes part in the first alone; nothing begins behind the end."""
    order: list[str] = []

    def stub(command: list[str], threads: int, limit: float = 0.0) -> Any:
        order.append(command[0])
        return took(1.0)

    monkeypatch.setattr("bench.run", stub)
    bench = Bench(tmp_path, 2, 1, tmp_path / "b.md")
    entries = {"a": Entry(["a"]), "b": Entry(["b"], warm_up=False), "c": Entry(["c"], rounds=1, warm_up=False)}
    found = bench.in_turn(entries)
    assert order == ["a", "a", "b", "c", "a", "b"]
    assert [len(found[name]) for name in "abc"] == [2, 2, 1]

    def part() -> None:
        bench.in_turn(entries)

    bench.part(0.5, part)
    assert order[6:] == ["a", "b", "c"], "one run each, as a second would take longer than what is left"
    bench.part(-1.0, part)
    assert len(order) == 9, "nothing begins where no time is left"


def test_a_part_that_fails_is_named_and_the_next_one_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1, 1, tmp_path / "b.md")

    def stops() -> None:
        raise SystemExit("mergekit: exit code 1")

    bench.part(9, stops)
    bench.part(9, lambda: bench.say("the next one"))
    assert bench.failed
    assert re.search("The part failed: SystemExit: mergekit: exit code 1(.|\n)*the next one", bench.out.read_text())


def test_the_limits_of_all_parts_are_within_twenty_minutes() -> None:
    """With a minute for what is removed between them."""
    from run import PARTS

    assert sum(limit for _, limit, _ in PARTS) <= 19 * 60


@pytest.mark.long
def test_all_of_it_at_tiny_size(tmp_path: Path) -> None:
    """Every table is there, and nothing is left behind but the regions' files."""
    out = tmp_path / "b.md"
    command = [sys.executable, BENCHMARKS / "run.py", "--quick", "--scratch", tmp_path / "s", "--out", out]
    subprocess.run([*command, "--threads", "1"], check=True, capture_output=True)
    text = out.read_text()
    for row in ("| identify | ", "| cpift fuse, SLERP, with regions | ", "| tiny | 2 | ", "| fuse, adapters | "):
        assert row in text
    assert "not in the part's time" not in text
    assert len(re.findall(r"Read from a cold disk", text)) == 2


def test_what_others_wrote_at_the_end_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Old\n\nold lines\n{KEPT}\n## Scoring\n\nby hand\n")
    made = Bench(tmp_path, 1, 1, page)
    made.say("# New")
    made.say("new lines")
    assert page.read_text() == f"# New\nnew lines\n{KEPT}\n## Scoring\n\nby hand\n"
