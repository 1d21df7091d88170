"""Ids of train tickets: they sort in order of issue, and say whose problem they ask for."""

from __future__ import annotations

import random

import pytest

from broker.decoding import decode_ticket
from broker.errors import Malformed
from broker.schema import Ticket, encode_ticket
from broker.ticket_id import TicketId


def test_an_id_reads_back_as_what_it_was_made_of() -> None:
    for one in (TicketId(0, 0), TicketId(123, 45), TicketId(10**10 - 1, 10**10 - 2)):
        assert TicketId.parse(str(one)) == one
    assert str(TicketId(123, 45)) == "t0000000123p0000000045"


def test_ids_sort_in_order_of_issue_whatever_they_ask_for() -> None:
    luck = random.Random(0)
    issued = [TicketId(n, luck.randrange(10**10)) for n in range(200)]
    assert sorted(map(str, issued)) == list(map(str, issued))


def test_the_longest_one_travels() -> None:
    longest = str(TicketId(10**10 - 1, 10**10 - 1))
    assert decode_ticket(encode_ticket(Ticket(longest, 0, 0, 0))).ticket_id == longest


@pytest.mark.parametrize(
    "text",
    [
        "", "?", "t", "t1", "0000000001", "t000000000a", "t0000000001", "t0000000001p", "t0000000001p1",
        "e00000000-end-000001",
        "t0000000001p0000000002p0000000003", "t0000000001p0000000002\n", "t0000000001p٠٠٠٠٠٠٠٠٠١",
        "t-000000001p0000000002", "t99999999999p0000000002", "t0000000001r0000000002",
    ],
)  # fmt: skip
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(Malformed, match="not the id of a train ticket"):
        TicketId.parse(text)
