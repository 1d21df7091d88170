"""Autoscaling: as many generators as are asked for, by the figures that the docs and the simulation go by."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.deploy.k8s.build import COMPONENT, Manifest, Manifests, named, of
from tests.deploy.k8s.recipes import recipe_of

UNFINISHED = 'maxby(run)(1-headrace_run_finished{namespace="%s"})'
LAW = f"sum({UNFINISHED}*on(run)clamp_min(headrace:generators_wanted:mean10m,1)or{UNFINISHED})"
STANDSTILL = 900  # seconds that a learner may stand still before its generators are taken away


def scaled(manifests: Manifests) -> Iterator[str]:
    """As many generators as are asked for, no more than there are credits for, and nobody else sets their number."""
    recipe, spaces = recipe_of(manifests), {one["metadata"]["name"] for one in of(manifests, "Namespace")}
    deployments = {one["metadata"]["name"]: one for one in of(manifests, "Deployment")}
    for one in of(manifests, "ScaledObject"):
        spec, target = one["spec"], deployments.get(one["spec"]["scaleTargetRef"]["name"])
        if target is None or target["metadata"]["labels"].get(COMPONENT) != "generator":
            yield f"{named(one)}: scales {spec['scaleTargetRef']['name']}"
        elif "replicas" in target["spec"]:
            yield f"{named(target)}: an apply would set its number back"
        for trigger in spec["triggers"]:
            yield from (f"{named(one)}: {what}" for what in _trigger(trigger, spaces))
        low, high = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
        if spec.get("idleReplicaCount") != 0 or not 0 < low <= high:
            yield f"{named(one)}: {spec.get('idleReplicaCount')} when idle, {low} to {high}"
        yield from (f"{named(one)}: {what}" for what in _steady(spec, low, high))
        if recipe and recipe.capacity < 2 * high * recipe.generator.slots + recipe.learner.groups_per_step:
            yield f"{named(one)}: {recipe.capacity} credits are too few for {high} generators"


def _steady(spec: Manifest, low: int, high: int) -> Iterator[str]:
    fallback = spec.get("fallback", {})
    if fallback.get("behavior") != "currentReplicas" or not low <= fallback.get("replicas", 0) <= high:
        yield f"without figures {fallback}"
    behaviour = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    if behaviour != {"scaleDown": {"stabilizationWindowSeconds": STANDSTILL}}:
        yield f"behaves as nobody has simulated: {behaviour}"


def _trigger(trigger: Manifest, spaces: set[str]) -> Iterator[str]:
    found = trigger["metadata"]
    known = {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"}
    if set(found) != known or (trigger["type"], trigger.get("metricType")) != ("prometheus", "AverageValue"):
        yield f"a trigger {trigger['type']}, {trigger.get('metricType')} with {sorted(found)}"
        return
    if (found["threshold"], found["activationThreshold"], found["ignoreNullValues"]) != ("1", "0", "false"):
        yield "what is asked for is a number of generators, and an exporter that is silent is not a run that is over"
    if re.sub(r"\s+", "", found["query"]) not in {LAW % (space, space) for space in spaces}:
        yield f"asks for {found['query']}"
    if found["serverAddress"] != "http://prometheus-operated.monitoring.svc:9090":
        yield f"asks {found['serverAddress']}"
