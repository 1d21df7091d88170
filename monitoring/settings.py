"""Where each process serves its metrics."""

from __future__ import annotations

from pydantic import Field

from broker.settings import Section


class MonitoringSettings(Section):
    """Ports of `/metrics`; loopback unless told otherwise. Generator i listens on `generator_port + i`."""

    host: str = "127.0.0.1"
    learner_port: int = Field(9400, ge=0, le=65535, description="0 turns the endpoint off")
    generator_port: int = Field(9410, ge=0, le=65535, description="0 turns the endpoint off")
