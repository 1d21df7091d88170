"""Who may talk to whom: nobody, but roles to Redis and DNS, Prometheus to metrics, ranks to ranks, some to the hub."""

from __future__ import annotations

from collections.abc import Iterator

from tests.deploy.k8s.build import RUN, Manifest, Manifests, Pod, named, of, pods, selects
from tests.deploy.k8s.recipes import recipe_of

PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"}
DNS = {"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"}
DNS_CACHE = "169.254.20.10/32"
PRIVATE = {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"}
RELABELLED = {
    "run": ["__meta_kubernetes_pod_label_headrace_run"],
    "instance": ["__meta_kubernetes_pod_name"],
}
FIRST_ALONE = ["__meta_kubernetes_pod_annotation_batch_kubernetes_io_job_completion_index"]


def _rules(manifests: Manifests, way: str, pod: Pod) -> Iterator[Manifest]:
    """What policies allow a pod in one way, `ingress` or `egress`."""
    for one in of(manifests, "NetworkPolicy"):
        if selects(one["spec"]["podSelector"], pod.labels) and way.capitalize() in one["spec"].get("policyTypes", []):
            yield from one["spec"].get(way, [])


def _open(rule: Manifest, port: int, protocol: str = "TCP") -> bool:
    ports = rule.get("ports")
    return ports is None or any((one.get("port"), one.get("protocol")) == (port, protocol) for one in ports)


def _means(peer: Manifest, labels: dict[str, str], space: dict[str, str] | None = None) -> bool:
    if space is None:
        return "namespaceSelector" not in peer and selects(peer.get("podSelector"), labels)
    return selects(peer.get("namespaceSelector"), space) and selects(peer.get("podSelector", {}), labels)


def _pair(manifests: Manifests, source: Pod, target: Pod, port: int) -> Iterator[str]:
    goes = [r for r in _rules(manifests, "egress", source) if _open(r, port)]
    comes = [r for r in _rules(manifests, "ingress", target) if _open(r, port)]
    if not any(_means(peer, dict(target.labels)) for rule in goes for peer in rule.get("to", [])):
        yield f"{source.name} is not let out to {target.name} at {port}"
    if not any(_means(peer, dict(source.labels)) for rule in comes for peer in rule.get("from", [])):
        yield f"{target.name} does not let {source.name} in at {port}"


def denied(manifests: Manifests) -> Iterator[str]:
    """What is not allowed is forbidden, to everybody, both ways."""
    wanted = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if wanted not in [one["spec"] for one in of(manifests, "NetworkPolicy")]:
        yield "no policy denies everything"


def openings(manifests: Manifests) -> Iterator[str]:
    """Enough of them."""
    found = {pod.role: pod for pod in pods(manifests)}
    redis = found.get("redis")
    for pod in found.values():
        if redis is not None and pod.role != "redis":
            yield from _pair(manifests, pod, redis, redis.ports.get("redis", 0))
            out = list(_rules(manifests, "egress", pod))
            for protocol in ("UDP", "TCP"):
                peers = [peer for rule in out if _open(rule, 53, protocol) for peer in rule.get("to", [])]
                if not any(_means(peer, *DNS) for peer in peers) or {"ipBlock": {"cidr": DNS_CACHE}} not in peers:
                    yield f"{pod.name} finds no name by {protocol}"
    learner = found.get("learner")
    if learner is not None and learner.owner["kind"] == "JobSet":
        yield from _pair(manifests, learner, learner, 40000)  # or whatever NCCL chooses


def few(manifests: Manifests) -> Iterator[str]:
    """And no more: a port is named and served, the world is 443, and only for those who fetch their model from it."""
    found = {pod.role: pod for pod in pods(manifests)}
    served = {port for pod in found.values() for port in pod.ports.values()}
    for one in of(manifests, "NetworkPolicy"):
        for rule in [*one["spec"].get("ingress", []), *one["spec"].get("egress", [])]:
            peers = [*rule.get("from", []), *rule.get("to", [])]
            if not peers:
                yield f"{named(one)}: a rule for everybody"
            ports = {port.get("port") for port in rule.get("ports", [])}
            ours = not any(set(peer) & {"ipBlock", "namespaceSelector"} for peer in peers) or "from" in rule
            if ours and not ports <= served:
                yield f"{named(one)}: nobody serves {ports - served}"
            learner = dict(found["learner"].labels) if "learner" in found else {}
            if not ports and any(not selects(peer.get("podSelector"), learner) for peer in peers):
                yield f"{named(one)}: all ports"
            for block in (peer["ipBlock"] for peer in peers if "ipBlock" in peer):
                world = {"cidr": "0.0.0.0/0", "except": sorted(PRIVATE)}
                if block != {"cidr": DNS_CACHE} and (ports != {443} or block != world):
                    yield f"{named(one)}: {block['cidr']} at {ports}, without {block.get('except')}"
    recipe = recipe_of(manifests)
    fetches = recipe is not None and not recipe.run.model.startswith(("pypi:", "random:", "/"))
    for role in ("learner", "generator", "exporter", "redis"):
        rules = list(_rules(manifests, "egress", found[role])) if role in found else []
        out = any(_open(rule, 443) and any("ipBlock" in peer for peer in rule.get("to", [])) for rule in rules)
        if out != (fetches and role in ("learner", "generator")):
            yield f"{role}: the world is {'open' if out else 'closed'}, the model is {recipe and recipe.run.model}"
        if out != (role in found and "HF_TOKEN_PATH" in found[role].environment):
            yield f"{role}: a token of the hub without the hub, or the other way round"


def scraped(manifests: Manifests) -> Iterator[str]:
    """Where there is a Prometheus operator: every metrics port has one target, and Prometheus gets there."""
    monitors = of(manifests, "PodMonitor")
    for pod in pods(manifests):
        if not monitors or "metrics" not in pod.ports:
            continue
        endpoints = [
            endpoint
            for monitor in monitors
            if selects(monitor["spec"]["selector"], pod.labels)
            for endpoint in monitor["spec"]["podMetricsEndpoints"]
            if endpoint.get("port") in pod.ports and endpoint.get("path", "/metrics") == "/metrics"
        ]
        if len(endpoints) != 1:
            yield f"{pod.name}: {len(endpoints)} PodMonitors scrape it"
        comes = [rule for rule in _rules(manifests, "ingress", pod) if _open(rule, pod.ports["metrics"])]
        if not any(_means(peer, *PROMETHEUS) for rule in comes for peer in rule.get("from", [])):
            yield f"{pod.name}: Prometheus is not let in at {pod.ports['metrics']}"
        if not pod.labels.get(RUN):
            yield f"{pod.name}: its pods have no label {RUN}"
    for monitor in monitors:
        if monitor["spec"].get("jobLabel") != "app.kubernetes.io/component":
            yield f"{named(monitor)}: the job is not the component"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            yield from (f"{named(monitor)}: {what}" for what in _relabelled(endpoint.get("relabelings", [])))


def _relabelled(rules: list[Manifest]) -> Iterator[str]:
    replaced = [rule for rule in rules if rule.get("action", "replace") == "replace"]
    found = {rule.get("targetLabel"): rule.get("sourceLabels") for rule in replaced}
    if found != RELABELLED:
        yield f"targets are given {found}"
    kept = [(rule.get("sourceLabels"), rule.get("regex")) for rule in rules if rule.get("action") == "keep"]
    if kept != [(FIRST_ALONE, "0?")]:
        yield f"keeps the targets {kept}"
