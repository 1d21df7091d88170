"""Prometheus' HTTP API, as much of it as dashboards and the terminal view need.

Invariant: what comes back is numbers at times, or `Refused` with Prometheus' own words. Refuses to know panels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Literal, TypeVar
from urllib.parse import urlencode, urlsplit

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

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


class RaisedAlert(BaseModel):
    """An alert that fires or is `pending`."""

    labels: dict[str, str]
    annotations: dict[str, str] = {}
    state: str
    since: AwareDatetime = Field(alias="activeAt")


class AlertRule(BaseModel):
    """A rule that can raise alerts: its expression, and those that it has raised."""

    query: str
    alerts: list[RaisedAlert]


class _Group(BaseModel):
    rules: list[AlertRule]


class _Groups(BaseModel):
    groups: list[_Group]


class _Sample(BaseModel):
    metric: dict[str, str]
    value: tuple[float, float]


class _Samples(BaseModel):
    metric: dict[str, str]
    values: list[tuple[float, float]]


class _Vector(BaseModel):
    resultType: Literal["vector"]
    result: list[_Sample]


class _Scalar(BaseModel):
    resultType: Literal["scalar"]
    result: tuple[float, float]


class _Matrix(BaseModel):
    resultType: Literal["matrix"]
    result: list[_Samples]


Shape = TypeVar("Shape")
_INSTANT: TypeAdapter[_Vector | _Scalar] = TypeAdapter(_Vector | _Scalar)
_MATRIX, _RULES, _VALUES = TypeAdapter(_Matrix), TypeAdapter(_Groups), TypeAdapter(list[str])


@dataclass(frozen=True)
class Prometheus:
    """One server, by its URL."""

    url: str
    timeout: float = TIMEOUT_SECONDS

    def range(self, expression: str, begin: float, end: float, step: float) -> list[Series]:
        """The expression at `begin`, `begin + step`, … `end`."""
        asked = {"query": expression, "start": f"{begin:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"}
        found = self._get(_MATRIX, "query_range", asked).result
        return [Series(one.metric, [t for t, _ in one.values], [v for _, v in one.values]) for one in found]

    def now(self, expression: str) -> list[Series]:
        """The expression at this moment."""
        found = self._get(_INSTANT, "query", {"query": expression})
        if isinstance(found, _Scalar):
            return [Series({}, found.result[:1], found.result[1:])]
        return [Series(one.metric, one.value[:1], one.value[1:]) for one in found.result]

    def label_values(self, label: str, match: str) -> list[str]:
        """Values of a label among the series that match."""
        return self._get(_VALUES, f"label/{label}/values", {"match[]": match})

    def alert_rules(self) -> list[AlertRule]:
        """Every rule that can raise an alert, with the alerts that it has raised."""
        return [rule for group in self._get(_RULES, "rules", {"type": "alert"}).groups for rule in group.rules]

    def _get(self, shape: TypeAdapter[Shape], path: str, parameters: Mapping[str, str]) -> Shape:
        where = urlsplit(self.url)
        kind = HTTPSConnection if where.scheme == "https" else HTTPConnection
        try:
            connection = kind(where.hostname or "", where.port, timeout=self.timeout)
        except ValueError as error:
            raise Refused(f"{self.url} is no address: {error}", "name one such as http://127.0.0.1:9090") from None
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
        try:
            return shape.validate_python(answer.get("data"))
        except ValidationError:
            raise Refused(f"{self.url} answers as no Prometheus does", "see that the address is right") from None
