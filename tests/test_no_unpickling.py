"""Data never becomes code: nothing is unpickled or evaluated, weights are safetensors, no model brings code along.

Read from the source, in all our packages; and tried, with a model whose files would run if they were loaded. The one
exception is what the task `code` asks a model for, behind the lock of `producer/sandbox/` (`tests/producer/sandbox/`);
and a benchmark unpickles, on a server of its own, to say what not doing it is worth.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from broker.errors import Refused
from broker.loading import load
from consumer.model import PolicyModel
from consumer.settings import LearnerRecipe
from deploy.prepare import prepare
from producer import model_files
from producer.settings import GeneratorRecipe
from producer.tasks.settings import AdditionSettings
from producer.tokens import Tokens
from producer.transformers_engine import TransformersEngine

ROOT = Path(__file__).parents[1]
PACKAGES = ("broker", "producer", "consumer", "monitoring", "deploy", "benchmarks", "requirements")
UNPICKLERS = {
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"),
    *("pickletools", "copyreg", "pandas"),
}

# How a neighbour does it, measured beside how we do it: it reads what it has just written itself.
MEASURED = ["benchmarks/transport_pickle.py imports pickle"]
BEHIND_THE_LOCK = [f"producer/sandbox/runner.py calls {name}" for name in ("exec", "compile")]


# -- read from the source ---------------------------------------------------------------------------------------------


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in a module could turn data into code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"imports {a.name}" for a in node.names if a.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            yield f"imports {node.module}"
        elif isinstance(node, ast.Call):
            yield from _call(ast.unparse(node.func), {k.arg or "**": ast.unparse(k.value) for k in node.keywords}, node)


def _call(name: str, given: dict[str, str], node: ast.Call) -> Iterator[str]:
    last = name.rpartition(".")[2]
    if name in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"):
        yield f"calls {name}"
    if name in ("torch.load", "torch.hub.load", "torch.jit.load") or last in ("load_pickle", "read_pickle"):
        yield f"calls {name}"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        yield f"calls {name} without allow_pickle=False"
    if name in ("yaml.load", "yaml.load_all") and not given.get("Loader", "").endswith("SafeLoader"):
        yield f"calls {name} without a safe loader"
    if name in ("yaml.unsafe_load", "yaml.full_load"):
        yield f"calls {name}"
    if last == "from_pretrained" and "Model" in name and not {"gguf_file", "use_safetensors"} & given.keys():
        yield f"calls {name} without use_safetensors=True"
    if given.get("use_safetensors", "True") != "True":
        yield f"calls {name} with use_safetensors={given['use_safetensors']}"
    code = given.get("trust_remote_code", "False")
    if code != "False" and not code.endswith("trust_remote_code"):
        yield f"calls {name} with trust_remote_code={code}"
    if any(isinstance(arg, ast.Constant) and arg.value == "pickle" for arg in node.args):
        yield f"calls {name} with 'pickle'"


def test_no_data_becomes_code() -> None:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            found += [f"{file} {danger}" for danger in dangers(ast.parse(path.read_text()))]
    assert sorted(found) == sorted(MEASURED + BEHIND_THE_LOCK)


def test_nothing_that_runs_knows_the_module_that_unpickles() -> None:
    """The benchmark of it alone does, and none of our rooms knows a benchmark."""
    knowing = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "transport_pickle" in path.read_text()
    ]
    assert all(name.startswith("benchmarks/transport") for name in knowing), knowing


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("import torch; torch.load(p)", "calls torch.load"),
        ("torch.load(p, weights_only=True)", "calls torch.load"),
        ("np.load(p)", "calls np.load without allow_pickle=False"),
        ("np.load(p, allow_pickle=flag)", "calls np.load without allow_pickle=False"),
        ("yaml.load(t)", "calls yaml.load without a safe loader"),
        ("yaml.load(t, Loader=yaml.Loader)", "calls yaml.load without a safe loader"),
        ("eval(text)", "calls eval"),
        ("exec(text)", "calls exec"),
        ("importlib.import_module('pickle')", "calls importlib.import_module with 'pickle'"),
        ("AutoModelForCausalLM.from_pretrained(p)", "calls AutoModelForCausalLM.from_pretrained without use_safet"),
        ("AutoModel.from_pretrained(p, use_safetensors=None)", "with use_safetensors=None"),
        ("AutoConfig.from_pretrained(p, trust_remote_code=True)", "with trust_remote_code=True"),
    ],
)
def test_each_danger_is_seen(line: str, said: str) -> None:
    assert any(said in danger for danger in dangers(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "np.load(p, allow_pickle=False)",
        "yaml.load(t, Loader=yaml.SafeLoader)",
        "model.eval()",
        "pipe.eval(SCRIPT, 1, key)",
        "AutoModel.from_pretrained(p, use_safetensors=True, trust_remote_code=recipe.run.trust_remote_code)",
        "safetensors.torch.load_file(p)",
    ],
)
def test_what_is_harmless_passes(line: str) -> None:
    assert list(dangers(ast.parse(line))) == []


def test_vllm_is_told_to_load_safetensors_alone() -> None:
    assert '"load_format": "safetensors"' in (ROOT / "producer" / "vllm_arguments.py").read_text()


# -- tried ------------------------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("random:llama-tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Appears when something of the model was run."""
    return tmp_path / "it-ran"


@pytest.fixture
def pickled(tmp_path: Path, model: Path, mark: Path) -> Path:
    """A model directory whose only weights are a pickle that does something."""
    folder = Path(shutil.copytree(model, tmp_path / "pickled"))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save({"weight": Payload(mark)}, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def scripted(tmp_path: Path, model: Path, mark: Path) -> Path:
    """A model directory that brings Python code along for its configuration, its model and its tokenizer."""
    folder = Path(shutil.copytree(model, tmp_path / "scripted"))
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    for name, kinds in (("config.json", ("AutoConfig", "AutoModelForCausalLM")), ("tokenizer_config.json", ())):
        document = json.loads((folder / name).read_text())
        tokenizer_map: dict[str, Any] = {"AutoTokenizer": ["code.Thing", "code.Thing"]}
        document["auto_map"] = dict.fromkeys(kinds, "code.Thing") or tokenizer_map
        (folder / name).write_text(json.dumps(document | ({"model_type": "unheard-of"} if kinds else {})))
    return folder


def learner(folder: Path) -> object:
    recipe = load(LearnerRecipe, ROOT / "recipes" / "tiny.toml", [f"--run.model={folder}"], {})
    return PolicyModel.load(folder, recipe, recipe.learner)


def generator_recipe(folder: Path) -> GeneratorRecipe:
    return load(GeneratorRecipe, ROOT / "recipes" / "tiny.toml", [f"--run.model={folder}"], {})


def plain_engine(folder: Path) -> object:
    async def start() -> None:
        engine = TransformersEngine(str(folder), generator_recipe(folder))
        try:
            await engine.start()
        finally:
            await engine.stop()

    return asyncio.run(start())


def before_vllm(folder: Path) -> object:
    """What the vLLM engine asks before it loads anything."""
    return model_files.end_tokens(str(folder), generator_recipe(folder))


def preparation(folder: Path) -> object:
    return prepare(str(folder), folder.parent / "models")


def tokenizer(folder: Path) -> object:
    return Tokens(folder, AdditionSettings(name="addition"))


LOADERS = [learner, plain_engine, before_vllm, preparation]


def test_the_payload_would_have_run(pickled: Path, mark: Path) -> None:
    torch.load(pickled / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


def test_the_code_would_have_run(scripted: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(AttributeError):  # it defines nothing
        AutoConfig.from_pretrained(str(scripted), **{"trust_remote_code": True})
    assert mark.exists()


@pytest.mark.parametrize("load_it", LOADERS, ids=lambda f: f.__name__)
def test_a_model_of_pickles_is_refused_and_never_run(
    load_it: Callable[[Path], object], pickled: Path, mark: Path
) -> None:
    with pytest.raises(Refused) as caught:
        load_it(pickled)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("load_it", [learner, plain_engine, before_vllm], ids=lambda f: f.__name__)
def test_pickles_beside_good_weights_are_left_alone(
    load_it: Callable[[Path], object], model: Path, tmp_path: Path, mark: Path
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "both"))
    torch.save({"weight": Payload(mark)}, folder / "pytorch_model.bin")
    load_it(folder)
    assert not mark.exists()


@pytest.mark.parametrize("load_it", [learner, plain_engine, before_vllm], ids=lambda f: f.__name__)
def test_code_that_a_model_brings_along_is_not_run(
    load_it: Callable[[Path], object], scripted: Path, mark: Path
) -> None:
    with pytest.raises(Refused, match=r"trust_remote_code|custom code|cannot load"):
        load_it(scripted)
    assert not mark.exists()


@pytest.mark.parametrize("load_it", [preparation, tokenizer], ids=lambda f: f.__name__)
def test_whoever_needs_no_code_of_the_model_goes_on_without(
    load_it: Callable[[Path], object], scripted: Path, mark: Path
) -> None:
    with contextlib.suppress(Refused):
        load_it(scripted)
    assert not mark.exists()


def test_remote_code_is_off_unless_the_recipe_says_so(model: Path) -> None:
    recipe = ROOT / "recipes" / "tiny.toml"
    assert not load(GeneratorRecipe, recipe, [], {}).run.trust_remote_code
    assert load(GeneratorRecipe, recipe, ["--run.trust_remote_code=true"], {}).run.trust_remote_code
    for path in (ROOT / "recipes").glob("*.toml"):
        assert "trust_remote_code" not in path.read_text()
