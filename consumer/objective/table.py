"""The presets as a table to read: every axis a column. Refuses to know how any of it is computed."""

from __future__ import annotations

from consumer.objective.presets import PRESETS, SOURCES
from consumer.objective.settings import ObjectiveSettings

COLUMNS = ("preset", "advantage", "surrogate", "π_prox", "weight π_prox/μ", "mean", "KL", "degenerate", "from")
SAID_OF = {  # parameters of a surrogate, as they are written beside its name
    "ppo": "{clip_low:g}/{clip_high:g}",
    "gspo": "{clip_low:g}/{clip_high:g}",
    "cispo": "≤ {cispo_cap:g}",
    "gmpo": "{gmpo_clip:g}",
    "sapo": "{sapo_temperature_positive:g}/{sapo_temperature_negative:g}",
    "dppo": "{dppo_mask:g}, {dppo_penalty:g}",
    "topr": "{ratio_level}",
    "kimi": "{kimi_temperature:g}, {ratio_level}",
    "oapl": "{oapl_beta:g}",
}


def rows() -> list[tuple[str, ...]]:
    """A row for each preset, as `COLUMNS` says."""
    return [_row(name, ObjectiveSettings.model_validate({"preset": name})) for name in PRESETS]


def markdown() -> str:
    """The table as README has it."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *(" | ".join(row) for row in rows())]
    return "\n".join(f"| {line} |" for line in lines)


def text() -> str:
    """The table for a terminal."""
    cells = [COLUMNS, *rows()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _row(name: str, of: ObjectiveSettings) -> tuple[str, ...]:
    return (
        name,
        of.baseline + ("" if of.scale == "none" else f" / {of.scale}"),
        " ".join([of.surrogate, SAID_OF.get(of.surrogate, "").format(**of.model_dump())]).strip(),
        of.proximal,
        _weight(of),
        of.aggregation,
        of.kl if of.kl == "none" else f"{of.kl} {of.kl_coefficient:g}",
        of.degenerate,
        SOURCES[name],
    )


def _weight(of: ObjectiveSettings) -> str:
    bound = {"truncate": f" ≤ {of.truncation:g}", "mask": f" in {of.mask_low:g} … {of.mask_high:g}", "none": ""}
    said = of.correction + (bound[of.correction_bound] if of.correction != "none" else "")
    return said if of.m2po is None else f"{said}, m2po ≤ {of.m2po:g}"
