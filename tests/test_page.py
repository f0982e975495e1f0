"""The HTML page: what it holds, how large it is, and how it behaves in a headless Chromium."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from reporting_data import write_result, write_run

from reasonembed_mteb.reporting import explorer
from reasonembed_mteb.reporting.page import render_page
from reasonembed_mteb.reporting.report import ReportOptions, write_report
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.reporting.tables import score_tables
from reasonembed_mteb.retrieval.rows import benchmarks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("jinja2")
SCRIPT = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
PAPER = "hanhainebula/reason-embed-qwen3-8b-0928"
MINI = [row.name for row in benchmarks()["ReasonMini"]]
BRIGHT = [row.name for row in benchmarks()["BRIGHT(ReasonEmbed)"]]
BIOLOGY = MINI[0]


def write_everything(folder: Path) -> None:
    """Write three models on the embedded benchmark, with a name and ids that try to become mark-up."""
    for place, model in enumerate(("x/best", "x/middle", f"y/{SCRIPT}")):
        for task in MINI[: 12 - place // 2]:
            scores = {"1": 0.9 - 0.3 * place, "2": 0.5 + 0.1 * place, f"q {SCRIPT}": 0.25}
            found = {"1": [(SCRIPT, 0.9), ("cell_notes/mitochondria_1.txt", 0.5)]}
            cost = {"seconds": 10.0**place, "tokens": 1000 * (place + 1), "dimensions": 384}
            # A folder's name cannot hold a slash; the name in the metadata can hold anything.
            file = write_run(
                folder, model.replace("/", "__") if place < 2 else "y/z", task, scores, found=found, cost=cost
            )
            meta = {"name": model, "revision": "r1", "embed_dim": 384}
            (file.parent / "model_meta.json").write_text(json.dumps(meta))
    for task in BRIGHT:
        write_result(folder, PAPER, task, 0.36)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_everything(folder / "results-of-all")
    text, problems = write_report(
        read_results([folder / "results-of-all"]), ReportOptions(significance=True), "html"
    )
    assert not problems
    file = folder / "report.html"
    file.write_text(text, encoding="utf-8")
    return file


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


class Outside(html.parser.HTMLParser):
    """Collects every address in the page, and counts its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note addresses and scripts."""
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]


def test_the_page_asks_nobody_for_anything(page: Path) -> None:
    parser = Outside()
    text = page.read_text(encoding="utf-8")
    parser.feed(text)
    # Its own anchors and an empty icon.
    assert all(address.startswith("#") or address == "data:," for address in parser.addresses)
    assert "default-src 'none'" in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_numbers_lead_to_their_protocol(page: Path) -> None:
    table = next(one for one in data_of(page.read_text(encoding="utf-8"))["tables"] if one["columns"])
    assert len(table["links"]) == len(table["columns"])
    assert table["links"][0] == "https://huggingface.co/datasets/xlangai/BRIGHT"


def test_an_address_that_acts_is_no_link(tmp_path: Path) -> None:
    write_run(tmp_path, "x/a", BIOLOGY, {"1": 0.5}, found={"1": [("d1", 0.5)]})
    (table,) = score_tables(read_results([tmp_path]))
    table.links["biology"] = "javascript:alert(1)"
    text, _ = render_page([table])
    assert set(data_of(text)["tables"][0]["links"][:1]) == {None}
    assert "javascript:alert" not in text


def test_text_of_the_data_ends_no_element(page: Path) -> None:
    parser = Outside()
    text = page.read_text(encoding="utf-8")
    parser.feed(text)
    assert parser.scripts == 2
    table = data_of(text)["tables"][1]
    assert any(row["label"] == f"y/{SCRIPT}" for row in table["rows"])
    assert SCRIPT not in text


def test_half_a_surrogate_pair_is_written(tmp_path: Path) -> None:
    write_run(tmp_path, "x/a", BIOLOGY, {"1": 0.5}, found={"1": [("d1", 0.5)]})
    tables = score_tables(read_results([tmp_path]))
    text, _ = render_page(tables, ["broken \ud800 name"])
    assert r"broken \ud800 name" in data_of(text.encode("utf-8").decode("utf-8"))["problems"]


def test_texts_stop_at_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = {str(number): 0.125 * (number % 8) for number in range(1, 9)}
    for model in ("x/a", "x/b"):
        scores = {query: score if model == "x/a" else 0.5 for query, score in queries.items()}
        write_run(tmp_path, model, BIOLOGY, scores)
    tables = score_tables(read_results([tmp_path]))
    full, _ = explorer.explore(tables)
    some, _ = explorer.explore(tables, budget=1500)
    assert full[0] is not None
    assert some[0] is not None
    (all_kept,), (some_kept,) = full[0]["subsets"], some[0]["subsets"]
    assert len(all_kept["kept"]) == 8
    assert 0 < len(some_kept["kept"]) < 8
    # Scores stay, whatever is cut.
    assert some_kept["scores"] == all_kept["scores"]
    assert len(json.dumps(some[0]["documents"]) + json.dumps(some_kept["kept"])) < 2000


def test_the_queries_that_differ_most_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "_QUERIES", 2)
    write_run(tmp_path, "x/a", BIOLOGY, {"1": 0.5, "2": 1.0, "3": 0.0, "4": 0.5})
    write_run(tmp_path, "x/b", BIOLOGY, {"1": 0.5, "2": 0.0, "3": 0.9, "4": 0.25})
    (explored,), _ = explorer.explore(score_tables(read_results([tmp_path])))
    assert explored is not None
    assert set(explored["subsets"][0]["kept"]) == {"2", "3"}
    kept = explored["subsets"][0]["kept"]["2"]
    assert kept["text"]
    assert set(kept["hits"]) == {"0", "1"}


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver is installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        # A click must not wait for a smooth scroll to end.
        "force-prefers-reduced-motion",
        "window-size=1300,900",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as opened:
        yield opened


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """Open the page at the embedded benchmark's table; afterwards nothing may have gone wrong in it."""
    from selenium.webdriver.support.ui import Select

    browser.get(page.as_uri())
    select = Select(browser.find_element("id", "table"))
    select.select_by_visible_text("ReasonMini")
    yield browser
    assert browser.title == "Retrieval report"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def names(browser: Any, table: str = "scores-table") -> list[str]:
    return [cell.text for cell in browser.find_elements("css selector", f"#{table} tbody th.name")]


def cells(browser: Any, column: int) -> list[str]:
    rows = browser.find_elements("css selector", "#scores-table tbody tr")
    return [row.find_elements("css selector", "th, td")[column].text for row in rows]


@pytest.mark.browser
def test_columns_are_sorted_by_key_and_click(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    assert names(opened)[0] == "x/best"

    def head(key: str) -> Any:
        return opened.find_element("css selector", f'#scores-table button[data-key="{key}"]')

    head("subset biology").click()
    assert head("subset biology").find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    values = [float(text) for text in cells(opened, 6)]
    assert values == sorted(values, reverse=True)
    # By keyboard, with the focus kept where it was.
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert opened.switch_to.active_element.get_attribute("data-key") == "subset biology"
    assert head("subset biology").find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in cells(opened, 6)] == sorted(values)
    # The one without this subset stays last, whichever way.
    head("subset theoremqa_theorems").click()
    assert cells(opened, 17)[-1] == "\N{EN DASH}"
    head("subset theoremqa_theorems").click()
    assert cells(opened, 17)[-1] == "\N{EN DASH}"


@pytest.mark.browser
def test_an_incomplete_mean_is_marked_and_not_ranked(opened: Any) -> None:
    assert cells(opened, 0) == ["1", "2", "\N{EN DASH}"]
    assert cells(opened, 2)[-1].endswith("* 11/12")


@pytest.mark.browser
def test_models_are_filtered_everywhere(opened: Any) -> None:
    field = opened.find_element("id", "filter")
    field.send_keys("MIDD")
    for table in ("scores-table", "heat-table", "cost-table"):
        assert names(opened, table) == ["x/middle"]
    assert opened.find_element("id", "shown").text == "1 of 3 models"
    assert len(opened.find_elements("css selector", "#cost-plot circle")) == 1
    field.clear()
    field.send_keys("no such model")
    assert names(opened) == []


@pytest.mark.browser
def test_the_explorer_shows_what_two_models_found(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    Select(opened.find_element("id", "subset")).select_by_value("biology")
    items = opened.find_elements("css selector", "#query-list > li")
    # The second query is better with the second model: the largest difference first, whoever wins.
    assert [item.find_element("class name", "delta").text for item in items] == [
        "90.0 against 60.0 (+30.0)",
        "50.0 against 60.0 (\N{MINUS SIGN}10.0)",
        "25.0 against 25.0 (+0.0)",
    ]
    items[0].find_element("css selector", "summary").click()
    # The page fills an opened query when the browser tells it so, which is after the click returns.
    inside = WebDriverWait(opened, 10).until(lambda _: items[0].find_elements("class name", "open"))[0].text
    assert "x/best: 90.0" in inside
    assert "cell_notes/mitochondria_1.txt" in inside
    # The text of a document of the embedded benchmark, and of its first query.
    assert len(items[0].find_elements("css selector", "li .body")) >= 2
    assert items[0].find_element("css selector", "p.text").text
    search = opened.find_element("id", "search")
    search.send_keys("onerror")
    assert len(opened.find_elements("css selector", "#query-list > li")) == 1


@pytest.mark.browser
def test_a_script_in_a_name_an_id_or_a_document_stays_text(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    assert any("<script>" in name for name in names(opened))
    Select(opened.find_element("id", "subset")).select_by_value("biology")
    summaries = opened.find_elements("css selector", "#query-list summary")
    for summary in summaries:
        summary.click()
    WebDriverWait(opened, 10).until(
        lambda _: len(opened.find_elements("css selector", "#query-list .open")) == len(summaries)
    )
    assert "<script>" in opened.find_element("id", "query-list").text
    assert len(opened.find_elements("css selector", "script")) == 2
    assert opened.find_elements("css selector", "img") == []
    assert opened.title == "Retrieval report"


@pytest.mark.browser
def test_published_scores_are_drawn_with_a_verdict(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select

    assert "Nobody published" in opened.find_element("id", "published-bars").text
    Select(opened.find_element("id", "table")).select_by_visible_text("BRIGHT(ReasonEmbed)")
    bars = opened.find_elements("css selector", "#published-bars .pair")
    assert "36.00, published 38.10" in bars[0].text
    assert "outside noise" in bars[0].text
    choice = Select(opened.find_element("id", "published-of"))
    choice.select_by_index(1)
    assert len(opened.find_elements("css selector", "#published-bars .pair")) == 13


@pytest.mark.browser
@pytest.mark.slow
def test_everything_is_reached_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    reached = set()
    body = opened.find_element("css selector", "body")
    body.send_keys(Keys.TAB)
    for _ in range(120):
        focused = opened.switch_to.active_element
        reached.add(focused.get_attribute("id") or focused.get_attribute("data-key") or focused.tag_name)
        focused.send_keys(Keys.TAB)
    wanted = {"table", "filter", "theme", "mean", "scores-table", "heat-scale", "published-of", "cost-axis"}
    assert wanted | {"first", "second", "subset", "search", "summary", "circle"} <= reached


@pytest.mark.browser
def test_dark_and_light(opened: Any) -> None:
    def colours() -> tuple[str, str]:
        body = opened.find_element("css selector", "body")
        return body.value_of_css_property("background-color"), body.value_of_css_property("color")

    before = colours()
    opened.find_element("id", "theme").click()
    switched = colours()
    assert switched != before
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    # What was chosen by hand stays; without a choice the system decides.
    assert colours() == switched
    opened.refresh()
    dark = colours()
    features[0]["value"] = "light"
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert colours() != dark


@pytest.mark.browser
def test_a_phone_scrolls_tables_and_not_the_page(opened: Any) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for summary in opened.find_elements("css selector", "#query-list summary")[:3]:
            opened.execute_script("arguments[0].click()", summary)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 360
        table = opened.find_element("id", "scores-table")
        assert opened.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", table)
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_no_request_leaves_the_page(opened: Any, page: Path) -> None:
    opened.get_log("performance")
    opened.refresh()
    asked = [
        message["params"]["request"]["url"]
        for entry in opened.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert set(asked) <= {page.as_uri(), "data:,"}
