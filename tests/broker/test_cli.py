"""How a process ends before a person's eyes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import redis

from broker.cli import guarded
from broker.errors import Fenced, Malformed, Refused
from tests.system.pipeline import ROOT


def ends(error: BaseException) -> Callable[[], None]:
    @guarded
    def main() -> None:
        """Entry point."""
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (Refused("no Redis at here", "start one"), 2, "headrace: no Redis at here: start one"),
        (Refused("cause alone"), 2, "headrace: cause alone"),
        (Refused("two\nlines  and\ttabs", "three"), 2, "headrace: two lines and tabs: three"),
        (Fenced("another learner has taken over"), 3, "headrace: another learner has taken over"),
        (redis.ConnectionError("Error 111"), 1, "headrace: lost Redis: Error 111"),
        (redis.TimeoutError("Timeout reading"), 1, "headrace: lost Redis: Timeout reading"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, status: int, line: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        ends(error)()
    assert ended.value.code == status
    assert capsys.readouterr() == ("", f"{line}\n")


def test_no_payload_gets_to_the_terminal_in_the_text_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ends(redis.ConnectionError("x" * 100_000))()
    assert len(capsys.readouterr().err) < 400


def test_an_interrupt_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ends(KeyboardInterrupt())()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("ours"), Malformed("spans"), SystemExit(7)])
def test_what_only_we_can_mend_is_left_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        ends(error)()
    assert raised.value is error


def test_a_good_end_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    done = list[str]()

    @guarded
    def main() -> None:
        """What it does."""
        done.append("it")

    main()
    assert done == ["it"]
    assert (main.__name__, main.__doc__) == ("main", "What it does.")
    assert capsys.readouterr() == ("", "")


def test_a_refusal_of_a_real_process_has_no_traceback_behind_it() -> None:
    script = "from broker.cli import guarded\nfrom broker.errors import Refused\n"
    script += "@guarded\ndef main():\n    try:\n        1 / 0\n"
    script += "    except ZeroDivisionError as error:\n        raise Refused('this', 'that') from error\nmain()"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "headrace: this: that\n")
