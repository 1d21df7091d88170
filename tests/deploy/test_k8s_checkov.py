"""Checkov finds nothing in the manifests but what a line in them gives a reason for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.deploy.k8s.build import OVERLAYS, ROOT, needs_kubectl, text

CHECKOV = ROOT / ".venv-checkov" / "bin" / "checkov"
REASONED = {"CKV_K8S_15", "CKV_K8S_43"}

needs_checkov = pytest.mark.skipif(not CHECKOV.exists(), reason="no .venv-checkov (`make checkov` makes it)")
pytestmark = [needs_kubectl, needs_checkov]


def test_nothing_is_unsafe_without_a_reason(tmp_path: Path) -> None:
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(text(overlay))
    command = [str(CHECKOV), "--directory", str(tmp_path), "--framework", "kubernetes", "--skip-download"]
    done = subprocess.run([*command, "--compact", "--output", "json"], capture_output=True, text=True)
    results = json.loads(done.stdout)["results"]
    assert [(one["check_id"], one["resource"], one["file_path"]) for one in results["failed_checks"]] == []
    assert len(results["passed_checks"]) > 1000
    assert {one["check_id"] for one in results["skipped_checks"]} == REASONED
    assert all(one["check_result"]["suppress_comment"] for one in results["skipped_checks"])
