"""`make bench-demo`: the demo once for each seed, start to end as a user runs it, as a table in Markdown.

Invariant: each row is one whole run (model preparation, engine start and evaluations included), none is left out.
Refuses to know how a run works: it reads what a run leaves on disk.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from monitoring.report import summarise

COLUMNS = (
    "seed",
    "minutes",
    "reward, first 5 steps",
    "reward, last 5 steps",
    "pass@1, start",
    "pass@1, end",
    "samples",
    "mean staleness",
    "max",
)


def run(recipe: Path, seed: int, flags: list[str]) -> tuple[float, dict[str, Any]]:
    """One run under a name of its own; its minutes by the clock on the wall and its summary."""
    name = f"bench-{recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    command = [
        sys.executable,
        "-m",
        "deploy.launcher",
        str(recipe),
        "--run.name",
        name,
        "--run.seed",
        str(seed),
        *flags,
    ]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=sys.stderr)
    return (time.monotonic() - started) / 60, summarise(Path("runs") / name)


def row(seed: int, minutes: float, found: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [
        str(seed),
        f"{minutes:.1f}",
        f"{found['reward_first5']:.3f}",
        f"**{found['reward_last5']:.3f}**",
        f"{found['pass_at_1_start']:.3f}",
        f"**{found['pass_at_1_end']:.3f}**",
        str(found["pass_at_1_end_samples"]),
        f"{found['staleness_mean']:.2f}",
        str(found["staleness_max"]),
    ]
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """What the figures depend on besides the code."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    return f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, {versions}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.toml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options, flags = parser.parse_known_args()
    rows = []
    for seed in options.seeds:
        rows.append(row(seed, *run(options.recipe, seed, flags)))
        print(rows[-1], file=sys.stderr, flush=True)
    print(f"{options.recipe}, {machine()}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
