"""What `benchmarks.scale` found, beside what is asked for.

Invariant: what is asked of all cells is asked of the worst. Refuses to know how anything was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.findings import Finding, ratios
from benchmarks.scale_floor import synchronous
from benchmarks.scale_report import by_seed
from benchmarks.scale_times import lognormal

Row = dict[str, Any]
Found = dict[str, Any]
ABOVE, FLAT, MOST_MS = 5.0, 0.1, 1.0  # points of idle time; of the cost of 8 generators; a group
SAID = "Tables, derivations of the floors and the picture: [benchmarks/scale.md](scale.md)."


def findings(document: Found) -> tuple[Finding, ...]:
    """Of the parts that were measured."""
    made: list[Finding] = []
    for part, of in (
        ("idle", _of_idle),
        ("pairs", _of_pairs),
        ("fleets", _of_fleets),
        ("cost", _of_cost),
        ("connections", _of_connections),
    ):
        made += of(document[part]) if part in document else []
    return tuple(made)


def _of_idle(rows: Sequence[Row]) -> list[Finding]:
    made = []
    for times in dict.fromkeys(row["job"]["times"] for row in rows):
        of = [row for row in rows if row["job"]["times"] == times]
        for knows, what, asked in (
            ("promised", "the floor of the contract", ABOVE),
            ("told", "a scheduler that is told when each group begins", ABOVE),
            ("any", "a bound for any design, which perhaps none can reach", None),
        ):
            above = [100 * (row["idle"] - row[knows]) for row in of if row["job"]["order"] == "ready"]
            within = sum(value <= ABOVE for value in above)
            note = f"points; {within} of {len(above)} cells within {ABOVE:g}"
            made.append(
                Finding(f"{times}: idle above {what}, the largest of all cells", (max(above),), "%", None, asked, note)
            )
    return made


def _of_pairs(rows: Sequence[Row]) -> list[Finding]:
    both = by_seed(rows)
    sync = 100 * synchronous(lognormal(), 32)
    return [
        Finding("idle, ready, depth 2, bound 16", tuple(100 * r["idle"] for r, _ in both), "%"),
        Finding("idle, strict, bound 16", tuple(100 * s["idle"] for _, s in both), "%"),
        Finding("the former less the latter", tuple(100 * (r["idle"] - s["idle"]) for r, s in both), "%", None, 1.0),
        Finding("mean staleness, ready", tuple(r["staleness"] for r, _ in both), "", 1.5, 2.5, "versions"),
        Finding("mean staleness, strict", tuple(s["staleness"] for _, s in both), "", note="versions"),
        Finding("idle, synchronous: the closed form", (sync,), "%"),
    ]  # fmt: skip


def _of_fleets(rows: Sequence[Row]) -> list[Finding]:
    above = [100 * (row["idle"] - row["promised"]) for row in rows]
    note = "points, each with as many groups in a step"
    return [Finding(f"{len(rows)} fleets: idle above the floor, the largest", (max(above),), "%", None, ABOVE, note)]


def _of_cost(rows: Sequence[Row]) -> list[Finding]:
    made = []
    for wait in dict.fromkeys(row["wait"] for row in rows):
        sizes = sorted({row["generators"] for row in rows})
        costs = {
            n: [row["ours"] + row["servers"] for row in rows if (row["wait"], row["generators"]) == (wait, n)]
            for n in sizes
        }
        name = f"a group, the learner {'training meanwhile' if wait == 'trains' else 'waiting for each'}"
        most = tuple(each / 1e3 for each in costs[sizes[-1]])
        made.append(Finding(f"CPU time of {name}, {sizes[-1]:,} generators", most, "ms", None, MOST_MS))
        for n in sizes[1:]:
            asked = (1 - FLAT, 1 + FLAT)
            made.append(
                Finding(f"the same, {n:,} over {sizes[0]} generators", ratios(costs[n], costs[sizes[0]]), "×", *asked)
            )
    return made


def _of_connections(rows: Sequence[Row]) -> list[Finding]:
    *levels, most = rows
    made = [Finding("generators connected at once", (float(most["generators"]),), "", note=most["said"])]
    for row in levels:
        held = f", each ticket held {row['held']:g} s" if row["held"] else ""
        name = f"{row['generators']:,} generators on {row['connections']:,} connections{held}"
        made.append(Finding(f"{name}: groups", (row["rate"],), "/s"))
        said = f"p99 {1e3 * row['p99']:.1f} ms"
        made.append(Finding(f"{name}: claim, p50", (1e3 * row["p50"],), "ms", note=said))
    return made
