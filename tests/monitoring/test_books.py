"""What `make ledger` says: sums that a person can check, places, ages, and a status for scripts."""

from __future__ import annotations

from broker.ledger import Balance
from monitoring.books import lines

NONE = frozenset[str]()


def test_books_that_balance_show_their_sums_and_where_the_rest_is() -> None:
    balance = Balance(
        9, {"trained": 4, "degenerate": 2}, frozenset("abc"), frozenset("a"), frozenset("b"), frozenset("c"), 100.0
    )
    assert lines("train", balance, 142.4) == [
        "train issued 9 = trained 4 + degenerate 2 + outstanding 3",
        "      outstanding: 1 wait for a generator, 1 are with one, 1 with the learner; the oldest was issued 42 s ago",
    ]


def test_an_empty_book_is_one_line() -> None:
    assert lines("eval", Balance(0, {}, NONE, NONE, NONE, NONE), 0.0) == ["eval  issued 0 = outstanding 0"]


def test_what_is_astray_is_named_up_to_a_number() -> None:
    lost = frozenset(f"t{n:02d}" for n in range(12))
    *_, last = lines("train", Balance(12, {}, lost, NONE, NONE, NONE, 0.0), 1.0)
    assert last.startswith("      DOES NOT BALANCE, 12 tickets astray: t00, t01,")
    assert last.endswith("t09 …")


def test_counts_alone_can_be_wrong_as_well() -> None:
    *_, last = lines("train", Balance(3, {"stale": 1}, NONE, NONE, NONE, NONE), 1.0)
    assert last == "      DOES NOT BALANCE, 0 tickets astray"
