"""What a query of a dashboard is made of once its variables are filled in, and what Prometheus shows by itself."""

from __future__ import annotations

PROMETHEUS = {"up": "gauge", "ALERTS": "gauge"}
VALUES = {"job": ".+", "run": "tiny", "instance": ".+", "window": "1m", "datasource": "prometheus"}
