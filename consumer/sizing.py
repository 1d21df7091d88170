"""`python -m consumer.sizing RECIPE`: what a run needs of Redis, how much is in play, and how many slots that feeds.

Invariant: figures are bounds or what the recipe says, known before anything is started. Refuses to guess how fast
anything is: that is measured (docs/operations.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from broker.cli import guarded
from broker.loading import load
from consumer import memory
from consumer.recipe import ProcessRecipe


def most_slots(recipe: ProcessRecipe) -> int:
    """Generator slots, of all generators together, that `capacity` keeps busy: capacity ≥ 2·slots + groups_per_step."""
    return max(0, (recipe.capacity - recipe.learner.groups_per_step) // 2)


def rows(recipe: ProcessRecipe, weights: int) -> list[tuple[str, str]]:
    """Names and values, for a person; `weights` are bytes of one policy version."""
    most, versions = memory.most(recipe, weights), memory.versions(recipe)
    found = [
        ("tickets in play, at most", f"{recipe.capacity}"),
        ("groups without a final verdict, at most", f"{memory.unsettled_groups(recipe)}"),
        ("slots of all generators that these feed", f"{most_slots(recipe)}"),
        ("largest group", _mb(memory.group_bytes(recipe, recipe.run.max_staleness + 2))),
        ("Redis, at most: its maxmemory", _mb(most)),
    ]
    if versions and weights:
        found.append(("  of these, weights", f"{versions} versions of {_mb(weights)}"))
    elif versions:
        found.append(
            ("  and weights", f"{versions} versions of a model that is not here: give --run.model a directory")
        )
    return found


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="consumer.sizing", description="what a run needs, from its recipe alone")
    parser.add_argument("recipe", type=Path)
    options, flags = parser.parse_known_args()
    recipe = load(ProcessRecipe, options.recipe, flags)
    found = rows(recipe, memory.version_bytes(recipe))
    width = max(len(name) for name, _ in found)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in found))


if __name__ == "__main__":
    main()
