"""All that has to be true of a variant's manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.deploy.k8s import (
    containers,
    identity,
    lifecycle,
    machines,
    network,
    placement,
    recipes,
    scaling,
    schemas,
    wiring,
)
from tests.deploy.k8s.build import Manifests

Check = Callable[[Manifests], Iterator[str]]
SHAPE: tuple[Check, ...] = (
    schemas.kinds,
    schemas.core,
    schemas.custom,
    schemas.quantities,
)  # each of the next asks what this one knows
POLICY: tuple[Check, ...] = (
    containers.resources,
    containers.probes,
    containers.confinement,
    containers.images,
    containers.commands,
    containers.secrets,
    wiring.volumes,
    wiring.files,
    wiring.selectors,
    identity.labels,
    identity.hosts,
    identity.priorities,
    lifecycle.lifecycle,
    network.denied,
    network.openings,
    network.few,
    network.scraped,
    recipes.accepted,
    recipes.drained,
    recipes.redis,
    machines.machines,
    placement.placement,
    scaling.scaled,
)


def problems(manifests: Manifests) -> Iterator[str]:
    """Each of them, or those of the shape alone: of manifests without the right one the rest cannot be asked."""
    shapely = True
    for check in SHAPE:
        for problem in check(manifests):
            yield problem
            shapely = False
        if not shapely:
            return
    for check in POLICY:
        yield from check(manifests)
