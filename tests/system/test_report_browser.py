"""The report in a browser: nothing is said on the console, nothing is asked for, and everything can be seen.

And the check is checked: a page that loads a picture, runs a script, shows none or is too wide does not pass it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.audit import Excerpt
from monitoring.charts import CHARTS
from monitoring.dossier import Dossier
from monitoring.page import POLICY, page
from monitoring.trail import Told
from tests.broker.test_audit import SHARE, answer, sampling, use
from tests.monitoring.fabricated import BEGAN, Run
from tests.monitoring.test_page import NASTY
from tests.monitoring.test_report import whole_run
from tests.monitoring.test_timeline import dossier, served
from tests.system.browser import CHROMIUM, Browser, browser

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt install chromium)"),
    pytest.mark.xdist_group("browser"),
]
HEBREW = "\u05d4\u05ea\u05e9\u05d5\u05d1\u05d4 \u05d4\u05d9\u05d0 7"
TEXTS = (NASTY, "w" * 3000, HEBREW + "\u202e\u2066", "\n".join(f"{n}." for n in range(200)), "$\\frac{1}{2}$")
WIDE, TELEPHONE = 1280, 400


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def texts(number: int, *said: str) -> list[Told]:
    """A group whose answers are these, the first of them right."""
    ticket = f"t{number:010}p0000000002"
    answers = [answer(one, reward=float(n == 0), components={one[:60]: 1.0}) for n, one in enumerate(said)]
    shares = [SHARE.model_copy(update={"reward": one.reward}) for one in answers]
    made = sampling(*answers, ticket_id=ticket, prompt=Excerpt.of("\n".join(said)), gold=Excerpt.of(said[0]))
    return [Told(BEGAN, made), Told(BEGAN + 1, use(*shares, ticket_id=ticket, generator="host-1"))]


def busy(tmp_path: Path, **more: Any) -> Dossier:
    """A finished run with evaluations, a timeline and the worst of texts."""
    groups = [served(n, BEGAN + 301 + n / 2, generator=f"host-{n % 2}") for n in range(100)]
    return dossier(whole_run(tmp_path), *groups, texts(500, *TEXTS), **more)


def begun(tmp_path: Path) -> Dossier:
    """One step into a run without an audit log."""
    run = Run(tmp_path, "a-run-that-has-just-begun-and-has-a-name-of-many-words")
    run.plain_step(1)
    return dossier(run, without="no Redis answers at " + "x" * 300)


def test_a_report_is_silent_self_contained_and_fits(tmp_path: Path, chromium: Browser) -> None:
    runs = [busy(tmp_path / "one"), begun(tmp_path / "other")]
    for name, shown in (("one", runs[:1]), ("begun", runs[1:]), ("both", runs)):
        path = tmp_path / f"{name}.html"
        path.write_text(page(shown, BEGAN))
        opened = chromium.open(path, (WIDE, TELEPHONE))
        assert opened.complaints == [], name
        assert opened.images == len(shown) * (len(CHARTS) + 1)


BREAKS = {
    "a picture from elsewhere": ("</main>", '<img src="http://127.0.0.1:9/x.png"></main>', ["Content Security Policy"]),
    "a script": ("</main>", "<script>document.title = 1</script></main>", ["Content Security Policy"]),
    "a picture that is none": ("</main>", '<img src="data:image/png;base64,AAAA"></main>', ["broken data:image/png"]),
    "a text that sticks out": ("</main>", f"<p style='overflow-wrap: normal'>{'x' * 400}</p></main>", ["scrolls over"]),
    "too wide": ("</main>", '<div style="width: 1300px">x</div></main>', ["at 1280 px: DIV", "at 400 px: DIV"]),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_report_does_not_pass(name: str, tmp_path: Path, chromium: Browser) -> None:
    old, new, complaints = BREAKS[name]
    path = tmp_path / "report.html"
    path.write_text(page([begun(tmp_path)], BEGAN).replace(old, new, 1))
    found = "\n".join(chromium.open(path, (WIDE, TELEPHONE)).complaints)
    assert all(complaint in found for complaint in complaints), found


def test_without_its_policy_a_picture_would_be_asked_for_and_a_script_would_speak(
    tmp_path: Path, chromium: Browser
) -> None:
    path = tmp_path / "report.html"
    more = '<img src="http://127.0.0.1:9/x.png"><script>console.warn("it runs"); missing()</script></main>'
    path.write_text(page([begun(tmp_path)], BEGAN).replace(POLICY, "").replace("</main>", more, 1))
    opened = chromium.open(path, (WIDE,))
    assert opened.asked == ["http://127.0.0.1:9/x.png"]
    assert any("it runs" in said for said in opened.said)
    assert any("Uncaught" in said for said in opened.said)
