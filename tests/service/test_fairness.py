"""Whose turn it is: at the device, and in the lanes."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from srgan_service.http.problems import Problem
from srgan_service.work.admission import Gate, Lane, Ticket
from srgan_service.work.device import Device
from srgan_service.work.fair import FairQueue, Flow, Stopped
from support.serving import Blocked, NearestEngine

from srgan.engines.openvino import OpenVinoEngine
from srgan.engines.protocol import DeviceEngine, StripEngine
from srgan.errors import EngineError
from srgan.pictures import Picture
from srgan.upscale import Upscaler


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 1000)), max_size=60))
def test_nothing_is_lost_and_flows_keep_their_order(entries: list[tuple[int, int]]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    flows = [Flow() for _ in range(4)]
    for number, (flow, cost) in enumerate(entries):
        queue.put(flows[flow], cost, (flow, number))
    served = [queue.get() for _ in entries]
    assert sorted(served) == sorted((flow, number) for number, (flow, _) in enumerate(entries))
    for flow in range(4):
        numbers = [number for of, number in served if of == flow]
        assert numbers == sorted(numbers)


def test_a_newcomer_with_little_goes_next() -> None:
    queue: FairQueue[str] = FairQueue()
    large, small = Flow(), Flow()
    for number in range(5):
        queue.put(large, 100, f"large {number}")
    assert [queue.get(), queue.get()] == ["large 0", "large 1"]
    queue.put(small, 1, "small")
    assert queue.get() == "small"
    assert queue.get() == "large 2"


def test_work_is_shared_by_weight_and_size() -> None:
    """Flows that always want more get work in proportion to their weights, whatever the size of their pieces."""
    queue: FairQueue[tuple[Flow, int]] = FairQueue()
    flows = {Flow(weight=1): 10, Flow(weight=2): 50, Flow(weight=1): 3}
    done = dict.fromkeys(flows, 0)
    for flow, cost in flows.items():
        queue.put(flow, cost, (flow, cost))
    while sum(done.values()) < 20_000:
        flow, cost = queue.get()
        done[flow] += cost
        queue.put(flow, cost, (flow, cost))
    assert [round(work / 5000, 1) for work in done.values()] == [1, 2, 1]


def test_who_was_idle_has_saved_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    busy, idle = Flow(), Flow()
    for _ in range(100):
        queue.put(busy, 1, "busy")
        queue.get()
    for number in range(3):
        queue.put(idle, 1, f"idle {number}")
        queue.put(busy, 1, f"busy {number}")
    order = [queue.get().partition(" ")[0] for _ in range(6)]
    assert order in (["idle", "busy"] * 3, ["busy", "idle"] * 3, ["idle", "busy", "busy", "idle", "idle", "busy"])


def tile(height: int = 2, width: int = 2, value: float = 0.0) -> np.ndarray:
    return np.full((1, 3, height, width), value, np.float32)


def test_tiles_of_several_requests_interleave() -> None:
    blocked, order = Blocked(), []
    engine = NearestEngine(blocked)
    device = Device()

    def request(name: str, tiles: int) -> None:
        with device.shared_by(Flow()):
            for _ in range(tiles):
                device.run(engine, tile())
                order.append(name)

    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(request, "large", 20)
        blocked.entered.acquire()
        small = pool.submit(request, "small", 1)
        while not len(device._waiting):
            pass
        blocked.let_go()
        small.result()
        large.result()
    assert order.index("small") <= 2
    device.close()


def test_tiles_of_one_shape_run_together_and_each_gets_its_own() -> None:
    blocked = Blocked()
    engine, other = NearestEngine(blocked), NearestEngine()
    device = Device(batch_tiles=4)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(device.run, engine, tile())
        blocked.entered.acquire()
        same = [pool.submit(device.run, engine, tile(value=value)) for value in range(1, 6)]
        odd = pool.submit(device.run, engine, tile(3, 2, 7))
        foreign = pool.submit(device.run, other, tile(value=8))
        while len(device._waiting) < 7:
            pass
        blocked.let_go()
        first.result()
        for value, one in enumerate(same, start=1):
            np.testing.assert_array_equal(one.result(), tile(8, 8, value))
        assert odd.result().shape == (1, 3, 12, 8)
        np.testing.assert_array_equal(foreign.result(), tile(8, 8, 8))
    assert sorted(shape[0] for shape in engine.calls) == [1, 1, 1, 4]
    device.close()


def test_strips_take_turns_too(tiny_engine: OpenVinoEngine) -> None:
    """A picture that is run in strips is the picture, and a small one comes in between."""
    device = Device()
    shared = device.share(tiny_engine)
    assert isinstance(shared, StripEngine)
    picture = Picture(np.random.default_rng(0).integers(0, 256, (400, 60, 3), np.uint8))
    memory = 60 * 60 * 8192
    expected = Upscaler(engine=tiny_engine, memory_bytes=memory).upscale(picture).pixels
    done: list[float] = []
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(Upscaler(engine=shared, memory_bytes=memory).upscale, picture, None, done.append)
        while not done:
            pass
        device.run(tiny_engine, tile(8, 8))
        assert len(done) < 5  # of the thirteen strips at least
        np.testing.assert_array_equal(large.result().pixels, expected)
    assert len(done) > 12
    device.close()


def test_engines_that_were_not_used_of_late_give_back_their_memory(tiny_model: Path) -> None:
    engines, device = [OpenVinoEngine(tiny_model, threads=1) for _ in range(3)], Device()
    shared = [device.share(engine) for engine in engines]
    for index in (0, 1, 0, 2):
        np.testing.assert_array_equal(shared[index].run(tile(8, 8)), engines[2].run(tile(8, 8)))
    assert [bool(engine._compiled) for engine in engines] == [True, False, True]
    shared[1].run(tile(8, 8))
    assert [bool(engine._compiled) for engine in engines] == [False, True, True]
    device.close()


def test_a_device_that_likes_batches_gets_them_from_several_requests() -> None:
    blocked = Blocked()

    class Graphics(NearestEngine):
        batch_lr_px = 16  # four tiles of two by two

        def run_precisely(self, lr: np.ndarray) -> np.ndarray:
            return self.run(lr) + 1

        def free_bytes(self) -> int:
            return 2**30

        def forget(self) -> None:
            self.calls.clear()

    engine, device = Graphics(blocked), Device()
    shared = device.share(engine)
    assert isinstance(shared, DeviceEngine)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(shared.run, tile())
        blocked.entered.acquire()
        others = [pool.submit(shared.run, tile(value=value)) for value in range(8)]
        while len(device._waiting) < 8:
            pass
        blocked.let_go()
        for value, other in enumerate(others):
            np.testing.assert_array_equal(other.result(), tile(8, 8, value))
        first.result()
    assert [shape[0] for shape in engine.calls] == [1, 4, 4]
    np.testing.assert_array_equal(shared.run_precisely(tile()), tile(8, 8, 1))
    device.close()


def test_a_tile_that_fails_fails_alone() -> None:
    blocked = Blocked()

    class Picky(NearestEngine):
        def run(self, lr: np.ndarray) -> np.ndarray:
            if (lr == 3).any():
                blocked()
                raise EngineError("poisoned")
            return super().run(lr)

    engine, device = Picky(blocked), Device(batch_tiles=8)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(device.run, engine, tile(value=value)) for value in range(6)]
        blocked.let_go()
        for value, one in enumerate(asked):
            if value == 3:
                with pytest.raises(EngineError, match="poisoned"):
                    one.result()
            else:
                np.testing.assert_array_equal(one.result(), tile(8, 8, value))
    device.close()


def test_tiles_of_who_is_gone_are_dropped_and_closing_refuses_the_rest() -> None:
    blocked = Blocked()
    engine, device, gone = NearestEngine(blocked), Device(), Flow()

    def leave() -> None:
        with device.shared_by(gone):
            device.run(engine, tile())

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(device.run, engine, tile())
        blocked.entered.acquire()
        left = pool.submit(leave)
        while not len(device._waiting):
            pass
        gone.stopped = True
        closing = threading.Thread(target=device.close)
        last = pool.submit(device.run, engine, tile(4, 4))
        while len(device._waiting) < 2:
            pass
        blocked.let_go()
        first.result()
        with pytest.raises(Stopped):
            left.result()
        last.result()
        closing.start()
        closing.join()
        with pytest.raises(EngineError, match="shutting down"):
            device.run(engine, tile())
    assert len(engine.calls) == 2


def test_a_lane_takes_turns_among_keys() -> None:
    async def scene() -> list[str]:
        lane, order = Lane(1), []

        async def ask(key: str) -> None:
            async with lane.turn(Ticket(key, 1.0, px=10)):
                order.append(key)
                await asyncio.sleep(0)

        greedy = [asyncio.create_task(ask("greedy")) for _ in range(10)]
        await asyncio.sleep(0)
        modest = asyncio.create_task(ask("modest"))
        await asyncio.gather(*greedy, modest)
        return order

    assert asyncio.run(scene()).index("modest") <= 2


def test_who_stops_waiting_frees_no_more_and_no_less_than_its_place() -> None:
    async def scene() -> None:
        lane = Lane(2)
        release = asyncio.Event()

        async def ask() -> None:
            async with lane.turn(Ticket("", 1.0, px=1)):
                assert len(lane.working) <= 2
                await release.wait()

        tasks = [asyncio.create_task(ask()) for _ in range(8)]
        await asyncio.sleep(0)
        for task in (tasks[0], tasks[3], tasks[7]):
            task.cancel()
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (lane.waiting, lane.working, lane._free) == (0, [], 2)

    asyncio.run(scene())


def test_pictures_of_one_key_together_weigh_as_much_as_one_of_another() -> None:
    async def scene() -> None:
        lane = Lane(5)
        many, one = [Ticket("a", 1.0) for _ in range(3)], Ticket("b", 1.0)
        turns = [lane.turn(ticket) for ticket in (*many, one)]
        for turn in turns:
            await turn.__aenter__()
        assert sum(ticket.flow.weight for ticket in many) == pytest.approx(one.flow.weight)
        await turns[0].__aexit__(None, None, None)
        assert many[1].flow.weight == many[2].flow.weight == 1 / 2
        for turn in turns[1:]:
            await turn.__aexit__(None, None, None)

    asyncio.run(scene())


def test_one_key_gets_its_share_and_another_still_comes_in() -> None:
    gate = Gate(requests=10, bytes=1000, px=1000, deadline_s=60, px_per_s=lambda: 50.0)
    mine = [gate.enter("a", 0.5, 10) for _ in range(5)]
    with pytest.raises(Problem) as refused:
        gate.enter("a", 0.5, 10)
    assert (refused.value.status, refused.value.code) == (429, "key-over-share")
    other = gate.enter("b", 0.5, 10)
    with pytest.raises(Problem) as refused:
        gate.add_bytes(other, 600)
    assert refused.value.code == "key-over-share"
    gate.weigh(mine[0], 400)
    with pytest.raises(Problem) as refused:
        gate.weigh(mine[1], 200)
    assert refused.value.headers["Retry-After"] == "2"  # 400 pixels of five requests, at 50 a second
    gate.weigh(other, 500)
    with pytest.raises(Problem) as refused:
        gate.enter("c", 1.0, 10**6)
    assert refused.value.code == "queue-full"
    for ticket in mine:
        gate.leave(ticket)
    assert (gate.inside, gate.px) == (1, 500)


def test_a_queue_longer_than_the_deadline_takes_no_more() -> None:
    """Who would wait too long is refused; who has little to do beside much, or another key, is not."""
    gate = Gate(requests=20, bytes=10**6, px=10**6, deadline_s=10, px_per_s=lambda: 100.0)
    gate.weigh(gate.enter("a", 1, 0), 1500, "large")  # alone it may; what is hopeless is said elsewhere
    with pytest.raises(Problem) as refused:
        gate.weigh(gate.enter("a", 1, 0), 200, "large")
    assert (refused.value.status, refused.value.code) == (503, "queue-full")
    assert refused.value.headers["Retry-After"] == "7"  # 1,700 pixels of which 1,000 are done in time
    for _ in range(2):
        gate.weigh(gate.enter("a", 1, 0), 200, "small")  # 400 pixels, and as much of the large one
    with pytest.raises(Problem):
        gate.weigh(gate.enter("a", 1, 0), 200, "small")
    gate.weigh(gate.enter("b", 1, 0), 300, "large")  # and as much of either lane of a's
    with pytest.raises(Problem):
        gate.weigh(gate.enter("b", 1, 0), 50, "large")
