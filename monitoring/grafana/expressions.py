"""PromQL as text: selectors put in, variables filled in, names taken out.

Invariant: every metric in an expression that came through `scoped` is selected by job and run, so two runs on one
Prometheus never mix. Refuses to know panels, and what an expression means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

OF_RUN = 'job=~"$job",run="$run"'
OF_INSTANCE = 'instance=~"$instance"'
NAME = re.compile(r"(?<![\w:$\"])(headrace_\w+|vllm:\w+|up|ALERTS)\b(\{[^}]*\})?")
GENERATORS = ("headrace_generator_", "vllm:")
_WORD = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_STRING = re.compile(r'"[^"]*"')


def scoped(expression: str, *, by_instance: bool = False) -> str:
    """The expression with its metrics confined to the job and run that are chosen, and with `by_instance` those of
    generators to the chosen ones. Alerts are left alone: they carry the labels that their rule leaves them."""

    def confined(found: re.Match[str]) -> str:
        name, matchers = found[1], (found[2] or "{}")[1:-1]
        if name == "ALERTS":
            return found[0]
        instance = OF_INSTANCE if by_instance and name.startswith(GENERATORS) else ""
        return f"{name}{{{','.join(part for part in (OF_RUN, instance, matchers) if part)}}}"

    return NAME.sub(confined, expression)


def filled(expression: str, values: Mapping[str, str]) -> str:
    """The expression with `$name` and `${name}` replaced; a variable without a value stays as it is."""
    for name in sorted(values, key=len, reverse=True):
        expression = re.sub(rf"\$\{{{name}\}}|\${name}\b", lambda _, name=name: values[name], expression)  # type: ignore[misc]
    return expression


def names(expressions: Iterable[str]) -> set[str]:
    """Every metric that is named, as it is written: a histogram's with its `_bucket`, `_sum` or `_count`."""
    bare = (_WORD.sub("", _STRING.sub('""', expression)) for expression in expressions)
    return {found[1] for expression in bare for found in NAME.finditer(expression)}
