"""All ways of getting a group across, by name: what processes of a trial import."""

from __future__ import annotations

from benchmarks.transport_bare import BARE
from benchmarks.transport_ours import OURS, OURS_TIMED
from benchmarks.transport_pickle import PICKLE, PICKLE_TEXTS

WAYS = {way.name: way for way in (OURS, OURS_TIMED, BARE, PICKLE, PICKLE_TEXTS)}
