"""Engines that share a device take turns; those that do not, do not wait for each other."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from producer.turn import devices, turn

HOLDER = """
import asyncio, sys, time
from pathlib import Path
from producer.turn import turn
async def main():
    async with turn([sys.argv[2]], Path(sys.argv[1])):
        print("mine", flush=True)
        time.sleep(600)
asyncio.run(main())
"""


def test_one_at_a_time_and_nobody_is_forgotten(tmp_path: Path) -> None:
    inside, most, done = 0, 0, 0

    async def engine(*names: str) -> None:
        nonlocal inside, most, done
        async with turn(names, tmp_path):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            done += 1

    async def all_of_them() -> None:
        await asyncio.gather(engine("0"), engine("1", "0"), engine("0", "1"), engine("0"))

    asyncio.run(asyncio.wait_for(all_of_them(), 30))
    assert (most, done) == (1, 4)


def test_other_devices_are_not_waited_for(tmp_path: Path) -> None:
    async def both() -> None:
        async with turn(["0"], tmp_path), turn(["1"], tmp_path):
            pass

    asyncio.run(asyncio.wait_for(both(), 30))


def test_the_turn_of_a_process_that_is_killed_is_over(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"

        async def mine() -> bool:
            async with turn(["0"], tmp_path):
                return True

        async def story() -> bool:
            waiting = asyncio.create_task(mine())
            done, _ = await asyncio.wait([waiting], timeout=0.5)
            assert not done
            holder.send_signal(signal.SIGKILL)
            return await asyncio.wait_for(waiting, 30)

        assert asyncio.run(story())


def test_devices_are_those_that_the_process_may_see() -> None:
    assert devices(2, {}) == ["0", "1"]
    assert devices(1, {"CUDA_VISIBLE_DEVICES": "3,2"}) == ["3"]
    assert devices(2, {"CUDA_VISIBLE_DEVICES": "GPU-5a,MIG-7/1/0"}) == ["GPU-5a", "MIG-7/1/0"]
