"""Every decoder of the project: good examples of what it reads, how it is called, what must hold of what it returns.

Invariant: `try_it` returns whether an input was accepted, and for what class of reasons it was not; an exception of any
other kind, or a value that breaks its promises, goes through. Refuses to know where inputs come from.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import redis
import zstandard
from prometheus_client import generate_latest
from safetensors.numpy import save

from broker import adapter, delta, manifest
from broker.audit import Answer, Excerpt, Sampling, Share, Span, Use, decode_note, encode_note
from broker.card import PartCard, TaskCard, decode_card, encode_card
from broker.coursebook import Observation
from broker.decoding import decode_group, decode_ticket
from broker.documents import INDEX, indexed_weights
from broker.errors import Malformed, Refused
from broker.files import sha256
from broker.fingerprint import model_hash
from broker.joining import Fingerprint, agree
from broker.keys import Keys
from broker.ledger import Entry
from broker.schema import Rollout, RolloutGroup, Ticket, VersionSpan, encode_group, encode_ticket, tombstone
from broker.shipment import Base, Shipment, decode_chunk, decode_shipment
from consumer.checkpoint import Checkpoint
from consumer.document import read_document
from deploy.recipe import read
from monitoring.endpoints import decode
from monitoring.metrics import GeneratorMetrics
from monitoring.progress import Progress
from producer.sandbox.literals import read as read_literal
from producer.sandbox.literals import same, written
from producer.tasks.base import Problem, Verdict
from producer.verify_lines import (
    decode_answer,
    decode_greeting,
    decode_request,
    encode_answer,
    encode_greeting,
    encode_request,
)

ROOT = Path(__file__).parents[1]
NOW = 1.8e9


@dataclass(frozen=True)
class Decoder:
    """`check` decodes and asserts; it raises `Malformed` or `Refused` for what it refuses."""

    name: str
    good: Sequence[bytes]
    check: Callable[[bytes], None]

    def try_it(self, raw: bytes) -> str:
        """'' if it was accepted, else the class of the reason: its first words, without what was quoted."""
        try:
            self.check(raw)
        except (Malformed, Refused) as refusal:
            reason = str(refusal)
            assert reason
            assert "\n" not in reason
            assert len(reason) < 2000
            return reason
        return ""


class Stored(redis.Redis):
    """A client that finds the same bytes under every key: what is compared is what would come from Redis."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def get(self, name: Any) -> Any:  # noqa: ARG002
        return self._raw


def group() -> RolloutGroup:
    """A group of two, one of which was sampled by two versions."""
    rollouts = tuple(
        Rollout(
            np.arange(1, 5, dtype=np.int32),
            np.array([-0.5, -1.0, 0.0, -3.0], np.float32),
            (VersionSpan(3, 0, 2), VersionSpan(4, 2, 4)),
            reward,
            {"correct": reward, "formatted": 1.0},
        )
        for reward in (0.0, 1.0)
    )
    return RolloutGroup("t0000000001", "train", 17, np.array([1, 2], np.int32), rollouts, "host-1", "", 0.25)


def _ticket(raw: bytes) -> None:
    ticket = decode_ticket(raw)
    assert 0 < len(ticket.ticket_id) <= 64
    assert min(ticket.problem, ticket.seed, ticket.min_policy_version) >= 0
    assert decode_ticket(encode_ticket(ticket)) == ticket


def _group(raw: bytes) -> None:
    one = decode_group(raw)
    assert bool(one.failed) != bool(one.rollouts)
    assert np.isfinite(one.rewards).all()
    for rollout in one.rollouts:
        assert len(rollout.tokens) == len(rollout.behaviour_logprobs) == len(rollout.versions()) > 0
        assert rollout.versions().min() == rollout.oldest_version >= 0
    assert encode_group(decode_group(encode_group(one))) == encode_group(one)


def _entry(raw: bytes) -> None:
    entry = Entry.decode(raw)
    assert Entry.decode(entry.encode()) == entry


CARD = TaskCard("sums", 7, 3, "h", (PartCard("sums", 7),), ((0, "easy"), (0, "hard")), (0, 1, 0), ("correct",))


def _card(raw: bytes) -> None:
    card = decode_card(raw)
    assert decode_card(encode_card(card)) == card


def _result(raw: bytes) -> None:
    try:
        value = read_literal(raw.decode("ascii", "replace"))
    except ValueError as error:
        raise Malformed(str(error)) from None
    assert same(value, value)


def _answer(raw: bytes) -> None:
    verdict = decode_answer(raw)
    assert all(map(math.isfinite, (verdict.reward, *verdict.components.values())))
    json.dumps(verdict.components, ensure_ascii=False).encode()


def _health(raw: bytes) -> None:
    health, _, metrics = raw.partition(b"\0")
    answer = decode(health, metrics, NOW)
    assert answer.since is not None
    assert math.isfinite(answer.since)
    assert math.isfinite(answer.progressed)
    assert all(isinstance(value, float) for value in answer.figures.values())


def decoders(folder: Path) -> list[Decoder]:
    """All of them; those that read files find them in `folder`."""
    fingerprint = Fingerprint("m" * 64, "t" * 64, 4, 1.0, 8, False)
    keys = Keys("fuzzed")
    metrics = GeneratorMetrics()
    metrics.observe_group(group())
    shown = json.dumps(metrics.health()).encode() + b"\0" + generate_latest(metrics.registry)
    (folder / "version").mkdir()
    (folder / "version" / "weights").write_text("w")
    manifest.seal(folder / "version", "fuzzed", 3)
    sealed = (folder / "version" / manifest.NAME).read_bytes()
    record = {
        **{"time": NOW, "step": 3, "steps": 9, "policy_version": 3, "reward": 0.5, "samples": 8, "tokens": 40},
        **{"groups": {"trained": 2, "degenerate": 1, "stale": 0, "failed": 0}, "completion_tokens": 64},
        **{"seconds": 2.5, "wait_seconds": 0.5, "staleness_mean": 1.5, "staleness_max": 3},
        "staleness_histogram": {"1": 30, "3": 10},
    }
    evaluation = {"time": NOW, "eval": {"label": "start", "policy_version": 0, "samples": 8, "pass_at_1": 0.25}}
    document = {
        "history": [[3, 4.5, 12.0, 0, 2], [7, 0.0, 8.0, 1, 3]],
        **{
            "step": 4,
            "version": 4,
            "sequence": 2,
            "sha256": {"state.safetensors": "a" * 64},
            "entries": [Entry(4, 4, True, ("t1",)).encode()],
        },
        "entry_ids": {"t1": "1700000000000-0"},
    }
    problem = Problem((("system", "Add."), ("user", "3 + 4?")), "7", "easy")

    def in_file(name: str, use: Callable[[Path], object]) -> Callable[[bytes], None]:
        path = folder / name
        path.parent.mkdir(exist_ok=True)

        def check(raw: bytes) -> None:
            path.write_bytes(raw)
            use(path)

        return check

    def steps(path: Path) -> None:
        """Never refuses a file: a line that cannot be read is counted, and that is its refusal here."""
        progress = Progress(path)
        progress.read()
        whole = progress.whole
        for figure in (whole.reward, whole.staleness_mean, whole.wait_fraction, whole.seconds, progress.last_time):
            assert figure is None or math.isfinite(figure)
        assert all(count >= 0 for count in whole.groups.values())
        if progress.unreadable:
            raise Malformed("a line that is no record")

    return [
        Decoder("ticket", [encode_ticket(Ticket("t0000000001", 1, 2, 3))], _ticket),
        Decoder("group", [encode_group(group()), encode_group(tombstone(Ticket("t1", 0, 0, 0), "why"))], _group),
        Decoder("journal entry", [Entry(7, 6, True, ("t1", "t2")).encode().encode()], _entry),
        Decoder("audit note", _notes(), _note),
        Decoder("observation", [Observation(12, 3, 4, 8).encode().encode()], _observation),
        Decoder("task card", [encode_card(CARD)], _card),
        Decoder(
            "fingerprint",
            [json.dumps(dataclasses.asdict(fingerprint)).encode()],
            lambda raw: agree(Stored(raw), keys, fingerprint),
        ),
        Decoder(
            "manifest",
            [sealed],
            in_file("version/manifest.json", lambda path: manifest.read(path.parent, "fuzzed", 3)),
        ),
        Decoder("shipment", [_shipment(), _shipment(Base(policy_version=2, digest="d" * 64))], _ships),
        Decoder(
            "chunk of weights",
            [zstandard.ZstdCompressor(write_checksum=True).compress(bytes(range(256)) * 2)],
            lambda raw: _short(decode_chunk(raw, 1024)),
        ),
        Decoder(
            "difference of weights",
            [
                delta.between(bytes(1024), bytes(n % 3 == 0 for n in range(1024))),
                delta.between(bytes(1024), bytes(1024)),
            ],
            lambda raw: delta.lay(raw, bytearray(1024)),
        ),
        Decoder("checkpoint document", [json.dumps(document).encode()], lambda raw: _plain(read_document(raw))),
        Decoder(
            "checkpoint state", [save({"weight": np.zeros(3, np.float32)})], in_file("step-1/state.safetensors", _state)
        ),
        Decoder("recipe", [(ROOT / "recipes" / "tiny.toml").read_bytes()], in_file("recipe.toml", _recipe)),
        Decoder(
            "weight index",
            [json.dumps({"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode()],
            in_file(f"model/{INDEX}", lambda path: _inside(indexed_weights(path.parent))),
        ),
        Decoder(
            "model configuration",
            [b'{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "max_position_embeddings": 512}'],
            in_file("model/config.json", lambda path: model_hash(path.parent)),
        ),
        Decoder("adapter configuration", [LORA], in_file(f"adapter/{adapter.CONFIG}", _adapter)),
        Decoder("adapter weights", [_lora()], in_file(f"adapters/{adapter.WEIGHTS}", _adapter)),
        Decoder("verify request", [encode_request(problem, ["7", "8"])], lambda raw: _texts(decode_request(raw)[1])),
        Decoder(
            "verify answer",
            [encode_answer(Verdict(1.0, {"correct": 1.0})), encode_answer(Verdict(0, {}, "x"))],
            _answer,
        ),
        Decoder(
            "verify greeting",
            [encode_greeting("", "Operation not permitted")],
            lambda raw: _texts(decode_greeting(raw)),
        ),
        Decoder(
            "result of a program",
            [written(value).encode() for value in ([1, -2.5, "é"], {"a": {1, 2}, (None, b"x"): 2j}, "a'b")],
            _result,
        ),
        Decoder(
            "steps.jsonl",
            [json.dumps(line).encode() + b"\n" for line in (record, evaluation, {"time": NOW, "outcome": "solved"})],
            in_file("steps.jsonl", steps),
        ),
        Decoder("healthz and metrics", [shown], _health),
    ]


def _shipment(base: Base | None = None) -> bytes:
    entry = manifest.FileEntry(size=5000, sha256="c" * 64)
    of = manifest.Manifest(schema_version=1, run="fuzzed", policy_version=3, files={"tokenizer/a.json": entry})
    name = "a" * 32
    found = Shipment(schema_version=2, name=name, chunk_bytes=1024, packed_bytes=7, manifest=of, base=base)
    return found.model_dump_json().encode()


def _ships(raw: bytes) -> None:
    found = decode_shipment(raw, "fuzzed", 3, whole=b'"base":null' in raw)
    for name, entry in found.manifest.files.items():
        assert Path("/folder").joinpath(name).resolve().is_relative_to("/folder")
        assert found.chunks_of(entry) * found.chunk_bytes >= entry.size


def _short(chunk: bytes) -> None:
    assert len(chunk) <= 1024


def _state(path: Path) -> None:
    """Its checksum is right: whoever wrote it wrote that, too."""
    for tensor in Checkpoint(path.parent, {"sha256": {path.name: sha256(path)}}).state().values():
        assert tensor.numel() * tensor.element_size() <= path.stat().st_size


LORA = b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "fan_in_fan_out": false}'


def _lora() -> bytes:
    sides = {adapter.DOWN: np.ones((2, 4), np.float32), adapter.UP: np.ones((3, 2), np.float32)}
    header = {"base": "b" * 64, "dtype": "float32"}
    return save({f"{adapter.PREFIX}layer{side}": values for side, values in sides.items()}, header)


def _adapter(path: Path) -> None:
    """The other one of the two files is as it should be."""
    for name, usual in ((adapter.CONFIG, LORA), (adapter.WEIGHTS, _lora())):
        if name != path.name:
            path.with_name(name).write_bytes(usual)
    found = adapter.Adapter.read(path.parent)
    assert math.isfinite(found.scale)
    for name in found.down:
        shape = len(found.up[name]), found.down[name].shape[1]
        assert found.onto(name, np.zeros(shape[::-1] if found.transposed else shape, np.float32)).ndim == 2


def _recipe(path: Path) -> None:
    recipe = read(path, [])
    assert recipe.capacity >= recipe.learner.groups_per_step
    recipe.toml()


def _notes() -> list[bytes]:
    """What a generator tells of a group, and what the learner does."""
    names: dict[str, Any] = {"ticket_id": "t0000000001p0000000017", "generator": "host-1"}
    span, text = Span(policy_version=3, start=0, end=4), Excerpt(head="3 + 4", left_out=12, tail="= 7")
    said: dict[str, Any] = {"tokens": 4, "logprob": -0.5, "reward": 1.0, "components": {"correct": 1.0}}
    answer = Answer(text=text, failed="", truncated=False, spans=(span,), **said)
    ticket: dict[str, Any] = {"problem": 17, "seed": 5, "min_policy_version": 3, "issued_at": NOW, "deliveries": 1}
    share = Share(reward=1.0, tokens=4, advantage=0.5, ratio_mean=1.0)
    told = Sampling(**names, **ticket, answers=(answer, answer))
    used = Use(**names, verdict="trained", published_at=NOW, step=3, version=2, rollouts=(share,))
    return [encode_note(note, 4096) for note in (told, used)]


def _note(raw: bytes) -> None:
    note = decode_note(raw)
    assert 0 < len(note.ticket_id) <= 64
    assert decode_note(encode_note(note, 1 << 20)) == note
    assert len(encode_note(note, 4096)) <= 4096


def _observation(raw: bytes) -> None:
    seen = Observation.decode(raw)
    assert min(seen.problem, seen.epoch, seen.solved) >= 0
    assert seen.solved <= seen.attempts


def _plain(document: dict[str, Any]) -> None:
    assert document["step"] >= 0
    for entry in document.get("entries", []):
        Entry.decode(entry)


def _inside(names: list[str]) -> None:
    assert all("/" not in name and name.endswith(".safetensors") for name in names)


def _texts(texts: Sequence[str]) -> None:
    assert all(isinstance(text, str) for text in texts)
