"""Manifests from standard input, as `kubectl kustomize` prints them, without those whose deletion would lose data.

Invariant: of what goes out nothing holds data, and a manifest goes out as it came in. Refuses to know the rest of it.
"""

from __future__ import annotations

import re
import sys

HOLDS_DATA = re.compile(r"^kind: (Namespace|PersistentVolumeClaim|PersistentVolume)\s*$", re.MULTILINE)


def without_data(manifests: str) -> str:
    """The YAML documents that may be deleted; a namespace would take its volumes along."""
    documents = re.split(r"^---[^\S\n]*\n", manifests, flags=re.MULTILINE)
    return "---\n".join(document for document in documents if document.strip() and not HOLDS_DATA.search(document))


if __name__ == "__main__":
    sys.stdout.write(without_data(sys.stdin.read()))
