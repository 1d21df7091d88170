"""Ids of train tickets: they sort in order of issue, and say whose problem they ask for."""

from __future__ import annotations

import random

import pytest

from broker.errors import Malformed
from broker.schema import Ticket, decode_ticket, encode_ticket
from broker.ticket_id import TicketId


def test_an_id_reads_back_as_what_it_was_made_of() -> None:
    for one in (TicketId(0), TicketId(123), TicketId(123, 45), TicketId(10**10 - 1, 10**10 - 2)):
        assert TicketId.parse(str(one)) == one
    assert [str(TicketId(123)), str(TicketId(123, 45))] == ["t0000000123", "t0000000123r0000000045"]
    assert [TicketId(123).origin, TicketId(123, 45).origin] == [123, 45]


def test_ids_sort_in_order_of_issue_whoever_repeats_whom() -> None:
    luck = random.Random(0)
    issued = [TicketId(n, luck.choice([None, luck.randrange(n + 1)])) for n in range(200)]
    assert sorted(map(str, issued)) == list(map(str, issued))


def test_the_longest_one_travels() -> None:
    longest = str(TicketId(10**10 - 1, 10**10 - 1))
    assert decode_ticket(encode_ticket(Ticket(longest, 0, 0, 0))).ticket_id == longest


@pytest.mark.parametrize(
    "text",
    [
        "", "?", "t", "t1", "0000000001", "t000000000a", "t0000000001r", "t0000000001r1", "e00000000-end-000001",
        "t0000000001r0000000002r0000000003", "t0000000001\n", "t٠٠٠٠٠٠٠٠٠١", "t-000000001", "t99999999999",
    ],
)  # fmt: skip
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(Malformed, match="not the id of a train ticket"):
        TicketId.parse(text)
