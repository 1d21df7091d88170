"""How metrics are made: each is declared once, described as it is declared, and registered under that name.

Invariant: what `described` lists is what the registry shows, so names, labels and help are known without running
anything. Refuses to know any metric by its name.
"""

from __future__ import annotations

import math
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Kind = Literal["counter", "gauge", "histogram"]
S = TypeVar("S")
C = TypeVar("C", bound=Collector)
Values = Mapping[tuple[str, ...], float]  # by the values of the labels
PROCESS: Sequence[tuple[str, Kind, str]] = (  # what the library says of a process, where there is a /proc
    ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    ("resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
    ("cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."),
    ("open_fds", "gauge", "Number of open file descriptors."),
    ("max_fds", "gauge", "Maximum number of open file descriptors."),
)


@dataclass(frozen=True)
class Described:
    """One metric, by the name it is declared under; a counter's ends in `_total`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which it can be queried."""
        parts = ("bucket", "count", "sum") if self.kind == "histogram" else ()
        return tuple(f"{self.name}_{part}" for part in parts) or (self.name,)


@dataclass(frozen=True)
class Derived(Generic[S]):
    """A metric that nobody counts here: it is read, at each scrape, from something whole."""

    described: Described
    values: Callable[[S], Values]

    def family(self, whole: S) -> Metric:
        """As it is now."""
        of = self.described
        kind = CounterMetricFamily if of.kind == "counter" else GaugeMetricFamily
        family = kind(of.name.removesuffix("_total"), of.help, labels=of.labels)
        for key, value in self.values(whole).items():
            family.add_metric(key, float(value))
        return family


class Snapshot(Collector, Generic[S]):
    """Metrics derived from the last whole thing there is; absent while there is none."""

    def __init__(self, derived: Iterable[Derived[S]], whole: Callable[[], S | None]) -> None:
        self._derived, self._whole = tuple(derived), whole

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        whole = self._whole()
        if whole is not None:
            yield from (one.family(whole) for one in self._derived)


class CountedHistogram(Collector):
    """A histogram that takes many equal observations at once: a step brings its tokens by the million."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self._name, self._text, self._buckets = name, text, buckets
        self._counts: Counts[float] = Counts()

    def add(self, value: float, count: int) -> None:
        """`count` observations of `value`."""
        self._counts[value] += count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry."""
        counts = dict(self._counts)
        bounds = [*self._buckets, math.inf]
        buckets = [
            (floatToGoString(b), float(sum(n for value, n in counts.items() if value <= b)))  # type: ignore[no-untyped-call]
            for b in bounds
        ]
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], buckets, sum(value * n for value, n in counts.items()))
        yield family


class Lodger(Collector):
    """Metrics that a library in this process registers with prometheus_client by itself, known by their prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield from (family for family in REGISTRY.collect() if family.name.startswith(self._prefix))


class Register:
    """The metrics of one process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.described: list[Described] = []

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """A counter; its name ends in `_total`."""
        self._describe(name, "counter", text, labels)
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A gauge."""
        self._describe(name, "gauge", text, labels)
        return Gauge(name, text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        """A histogram."""
        self._describe(name, "histogram", text)
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def counted(self, name: str, text: str, buckets: Sequence[float]) -> CountedHistogram:
        """A histogram of very many observations."""
        self._describe(name, "histogram", text)
        return self._registered(CountedHistogram(name, text, buckets))

    def snapshot(self, derived: Sequence[Derived[S]], whole: Callable[[], S | None]) -> None:
        """Metrics that are read from something whole."""
        self.described += [one.described for one in derived]
        self._registered(Snapshot(derived, whole))

    def process(self, namespace: str) -> None:
        """Memory, CPU time and files of this process."""
        for name, kind, text in PROCESS:
            self._describe(f"{namespace}_process_{name}", kind, text)
        ProcessCollector(namespace=namespace, registry=self.registry)

    def lodge(self, prefix: str) -> None:
        """Show what a library counts by itself, after ours; what that is, is for the library to say."""
        self._registered(Lodger(prefix))

    def _describe(self, name: str, kind: Kind, text: str, labels: tuple[str, ...] = ()) -> None:
        self.described.append(Described(name, kind, labels, text))

    def _registered(self, collector: C) -> C:
        self.registry.register(collector)
        return collector
