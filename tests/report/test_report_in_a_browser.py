"""The page in headless Chromium. Skipped if there is none, or without the packages that drive it."""

import shutil

import example
import pytest

from limbeck.report.found import read
from limbeck.report.page import page as page_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
WIDTHS = (390, 1400)


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {error.message.splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(html, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html)
    return path.as_uri()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """The page of a comparison with many methods and long names of classes."""
    folder = tmp_path_factory.mktemp("crowded")
    classes = [f"black-throated warbler {place}" for place in range(10)]
    methods = ("kd", "fitnets", "srrl", "class_distance", "an-own-method-with-a-long-name")
    example.write_comparison(folder / "compared", methods, 2, classes=classes)
    (folder / "report.html").write_text(page_of(read(folder / "compared")))
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser, file):
    """Opens the page; what it asks for and what the console says are kept."""

    def opens(width, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(file)
        pages.append(page)
        return page

    pages = []
    yield opens
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_request_leaves_and_no_error_is_said(opened, file, width):
    page = opened(width)
    assert [url for url in page.asked if not url.startswith("data:")] == [file]
    assert page.said == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_picture_has_a_size_and_the_page_does_not_scroll_sideways(opened, width):
    page = opened(width)
    sizes = page.evaluate(
        "[...document.querySelectorAll('figure svg[role=img], .pictures img')].map(one => {"
        "const box = one.getBoundingClientRect(); return [box.width, box.height, box.left, box.right]})"
    )
    assert len(sizes) >= 29
    assert all(wide > 60 and high > 60 and left >= 0 and right <= width for wide, high, left, right in sizes)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    smallest = "Math.min(...[...document.querySelectorAll('figure svg[role=img] text')].map(one => {"
    smallest += (
        "const box = one.ownerSVGElement; return 12 * box.getBoundingClientRect().width / box.viewBox.baseVal.width}))"
    )
    assert page.evaluate(smallest) >= 9


FAULTS = """([name, lines]) => [...document.querySelectorAll(`#${name} svg[role=img]`)].flatMap(svg => {
    const at = one => one.getBoundingClientRect(), edge = at(svg);
    const meet = (a, b) => Math.min(a.right, b.right + 1) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
    const texts = [...svg.querySelectorAll('text')];
    const flat = texts.filter(one => !(one.getAttribute('transform') || '').includes('rotate'));
    const marks = lines ? [...svg.querySelectorAll('path[style*="stroke: var(--muted)"]')] : [];
    const cut = texts.filter(one => at(one).right > edge.right + 1 || at(one).left < edge.left - 1);
    return [
        ...flat.flatMap((one, place) => flat.slice(place + 1).filter(other => meet(at(one), at(other)))),
        ...flat.filter(one => marks.some(mark => meet(at(one), at(mark)))), ...cut,
    ].map(one => one.textContent);
})"""


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_lies_on_another_or_on_a_line_and_none_is_cut(browser, crowded, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(crowded)
    names = ("differences", "classes", "map", "curves")
    found = {name: page.evaluate(FAULTS, [name, name == "differences"]) for name in names}
    page.close()
    assert found == {name: [] for name in names}


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark")])
def test_axe_finds_nothing_of_level_a_or_aa(opened, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = opened(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
    found = axe.Axe().run(page, options=rules).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_the_colours_of_the_scheme_are_those_of_the_figures(opened):
    colours = set()
    for scheme in ("light", "dark"):
        page = opened(1400, scheme)
        colours.add(page.evaluate("getComputedStyle(document.querySelector('#differences text')).fill"))
    assert len(colours) == 2
