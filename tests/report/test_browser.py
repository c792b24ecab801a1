"""Reports in a real browser, from the disk, without a network: a TSE run, a guided one, a sweep."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from estl.report.html import write
from tests.report.fake_runs import BAD_NAME, write_page, write_run, write_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
REPORTS = ["tse", "guided", "ablation"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    write_run(folder / "tse")
    write_run(folder / "guided", **{"watch/edge_counts": 0.1, "watch/edge_spread": 0.1})
    for epoch in (1, 2, 3):
        write_page(folder / "guided", epoch)
    write_sweep(folder / "ablation")
    for name in REPORTS:
        write([folder / name], folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in REPORTS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


class Tab:
    """A page that is open, and all that it complained of."""

    def __init__(self, browser: Any, path: Path, width: int = 1280) -> None:
        screen = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=screen, offline=True, locale="en-US")
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.troubles: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        self.page.on("request", self._asks)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def _asks(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.troubles.append(request.url)

    def plot(self, name: str) -> Any:
        return self.page.locator(f'[id="{name}"]')

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something on the page has happened."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(50)

    def still(self, name: str) -> bytes:
        """A picture of a plot in view that has stopped to move."""
        plot = self.plot(name)
        plot.scroll_into_view_if_needed()
        seen = [plot.screenshot()]

        def stopped() -> bool:
            seen.append(plot.screenshot())
            return bool(seen[-1] == seen[-2])

        self.until(stopped)
        return bytes(seen[-1])


@pytest.fixture(scope="module")
def all_tabs(browser: Any, reports: dict[str, Path]) -> Iterator[Callable[[str, int], Tab]]:
    """Each report at each width once: to open it takes longer than most that is done with it."""
    opened: dict[tuple[str, int], Tab] = {}

    def open_tab(name: str, width: int) -> Tab:
        if (name, width) not in opened:
            opened[name, width] = Tab(browser, reports[name], width)
        return opened[name, width]

    yield open_tab
    for tab in opened.values():
        tab.context.close()
        assert tab.troubles == []


@pytest.fixture
def tabs(all_tabs: Callable[[str, int], Tab]) -> Iterator[Callable[..., Tab]]:
    """A test leaves a page as it found it: sliders, zoom, language, and what is hidden."""
    used: list[Tab] = []

    def tab(name: str, width: int = 1280) -> Tab:
        used.append(all_tabs(name, width))
        return used[-1]

    yield tab
    for one in used:
        assert one.troubles == []


# Wide screens once: the other tests open every report at 1280, and look for troubles.
@pytest.mark.parametrize(("name", "width"), [("tse", 1280), *((name, 400) for name in REPORTS)])
def test_a_report_opens_and_is_no_wider_than_the_screen(tabs: Any, name: str, width: int) -> None:
    page = tabs(name, width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.locator(".plot")
    assert plots.count() > 8
    assert page.locator(".plot .main-svg").count() >= plots.count()
    for i in range(plots.count()):
        assert plots.nth(i).get_attribute("aria-label")
        box = plots.nth(i).locator("..").bounding_box()  # itself, or what it is scrolled in
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert page.locator("img:not([alt])").count() == 0


def test_on_a_narrow_screen_captions_fit_and_pages_of_pictures_scroll_in_their_place(
    tabs: Any,
) -> None:
    page = tabs("ablation", 400).page
    captions = page.locator("caption:visible")
    assert captions.count() > 1
    for i in range(captions.count()):
        box = captions.nth(i).bounding_box()
        assert box["x"] + box["width"] <= 400
    tab = tabs("guided", 400)
    guided, pages = tab.page, tab.plot("pages_guided")
    around = guided.locator(".scroll", has=pages)
    assert pages.bounding_box()["width"] > 700  # what is in it can be told
    assert around.bounding_box()["width"] <= 400
    around.focus()
    guided.keyboard.press("ArrowRight")
    tab.until(lambda: around.evaluate("(element) => element.scrollLeft") > 0)


def test_the_slider_changes_the_maps_and_says_the_threshold(tabs: Any) -> None:
    tab = tabs("tse")
    slider = tab.page.locator('[data-slides="slides_tse"]')
    said = tab.page.locator('label:has([data-slides="slides_tse"]) output')
    found = slider.input_value()
    assert found in ("1", "2")  # where most is erased
    slider.fill("1")
    shown = tab.page.evaluate("$('slides_tse').data[0].source")
    assert shown.startswith("data:image/png;base64,")
    before, text = tab.still("slides_tse"), said.inner_text()
    slider.fill("2")
    tab.until(lambda: tab.still("slides_tse") != before)
    assert text.startswith("t = 2, erased where")
    assert said.inner_text().startswith("t = 3, erased where")
    slider.fill("1")
    tab.until(lambda: tab.still("slides_tse") == before)
    slider.fill(found)


def test_the_slider_of_what_training_changed_changes_its_maps(tabs: Any) -> None:
    tab = tabs("tse")
    plot, slider = tab.plot("changes_tse"), tab.page.locator('[data-slides="changes_tse"]')
    found = slider.input_value()
    assert found in ("1", "2")  # where most is erased
    last = tab.still("changes_tse")
    slider.fill("0")
    tab.until(lambda: tab.still("changes_tse") != last)
    titles = plot.locator(".annotation-text").all_text_contents()
    assert titles[:3] == ["events", "erasedbefore", "erasedafter"]
    slider.fill(found)


def test_a_curve_says_its_values_where_one_points_and_is_zoomed_by_dragging(tabs: Any) -> None:
    tab = tabs("tse")
    plot, mouse = tab.plot("learning_terms"), tab.page.mouse
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    tab.until(lambda: "tse" in plot.locator(".hoverlayer").text_content())

    def span() -> float:
        low, high = tab.page.evaluate("$('learning_terms').layout.xaxis.range")
        return float(high - low)

    whole = span()
    mouse.down()
    mouse.move(x + box["width"] / 4, y, steps=5)
    mouse.up()
    tab.until(lambda: span() == pytest.approx(whole / 4, rel=0.05))
    tab.page.wait_for_timeout(500)  # that the next two clicks are not taken for a third
    mouse.dblclick(x, y)
    tab.until(lambda: span() == pytest.approx(whole, rel=0.01))


def test_the_slider_of_a_guided_run_shows_the_maps_of_that_epoch_and_their_values(
    tabs: Any,
) -> None:
    tab = tabs("guided")
    plot, slider = tab.plot("pages_guided"), tab.page.locator('[data-slides="pages_guided"]')
    said = tab.page.locator('label:has([data-slides="pages_guided"]) output')
    assert said.inner_text() == "after epoch 3"
    plot.scroll_into_view_if_needed()
    slider.fill("0")
    tab.until(lambda: said.inner_text() == "after epoch 1")
    tab.still("pages_guided")
    layers = plot.locator(".nsewdrag")
    for column, value in ((1, "0.1"), (7, "1.10 times even")):  # of edges; of the student
        box = layers.nth(column).bounding_box()
        tab.page.mouse.move(box["x"] + 0.98 * box["width"], box["y"] + 0.98 * box["height"])
        tab.until(lambda value=value: value in plot.locator(".hoverlayer").text_content())
    slider.fill("2")


def test_a_click_on_its_name_hides_a_variants_curves_and_a_second_shows_them(tabs: Any) -> None:
    tab = tabs("ablation")
    curves = tab.plot("curve_loss").locator(".scatterlayer .trace")
    key = tab.page.locator('button[data-figure="curve_loss"]').first
    assert curves.count() == 6  # two seeds and their mean, of two variants
    key.click()
    tab.until(lambda: curves.count() == 3)
    assert key.get_attribute("aria-pressed") == "false"
    key.click()
    tab.until(lambda: curves.count() == 6)


def test_all_of_the_page_changes_its_language(tabs: Any) -> None:
    tab = tabs("tse")
    title = tab.plot("steps_accuracy").locator(".xtitle")
    assert title.text_content() == "time step t"
    assert tab.page.locator("h2:visible").first.inner_text() == "Overview"
    tab.page.locator("#language").click()
    tab.until(lambda: title.text_content() == "时间步 t")
    assert tab.page.locator("h2:visible").first.inner_text() == "概览"
    assert "纵轴范围" in tab.plot("steps_accuracy").get_attribute("aria-label")
    slider = tab.page.locator('[data-slides="slides_tse"]')
    found = slider.input_value()
    slider.fill("2")
    said = tab.page.locator('label:has([data-slides="slides_tse"]) output')
    assert "擦除" in said.inner_text()
    tab.page.locator("#language").click()
    tab.until(lambda: title.text_content() == "time step t")
    assert "erased" in said.inner_text()
    slider.fill(found)


def test_the_keyboard_reaches_and_works_all_controls(
    browser: Any, reports: dict[str, Path]
) -> None:
    tab = Tab(browser, reports["tse"])  # of its own: nothing has the focus
    press_all(tab.page)
    assert tab.troubles == []
    tab.context.close()


def press_all(page: Any) -> None:
    """Until language, key and slider were reached and worked."""
    wanted = {"language": "#language", "key": ".keys button", "slider": "[data-slides]"}
    reached: set[str] = set()
    for _ in range(400):  # the buttons of each plot are stops on the way
        page.keyboard.press("Tab")
        for name, selector in wanted.items():
            if name in reached or not page.evaluate(
                f"document.activeElement.matches('{selector}')"
            ):
                continue
            reached.add(name)
            match name:
                case "language":
                    page.keyboard.press("Enter")
                    assert page.evaluate("document.documentElement.lang") == "zh"
                case "key":
                    page.keyboard.press("Space")
                    pressed = page.evaluate("document.activeElement.getAttribute('aria-pressed')")
                    assert pressed == "false"
                case "slider":
                    page.keyboard.press("ArrowRight")
                    assert page.evaluate("document.activeElement.value") == "2"
        if reached == set(wanted):
            return
    pytest.fail(f"the keyboard reached {sorted(reached)} alone")


def test_the_name_of_a_class_is_shown_and_not_run(tabs: Any) -> None:
    tab = tabs("tse")
    ticks = tab.plot("errors_by_class").locator(".xtick text").all_text_contents()
    assert ticks[0] == BAD_NAME
    assert tab.page.locator('img[src="x"]').count() == 0
