"""The report in headless Chromium: what is drawn, what it loads, how it answers, whom it shuts out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_folders import made_comparison, made_run

from cpift.report import make_report

playwright = pytest.importorskip("playwright.sync_api", reason="the extra cpift[browser] is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra cpift[browser] is not installed")

# Debian's, never one that playwright has brought along.
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Axe takes half a minute of a page of twenty tasks: a page of ten, and one or two looks of each page, are for every run.
SHORT = {(n, look) for n in ("two", "comparison") for look in ("wide-light", "narrow-dark")} | {("ten", "wide-light"), ("failed", "wide-dark"), ("stopped", "narrow-light")}  # fmt: skip
LOOKS = {f"{s}-{c}": (w, c) for s, w in (("wide", 1280), ("narrow", 390)) for c in ("light", "dark")}
EXACT = "alert(1)"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium, or set CHROMIUM"),
    # The browser's driver leaves its pipes to be collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind."""
    place = tmp_path_factory.mktemp("reports")
    many = [f"a_long_name_of_a_task_{i}" for i in range(20)]
    folders = {
        "two": made_run(place / "two", ["maths", f"<script>{EXACT}"]),
        "ten": made_run(place / "ten", many[:10], metrics={many[3]: "loss", many[8]: "loss"}),
        "twenty": made_run(place / "twenty", many, metrics={many[3]: "loss", many[8]: "loss"}),
        "failed": made_run(place / "failed", ["a", "b", "c"], until="06-refine/2", error="the loss is nan"),
        "stopped": made_run(place / "stopped", ["a", "b"], until="02-identify"),
        "comparison": made_comparison(place / "comparison", tasks=5),
    }
    compared = folders["comparison"] / "comparison.json"
    compared.write_text(compared.read_text().replace("task4", f"<script>{EXACT}</script>"))
    return {name: make_report(folder) for name, folder in folders.items()}


class Seen:
    """A page that is open, and what went wrong or out of it."""

    def __init__(self, browser: Any, file: Path, look: str) -> None:
        width, scheme = LOOKS[look]
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", timeout=30_000)

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    @property
    def figures(self) -> dict[str, Any]:
        return dict(self.page.evaluate("JSON.parse(document.getElementById('figures').textContent)"))

    def marks(self, figure: str, kind: str) -> int:
        """Marks of a kind in a figure: the children of Plot's groups."""
        selector = f"#draw-{figure} > div > svg [data-mark='{kind}'] > *, #draw-{figure} > div > figure svg [data-mark='{kind}'] > *"
        return int(self.page.locator(selector).count())


def expected(figure: dict[str, Any]) -> dict[str, int]:
    """Marks that the figure's data asks for."""
    panels = next(iter(figure["views"].values()))["panels"] if "views" in figure else figure["panels"]
    rows = [row for panel in panels for row in panel["rows"]]
    if figure["kind"] == "heat":
        return {"cell": len(rows)}
    if figure["kind"] == "bars":
        return {"bar": len(rows)}
    if figure["kind"] == "dots":
        return {"dot": len(rows)}
    lines = sum(len({r["s"] for r in panel["rows"]}) for panel in panels)
    return {"line": lines, "dot": sum(len(p["rows"]) for p in panels if len(p["rows"]) <= 180)}


@pytest.mark.parametrize(
    ("name", "look"),
    [
        pytest.param(name, look, marks=[] if (name, look) in SHORT else pytest.mark.long)
        for name in ("two", "ten", "twenty", "comparison", "failed", "stopped")
        for look in LOOKS
    ],
)
def test_every_figure_is_drawn_and_nothing_leaves_the_page(
    browser: Any, pages: dict[str, Path], name: str, look: str
) -> None:
    """The right number of marks, no error, no request, no dialog, no sideways scrolling, nothing that axe finds serious."""
    with Seen(browser, pages[name], look) as seen:
        found = {f: {k: seen.marks(f, k) for k in expected(data)} for f, data in seen.figures.items()}
        assert found == {f: expected(data) for f, data in seen.figures.items()}
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        names = seen.page.eval_on_selector_all(
            "figure .drawing svg",
            "all => all.map(s => [s.getAttribute('role'), s.getAttribute('aria-label'), document.getElementById(s.getAttribute('aria-describedby')).textContent])",
        )
        assert all(role == "img" and title and description for role, title, description in names)
        seen.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        found = axe.Axe().run(seen.page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")] == []
        assert seen.errors == []
        assert [url for url in seen.requests if not url.startswith("data:")] == [pages[name].as_uri()]


@pytest.mark.parametrize("name", ["two", "comparison"])
def test_a_task_named_like_a_script_stays_text(browser: Any, pages: dict[str, Path], name: str) -> None:
    """It is read on the page, and is no element of it."""
    with Seen(browser, pages[name], "wide-light") as seen:
        assert EXACT in seen.page.inner_text("body")
        assert seen.page.evaluate("[...document.scripts].filter(s => s.textContent.startsWith('alert')).length") == 0
        assert seen.errors == []


def test_the_threshold_moves_the_groups(browser: Any, pages: dict[str, Path]) -> None:
    """By keyboard: at zero all tasks are one group, at the end each is its own; framed pairs follow."""
    with Seen(browser, pages["twenty"], "wide-light") as seen:
        figure = seen.figures["overlap"]
        seen.page.focus("#tau")

        def groups() -> list[str]:
            return list(seen.page.locator("#tau-groups li").all_inner_texts())

        before = len(groups())
        assert 1 < before < 20
        seen.page.keyboard.press("Home")
        assert len(groups()) == 1
        assert groups()[0].count(",") == 19
        assert "one group" in seen.page.inner_text("#tau-count")
        framed = "[...document.querySelectorAll(\"#draw-overlap [data-mark='cell'] rect\")].filter(r => r.getAttribute('stroke') === 'var(--frame)').length"
        assert seen.page.evaluate(framed) == 20 * 19
        seen.page.keyboard.press("End")
        assert len(groups()) == 20
        assert seen.page.evaluate(framed) == 0
        assert seen.marks("overlap", "cell") == len(figure["panels"][0]["rows"])
        assert "20 groups" in str(seen.page.get_attribute("#tau", "aria-valuetext"))


def test_the_switch_shows_shares(browser: Any, pages: dict[str, Path]) -> None:
    """Raw scores, then shares of the specialist, which has 1."""
    with Seen(browser, pages["comparison"], "wide-light") as seen:
        first = seen.page.inner_text("#draw-scores-equal_tokens .panel >> nth=0")
        seen.page.check("input[name='view-scores-equal_tokens'][value='shares of the specialist']")
        second = seen.page.inner_text("#draw-scores-equal_tokens .panel >> nth=0")
        assert "right" in first
        assert "share of the specialist" in second
        assert seen.marks("scores-equal_tokens", "dot") == 35
        assert seen.errors == []


def test_paper_shows_the_whole_table(browser: Any, pages: dict[str, Path]) -> None:
    """Nothing of the table of tasks is cut off on a sheet of A4, and what is folded there is opened."""
    with Seen(browser, pages["twenty"], "wide-dark") as seen:
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        seen.page.emulate_media(media="print")
        seen.page.set_viewport_size({"width": 688, "height": 1000})  # A4 without its margins
        assert seen.page.locator("header tbody tr").count() == 20
        assert seen.page.evaluate("[...document.querySelectorAll('header td')].every(t => t.checkVisibility())")
        ends = seen.page.evaluate(
            "[...document.querySelectorAll('header table')].map(t => t.getBoundingClientRect().right)"
        )
        assert max(ends) <= 688


def test_figures_follow_the_width(browser: Any, pages: dict[str, Path]) -> None:
    """A page turned from wide to narrow draws anew, and still fits."""
    with Seen(browser, pages["two"], "wide-light") as seen:
        seen.page.set_viewport_size({"width": 390, "height": 900})
        wide, until = 1280, time.monotonic() + 20
        while wide >= 390 and time.monotonic() < until:
            wide = seen.page.evaluate("Number(document.querySelector('#draw-seesaw svg').getAttribute('width'))")
        assert 0 < wide < 390
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_scripts_the_numbers_are_there(browser: Any, pages: dict[str, Path]) -> None:
    """A mail reader may run no script: headline, verdicts and tables stay."""
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(pages["two"].as_uri())
        assert "Against the base" in page.inner_text("h1")
        assert "drawn by a script" in page.inner_text("main")
        assert page.locator("figure table").count() == len(page.locator("figure").all())
    finally:
        context.close()
