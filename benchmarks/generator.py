"""`make bench-generator`: what production's generators make of vLLM, as ratios of the same run.

Invariant: both sides of a ratio are measured in turn, in one run. Refuses to know how either is done
(`generator_rig.py`: one engine, `generator_fleet.py`: processes).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.findings import Finding, Leg, machine, ratios, run
from benchmarks.generator_fleet import Fleet, Plain, fleet, plain
from benchmarks.generator_load import Load, Sampled, load, model
from benchmarks.generator_rig import Rig, rig
from broker.embedded import EmbeddedServer

NAME = "generator"
PARTS = ("bare", "refreshes", "processes")


@dataclass(frozen=True)
class Bench:
    """Where it is done, and with what."""

    of: Load
    cuda: bool
    model: Path
    scratch: Path
    url: str

    async def one_engine(self, parts: Collection[str]) -> list[Finding]:
        """Ours against bare, and refreshes; whatever is asked for of the two."""
        found: list[Finding] = []
        recipe = self.of.recipe("one", self.model, self.scratch, self.url, cuda=self.cuda)
        async with rig(recipe) as one:
            await one.ours(self.of.tickets(-1, 2 * self.of.slots))  # warm
            if "bare" in parts:
                ours, bare = await _against_bare(one, self.of)
                what = "Generator, of bare AsyncLLM on the same engine"
                found += [_ratio(what, ours, bare, least=0.97 if self.cuda else 0.90), *self._absolute(what, ours)]
            if "refreshes" in parts:
                found += self._refreshes(*await _with_and_without(one, self.of))
        return found

    def _refreshes(self, refreshed: Sequence[Sampled], quiet: Sequence[Sampled]) -> list[Finding]:
        pauses = [pause for each in refreshed for pause in each.pauses]
        shares = (100 * sum(p.still for p in each.pauses) / each.seconds for each in refreshed)
        every = f"a version every {self.of.groups_per_version} groups"
        # The steps that vLLM has begun when it is asked to pause are no loss, and on a CPU they take a second.
        most = 0.2 if self.cuda else None
        return [
            Finding("a refresh: nothing is sampled", tuple(pause.still for pause in pauses), "s", most=0.2),
            Finding("the same and the steps before it", tuple(pause.asked for pause in pauses), "s", most=most),
            Finding("the same without them, of the time on the wall", tuple(shares), "%", most=2.0, note=every),
            _ratio("with refreshes, of without", refreshed, quiet, note="what runs is computed again"),
        ]

    async def processes(self) -> list[Finding]:
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
        return found

    def _absolute(self, what: str, rounds: Sequence[Sampled]) -> tuple[Finding, ...]:
        """Speeds that mean something, on a GPU."""
        return (Finding(f"tokens: {what}", tuple(each.rate for each in rounds), "/s"),) if self.cuda else ()


def _ratio(
    what: str, ours: Sequence[Sampled], theirs: Sequence[Sampled], least: float | None = None, note: str = ""
) -> Finding:
    speeds = ([each.rate for each in side] for side in (ours, theirs))
    return Finding(f"tokens/s: {what}", ratios(*speeds), "×", least=least, note=note)


async def _against_bare(one: Rig, of: Load) -> tuple[list[Sampled], list[Sampled]]:
    """In turn."""
    ours, bare = [], []
    for number in range(of.rounds):
        tickets = of.tickets(number)
        ours.append(await one.ours(tickets))
        bare.append(await one.bare(tickets))
        _say(f"round {number}", ours=ours[-1], bare=bare[-1])
        counts = ours[-1].tokens, bare[-1].tokens
        assert max(counts) <= 1.02 * min(counts), (
            f"the same seeds should give the same answers, but for batching: {counts}"
        )
    return ours, bare


async def _with_and_without(one: Rig, of: Load) -> tuple[list[Sampled], list[Sampled]]:
    """Rounds in which two versions come, and such without."""
    refreshed, quiet = [], []
    for number in range(of.refresh_rounds):
        versions = [2 * number + 1, 2 * number + 2]
        for version in versions:
            one.desk.write(version)
        groups = of.groups_per_version * 3
        refreshed.append(await one.ours(of.tickets(100 + number, groups), versions))
        quiet.append(await one.ours(of.tickets(200 + number, groups)))
        _say(f"refreshes, round {number}", refreshed=refreshed[-1], quiet=quiet[-1])
    return refreshed, quiet


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
    """All parts, or those that are asked for."""
    cuda = torch.cuda.is_available()
    of, findings = load(cuda=cuda, quick=options.quick), list[Finding]()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder) / "redis") as server:
        scratch = Path(folder)
        bench = Bench(of, cuda, model(cuda=cuda, quick=options.quick, folder=scratch / "models"), scratch, server.url)
        if {"bare", "refreshes"} & set(options.parts):
            findings += asyncio.run(bench.one_engine(options.parts))
        if "processes" in options.parts:
            findings += asyncio.run(bench.processes())
    return Leg(NAME, machine(torch.cuda.get_device_name() if cuda else ""), tuple(findings), _text(of, bench.model))


def _text(of: Load, model: Path) -> str:
    return (
        f"{model.name}, groups of {of.group_size} answers of up to {of.max_tokens} tokens; {of.slots} groups at once "
        f"for each generator and for bare AsyncLLM, {max(of.engines) * of.slots} for the plain one. Tokens are counted "
        "as they came."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    run(NAME, measure, parser)
