"""The weights leg, as small as it can be: it works, and its bytes are what they must be."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.weights import of_size
from benchmarks.weights_lane import Walk


def test_a_difference_takes_little_and_a_whole_version_all_of_it() -> None:
    rows = {row.what: row for row in of_size("200k", 200_000, rounds=2, readers=2, changed=0.005)}
    whole, differences = (rows[f"200k: bytes that a generator takes, {what}"] for what in ("whole", "differences"))
    assert min(whole.values) > 50
    assert max(differences.values) < 3
    assert all(len(row.values) == 2 for row in rows.values())


@pytest.mark.parametrize("changed", [0.0, 0.01])
def test_a_step_changes_the_share_it_is_told(changed: float) -> None:
    walk = Walk(100_000, changed)
    before = walk.weights.clone()
    walk.step()
    assert float(np.mean((walk.weights != before).numpy())) == pytest.approx(changed, rel=0.1)
