"""The Kubernetes manifests: each overlay builds, has the shape that Kubernetes and the operators know, and is what the
code needs of a cluster and no more. The checks are in `tests/deploy/k8s`.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from tests.deploy.k8s import schemas, wiring
from tests.deploy.k8s.build import K8S, OVERLAYS, ROOT, VARIANTS, manifests, needs_kubectl, of, parsed, pods, rendered
from tests.deploy.k8s.checks import POLICY, Check, problems
from tests.deploy.k8s.containers import IMAGES
from tests.deploy.k8s.recipes import recipe_of

pytestmark = needs_kubectl
README = (K8S / "README.md").read_text(encoding="utf-8")
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def test_every_overlay_is_tested() -> None:
    assert sorted(folder.name for folder in (K8S / "overlays").iterdir()) == sorted(OVERLAYS)
    assert all(f"overlays/{overlay}" in README for overlay in OVERLAYS)


@every_variant
def test_it_has_a_shape_that_kubernetes_knows(variant: str) -> None:
    found = manifests(variant)
    assert [*schemas.kinds(found), *schemas.core(found)] == []


@pytest.mark.skipif(schemas.crds() is None, reason="CRD_SCHEMAS_DIR names no folder with schemas of custom resources")
@every_variant
def test_it_has_a_shape_that_the_operators_know(variant: str) -> None:
    assert list(schemas.custom(manifests(variant))) == []


@every_variant
@pytest.mark.parametrize("check", POLICY, ids=lambda check: check.__name__)
def test_it_is_as_it_should_be(variant: str, check: Check) -> None:
    assert list(check(manifests(variant))) == []


def test_the_smallest_overlay_needs_no_operator() -> None:
    assert all(one["apiVersion"] in schemas.CORE for one in manifests("cpu"))


@pytest.mark.parametrize("overlay", [one for one in OVERLAYS if one != "cpu"])
def test_the_others_are_watched_and_scaled(overlay: str) -> None:
    found = manifests(overlay)
    assert of(found, "PodMonitor")
    assert of(found, "PrometheusRule")
    assert of(found, "ScaledObject")


def test_the_smallest_overlay_runs_the_demo() -> None:
    ours = tomllib.loads((K8S / "overlays" / "cpu" / "recipe.toml").read_text(encoding="utf-8"))
    assert ours["generator"].pop("drain_seconds") == 30
    assert ours == tomllib.loads((ROOT / "recipes" / "demo.toml").read_text(encoding="utf-8"))


def test_what_is_made_by_hand_is_documented() -> None:
    for secret, keys in wiring.OUT_OF_BAND.items():
        assert f"generic {secret} " in README
        assert all(key in README for key in keys)


def test_the_images_are_of_this_release() -> None:
    release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for overlay in OVERLAYS:
        for pod in pods(manifests(overlay)):
            tag = pod.containers[0]["image"].partition(":")[2]
            assert pod.role == "redis" or re.fullmatch(rf"{re.escape(release)}(-cuda)?", tag), pod.name
            assert pod.role in IMAGES


def test_generators_alone_are_on_machines_that_may_be_taken_away() -> None:
    by_node = {
        overlay: {pod.role for pod in pods(manifests(overlay)) if "nodeAffinity" in pod.spec.get("affinity", {})}
        for overlay in OVERLAYS
    }
    assert by_node == {
        "cpu": set(),
        "gpu": set(),
        "multi-node": set(),
        "spot": {"generator", "learner", "redis", "exporter"},
    }


def test_an_overlay_of_ones_own_is_as_the_page_says(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    above = os.path.relpath(K8S, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(example.replace("../headrace/deploy/k8s", above))
    recipe = (K8S / "overlays" / "gpu" / "recipe.toml").read_text(encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(recipe.replace("steps = 500", "steps = 7"), encoding="utf-8")
    found = parsed(rendered(tmp_path))
    assert list(problems(found)) == []
    ours = recipe_of(found)
    assert ours is not None
    assert ours.run.steps == 7
    assert {one["spec"]["storageClassName"] for one in of(found, "PersistentVolumeClaim")} == {"fast"}
