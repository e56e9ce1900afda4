"""Looks at a page as a person would, in a real browser: reads an order from stdin, prints findings.

The order is JSON: `url`; `axe`, the file of axe-core; `shots`, a folder for pictures; `moves`, how
often the page is to change by itself before it is looked at.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

BROWSER = "/usr/bin/chromium"
SIZES = {1280: 900, 390: 844}
SCHEMES = ("light", "dark")
PATIENCE_MILLISECONDS = 120_000
SERIOUS = ("serious", "critical")
FIRST_CHART = "#curves figure:not([hidden])"


def main() -> None:
    order = json.load(sys.stdin)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        console: list[str] = []
        moves = watch_moves(browser, order, console)
        looks = [
            look(browser, order, width, scheme, console) for width in SIZES for scheme in SCHEMES
        ]
        uses = use(browser, order, console)
        browser.close()
    print(json.dumps({"console": console, "moves": moves, "looks": looks, "uses": uses}))


def open_page(
    browser: Browser, order: dict[str, Any], width: int, scheme: str, console: list[str]
) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": SIZES[width]},
        color_scheme=scheme,
        has_touch=width < 500,
        bypass_csp=False,
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: console.append(f"error: {error}"))
    page.goto(order["url"])
    page.wait_for_selector(f"{FIRST_CHART} canvas")
    return page


def watch_moves(browser: Browser, order: dict[str, Any], console: list[str]) -> list[str]:
    """The states that the page shows one after the other, with the end of its first curve."""
    if not order.get("moves"):
        return []
    page = open_page(browser, order, 1280, "light", console)
    seen: list[str] = []
    deadline = time.monotonic() + PATIENCE_MILLISECONDS / 1000
    while len(seen) <= order["moves"] and time.monotonic() < deadline:
        now = f"{page.inner_text('.state')} | {page.inner_text(f'{FIRST_CHART} .legend')}"
        if not seen or seen[-1] != now:
            seen.append(now)
        page.wait_for_timeout(300)
    page.context.close()
    return seen


def look(
    browser: Browser, order: dict[str, Any], width: int, scheme: str, console: list[str]
) -> dict[str, Any]:
    """A picture of the whole page, its width, and what axe-core finds."""
    page = open_page(browser, order, width, scheme, console)
    page.wait_for_timeout(1500)
    name = f"{order.get('name', 'page')}-{width}-{scheme}.png"
    page.screenshot(path=str(Path(order["shots"]) / name), full_page=True)
    page.evaluate(Path(order["axe"]).read_text())
    found = page.evaluate("axe.run()")["violations"]
    serious = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in SERIOUS
    ]
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    text = page.inner_text("body")
    page.context.close()
    return {"width": width, "scheme": scheme, "serious": serious, "too_wide": wide, "text": text}


def use(browser: Browser, order: dict[str, Any], console: list[str]) -> dict[str, Any]:
    """Hover, zoom by mouse and by key, smoothing, and a table."""
    page = open_page(browser, order, 1280, "light", console)
    page.wait_for_timeout(800)
    legend, frame = f"{FIRST_CHART} .legend", page.locator(f"{FIRST_CHART} .frame").first
    uses = {"last": page.inner_text(legend)}
    frame.scroll_into_view_if_needed()
    box = page.locator(f"{FIRST_CHART} .u-over").first.bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    uses["hovered"] = page.inner_text(legend)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    uses["range"] = page.locator(".controls select").first.input_value()
    page.mouse.move(box["x"] + 2, middle)
    uses["zoomed"] = page.inner_text(legend)
    frame.focus()
    page.keyboard.press("0")
    uses["range_after_0"] = page.locator(".controls select").first.input_value()
    page.keyboard.press("Home")
    uses["first"] = page.inner_text(legend)
    page.keyboard.press("ArrowRight")
    uses["spoken"] = page.locator(f"{FIRST_CHART} [aria-live]").first.inner_text()
    page.keyboard.press("+")
    uses["range_after_plus"] = page.locator(".controls select").first.input_value()
    page.keyboard.press("Escape")
    for name, weight in (("plain", "0"), ("smoothed", "0.9")):
        page.locator(".controls input[type=range]").first.fill(weight)
        page.mouse.move(box["x"] + box["width"] * 0.1, middle - 5)
        page.mouse.move(box["x"] + box["width"] * 0.1, middle)
        uses[name] = page.inner_text(legend)
    page.locator(".controls input[type=checkbox]").last.check()
    with page.expect_download() as download:
        page.click(".links a")
    uses["csv"] = Path(download.value.path()).read_text()[:200]
    page.context.close()
    return uses


if __name__ == "__main__":
    main()
