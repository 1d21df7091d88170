"""Who is who: labels, namespace, users, hosts, and who gives way to whom."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from broker.roles import Role
from tests.deploy.k8s.build import COMPONENT, LABELS, RUN, Manifests, Pod, named, names, of, pods
from tests.deploy.k8s.recipes import recipe_of
from tests.deploy.k8s.schemas import CLUSTER_WIDE

KNOWN = {COMPONENT, RUN, "grafana_dashboard"}
KNOWN |= {f"pod-security.kubernetes.io/{key}" for key in ("enforce", "enforce-version", "warn", "audit")}
ANNOTATIONS = {"checkov.io/skip1", "checkov.io/skip2"}
ROLES = {"redis", "learner", "generator", "exporter"}
USERS: dict[str, Role] = {"learner": "learner", "generator": "generator", "exporter": "monitor"}


def labels(manifests: Manifests) -> Iterator[str]:
    """Ours on everything; a known component on each pod and on its owner; all in one namespace."""
    spaces = names(manifests, "Namespace")
    recipe = recipe_of(manifests)
    ours = LABELS | ({} if recipe is None else {RUN: recipe.run.name})
    for one in manifests:
        found = one["metadata"].get("labels", {})
        if not ours.items() <= found.items():
            yield f"{named(one)}: its labels are {found}, without all of {ours}"
        for key in set(found) - ours.keys() - KNOWN:
            yield f"{named(one)}: nobody knows the label {key}"
        if found.get(COMPONENT, "redis") not in ROLES:
            yield f"{named(one)}: nobody is a {found[COMPONENT]}"
        for key in set(one["metadata"].get("annotations", {})) - ANNOTATIONS:
            yield f"{named(one)}: nobody knows the annotation {key}"
        if (one["metadata"].get("namespace") not in spaces) != (one["kind"] in CLUSTER_WIDE):
            yield f"{named(one)}: namespace {one['metadata'].get('namespace')}"
    for pod in pods(manifests):
        if not LABELS.items() <= pod.labels.items() or pod.role not in ROLES:
            yield f"{pod.name}: labels of its pods are {pod.labels}"
        owner = pod.owner["metadata"]
        if {owner["labels"].get(COMPONENT), owner["name"]} != {pod.role}:
            yield f"{pod.name}: its component is called {pod.role}"
    if sorted(pod.role for pod in pods(manifests)) != sorted(ROLES):
        yield f"the pods are {sorted(pod.name for pod in pods(manifests))}"
    for one in of(manifests, "Namespace"):
        labels = one["metadata"].get("labels", {})
        said = {key.rpartition("/")[2]: value for key, value in labels.items() if key.startswith("pod-security")}
        if said != {"enforce": "restricted", "enforce-version": "latest", "warn": "restricted", "audit": "restricted"}:
            yield f"{named(one)}: pod security {said}"


def hosts(manifests: Manifests) -> Iterator[str]:
    """Redis is where its Service is, and each role comes as its own user; ranks meet in the first pod."""
    found = of(manifests, "Service")
    services = {f"{one['metadata']['name']}:{port['port']}" for one in found for port in one["spec"]["ports"]}
    for pod in pods(manifests):
        if pod.role not in USERS:
            continue
        url = urlsplit(pod.environment.get("HEADRACE_BROKER__URL", ""))
        if url.scheme != "redis" or url.netloc.rpartition("@")[2] not in services:
            yield f"{pod.name}: no Service at {url.geturl()}"
        password = pod.environment.get("HEADRACE_BROKER__PASSWORD_FILE", "").rpartition("/")[2]
        if url.username != USERS[pod.role] or password != f"{url.username}.password":
            yield f"{pod.name}: comes as {url.username} with {password}"
        if pod.owner["kind"] == "JobSet" and pod.environment.get("MASTER_ADDR") != _first(pod):
            yield f"{pod.name}: nobody is called {pod.environment.get('MASTER_ADDR')}"


def _first(pod: Pod) -> str:
    """What the name of the first pod of a JobSet resolves by."""
    name, spec = pod.owner["metadata"]["name"], pod.owner["spec"]
    return f"{name}-{spec['replicatedJobs'][0]['name']}-0-0.{spec.get('network', {}).get('subdomain', name)}"


def priorities(manifests: Manifests) -> Iterator[str]:
    """A class for each; generators give way to everybody else, and push nobody out."""
    classes = {one["metadata"]["name"]: one for one in of(manifests, "PriorityClass")}
    values = {}
    for pod in pods(manifests):
        if pod.spec.get("priorityClassName") not in classes:
            yield f"{pod.name}: no priority class {pod.spec.get('priorityClassName')}"
            continue
        chosen = classes[pod.spec["priorityClassName"]]
        values[pod.role] = chosen["value"]
        if pod.role == "generator" and chosen.get("preemptionPolicy") != "Never":
            yield f"{named(chosen)}: generators may push others out"
    if any(values.get("generator", 0) >= value for role, value in values.items() if role != "generator"):
        yield f"generators are as important as the others: {values}"
    unused = set(classes) - {pod.spec.get("priorityClassName") for pod in pods(manifests)}
    yield from (f"PriorityClass/{name}: nobody has it" for name in unused)
