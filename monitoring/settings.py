"""Where each process serves its metrics, and when it speaks up by itself."""

from __future__ import annotations

from pydantic import Field

from broker.settings import Section


class MonitoringSettings(Section):
    """Ports of `/metrics`; loopback unless told otherwise. Generator i listens on `generator_port + i`."""

    host: str = "127.0.0.1"
    learner_port: int = Field(9400, ge=0, le=65535, description="0 turns the endpoint off")
    generator_port: int = Field(9410, ge=0, le=65535, description="0 turns the endpoint off")
    exporter_port: int = Field(9401, ge=0, le=65535, description="the books' metrics; 0: no exporter is started")
    exporter_seconds: float = Field(15.0, gt=0, description="how often the exporter reads Redis")
    prometheus_port: int = Field(9090, ge=1, le=65535, description="where `make monitoring` serves Prometheus")
    grafana_port: int = Field(3000, ge=1, le=65535, description="where `make monitoring` serves Grafana")
    warn_seconds: float = Field(60.0, ge=0, description="a wait longer than this is logged; 0: none is")
    stall_seconds: float = Field(
        600.0,
        ge=0,
        description="without progress for this long `/healthz` answers 503: above the longest step; 0: never",
    )

    def port_of(self, generator: int) -> int:
        """Where the generator of this number serves; 0 where endpoints are off."""
        return self.generator_port + generator if self.generator_port else 0
