#!/usr/bin/env python3
"""Pictures of pages of the site, wide and narrow, light and dark: ``screenshots.py SITE OUT [PAGE…]``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

LOOKS = {
    "wide-light": (1280, "light"),
    "narrow-dark": (390, "dark"),
    "wide-dark": (1280, "dark"),
    "narrow-light": (390, "light"),
}


def main(site: Path, out: Path, pages: list[str]) -> None:
    """Write ``PAGE-LOOK.png`` for each page, the whole of it; without names all pages."""
    out.mkdir(parents=True, exist_ok=True)
    names = pages or sorted(str(file.relative_to(site)) for file in site.rglob("*.html") if "reports" not in file.parts)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for look, (width, scheme) in LOOKS.items():
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for name in names:
                page.goto((site / name).resolve().as_uri())
                picture = out / f"{name.replace('/', '-').removesuffix('.html')}-{look}.png"
                page.screenshot(path=picture, full_page=True, animations="disabled")  # else tabs are half faded in
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
