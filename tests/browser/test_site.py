"""The site: built with warnings as errors, no broken link, nothing from elsewhere; read on a phone and in the dark."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from typer.main import get_command

import cpift
from cpift.cli.main import app
from cpift.recipe.recipe import Recipe

pytest.importorskip("mkdocs", reason="the extra cpift[docs] is not installed")
ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
LOOKS = {"narrow-dark": (390, "dark"), "wide-light": (1280, "light")}
SHORT = ["index", "start/first-model", "howto/lora-24gb", "add", "concepts/freezing", "reference/commands", "faq"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One build for all tests of it; strict: a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "-q", "-d", str(out)]
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


class Links(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = {""}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names |= {str(given[key]) for key in ("id", "name") if key in given}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        elif tag in ("script", "img", "iframe") and given.get("src"):
            self.loads.append(str(given["src"]))
        elif tag == "link" and given.get("rel") != "canonical" and given.get("href"):
            self.loads.append(str(given["href"]))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    """All pages but the two reports, which have tests of their own, and the page for what is not found."""
    files = [file for file in site.rglob("*.html") if "reports" not in file.parts and file.name != "404.html"]
    return {file: Links(file) for file in files}


def test_no_link_is_broken_and_nothing_is_loaded_from_elsewhere(pages: dict[Path, Links]) -> None:
    """Every local link meets a file and, after a #, an element; scripts, styles and pictures are local."""
    broken, foreign = [], []
    for file, found in pages.items():
        foreign += [f"{file.name}: {url}" for url in found.loads if "://" in url or url.startswith("//")]
        for url in [*found.links, *found.loads]:
            if "://" in url or url.startswith(("mailto:", "data:")):
                continue
            path, name = urldefrag(url)
            target = (file.parent / unquote(path)).resolve() if path else file
            names = pages[target].names if target in pages else {name}
            if not target.is_file() or unquote(name) not in names:
                broken.append(f"{file.name}: {url}")
    assert len(pages) >= 50
    assert broken == []
    assert foreign == []


def test_the_reference_has_every_command_option_key_and_name(site: Path) -> None:
    """By the parsers themselves: click's options, the JSON schema of the recipe, the exported names."""
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for under in [command, *getattr(command, "commands", {}).values()]:
            assert f'id="cpift-{name}' in commands
            options = [opt for p in under.params for opt in p.opts if opt.startswith("--") and opt != "--help"]
            assert [opt for opt in options if f"<code>{opt}</code>" not in commands] == []
    recipe = (site / "reference/recipe.html").read_text(encoding="utf-8")
    schema = Recipe.model_json_schema(by_alias=True)
    keys = {key for part in [schema, *schema["$defs"].values()] for key in part.get("properties", {})}
    assert len(keys) > 80
    assert [key for key in keys if f"<code>{key}</code>" not in recipe] == []
    names = (site / "reference/python.html").read_text(encoding="utf-8")
    assert [name for name in cpift.__all__ if f'id="cpift.{name}"' not in names] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra cpift[browser] is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here; apt-get install chromium, or set CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


# Commands and recipes that go on behind their right edge; and on a phone, names of keys that are broken in two.
CUT_OFF = """[
    ...[...document.querySelectorAll(':is(.language-sh, .language-text, .language-yaml) pre > code')]
        .filter(code => code.scrollWidth > code.clientWidth),
    ...[...document.querySelectorAll('.keys td:first-child code')].filter(code => code.getClientRects().length > 1),
].map(code => code.textContent.slice(0, 60))"""


def faults(browser: Any, site: Path, names: list[str], look: str) -> list[str]:
    """What is wrong with pages in one look: errors, requests, sideways scrolling, text on a ground too like it."""
    width, scheme = LOOKS[look]
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, found = context.new_page(), []
    page.on("console", lambda message: found.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"{page.url}: {error}"))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else found.append(request.url),
    )
    for name in names:
        page.goto((site / f"{name}.html").as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        found += [f"{name}: {wide} pixels wide"] * (wide > width)
        found += [f"{name}: cut off: {line}" for line in page.evaluate(CUT_OFF)]
        ground, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('article p')).color]"
        )
        if (brightness(ground) < 0.3) != (scheme == "dark") or abs(brightness(ground) - brightness(ink)) < 0.5:
            found.append(f"{name}: {ink} on {ground}")
    context.close()
    return found


def brightness(colour: str) -> float:
    """Of rgb(…) or rgba(…), by its parts alone: 0 to 1."""
    return sum(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) / 765


def test_brightness_of_black_and_white() -> None:
    assert brightness("rgb(0, 0, 0)") == 0
    assert brightness("rgba(255, 255, 255, 0.9)") == 1


# The browser's driver leaves its pipes to be collected.
in_a_browser = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize("look", LOOKS)
def test_pages_are_readable_on_a_phone_and_in_the_dark(browser: Any, site: Path, look: str) -> None:
    assert faults(browser, site, SHORT, look) == []


@pytest.mark.browser
@pytest.mark.long
@in_a_browser
@pytest.mark.parametrize("look", LOOKS)
def test_every_page_is(browser: Any, site: Path, pages: dict[Path, Links], look: str) -> None:
    names = [file.relative_to(site).with_suffix("").as_posix() for file in pages]
    assert faults(browser, site, names, look) == []


@pytest.mark.browser
@in_a_browser
def test_the_search_finds_a_key_without_a_network(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("examples_per_task")
    page.wait_for_selector(".md-search-result__link", timeout=30_000)
    assert "recipe.html" in " ".join(
        page.eval_on_selector_all(".md-search-result__link", "all => all.map(a => a.href)")
    )
    page.close()
