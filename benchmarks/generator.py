"""`make bench-generator`: what production's generators make of vLLM, as ratios of the same run.

Invariant: both sides of a ratio are measured in turn, in one run. Refuses to know how either is done
(`generator_rig.py`: one engine, `generator_fleet.py`: processes).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.findings import Finding, Leg, machine, ratios, run
from benchmarks.generator_fleet import Fleet, Plain, fleet, plain
from benchmarks.generator_load import Load, Pause, Sampled, load, model
from benchmarks.generator_rig import Rig, rig
from broker.embedded import EmbeddedServer

NAME = "generator"
REFRESHED_ROUNDS = 3


@dataclass(frozen=True)
class Bench:
    """Where it is done, and with what."""

    of: Load
    cuda: bool
    model: Path
    scratch: Path
    url: str

    async def one_engine(self) -> tuple[Finding, ...]:
        """Ours against bare, and refreshes."""
        recipe = self.of.recipe("one", self.model, self.scratch, self.url, cuda=self.cuda)
        async with rig(recipe) as one:
            ours, bare = await _against_bare(one, self.of)
            refreshed = await _refreshed(one, self.of)
        pauses = [pause for each in refreshed for pause in each.pauses]
        return (
            _ratio("Generator, of bare AsyncLLM on the same engine", ours, bare, least=0.97 if self.cuda else 0.90),
            *self._absolute("Generator", ours),
            Finding("a refresh: sampling stands still", tuple(p.still for p in pauses), "s", most=0.2),
            self._asked(pauses),
            Finding(
                "the same, of the time on the wall",
                tuple(100 * sum(p.still for p in each.pauses) / each.seconds for each in refreshed),
                "%",
                most=2.0,
                note=f"a version every {self.of.groups_per_version} groups",
            ),
            Finding(
                "tokens/s with those refreshes, of those without",
                tuple(each.rate / statistics.median(other.rate for other in ours) for each in refreshed),
                note="what runs is computed again under the new weights",
            ),
        )

    async def processes(self) -> tuple[Finding, ...]:
        """Fleets of each size against the plain engine."""
        recipe = self.of.recipe("fleet", self.model, self.scratch, self.url, cuda=self.cuda)
        found: list[Finding] = []
        async with plain(recipe, self.of) as single:
            with fleet(recipe, self.of, self.scratch / "fleet") as many:
                for count in self.of.engines:
                    ours, theirs = await _against_plain(many, single, count, self.of.fleet_rounds)
                    least = 3.5 if self.cuda and count == max(self.of.engines) else None
                    what = f"{count} generator process{'es' if count > 1 else ''}"
                    found.append(_ratio(f"{what}, of one plain AsyncLLM", ours, theirs, least=least))
                    found += self._absolute(what, ours)
                found += self._absolute("one plain AsyncLLM", theirs)
        return tuple(found)

    def _asked(self, pauses: Sequence[Pause]) -> Finding:
        """The steps that vLLM has begun are no loss, and on a CPU they take a second."""
        most, values = 0.2 if self.cuda else None, tuple(pause.asked for pause in pauses)
        return Finding("the same, and the steps before it that had begun", values, "s", most=most)

    def _absolute(self, what: str, rounds: Sequence[Sampled]) -> tuple[Finding, ...]:
        """Speeds that mean something, on a GPU."""
        return (Finding(f"{what}: tokens", tuple(each.rate for each in rounds), "/s"),) if self.cuda else ()


def _ratio(what: str, ours: Sequence[Sampled], theirs: Sequence[Sampled], least: float | None = None) -> Finding:
    speeds = ([each.rate for each in side] for side in (ours, theirs))
    return Finding(f"{what}: tokens/s", ratios(*speeds), "×", least=least)


async def _against_bare(one: Rig, of: Load) -> tuple[list[Sampled], list[Sampled]]:
    """After a round that only warms up."""
    ours, bare = [], []
    for number in range(-1, of.rounds):
        tickets = of.tickets(number)
        ours.append(await one.ours(tickets))
        bare.append(await one.bare(tickets))
        _say(f"round {number}", ours=ours[-1], bare=bare[-1])
        counts = ours[-1].tokens, bare[-1].tokens
        assert max(counts) <= 1.02 * min(counts), (
            f"the same seeds should give the same answers, but for batching: {counts}"
        )
    return ours[1:], bare[1:]


async def _refreshed(one: Rig, of: Load) -> list[Sampled]:
    found = []
    for number in range(min(of.rounds, REFRESHED_ROUNDS)):
        versions = [2 * number + 1, 2 * number + 2]
        for version in versions:
            one.desk.write(version)
        found.append(await one.ours(of.tickets(100 + number, groups=of.groups_per_version * 3), versions))
        _say(f"refreshed {number}", ours=found[-1])
    return found


async def _against_plain(many: Fleet, single: Plain, count: int, rounds: int) -> tuple[list[Sampled], list[Sampled]]:
    many.grow(count)
    ours, theirs = [], []
    for number in range(rounds):
        ours.append(many.sample(number))
        theirs.append(await single.sample(100 * count + number))
        _say(f"{count} processes, round {number}", ours=ours[-1], plain=theirs[-1])
    return ours, theirs


def _say(what: str, **sides: Sampled) -> None:
    told = (f"{name} {each.rate:,.0f} tokens/s of {each.tokens:,}" for name, each in sides.items())
    pauses = [f"{pause.still:.3f}" for each in sides.values() for pause in each.pauses]
    print(f"{what}: {', '.join(told)} {' '.join(pauses)}", file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> Leg:
    """Both halves, or the one that is asked for."""
    cuda = torch.cuda.is_available()
    of, findings = load(cuda=cuda, quick=options.quick), list[Finding]()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder) / "redis") as server:
        scratch = Path(folder)
        bench = Bench(of, cuda, model(cuda=cuda, quick=options.quick, folder=scratch / "models"), scratch, server.url)
        for name, part in (("one", bench.one_engine), ("processes", bench.processes)):
            if options.part in ("all", name):
                findings += asyncio.run(part())
    return Leg(NAME, machine(torch.cuda.get_device_name() if cuda else ""), tuple(findings), _text(of, bench.model))


def _text(of: Load, model: Path) -> str:
    return (
        f"{model.name}, groups of {of.group_size} answers of up to {of.max_tokens} tokens; {of.slots} groups at once "
        f"for each generator and for bare AsyncLLM, {max(of.engines) * of.slots} for the plain one. Tokens are counted "
        "as they came."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("all", "one", "processes"), default="all", help="one engine, or processes")
    run(NAME, measure, parser)
