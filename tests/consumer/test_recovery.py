"""What is left of a run when Redis loses its last second, or everything, and when somebody goes back on purpose.

The crash is real: a server that is killed and comes back with older data, or with none.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from broker.connection import connect
from broker.errors import Behind, Refused
from broker.keys import Keys
from broker.patience import Patience
from broker.schema import RolloutGroup, Ticket
from broker.settings import BrokerSettings
from broker.streams import Arrival
from broker.ticket_id import TicketId
from consumer import checkpoint
from consumer.inbox import CLAIM_SECONDS
from consumer.learner import Learner
from tests.consumer.desk import ids
from tests.consumer.one_run import Answer, Run, mixed
from tests.faults import Faulty
from tests.system.pipeline import wait_until

STEPS = 8
DETERMINISTIC = {"steps": STEPS, "deterministic": True}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Faulty]:
    with Faulty(tmp_path / "redis") as server:
        yield server


def run_on(server: Faulty, name: str, folder: Path, **run_settings: Any) -> Run:
    patience = Patience(30.0)
    client = connect(BrokerSettings(), server.url, patience=patience)
    blocking = connect(BrokerSettings(), server.url, blocking_seconds=CLAIM_SECONDS, patience=patience)
    made = Run(client, blocking, Keys(name), folder, patience=patience)
    made.learner_settings = {"checkpoint_every": 3, "learning_rate": 0.01, "tokens_per_micro_batch": 1}
    made.run_settings, made.evaluate = {**DETERMINISTIC, **run_settings}, 2
    return made


@pytest.fixture
def run(server: Faulty, tmp_path: Path) -> Run:
    return run_on(server, "run", tmp_path / "run")


def remembering(server: Faulty, run: Run, number: int, given: Answer = mixed) -> Answer:
    """Answers tickets; remembers what Redis holds when ticket `number` is asked for."""

    def answer(ticket: Ticket) -> RolloutGroup | None:
        if ticket.kind == "train" and TicketId.parse(ticket.ticket_id).number == number:
            server.remember()
        return given(ticket)

    return answer


def same_weights(run: Run, learner: Learner, server: Faulty, folder: Path) -> bool:
    """As in a run to which nothing happened."""
    steady = run_on(server, "steady", folder / "steady", **run.run_settings)
    steady.learner_settings = run.learner_settings
    undisturbed = steady.learner()
    assert steady.finish(undisturbed) == "finished"
    expected, found = undisturbed.trainer.state_dict(), learner.trainer.state_dict()
    assert learner.dispatch.ledger.verdicts() == undisturbed.dispatch.ledger.verdicts()
    return all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def closed(learner: Learner) -> bool:
    train, evaluations = learner.dispatch.ledger.balance(), learner.evaluator.ledger.balance()
    assert train.balanced, train
    assert evaluations.balanced, evaluations
    return not train.unsettled and not evaluations.unsettled and train.verdicts["trained"] == STEPS * 2


def otherwise(ticket: Ticket) -> RolloutGroup:
    """What a generator that is not deterministic might have said to the same ticket."""
    made = mixed(ticket)
    return replace(made, rollouts=tuple(replace(rollout, reward=1.0 - rollout.reward) for rollout in made.rollouts))


def take_up(run: Run, learner: Learner, answer: Answer = mixed) -> Learner:
    """What the learner's process does: start from the checkpoint as often as Redis has lost something."""
    for _ in range(3):
        try:
            assert run.finish(learner, answer) == "finished"
            return learner
        except Behind:
            learner = run.learner()
    raise AssertionError("it never ends")


# -- the learner dies, and Redis forgets -------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0, 2])
@pytest.mark.parametrize("crash_at", [2, 4, 7])
@pytest.mark.parametrize("loss", ["everything", "some"])
def test_the_books_are_made_anew_and_the_weights_are_the_same(
    server: Faulty, run: Run, tmp_path: Path, loss: str, crash_at: int, bound: int
) -> None:
    run.run_settings |= {"max_staleness": bound}
    run.learner_settings |= {"pipeline_depth": bound}
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=crash_at), remembering(server, run, 2 * crash_at - 2))
    server.lose_all() if loss == "everything" else server.forget()
    learner = take_up(run, run.learner())
    assert closed(learner)
    assert same_weights(run, learner, server, tmp_path)


def by_problem(ticket: Ticket) -> RolloutGroup:
    """Of three problems one is never solved, one always, one sometimes; each has tokens of its own."""
    made = mixed(ticket)
    if ticket.kind == "eval":
        return made
    rewards = ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0))[ticket.problem % 3]
    first, second = (
        replace(r, reward=reward, tokens=r.tokens * 0 + 1 + (ticket.problem + n) % 39)
        for n, (r, reward) in enumerate(zip(made.rollouts, rewards, strict=True))
    )
    return replace(made, rollouts=(first, second))


def learner_that_dies(run: Run, crash_at: int, before_the_settlement: bool) -> Learner:
    """While it uploads version `crash_at`; or once a checkpoint of that step or a later one is on disk."""
    learner = run.learner(crash_at=None if before_the_settlement else crash_at)
    write = learner.durability.write

    def write_and_die(folder: Path, step: int, *rest: Any) -> None:
        write(folder, step, *rest)
        if before_the_settlement and step >= crash_at:
            raise InterruptedError("crash")

    learner.durability.write = write_and_die
    return learner


def same_course(ours: Learner, theirs: Learner) -> bool:
    """What was asked for, what is remembered and what came of it."""
    one, other = (learner.dispatch.issuer.curriculum for learner in (ours, theirs))
    assert one.walks == other.walks
    assert one.memory.now.encode() == other.memory.now.encode() != []
    assert ours.dispatch.ledger.course.read().walked == {walk.part: walk.walked for walk in one.walks}
    assert ours.dispatch.ledger.verdicts() == theirs.dispatch.ledger.verdicts()
    expected, found = theirs.trainer.state_dict(), ours.trainer.state_dict()
    return all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("curriculum", ["skip", "target"])
@pytest.mark.parametrize(
    ("loss", "crash_at"), [("none", 1), ("none", 6), ("settlement", 3), ("some", 4), ("everything", 7)]
)
def test_a_curriculum_that_goes_by_pass_rates_goes_on_as_if_nothing_had_happened(
    server: Faulty, run: Run, tmp_path: Path, loss: str, crash_at: int, curriculum: str
) -> None:
    run.run_settings |= {"max_staleness": 1}
    run.learner_settings |= {"pipeline_depth": 1, "curriculum": curriculum}
    with pytest.raises(InterruptedError):
        run.finish(
            learner_that_dies(run, crash_at, loss == "settlement"),
            remembering(server, run, 2 * crash_at - 2, by_problem),
        )
    if loss in ("some", "everything"):
        server.lose_all() if loss == "everything" else server.forget()
    learner = take_up(run, run.learner(), by_problem)
    assert closed(learner)
    steady = run_on(server, "steady", tmp_path / "steady", **run.run_settings)
    steady.learner_settings = run.learner_settings
    undisturbed = steady.learner()
    assert steady.finish(undisturbed, by_problem) == "finished"
    assert same_course(learner, undisturbed)
    assert run.client.llen(run.keys.observations) == 0, "the last checkpoint holds them all"


def test_redis_forgets_under_a_learner_that_lives(server: Faulty, run: Run, tmp_path: Path) -> None:
    forgotten = list[str]()

    def answer(ticket: Ticket) -> RolloutGroup:
        if ticket.ticket_id == ids(6)[0]:
            server.remember()
        if ticket.ticket_id == ids(14)[0] and not forgotten:
            forgotten.append(ticket.ticket_id)
            server.forget()
        return mixed(ticket)

    learner = run.learner()
    with pytest.raises(Behind):
        run.finish(learner, answer)
    learner = take_up(run, run.learner())
    assert closed(learner)
    assert same_weights(run, learner, server, tmp_path)


def test_redis_restarts_and_nobody_notices_but_in_the_log(server: Faulty, run: Run, tmp_path: Path) -> None:
    def answer(ticket: Ticket) -> RolloutGroup | None:
        if ticket.kind == "train" and TicketId.parse(ticket.ticket_id).number % 5 == 4:
            server.crash()
            server.start()
        return mixed(ticket)

    learner = run.learner()
    assert run.finish(learner, answer) == "finished"
    assert closed(learner)
    assert same_weights(run, learner, server, tmp_path)
    assert run.desk.dead_letters() == []


def test_a_checkpoint_that_settles_groups_while_they_are_read_again_makes_no_strangers_of_them(
    server: Faulty, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It becomes durable just when Redis, which has been away, has said which groups are pending."""

    def answer(ticket: Ticket) -> RolloutGroup | None:
        if ticket.kind == "train" and TicketId.parse(ticket.ticket_id).number == 9:
            server.crash()
            server.start()
        return mixed(ticket)

    learner, read, settled = run.learner(), Event(), Event()
    pending, make_final = learner.inbox.rollouts.pending, learner.dispatch.make_final

    def pending_and_then() -> list[Arrival]:
        found = pending()
        read.set()
        if any(learner.dispatch.entry_ids) and not is_held(learner.dispatch.lock):
            assert settled.wait(30), "nobody keeps it from being settled, and yet it is not"
        return found

    def make_final_late(*what: Any) -> None:
        assert read.wait(30), "no group was read again"
        make_final(*what)
        settled.set()

    monkeypatch.setattr(learner.inbox.rollouts, "pending", pending_and_then)
    monkeypatch.setattr(learner.dispatch, "make_final", make_final_late)
    assert run.finish(learner, answer) == "finished"
    assert closed(learner)
    assert run.desk.dead_letters() == []


def is_held(lock: Any) -> bool:
    """By somebody, perhaps by who asks."""

    def free() -> bool:
        if found := lock.acquire(blocking=False):
            lock.release()
        return bool(found)

    with ThreadPoolExecutor(1) as another:
        return not another.submit(free).result()


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["everything", "some"])
def test_no_policy_version_is_used_twice(server: Faulty, run: Run, loss: str) -> None:
    """Without a deterministic sampler the steps after the loss are others: so must be the numbers they are known by."""
    run.run_settings |= {"deterministic": False, "max_staleness": 8}
    run.learner_settings |= {"order": "ready"}
    seen: dict[int, bytes] = {}

    def watch(learner: Learner) -> Learner:
        prune = run.desk.policy.prune

        def look(protected: Any = frozenset()) -> list[int]:
            newest = run.desk.policy.newest()
            assert newest is not None
            weights = (run.desk.policy.path(newest) / "model.safetensors").read_bytes()
            assert seen.setdefault(newest, weights) == weights, f"version {newest} came back with other weights"
            return prune(protected)

        learner.policy.prune = look  # type: ignore[method-assign]
        return learner

    with pytest.raises(InterruptedError):
        run.finish(watch(run.learner(crash_at=6)), remembering(server, run, 8))
    before = run.desk.policy.used()
    assert before == 5
    server.lose_all() if loss == "everything" else server.forget()
    learner = watch(run.learner())
    learner = take_up(run, learner, otherwise)
    assert closed(learner)
    assert max(seen) > before
    assert run.desk.policy.newest() == run.desk.policy.used() == max(seen)


# -- going back on purpose ---------------------------------------------------------------------------------------------


def test_a_rollback_is_named_done_once_and_ends_like_a_run_that_never_went_so_far(
    server: Faulty, run: Run, tmp_path: Path
) -> None:
    run.learner_settings |= {"keep_checkpoints": 5}
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=8))
    run.learner_settings |= {"resume": 3}
    again = run.learner(crash_at=8)
    with pytest.raises(InterruptedError):
        run.finish(again)
    aside = sorted(path.name[:23] for path in (run.folder / "run" / "checkpoints").glob("abandoned-*"))
    assert aside == ["abandoned-step-00000006"]
    learner = run.learner()  # with the same recipe: that rollback has been done
    assert run.finish(learner) == "finished"
    assert len(list((run.folder / "run" / "checkpoints").glob("abandoned-*"))) == 1
    assert closed(learner)


def test_a_rollback_to_what_is_not_there_says_what_is(run: Run) -> None:
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=8))
    run.learner_settings |= {"resume": 4}
    with pytest.raises(Refused, match=r"no checkpoint of step 4 .* there are: 3, 6"):
        run.finish(run.learner())


@pytest.mark.parametrize("newest", ["damaged", "of another run"])
def test_falling_back_past_the_newest_checkpoint_needs_its_name(run: Run, newest: str) -> None:
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=8))
    folder = run.folder / "run" / "checkpoints" / "step-00000006"
    if newest == "damaged":
        (folder / "state.safetensors").write_bytes(b"")
    else:
        folder.rename(folder.with_name("gone"))
    with pytest.raises(Refused, match=r"--learner.resume 3"):
        run.finish(run.learner())
    run.learner_settings |= {"resume": 3}
    learner = run.learner()
    assert run.finish(learner) == "finished"
    assert closed(learner)


# -- one misfortune after the other ------------------------------------------------------------------------------------


def renumbered(server: Faulty, run: Run) -> int:
    """A run that is not deterministic, whose learner died and whose Redis lost everything; the last number used."""
    run.run_settings |= {"deterministic": False, "max_staleness": 8}
    run.learner_settings |= {"order": "ready"}
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=6))
    server.lose_all()
    return run.desk.policy.used()


def test_a_learner_that_dies_again_before_its_first_step_does_not_go_back_to_old_numbers(
    server: Faulty, run: Run
) -> None:
    used = renumbered(server, run)
    second = run.learner(crash_at=used + 2)  # it publishes used + 1 with the books, and dies of its first step
    with pytest.raises(InterruptedError):
        run.finish(second, otherwise)
    assert run.desk.policy.newest() == used + 1
    third = take_up(run, run.learner(), otherwise)
    assert closed(third)
    assert run.desk.policy.newest() == used + 1 + STEPS - 3, "it counted on from there"


@pytest.mark.parametrize("loss", ["everything", "some"])
def test_a_learner_that_dies_while_it_makes_the_books_anew_is_followed_by_one_that_makes_them(
    server: Faulty, run: Run, loss: str
) -> None:
    """Until they are made, nothing in Redis may say that nothing is missing."""
    run.run_settings |= {"deterministic": False, "max_staleness": 8}
    run.learner_settings |= {"order": "ready"}
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=6), remembering(server, run, 3))
    server.lose_all() if loss == "everything" else server.forget()
    used = run.desk.policy.used()
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=used + 1))
    learner = take_up(run, run.learner())
    assert learner.metrics.registry.get_sample_value("headrace_learner_rebuilds_total") == 1
    assert closed(learner)


def test_tickets_of_a_history_that_is_gone_ask_for_a_version_that_is_there(server: Faulty, run: Run) -> None:
    run.run_settings |= {"max_staleness": 2}
    run.learner_settings |= {"keep_checkpoints": 5, "pipeline_depth": 2}
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=8))
    run.learner_settings |= {"resume": 3}
    learner, asked = run.learner(), set[int]()

    def look(ticket: Ticket) -> RolloutGroup:
        asked.add(ticket.min_policy_version)
        assert run.desk.policy.open(ticket.min_policy_version)
        return mixed(ticket)

    assert run.finish(learner, look) == "finished"
    assert min(asked) == 8, "the first number that nobody had seen"
    assert closed(learner)


def test_a_step_that_cannot_be_repeated_is_done_anew_with_all_after_the_checkpoint(run: Run) -> None:
    """Redis has lost a group, and nothing else that could be noticed."""
    run.learner_settings |= {"checkpoint_every": 6}
    first = run.learner(crash_at=5)
    with pytest.raises(InterruptedError):
        run.finish(first)
    gone = first.dispatch.ledger.entries()[2].tickets[0]
    run.client.xdel(run.keys.rollouts("train"), first.dispatch.entry_ids[gone])
    learner = run.learner()
    assert run.finish(learner) == "finished"
    assert closed(learner)


def test_a_rollback_to_the_newest_checkpoint_gives_up_the_steps_since(run: Run) -> None:
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=6))
    run.learner_settings |= {"resume": 3}
    learner = run.learner()
    assert run.finish(learner) == "finished"
    assert closed(learner)
    assert run.desk.policy.newest() == 6 + STEPS - 3, "steps 4 and 5 were taken again, under new numbers"


def test_a_cut_taken_before_the_checkpoint_before_was_final_knows_what_is(
    server: Faulty, run: Run, tmp_path: Path
) -> None:
    """The checkpoint of step 6 is still being written when the last step is committed."""
    learner = run.learner()

    def slow(root: Path, step: int, *rest: Any) -> None:
        if step == 6:
            wait_until(lambda: learner.at.step == STEPS and len(learner.dispatch.journal) == 5, "all is committed", 15)
        checkpoint.write(root, step, *rest)

    learner.durability.write = slow
    assert run.finish(learner) == "finished"
    server.lose_all()
    run.run_settings |= {"steps": STEPS + 1}
    again = run.learner()
    assert run.finish(again) == "finished"
    balance = again.dispatch.ledger.balance()
    assert balance.balanced
    assert balance.verdicts["trained"] == (STEPS + 1) * 2
