"""The report's page: what it says, what it escapes, and that it is whole in itself. Without a browser."""

from __future__ import annotations

import fcntl
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_folders import made_comparison, made_run
from tiny_run import call

from cpift.errors import CpiftError
from cpift.files.findings import finding
from cpift.report import make_report

SCRIPT = "<script>alert(1)"  # a task's name may have no slash: it names folders


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.h1, self.data, self.text, self._in = "", "", "", ""
        self._title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = "data" if dict(attrs).get("id") == "figures" else tag
        self._title = self._title or tag == "h1"

    def handle_endtag(self, tag: str) -> None:
        self._in = ""
        self._title = self._title and tag != "h1"

    def handle_data(self, data: str) -> None:
        if self._title:
            self.h1 += data.replace("\N{NO-BREAK SPACE}", " ")
        if self._in == "data":
            self.data += data
        elif self._in not in ("script", "style"):
            self.text += data

    @property
    def figures(self) -> dict[str, Any]:
        return dict(json.loads(self.data))


def report(folder: Path) -> Page:
    return Page(make_report(folder).read_text(encoding="utf-8"))


RUN_FIGURES = {
    "seesaw", "forgetting", "guard", "overlap", "signs", "shares", "layers", "angles", "coefficients", "collisions", "training", "cost",
}  # fmt: skip


def test_a_finished_run_has_all_parts_each_with_its_numbers(tmp_path: Path) -> None:
    """Every figure of the issue's table, with a table, a CSV link and a description."""
    page = report(made_run(tmp_path / "run", ["maths", "code", "chat"]))
    assert set(page.figures) == RUN_FIGURES
    links = [a for tag, a in page.elements if tag == "a" and "download" in a]
    assert {a["download"] for a in links} == {f"{name}.csv" for name in RUN_FIGURES}
    assert all(str(a["href"]).startswith("data:text/csv") for a in links)
    told = {str(a.get("id")) for _, a in page.elements}
    assert all(figure["title"] for figure in page.figures.values())
    assert {f"about-{name}" for name in RUN_FIGURES} | {f"title-{name}" for name in RUN_FIGURES} <= told
    assert "Against the base" in page.h1
    assert "against specialists" in page.h1
    assert page.h1.count("95 %") >= 3, "each with its interval"
    assert "What to do: Take these rows out" in page.text, "a warning has its remedy"
    assert "command line" in page.text
    assert "cpift run run/recipe.yaml" in page.text


@pytest.mark.parametrize("count", [2, 20])
def test_the_page_is_small_and_loads_nothing(tmp_path: Path, count: int) -> None:
    """Under 3 MB; no element names anything outside the page, and the policy forbids it besides."""
    folder = made_run(tmp_path / "run", [f"task{i}" for i in range(count)])
    made = make_report(folder)
    assert made.stat().st_size < 3_000_000
    page = Page(made.read_text(encoding="utf-8"))
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert "src" not in attributes, tag
        assert str(attributes.get("href", "#")).startswith(("#", "data:")), attributes
    policy = next(a for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")
    styles = (Path(__file__).parents[1] / "src/cpift/report/page.css").read_text()
    assert "url(" not in styles
    assert "@import" not in styles


def test_names_are_text_everywhere(tmp_path: Path) -> None:
    """A task named like markup is in the page only as text: of a run, and of a comparison, where a slash may be in it."""
    page = report(made_run(tmp_path / "run", ["maths", SCRIPT, 'a"b&amp;']))
    assert not [a for tag, a in page.elements if tag == "script" and "id" not in a][3:], "d3, Plot and our own script"
    assert SCRIPT in page.text
    assert 'a"b&amp;' in page.text
    assert SCRIPT in page.figures["overlap"]["xs"]
    compared = made_comparison(tmp_path / "cmp")
    file = compared / "comparison.json"
    file.write_text(file.read_text().replace("task0", "<script>alert(1)</script>"))
    text = make_report(compared).read_text()
    assert text.count("alert(1)") > 3
    assert "<script>alert" not in text
    assert "</script>alert" not in text


def test_no_path_of_this_machine_is_in_the_page(tmp_path: Path) -> None:
    """Of local paths the name only."""
    text = make_report(made_run(tmp_path / "run", ["a", "b"])).read_text()
    assert "SmolLM2.gguf" in text
    assert "/secret" not in text
    assert str(tmp_path) not in text


def test_a_failed_run_says_where_and_why(tmp_path: Path) -> None:
    """The stage, the line, and what is done so far; figures as far as they go."""
    folder = made_run(tmp_path / "run", ["a", "b"], until="06-refine/2", error="the loss is nan at step 3")
    page = report(folder)
    assert page.h1 == "The run failed in 06-refine/2: the loss is nan at step 3"
    assert "give the same command again" in page.text
    assert set(page.figures) == RUN_FIGURES - {"seesaw", "forgetting", "guard"}


def test_a_running_run_says_what_is_under_way(tmp_path: Path) -> None:
    """While its folder is held it is running; let go, it has stopped."""
    folder = made_run(tmp_path / "run", ["a", "b", "c"], until="04-backbone/2")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        page = report(folder)
        assert page.h1.startswith("The run is under way with 3 tasks: ")
        assert page.h1.endswith("under way: 04-backbone/2.")
    assert report(folder).h1.startswith("The run stopped before its end")
    assert "forgetting" not in page.figures


@pytest.mark.parametrize("stage", ["00-base", "00-tasks/b", "01-probe/a", "02-identify", "03-group", "05-fuse", "07-evaluate/base/a", "07-evaluate/refine-1/b"])  # fmt: skip
def test_a_run_can_be_seen_at_any_time(tmp_path: Path, stage: str) -> None:
    """Wherever it stopped, there is a page."""
    assert report(made_run(tmp_path / "run", ["a", "b"], until=stage)).h1.startswith("The run stopped")


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    """The page's data stays JSON that browsers read."""

    def diverge(folder: Path) -> None:
        file = folder / "stages/01-probe/a/stage.json"
        made = json.loads(file.read_text())
        made["facts"]["losses"][3][1] = float("nan")
        file.write_text(json.dumps(made))

    page = report(made_run(tmp_path / "run", ["a", "b"], change=diverge))
    rows = page.figures["training"]["views"]["loss"]["panels"][0]["rows"]
    assert [r["y"] for r in rows if r["s"] == "a"][3] is None


def test_small_multiples_from_six_tasks_on(tmp_path: Path) -> None:
    """Five tasks share a picture; six have one each, and twenty name who lost first."""
    five = report(made_run(tmp_path / "five", [f"t{i}" for i in range(5)])).figures["seesaw"]
    six = report(made_run(tmp_path / "six", [f"t{i}" for i in range(6)])).figures["seesaw"]
    assert len(five["panels"]) == 1
    assert len(five["series"]) == 5
    assert len(six["panels"]) == 6


def test_losses_have_a_picture_of_their_own(tmp_path: Path) -> None:
    """Per cent and nats do not share an axis."""
    figures = report(made_run(tmp_path / "run", ["a", "b"], metrics={"b": "loss"})).figures
    assert figures["seesaw"]["series"] == ["a"]
    assert figures["seesaw-loss"]["series"] == ["b"]


def test_a_comparison_says_who_won(tmp_path: Path) -> None:
    """Headline against the best baseline, dots with intervals, both budgets, the share view, arrivals."""
    page = report(made_comparison(tmp_path / "cmp"))
    assert re.match(
        r"At equal tokens: cpi_ft shows no difference beyond noise from multi_task, the best baseline", page.h1
    )
    assert {"scores-equal_tokens", "scores-paper", "differences-equal_tokens", "arrivals-incremental"} <= set(
        page.figures
    )
    views = page.figures["scores-equal_tokens"]["views"]
    assert list(views) == ["raw scores", "shares of the specialist"]
    rows = views["raw scores"]["panels"][0]["rows"]
    assert len(rows) == 7
    assert all(r["lo"] <= r["v"] <= r["hi"] for r in rows)
    shares = {r["y"]: r["v"] for r in views["shares of the specialist"]["panels"][0]["rows"]}
    assert shares["single_task"] == pytest.approx(1.0)


def test_a_running_comparison_of_one_seed_has_no_intervals(tmp_path: Path) -> None:
    """What cannot be known is not drawn."""
    page = report(made_comparison(tmp_path / "cmp", seeds=1, running=True))
    assert "Still running" in page.text
    assert all("lo" not in r for r in page.figures["scores-equal_tokens"]["views"]["raw scores"]["panels"][0]["rows"])


def test_the_plan_stands_beside_the_cost(tmp_path: Path) -> None:
    """With a plan in the folder its time is marked."""
    folder = made_run(tmp_path / "run", ["a", "b"])
    stages = [
        {"stage": "probe a", "tokens": 100, "seconds": 30.0},
        {"stage": "probe b", "tokens": 100, "seconds": 60.0},
    ]
    (folder / "plan.json").write_text(json.dumps({"stages": stages, "memory": 2e9, "disk": 3e9}))
    page = report(folder)
    assert page.figures["cost"]["panels"][0]["planned"] == [{"y": "probe", "v": 1.5}]
    assert "It predicted 2 GB" in page.text


def test_peak_device_memory_stands_beside_the_cost(tmp_path: Path) -> None:
    """A panel and a column where a stage has it, the largest of a kind; neither where none has."""
    folder = made_run(tmp_path / "run", ["a", "b"])
    assert "peak device memory" not in report(folder).text
    for task, peak in (("a", 7e9), ("b", 9e9)):
        file = folder / "stages/01-probe" / task / "stage.json"
        made = json.loads(file.read_text())
        made["facts"] |= {"peak_device_memory": peak, "device_memory_after": 0, "device": "Card (80.0 GiB)"}
        file.write_text(json.dumps(made))
    page = report(folder)
    panel = page.figures["cost"]["panels"][-1]
    assert panel["title"] == "peak device memory"
    assert [(row["y"], row["v"]) for row in panel["rows"]] == [("probe", 9.0)]
    assert "peak device memory" in page.text


def test_the_command_writes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And refuses what is no run in one line."""
    folder = made_run(tmp_path / "run", ["a", "b"])
    assert call(capsys, "report", folder, "--out", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").is_file()
    assert not (folder / "report.html").exists()
    (tmp_path / "empty").mkdir()
    code, _, said = call(capsys, "report", tmp_path / "empty")
    assert code == 2
    assert "holds neither a run nor a comparison" in said
    assert said.count("\n") == 1
    code, _, said = call(capsys, "report", folder, "--out", tmp_path / "no" / "page.html")
    assert code == 2
    assert "cannot be written" in said


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"tasks": 3}', "\x00"])
def test_damaged_files_are_one_line(tmp_path: Path, content: str) -> None:
    """A file that is cut off or is something else names itself."""
    folder = made_run(tmp_path / "run", ["a", "b"])
    (folder / "stages/03-group/groups.json").write_text(content)
    with pytest.raises(CpiftError, match=r"groups.json"):
        make_report(folder)
    compared = made_comparison(tmp_path / "cmp")
    (compared / "comparison.json").write_text(content)
    with pytest.raises(CpiftError, match=r"comparison.json"):
        make_report(compared)


def _backbone(source: str) -> Any:
    """Changes a made run's recipe, as if its backbone had come from elsewhere."""

    def change(folder: Path) -> None:
        file = folder / "recipe.yaml"
        values = yaml.safe_load(file.read_text())
        values["backbone"]["from"] = source
        file.write_text(yaml.safe_dump(values, sort_keys=False))

    return change


@pytest.mark.parametrize(
    ("source", "wanted", "why"),
    [
        (
            "multi_stage",
            "against the backbone, SFT on one group of tasks after the other",
            "in the backbone (which trained",
        ),
        ("multi_task", "against the backbone, SFT on all tasks at once", "(which trained all tasks at once)"),
        ("/secret/place/given", "against the backbone, the checkpoint that was given", "in the fused model ("),
        ("pretrained", "", "in the fused model ("),
    ],
)
def test_the_backbone_is_called_what_it_is(tmp_path: Path, source: str, wanted: str, why: str) -> None:
    """A backbone that is the base is no baseline of its own; one that was given has forgotten nothing here."""
    page = report(made_run(tmp_path / "run", ["a", "b", "c"], change=_backbone(source)))
    assert ("against the backbone" in page.h1) == bool(wanted)
    assert wanted in page.h1
    assert why in page.text
    trained = source.startswith("multi")
    assert ("in the backbone (" in page.text) == trained
    assert ("backbone" in page.figures["seesaw"]["xs"]) == (source != "pretrained")
    assert any(p["title"] == "backbone" for p in page.figures["training"]["views"]["loss"]["panels"]) == trained
    assert "/secret" not in page.text


def test_old_scores_do_not_speak_for_a_run_that_failed(tmp_path: Path) -> None:
    """A folder with all scores, in which a later run has failed: the failure stands at the top, and no verdict."""
    folder = made_run(tmp_path / "run", ["a", "b"])
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "error", "stage": "06-refine/1", "error": "no room"}) + "\n")
    page = report(folder)
    assert page.h1 == "The run failed in 06-refine/1: no room"
    assert "within noise: the interval holds zero" not in page.text


def test_what_an_earlier_recipe_left_is_not_shown(tmp_path: Path) -> None:
    """Scores of a model that has been made anew since, a task and a stage that are no more."""

    def outdate(folder: Path) -> None:
        for name, need in (("07-evaluate/fused/a", "05-fuse"), ("07-evaluate/refine-1/a", "06-refine/1")):
            file = folder / "stages" / name / "stage.json"
            made = json.loads(file.read_text())
            made["needs"] = {need: "another digest"}
            file.write_text(json.dumps(made))
        for old, new in (("01-probe/a", "01-probe/gone"), ("06-refine/1", "06-refine/7")):
            (folder / "stages" / new).mkdir()
            (folder / "stages" / new / "stage.json").write_text((folder / "stages" / old / "stage.json").read_text())

    page = report(made_run(tmp_path / "run", ["a", "b"], change=outdate))
    shown = {(r["x"], r["y"]) for r in page.figures["forgetting"]["panels"][0]["rows"]}
    assert {("fused", "b"), ("backbone", "a"), ("refine 2", "a")} <= shown
    assert not {("fused", "a"), ("refine 1", "a")} & shown
    panels = page.figures["training"]["views"]["loss"]["panels"]
    assert {r["s"] for r in panels[0]["rows"]} == {"a", "b"}
    assert {r["s"] for r in panels[2]["rows"]} == {"stage 1", "stage 2"}


def test_the_first_screen_stays_short(tmp_path: Path) -> None:
    """Of many falls the worst three, of many tasks eight, of many warnings their number; the rest is folded."""

    def warn(folder: Path) -> None:
        for i, task in enumerate(("t0", "t1", "t2", "t3")):
            file = folder / f"stages/00-tasks/{task}/stage.json"
            made = json.loads(file.read_text())
            text = f"task {task}: train_rows is {i}, there are only 6; all are used"
            made["facts"]["findings"] = [finding("few-rows", text, f"00-tasks/{task}").to_dict()]
            file.write_text(json.dumps(made))

    page = report(made_run(tmp_path / "run", [f"t{i}" for i in range(20)], change=warn))
    head = page.text[: page.text.index("The seesaw\n")] if "The seesaw\n" in page.text else page.text
    assert "The other 12 tasks" in page.text
    assert "5 warnings, each with what to do" in page.text
    assert 1 <= head[: head.index("warnings, each")].count("in its specialist →") <= 3


def test_equal_tokens_speak_first_and_every_budget_for_itself(tmp_path: Path) -> None:
    """Whatever was asked for first; retraining on everything at each arrival is no baseline of that budget."""
    folder = made_comparison(tmp_path / "cmp")
    file = folder / "comparison.json"
    found = json.loads(file.read_text())
    found["budgets"] = {b: found["budgets"][b] for b in ("paper", "incremental", "equal_tokens")}
    for budget, gap in (("equal_tokens", -0.2), ("paper", 0.2)):
        for d in found["differences"][budget]:
            if d["method"] == "multi_task":
                d["mean"] = {"difference": gap, "low": gap - 0.05, "high": gap + 0.05}
    arriving = found["summary"]["incremental"]
    arriving["multi_task"] = {**arriving["sequential"], "mean": {"mean": 0.99, "sd": 0.0}}
    arrived = {"difference": -0.1, "low": -0.2, "high": -0.05}
    found["forgetting"] = {
        m: {"old": arrived, "new": {"difference": 0.1, "low": 0.05, "high": 0.2}} for m in ("cpi_ft", "sequential")
    }
    found["differences"]["equal_tokens"].append({"method": "cpi_ft_no_freeze", "mean": arrived, "tasks": {}})
    file.write_text(json.dumps(found))
    page = report(folder)
    assert re.search(
        r"^At equal tokens: cpi_ft beats multi_task, the best baseline \(mean \+20.0 points, 95 % ", page.h1
    )
    assert "at the paper's settings: cpi_ft loses to multi_task" in page.h1
    assert "with tasks arriving one by one: cpi_ft loses to sequential, the best baseline" in page.h1
    assert "Against the specialists, at equal tokens: cpi_ft ends behind on 1 of 3 tasks" in page.text
    assert "the older tasks change by −10.0 points (95 % −20.0 … −5.0) in cpi_ft" in page.text
    assert "without freezing −10.0 points" in page.text
    assert len(page.figures["forgetting"]["panels"]) == 2
    assert "--methods cpi_ft multi_task" in page.text
    assert "--seeds 0 1 2 --budget paper incremental equal_tokens" in page.text


def test_an_interval_of_a_share_ends_at_one(tmp_path: Path) -> None:
    """Student's may reach beyond all rows right; drawn, it does not."""
    figure = report(made_comparison(tmp_path / "cmp", tasks=5)).figures["scores-equal_tokens"]
    rows = [r for p in figure["views"]["raw scores"]["panels"] for r in p["rows"]]
    assert max(r["hi"] for r in rows) == 1.0
    assert all(p["own"]["percent"] for p in figure["views"]["raw scores"]["panels"])
