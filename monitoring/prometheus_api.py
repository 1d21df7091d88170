"""Prometheus' HTTP API, as much of it as dashboards and the terminal view need.

Invariant: what comes back is numbers at times, or `Refused` with Prometheus' own words. Refuses to know panels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from broker.errors import Refused

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Series:
    """One time series: seconds since the epoch and a value at each, both (T,); a time without a value has no point."""

    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]

    @property
    def finite(self) -> bool:
        """At least one value is a number."""
        return any(math.isfinite(value) for value in self.values)

    @property
    def last(self) -> float | None:
        """The last finite value."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), None)


@dataclass(frozen=True)
class Prometheus:
    """One server, by its URL."""

    url: str
    timeout: float = TIMEOUT_SECONDS

    def range(self, expression: str, begin: float, end: float, step: float) -> list[Series]:
        """The expression at `begin`, `begin + step`, … `end`."""
        found = self._get(
            "query_range", {"query": expression, "start": f"{begin:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"}
        )
        return [
            Series(one["metric"], [float(t) for t, _ in one["values"]], [float(v) for _, v in one["values"]])
            for one in found["result"]
        ]

    def now(self, expression: str) -> list[Series]:
        """The expression at this moment."""
        return list(self._instant(self._get("query", {"query": expression})))

    def label_values(self, label: str, match: str) -> list[str]:
        """Values of a label among the series that match."""
        found = self._get(f"label/{label}/values", {"match[]": match})
        return [str(value) for value in found]

    def alert_rules(self) -> list[Any]:
        """Every rule that can raise an alert, with the alerts that it has raised."""
        return [rule for group in self._get("rules", {"type": "alert"})["groups"] for rule in group["rules"]]

    @staticmethod
    def _instant(found: Any) -> Iterator[Series]:
        if found["resultType"] == "scalar":
            found = {"result": [{"metric": {}, "value": found["result"]}]}
        for one in found["result"]:
            yield Series(one["metric"], [float(one["value"][0])], [float(one["value"][1])])

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        where = urlsplit(self.url)
        kind = HTTPSConnection if where.scheme == "https" else HTTPConnection
        connection = kind(where.hostname or "", where.port, timeout=self.timeout)
        try:
            connection.request("GET", f"{where.path.rstrip('/')}/api/v1/{path}?{urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
            if not isinstance(answer, dict) or "status" not in answer:
                raise ValueError("somebody else does")
        except (OSError, HTTPException, ValueError) as error:
            raise Refused(f"no Prometheus answers on {self.url}: {error}", "`make monitoring` starts one") from None
        finally:
            connection.close()
        if answer["status"] != "success":
            raise Refused(f"Prometheus refuses {parameters.get('query', path)}", str(answer.get("error")))
        return answer["data"]
