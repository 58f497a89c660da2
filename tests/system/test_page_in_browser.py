"""The report page in a real browser: it opens without a console message or a network request."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from optuna import Study
from PIL import Image

from david.report import page
from tests.helpers.handmade_studies import add, data, new_study
from tests.helpers.pages import BASE, HOSTILE, judged_study


@pytest.fixture
def judged() -> Study:
    return judged_study()


QUIET = """
--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --disable-sync
--disable-component-update --disable-default-apps --disable-domain-reliability --disable-extensions --no-first-run
--no-pings --no-default-browser-check --metrics-recording-only --virtual-time-budget=2000 --enable-logging=stderr
--hide-scrollbars --window-size=1200,2400
"""


@pytest.fixture
def browser() -> str:
    """The path of a browser; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser: install chromium")
    return found


def opened(browser: str, source: str, folder: Path) -> tuple[list[str], set[str], Path]:
    """Open a page in a browser: what its console says, what the page asks for, and its picture."""
    (folder / "page.html").write_text(source, encoding="utf-8")
    files = [f"--log-net-log={folder}/net.json", f"--screenshot={folder}/page.png", f"--user-data-dir={folder}/own"]
    command = [browser, *QUIET.split(), "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", *files]
    ran = subprocess.run(
        [*command, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads((folder / "net.json").read_text(encoding="utf-8"))["events"]
    said = [event.get("params", {}) for event in events]
    # The browser has requests of its own; only a page's have an origin, be it "null", a file's.
    asked = {each["url"] for each in said if "url" in each and each.get("initiator", NOBODY) != NOBODY}
    return console, asked, folder / "page.png"


NOBODY = "not an origin"


def test_a_browser_opens_the_page_without_a_word_or_a_request(browser: str, judged: Study, tmp_path: Path) -> None:
    console, asked, picture = opened(browser, page.page(judged), tmp_path)
    assert console == []
    assert asked == set()
    with Image.open(picture) as image:
        assert image.size == (1200, 2400)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100


def test_a_hostile_study_stays_quiet_in_a_browser(browser: str, tmp_path: Path) -> None:
    study = new_study(6, name=HOSTILE, search_data={**data(0, 2), "source": HOSTILE})
    add(study, BASE, 2.0)
    console, asked, _ = opened(browser, page.page(study), tmp_path)
    assert console == []
    assert asked == set()


def test_the_browser_tells_of_what_a_page_may_not_do(browser: str, judged: Study, tmp_path: Path) -> None:
    asks = '<img alt="" src="http://127.0.0.1:9/picture.png"><script>console.log("here")</script></main>'
    source = page.page(judged).replace("</main>", asks)
    console, asked, _ = opened(browser, source, tmp_path)
    assert len(console) == 2  # the policy stops both, with a word
    assert asked == set()
    (tmp_path / "open").mkdir()
    unguarded = re.sub(r"<meta http-equiv[^>]*>", "", source)
    console, asked, _ = opened(browser, unguarded, tmp_path / "open")
    assert any("here" in line for line in console)
    assert asked == {"http://127.0.0.1:9/picture.png"}
