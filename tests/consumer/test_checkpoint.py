"""Checkpoints: complete or absent, checked when read, the newest few kept."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from broker.errors import Refused
from consumer.checkpoint import DOCUMENT, STATE, newest, write

ROOT = Path(__file__).parents[2]
DOCUMENTED = {"version": 4, "sequence": 2, "entries": ["[4, 4, true, []]"], "entry_ids": {"t0": "1-1"}}


def state(fill: float = 1.0) -> dict[str, Tensor]:
    return {"updates": torch.tensor(7), "model.w": torch.full((300, 7), fill), "optimizer.0.step": torch.tensor(3.0)}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_was_written_is_read_back_whole(tmp_path: Path) -> None:
    written = write(tmp_path / "checkpoints", 4, state(), DOCUMENTED, keep=2)
    found = newest(tmp_path / "checkpoints")
    assert found == written
    assert {name: found.document[name] for name in DOCUMENTED} == DOCUMENTED
    assert found.document["step"] == 4
    assert found.state().keys() == state().keys()
    assert all(torch.equal(found.state()[name], tensor) for name, tensor in state().items())


def test_before_the_first_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "not even a folder") is None


def test_the_newest_few_are_kept_by_number_and_not_by_age(tmp_path: Path) -> None:
    for step in (2, 10, 9, 100):
        write(tmp_path, step, state(), DOCUMENTED, keep=2)
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    found = newest(tmp_path)
    assert found is not None
    assert found.document["step"] == 100


def test_the_same_step_again_replaces_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, 4, state(1.0), DOCUMENTED, keep=2)
    write(tmp_path, 4, state(2.0), DOCUMENTED, keep=2)
    found = newest(tmp_path)
    assert found is not None
    assert float(found.state()["model.w"].mean()) == 2.0
    assert names(tmp_path) == ["step-00000004"]


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [flip, cut_off, lambda path: path.write_bytes(b"")])
def test_damaged_tensors_are_refused_by_name_before_one_is_used(tmp_path: Path, harm: Any) -> None:
    folder = write(tmp_path, 4, state(), DOCUMENTED, keep=2).folder
    harm(folder / STATE)
    found = newest(tmp_path)
    assert found is not None
    with pytest.raises(Refused, match=r"step-00000004 is damaged: there is none before it"):
        found.state()


@pytest.mark.parametrize("harm", [lambda path: path.write_text("{"), Path.unlink])
def test_a_damaged_document_is_refused_and_not_passed_over(tmp_path: Path, harm: Any) -> None:
    """Falling back in silence would repeat steps whose groups are acknowledged and gone."""
    write(tmp_path, 3, state(), DOCUMENTED, keep=2)
    harm(write(tmp_path, 4, state(), DOCUMENTED, keep=2).folder / DOCUMENT)
    with pytest.raises(Refused, match=r"step-00000004 is damaged.*--learner.resume 3"):
        newest(tmp_path)


# -- crashes ---------------------------------------------------------------------------------------------------------

# Each argument names a place to die in; one interpreter, a fork for each.
CRASH = """
import os, signal, sys
from pathlib import Path
import torch
from consumer import checkpoint
places = {"save": (checkpoint, "save_file"), "fsync": (os, "fsync"), "rename": (Path, "rename")}
for name, place in places.items():
    root = Path(sys.argv[1]) / name
    checkpoint.write(root, 1, {"w": torch.zeros(3)}, {}, 2)
    child = os.fork()
    if child == 0:
        setattr(*place, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        checkpoint.write(root, 2, {"w": torch.ones(3)}, {}, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def test_a_kill_in_the_middle_leaves_the_one_before_and_nothing_that_looks_complete(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], cwd=ROOT, check=True)
    for at in ("save", "fsync", "rename"):
        left = names(tmp_path / at)
        assert [name for name in left if not name.startswith(".")] == ["step-00000001"]
        assert len(left) == 2, f"killed at {at} it leaves what it had begun, hidden"
        found = newest(tmp_path / at)
        assert found is not None
        assert found.state()["w"].tolist() == [0.0] * 3
        assert names(tmp_path / at) == ["step-00000001"], "the leftover is gone"


def test_an_error_while_writing_leaves_no_trace(tmp_path: Path) -> None:
    write(tmp_path, 1, state(), DOCUMENTED, keep=2)
    shared = torch.zeros(4)
    with pytest.raises((RuntimeError, SafetensorError)):
        write(tmp_path, 2, {"a": shared, "b": shared}, DOCUMENTED, keep=2)
    with pytest.raises(TypeError):
        write(tmp_path, 2, state(), {"not": object()}, keep=2)
    assert names(tmp_path) == ["step-00000001"]


def test_nothing_in_it_is_ever_unpickled(tmp_path: Path) -> None:
    """Not even if its checksum is right: what is no safetensors is no checkpoint."""
    folder = write(tmp_path, 1, state(), DOCUMENTED, keep=1).folder
    assert names(folder) == sorted([DOCUMENT, STATE])
    torch.save(state(), folder / STATE)
    document = json.loads((folder / DOCUMENT).read_text())
    document["sha256"] = {STATE: hashlib.sha256((folder / STATE).read_bytes()).hexdigest()}
    (folder / DOCUMENT).write_text(json.dumps(document))
    found = newest(tmp_path)
    assert found is not None
    with pytest.raises(Refused, match="is damaged"):
        found.state()
