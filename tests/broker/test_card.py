"""The TaskCard on its way through Redis: what does not add up is no card."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from broker.card import PartCard, TaskCard, decode_card, encode_card
from broker.errors import Malformed

PARTS, LABELS = (PartCard("sums", 4), PartCard("words", 3, 0.5)), ((0, "easy"), (1, ""))
CARD = TaskCard("mixture", 7, 3, "h", PARTS, LABELS, (0, 1, 0), ("correct",))


def test_a_card_survives_the_journey() -> None:
    assert decode_card(encode_card(CARD)) == CARD


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": 8}, "the parts are not the train split"),
        ({"train": -1}, "train is no size"),
        ({"held_out": True}, "held_out is no size"),
        ({"name": 1}, "name or content_hash"),
        ({"parts": []}, "the parts are not the train split"),
        ({"parts": None}, "parts"),
        ({"parts": [{"name": "sums", "train": 7, "weight": 0}]}, "the weight of a part"),
        ({"parts": [{"name": "sums", "train": 7, "weight": True}]}, "the weight of a part"),
        ({"parts": [{"train": 7, "weight": 1}]}, "a part"),
        ({"labels": [[2, "easy"], [1, ""]]}, "a label of no part"),
        ({"labels": ["easy"]}, "a label"),
        ({"held_out_labels": [0, 1]}, "held_out_labels"),
        ({"held_out_labels": [0, 1, 2]}, "held_out_labels"),
        ({"components": [1]}, "components"),
    ],
)
def test_what_does_not_add_up_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Malformed, match=said):
        decode_card(json.dumps({**asdict(CARD), **change}).encode())
