"""Autoscaling: as many generators as are asked for, by the figures that the docs and the simulation go by."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deploy.recipe import Recipe
from tests.deploy.k8s.build import COMPONENT, Manifest, Manifests, named, of
from tests.deploy.k8s.recipes import recipe_of

BUSY = 0.85  # of a generator's slots
NAMESPACE = r'namespace="([^"]*)"'
CLAIMED = rf'headrace_ledger_located_tickets\{{{NAMESPACE},kind="train",place="claimed"\}}'
LAW = re.compile(
    rf"clamp_min\(sum\(avg_over_time\({CLAIMED}\[10m\]\)\),1\)\*\(1-max\(headrace_run_finished\{{{NAMESPACE}\}}\)\)"
)


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
            yield from (f"{named(one)}: {what}" for what in _trigger(trigger, recipe, spaces))
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
    if behaviour.get("scaleDown", {}).get("stabilizationWindowSeconds", 0) < 300:
        yield "takes generators away too fast"
    for way in behaviour.values():
        kinds = {policy["type"] for policy in way.get("policies", [])}
        if not kinds or not kinds <= {"Pods", "Percent"} or way.get("selectPolicy", "Max") != "Max":
            yield f"changes by {kinds}, {way.get('selectPolicy')}"


def _trigger(trigger: Manifest, recipe: Recipe | None, spaces: set[str]) -> Iterator[str]:
    found = trigger["metadata"]
    known = {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"}
    if set(found) != known or (trigger["type"], trigger.get("metricType")) != ("prometheus", "AverageValue"):
        yield f"a trigger {trigger['type']}, {trigger.get('metricType')} with {sorted(found)}"
        return
    if recipe and found["threshold"] != f"{BUSY * recipe.generator.slots:.4g}":
        yield f"threshold {found['threshold']} for {recipe.generator.slots} slots"
    if (found["activationThreshold"], found["ignoreNullValues"]) != ("0", "false"):
        yield "an exporter that is silent would pass for a run that is over"
    asked = re.sub(r"\s+", "", found["query"])
    said = LAW.fullmatch(asked)
    if said is None or {said[1], said[2]} != spaces:
        yield f"asks for {asked}"
    if found["serverAddress"] != "http://prometheus-operated.monitoring.svc:9090":
        yield f"asks {found['serverAddress']}"
