"""The picture in a browser, Debian's Chromium: the live page while scripts run, and the report of a trace."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from conftest import Learner
from debian import program
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from lab import Lab
from lab.page import report
from lab.page.server import PageServer
from lab.page.watch import Watch

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
PATIENCE = 30.0
NARROW, WIDE = 360, 1400


class Browser:
    """Chromium on one page, with the few things that the tests do with it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def look(self, width: int = WIDE, dark: bool = False, still: bool = True) -> None:
        """Be so many pixels wide, and prefer a dark scheme, or no motion."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        preferences = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if still else "no-preference",
        }
        features = [{"name": name, "value": value} for name, value in preferences.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: Any) -> Any:
        """What a script returns, once that is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.run(f"return {script}", *arguments)):
            assert time.monotonic() < deadline, (
                f"never true: {script}\n{self.run('return document.body.innerText')}"
            )
            time.sleep(0.05)
        return value

    def press(self, key: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(key).perform()

    def rows(self) -> list[str]:
        """The words of every row, those for screen readers among them."""
        return self.run("return [...document.querySelectorAll('#story .label')].map((e) => e.textContent)")

    def row(self, words: str) -> WebElement:
        """The summary of the first row with these words."""
        script = "[...document.querySelectorAll('#story summary')].find((e) => e.textContent.includes(arguments[0]))"
        return self.until(script, words)

    def panel(self, title: str) -> WebElement:
        script = (
            "[...document.querySelectorAll('aside .panel')].find((e) => e.innerText.startsWith(arguments[0]))"
        )
        return self.until(script, title)

    def complaints(self) -> list[str]:
        """What the browser's console has: errors, and everything that the page's policy forbade."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium")
    for switch in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "no-proxy-server",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(program("chromedriver", "chromium-driver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield Browser(driver)
    driver.quit()


@pytest.fixture(scope="module")
def own_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def learner(own_lab: Lab, tmp_path: Path) -> Learner:
    return Learner(tmp_path / "learner", own_lab)


@pytest.fixture
def live(browser: Browser, learner: Learner) -> Iterator[Browser]:
    """The live page of a learner who has done nothing yet."""
    with Watch(learner.lab, learner.ini) as watch, PageServer(watch) as server:
        browser.look()
        browser.open(server.url)
        browser.until("document.getElementById('connection').textContent === 'live'")
        yield browser
        browser.driver.get("about:blank")
    learner.lab.faults.off()


@pytest.fixture(scope="module")
def finished(own_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A learner who has done it all, and something wrong before."""
    learner = Learner(tmp_path_factory.mktemp("finished"), own_lab)
    learner.run("04", code=2)
    learner.series("01", "02", "03", "04", "05", "06", "07", "08", "09", "12")
    return learner


def write_report(state: Path) -> str:
    """The address of a report of this state folder."""
    output = state / "report.html"
    records = report.read_trace((state / "trace.jsonl").read_bytes())
    output.write_text(report.self_contained(report.picture(state, records)), encoding="utf-8")
    return output.as_uri()


def write(learner: Learner, records: list[dict[str, Any]]) -> None:
    learner.state.mkdir(exist_ok=True)
    with open(learner.state / "trace.jsonl", "a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def wrote(name: str) -> dict[str, Any]:
    return {
        "kind": "wrote",
        "run": 1,
        "script": "01_create_account_key",
        "file": name,
        "time": "2026-01-01T00:00:00+00:00",
    }


# The live page.


def test_arrows_appear_while_the_scripts_run_the_cas_own_questions_among_them(
    live: Browser, learner: Learner
):
    learner.series("01", "02", "03")
    live.row("newAccount")
    learner.series("04", "05")
    live.row("DeleteDomainRecord")
    rows = live.rows()
    assert "wrote account.key" in rows[0]
    assert any(row.startswith("You to CA: newAccount") and "201 Created · valid" in row for row in rows)
    assert any(row.startswith("You to AliDNS: AddDomainRecord×2") for row in rows)
    asked = next(n for n, row in enumerate(rows) if row.startswith("CA to DNS: TXT?") and "3 values" in row)
    assert any("challenge" in row for row in rows[:asked]) and any("ready" in row for row in rows[asked:])


def test_an_arrow_leads_from_the_middle_of_a_lane_to_the_middle_of_another(live: Browser, learner: Learner):
    learner.series("01", "02", "03", "04", "05")
    live.row("DeleteDomainRecord")
    for width in (WIDE, NARROW):
        live.look(width)
        middles = live.run(
            "return Object.fromEntries([...document.querySelectorAll('#lanes span')].map((e) => {"
            " const box = e.getBoundingClientRect(); return [e.textContent, (box.left + box.right) / 2]; }))"
        )
        arrows = live.run(
            "return [...document.querySelectorAll('#story summary:has(.arrow)')].map((e) => {"
            " const box = e.querySelector('.arrow').getBoundingClientRect();"
            " return [e.querySelector('.unseen').textContent, box.left, box.right]; })"
        )
        assert len(arrows) > 15
        for words, left, right in arrows:
            start, end = words.removesuffix(": ").split(" to ")
            assert abs(left - middles[start]) < 2 and abs(right - middles[end]) < 2


def test_a_click_or_enter_opens_an_exchange_decoded_with_its_purpose(live: Browser, learner: Learner):
    learner.series("01", "03")
    live.row("newAccount").click()
    opened = live.until("document.querySelector('#story details[open] .opened')?.innerText")
    assert "The first signed request." in opened and "RFC 8555 section 7.3" in opened
    assert '"termsOfServiceAgreed": true' in opened and '"alg": "ES256"' in opened and "my-account/" in opened
    live.row("newAccount").click()
    live.until("!document.querySelector('#story details[open]')")

    live.driver.find_element(By.TAG_NAME, "h1").click()
    for _ in range(60):
        live.press(Keys.TAB)
        if live.run("return document.activeElement.matches('#story summary:has(.arrow)')"):
            break
    outline = live.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    live.press(Keys.ENTER)
    assert "newNonce" in live.until("document.querySelector('#story details[open] .opened')?.innerText")


def test_the_world_is_beside_the_story(live: Browser, learner: Learner):
    learner.series("01", "02", "03", "04", "05", "06", "07")
    live.until("document.querySelector('aside').innerText.includes('verified')")
    assert "valid" in live.panel("Account").text and "valid" in live.panel("Order").text
    assert "*.example.test" in live.panel("Authorizations").text
    assert learner.serial() in live.panel("Certificates").text
    locks = live.run(
        "return Object.fromEntries([...document.querySelectorAll('.edge')].map((e) =>"
        " [e.querySelector('strong').textContent, e.querySelector('svg').getAttribute('aria-label')]))"
    )
    assert (locks["www.example.test"], locks[".wild.example.test"]) == ("verified", "not verified")
    assert len(live.panel("DNS records").find_elements(By.TAG_NAME, "del")) >= 2
    learner.run("09")
    live.until("document.querySelector('aside').innerText.includes('which is revoked')")
    assert "revoked" in live.panel("Certificates").text


def test_a_fault_is_switched_on_and_off_from_the_page(live: Browser, learner: Learner):
    panel = live.panel("Faults")
    panel.find_element(By.TAG_NAME, "summary").click()
    name, where, often = panel.find_elements(By.TAG_NAME, "select")
    for select, choice in ((name, "ca-slow"), (where, "newOrder"), (often, "three times")):
        select.send_keys(choice)
    panel.find_element(By.TAG_NAME, "input").send_keys("0.5")
    panel.find_element(By.TAG_NAME, "input").send_keys(Keys.ENTER)
    live.until("document.getElementById('active').innerText.includes('ca-slow=0.5@newOrder*3')")
    assert learner.lab.faults.active() == ["ca-slow=0.5@newOrder*3"]
    panel.find_element(By.CSS_SELECTOR, "#active button").click()
    live.until("!document.getElementById('active').children.length")
    assert learner.lab.faults.active() == []


def test_a_fault_that_cannot_be_is_refused_in_words(live: Browser):
    live.panel("Faults").find_element(By.TAG_NAME, "summary").click()
    live.run("switchFault({ on: 'ca-slow@nowhere' })")
    assert "WHERE may be" in live.until("document.getElementById('refused').innerText")


def test_nothing_is_fetched_from_elsewhere_and_nothing_is_complained_of(live: Browser, learner: Learner):
    learner.series("01", "02", "03")
    live.row("newAccount").click()
    origin, fetched = live.run(
        "return [location.origin, performance.getEntriesByType('resource').map((entry) => entry.name)]"
    )
    assert {f"{origin}/page.css", f"{origin}/page.js"} <= set(fetched)
    assert [address for address in fetched if not address.startswith(f"{origin}/")] == []
    assert live.complaints() == []


def test_what_a_server_said_does_not_become_markup(live: Browser, learner: Learner):
    hostile = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    body = {
        "type": hostile,
        "status": hostile,
        "identifiers": hostile,
        "authorizations": 7,
        "finalize": hostile,
    }
    sent = {"protected": {"kid": hostile}, "payload": hostile, "parameters": hostile, "action": hostile}
    for kind in ("acme", "alibaba", "dns", "tls", hostile):
        exchange = {"kind": kind, "method": hostile, "url": hostile, "sent": sent, "status": hostile}
        write(
            learner,
            [wrote(hostile) | exchange | {"received": {"body": body, "answer": hostile}, "step": hostile}],
        )
    write(
        learner,
        [{"kind": "failure", "what": hostile, "script": hostile}, {"kind": "acme"}, {}, wrote("the last")],
    )
    live.row("the last")
    live.run("document.querySelectorAll('#story summary').forEach((e) => e.click())")
    live.until("document.querySelectorAll('#story .opened').length > 5")
    assert live.run("return document.querySelectorAll('img, main script').length") == 0
    assert live.complaints() == []


def test_thousands_of_records_are_drawn_and_the_newest_is_in_sight(live: Browser, learner: Learner):
    write(learner, [wrote(f"file-{number}") for number in range(4000)])
    live.row("file-3999")
    assert len(live.rows()) == 4000
    live.until(
        "[...document.querySelectorAll('#story li')].at(-1).getBoundingClientRect().bottom <= innerHeight"
    )


def test_who_looks_at_what_was_before_is_not_dragged_away_and_can_come_back(live: Browser, learner: Learner):
    write(learner, [wrote(f"file-{number}") for number in range(60)])
    live.row("file-59")
    live.run("scrollTo(0, 0)")
    write(learner, [wrote("the newest")])
    live.row("the newest")
    assert live.run("return scrollY") == 0
    live.until("document.getElementById('newest').checkVisibility()")
    live.driver.find_element(By.ID, "newest").click()
    live.until(
        "[...document.querySelectorAll('#story li')].at(-1).getBoundingClientRect().bottom <= innerHeight"
    )


def test_who_has_opened_an_exchange_is_not_dragged_away_from_it(live: Browser, learner: Learner):
    write(learner, [wrote(f"file-{number}") for number in range(60)])
    live.row("file-59").click()
    place = live.run("return scrollY")
    write(learner, [wrote("the newest")])
    live.row("the newest")
    assert live.run("return scrollY") == place


def test_a_screen_reader_hears_each_script_and_each_error_once(live: Browser, learner: Learner):
    live.run(
        "window.heard = []; new MutationObserver(() => heard.push(document.getElementById('news').textContent))"
        ".observe(document.getElementById('news'), { childList: true })"
    )
    learner.series("01", "02", "03", "04")
    learner.run("06", code=2)
    assert "what to do" in live.run(
        "return getComputedStyle(arguments[0], '::before').content",
        live.row("not yet proven").find_element(By.CSS_SELECTOR, ".about"),
    )
    heard = ", ".join(live.until("heard.at(-1)?.includes('error') && heard"))
    assert heard.startswith(
        "01 create account key, 02 create cert key csr, 03 new account, 04 new order, 06 finalize, error: "
    )
    assert heard.count(", ") == 5


def test_a_page_outlives_its_lab_and_begins_anew_with_the_next(browser: Browser, learner: Learner):
    write(learner, [wrote("before")])
    with Watch(learner.lab, learner.ini) as watch, PageServer(watch) as server:
        browser.open(server.url)
        browser.row("before")
        port = int(server.url.rstrip("/").rpartition(":")[2])
    browser.until("document.getElementById('connection').textContent.includes('does not answer')")
    shutil.rmtree(learner.state)
    write(learner, [wrote("after")])
    with Watch(learner.lab, learner.ini) as watch, PageServer(watch, port) as server:
        browser.row("after")
        browser.until("document.getElementById('connection').textContent === 'live'")
        assert len(browser.rows()) == 1
        browser.run("switchFault({ on: 'ca-slow*1' })")
        browser.until("document.getElementById('active')?.textContent.includes('ca-slow')")
        browser.driver.get("about:blank")
    learner.lab.faults.off()


def test_who_wants_no_motion_gets_none(live: Browser):
    live.look(still=False)
    assert live.run("return getComputedStyle(document.documentElement).scrollBehavior") == "smooth"
    live.look(still=True)
    assert live.run("return getComputedStyle(document.documentElement).scrollBehavior") == "auto"


# Both.


def test_a_report_draws_what_the_live_page_drew(live: Browser, learner: Learner):
    learner.series("01", "02", "03", "04", "05")
    live.row("DeleteDomainRecord")
    drawn = [row for row in live.rows() if not row.startswith("CA to DNS")]
    live.open(write_report(learner.state))
    live.row("DeleteDomainRecord").click()
    assert "by the ids that we noted" in live.until("document.querySelector('.opened')?.innerText")
    assert sorted(set(live.rows())) == sorted(set(drawn))
    assert live.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("kind", ["live", "report"])
def test_axe_finds_nothing_to_object_to_and_nothing_is_cut_off(
    kind: str, width: int, dark: bool, browser: Browser, finished: Learner
):
    with contextlib.ExitStack() as stack:
        url = write_report(finished.state)
        if kind == "live":
            watch = stack.enter_context(Watch(finished.lab, finished.ini))
            url = stack.enter_context(PageServer(watch)).url
            finished.lab.faults.on("ca-slow")
            stack.callback(finished.lab.faults.off)
        browser.look(width, dark)
        browser.open(url)
        browser.row("keyChange")
        browser.until("document.querySelector('aside').textContent.includes('revoked')")
        browser.run(
            "document.querySelectorAll('#story li:nth-child(3n) > details, aside details')"
            ".forEach((e) => { e.open = true; })"
        )
        browser.until("document.querySelectorAll('.opened').length > 10")
        browser.run(AXE)
        found = browser.driver.execute_async_script(
            "const done = arguments[0]; axe.run({ resultTypes: ['violations'] }).then((told) => done(told.violations))"
        )
        objections = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]
        assert objections == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
        browser.driver.get("about:blank")
