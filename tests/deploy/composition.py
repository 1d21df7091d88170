"""A compose file as an engine reads it: variables filled in, files laid over one another, `extends` followed.

Invariant: what comes back holds no variable and no reference to another file; a variable without a default must be
given. Refuses to know what a service is for. Only what our files use is known here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?:(?P<kind>:-|:\?)(?P<text>[^{}]*))?\}")
LISTS = ("volumes", "tmpfs", "ports", "configs", "secrets", "cap_add", "cap_drop", "security_opt")


def read(*paths: Path, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The files, the later ones laid over the earlier ones. Raises `KeyError` for a variable that must be given."""
    documents = [_filled(yaml.safe_load(path.read_text()), environ or {}) for path in paths]
    for path, document in zip(paths, documents, strict=True):
        services = document["services"]
        document["services"] = {name: _extended(one, path, environ or {}) for name, one in services.items()}
    whole: dict[str, Any] = documents[0]
    for document in documents[1:]:
        whole = laid_over(whole, document)
    return whole


def variables(path: Path) -> set[str]:
    """The names that a file asks the environment for."""
    return {match["name"] for match in VARIABLE.finditer(path.read_text()) if match["name"]}


def laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key, these lists one behind the other, all else replaced."""
    result = copy.deepcopy(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            result[key] = laid_over(old, value)
        elif isinstance(old, list) and key in LISTS:
            result[key] = [*old, *value]
        else:
            result[key] = copy.deepcopy(value)
    return result


def _extended(service: dict[str, Any], path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    if "extends" not in service:
        return service
    source = service.pop("extends")
    document = _filled(yaml.safe_load((path.parent / source["file"]).read_text()), environ)
    return laid_over(document["services"][source["service"]], service)


def _filled(node: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, environ) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, environ) for value in node]
    return VARIABLE.sub(lambda match: _value(match, environ), node) if isinstance(node, str) else node


def _value(match: re.Match[str], environ: Mapping[str, str]) -> str:
    name = match["name"]
    if name is None:
        return "$"
    if environ.get(name):
        return environ[name]
    if match["kind"] != ":-":
        raise KeyError(f"{name} must be given")
    return str(match["text"])
