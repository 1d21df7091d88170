"""The report's page: complete, self-contained, and deaf to whatever a model wrote."""

from __future__ import annotations

import base64
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from broker.audit import Excerpt, Note
from monitoring.charts import CHARTS, png
from monitoring.dossier import Dossier, locate
from monitoring.page import page
from monitoring.report import read, summarise
from monitoring.trail import Trail, joined
from tests.broker.test_audit import SHARE, answer, sampling, use
from tests.monitoring.fabricated import Run
from tests.monitoring.test_report import whole_run
from tests.monitoring.test_trail import A, B, told
from tests.system.pipeline import ROOT

NASTY = "</pre><script>alert(1)</script><img src=http://example.org/x onerror=alert(1)>&amp;\x1b[2J"


class Seen(HTMLParser):
    """What a browser would make of it: tags with their attributes, and the text between them."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def dossier(run: Run, *notes: Note, **more: Any) -> Dossier:
    recipe, progress = read(run.folder)
    return Dossier(run.folder, recipe, progress, summarise(run.folder.path), Trail(tuple(joined(told(*notes)))), **more)


def notes(text: str = "It is 7.") -> list[Note]:
    """A trained group with one wrong answer, and a degenerate one."""
    mixed = sampling(answer(text), answer("It is 8.", reward=0.0), ticket_id=A, prompt=Excerpt.of(text))
    alike = sampling(answer(text), answer(text), ticket_id=B, failed=Excerpt())
    return [
        mixed,
        use(SHARE, SHARE.model_copy(update={"reward": 0.0}), ticket_id=A, generator="host-1"),
        alike,
        use(SHARE, SHARE, ticket_id=B, generator="host-1", verdict="degenerate"),
    ]


def test_a_page_holds_figures_curves_texts_recipe_and_versions(tmp_path: Path) -> None:
    seen = Seen(page([dossier(whole_run(tmp_path), *notes(), fingerprint={"model": "m" * 64})], 1.7e9))
    assert seen.open == []
    for part in (
        *("7 of 7 in 7.3 min; finished", "0.20 → 0.80", "14 trained, 7 degenerate", "40% of the time", "max 3 of 8"),
        *(f"best: {B}, degenerate", f"worst: {A}, trained (step 4)", "reward 0", "advantage +0.5", "It is 7.", "π/μ 1"),
        *("max_staleness", "m" * 64, "numpy", "Python", "gold answer: 7"),
    ):
        assert part in seen.said, part
    images = seen.named("img")
    assert len(images) == len(CHARTS) + 1
    for image in images:
        kind, _, data = (image["src"] or "").partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
        assert image["alt"]


def test_what_a_model_wrote_is_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    run.folder.recipe.write_text(run.folder.recipe.read_text() + f"# {NASTY}\n".replace("\x1b", ""))
    told = sampling(answer(NASTY, failed=NASTY, components={NASTY[:60]: 1.0}), ticket_id=A, gold=Excerpt.of(NASTY))
    more: list[Note] = [told, use(SHARE, ticket_id=A, generator="host-1")]
    html = page([dossier(run, *more, *notes(NASTY)[2:], without=NASTY, fingerprint={"model": NASTY})], 1.7e9)
    seen = Seen(html)
    assert not seen.named("script")
    assert {tag for tag, _ in seen.tags} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "div",
            "main",
            "h1",
            "h2",
            "h3",
            "span",
            "table",
            "tr",
            "th",
        ),
        *("td", "img", "pre", "p", "i", "bdi", "details", "summary"),
    }
    assert all((image["src"] or "").startswith("data:") for image in seen.named("img"))
    assert not [a for _, attributes in seen.tags for a in attributes if a.startswith("on") or a == "href"]
    assert "</pre><script>alert(1)</script>" in seen.said, "it is there, as text"
    assert "\x1b" not in html
    policy = {a.get("http-equiv"): a.get("content") for a in seen.named("meta")}["Content-Security-Policy"] or ""
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def test_of_a_group_the_best_answers_come_first_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    rewards = [n / 100 for n in range(20)]
    answers = [answer(f"answer {n}", reward=reward) for n, reward in enumerate(rewards)]
    answers[19] = answer(reward=1.0).model_copy(
        update={"text": Excerpt(head="answer <19", left_out=12345, tail="<b>its end")}
    )
    shares = [SHARE.model_copy(update={"reward": one.reward}) for one in answers]
    group: list[Note] = [
        sampling(*answers, ticket_id=A, answers_left_out=3),
        use(*shares, ticket_id=A, generator="host-1"),
    ]
    html = page([dossier(whole_run(tmp_path), *group)], 1.7e9)
    said = Seen(html).said
    assert "answer <19 […12,345 characters left out…] <b>its end" in said
    shown = {int(n) for n in re.findall(r"answer <?(\d+)", said)}
    assert shown == {0, 1, 2, 3, 16, 17, 18, 19}
    assert said.index("answer <19") < said.index("answer 16") < said.index("answer 3")
    assert "15 more" in said, "12 of its answers, and 3 that the log had no room for"
    assert html.index('class="good"') < html.index("answer 16") < html.index('class="bad"') < html.index("answer 3")


def test_what_is_shown_of_the_processes_says_what_is_not(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    assert "Generators: each group in hand takes a lane." in Seen(page([dossier(run, *notes())], 1.7e9)).said
    assert "Generators: not on record, no Redis." in Seen(page([dossier(run, without="no Redis")], 1.7e9)).said


def test_without_a_log_the_rest_is_there_and_says_why(tmp_path: Path) -> None:
    seen = Seen(page([dossier(whole_run(tmp_path), without="no Redis at 127.0.0.1:1")], 1.7e9))
    assert "No texts: no Redis at 127.0.0.1:1." in seen.said
    assert len(seen.named("img")) == len(CHARTS) + 1


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_hardly_began_can_be_drawn(tmp_path: Path, steps: int) -> None:
    run = Run(tmp_path)
    for step in range(steps):
        run.plain_step(step + 1)
    if not steps:
        run.evaluate("start", 0, 1.0)
        run.end("solved")
    seen = Seen(page([dossier(run)], 1.7e9))
    assert seen.open == []
    assert png([dossier(run)]).startswith(b"\x89PNG")


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    runs = [Run(tmp_path, name) for name in ("one", "other")]
    for run in runs:
        run.plain_step(1)
        run.plain_step(2)
    made = [dossier(run) for run in runs]
    seen = Seen(page(made, 1.7e9))
    assert len(seen.named("main")) == 2
    assert seen.named("div")[0]["style"] == "--runs: 2"
    assert seen.said.index("one smollm2") < seen.said.index("other smollm2"), "in the order in which they are named"
    width, height = struct.unpack(">II", png(made)[16:24])
    assert height > width > struct.unpack(">II", png(made[:1])[16:24])[0] / 2

    command = [sys.executable, "-m", "monitoring.report", *(str(run.folder.path) for run in runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report-one-other.html").exists()
    assert (tmp_path / "report-one-other.png").exists()
    assert not any(run.folder.finished for run in runs), "a look does not end a run"


def test_a_run_is_named_by_its_folder_or_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert locate(tmp_path / "demo").path == tmp_path / "demo"
    assert locate(Path("demo"), tmp_path).path == tmp_path / "demo"
    assert locate(Path("some/where")).path == Path("some/where")
