"""Whose turn it is: at the device, and in the lanes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
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
from srgan.engines.protocol import DeviceEngine, Engine, LevelsEngine, ReadRows, StripEngine
from srgan.engines.torch import TorchEngine
from srgan.errors import EngineError
from srgan.networks.generator import Generator
from srgan.pictures import Picture
from srgan.upscale import Upscaler
from srgan.weights import ModelMetadata


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


class Watched:
    """Any engine that runs in strips, and what the device lets it do in which order.

    `after_first_strip` is called in the device's own thread.
    """

    def __init__(self, engine: StripEngine, after_first_strip: Callable[[], object] = lambda: None) -> None:
        self._engine, self._after_first_strip = engine, after_first_strip
        self.metadata, self.strip_facts = engine.metadata, engine.strip_facts
        self.order: list[str] = []

    def run(self, lr: np.ndarray) -> np.ndarray:
        self.order.append("tile")
        return self._engine.run(lr)

    def strips(self, height: int, width: int, rows: int, read: ReadRows) -> Iterator[tuple[slice, np.ndarray]]:
        for strip in self._engine.strips(height, width, rows, read):
            self.order.append("strip")
            if len(self.order) == 1:
                self._after_first_strip()
            yield strip

    def forget(self) -> None:
        self.order.append("forget")
        self._engine.forget()


@pytest.fixture
def device() -> Iterator[Device]:
    with contextlib.closing(Device()) as opened:
        yield opened


@contextlib.contextmanager
def busy(device: Device, engine: Engine, blocked: Blocked) -> Iterator[None]:
    """Keep the device at one tile for as long as the block lasts, so that what is asked for meanwhile waits."""
    first = device.submit(engine, tile())
    assert blocked.entered.acquire(timeout=30)
    try:
        yield
    finally:
        blocked.let_go()
        first.result(30)


def test_tiles_of_several_requests_interleave(device: Device) -> None:
    """As the engine sees them: of a large request, a tile is asked for when the one before is done."""
    blocked, order = Blocked(), []

    class Ordered(NearestEngine):
        def run(self, lr: np.ndarray) -> np.ndarray:
            order.append("small" if lr.any() else "large")
            return super().run(lr)

    engine = Ordered(blocked)

    def large() -> None:
        with device.shared_by(Flow()):
            for _ in range(20):
                device.run(engine, tile())

    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(large)
        assert blocked.entered.acquire(timeout=30)
        with device.shared_by(Flow()):
            small = device.submit(engine, tile(value=1))
        blocked.let_go()
        small.result(30)
        request.result(30)
    assert order == ["large", "small", *["large"] * 19]


def test_tiles_of_one_shape_run_together_and_each_gets_its_own() -> None:
    blocked = Blocked()
    engine, other = NearestEngine(blocked), NearestEngine()
    with contextlib.closing(Device(batch_tiles=4)) as device:
        with busy(device, engine, blocked):
            same = [device.submit(engine, tile(value=value)) for value in range(1, 6)]
            odd = device.submit(engine, tile(3, 2, 7))
            foreign = device.submit(other, tile(value=8))
        for value, future in enumerate(same, start=1):
            np.testing.assert_array_equal(future.result(30), tile(8, 8, value))
        assert odd.result(30).shape == (1, 3, 12, 8)
        np.testing.assert_array_equal(foreign.result(30), tile(8, 8, 8))
    assert engine.calls == [(1, 3, 2, 2), (4, 3, 2, 2), (1, 3, 2, 2), (1, 3, 3, 2)]


def test_strips_take_turns_too(device: Device, tiny_engine: OpenVinoEngine) -> None:
    """A picture that is run in strips is the picture, and a small one comes in between."""
    watched = Watched(tiny_engine, after_first_strip=lambda: device.submit(watched, tile(8, 8)))
    shared = device.share(watched)
    assert isinstance(shared, StripEngine)
    picture = Picture(np.random.default_rng(0).integers(0, 256, (400, 60, 3), np.uint8))
    memory = 60 * 60 * 8192
    expected = Upscaler(engine=tiny_engine, working_bytes=memory).upscale(picture).pixels
    with device.shared_by(Flow()):
        result = Upscaler(engine=shared, working_bytes=memory).upscale(picture)
    np.testing.assert_array_equal(result.pixels, expected)
    assert watched.order[:3] == ["strip", "tile", "strip"]
    assert watched.order.count("strip") > 12


def test_engines_that_were_not_used_of_late_give_back_their_memory(device: Device, tiny_model: Path) -> None:
    engines = [Watched(OpenVinoEngine(tiny_model, threads=1)) for _ in range(3)]
    shared = [device.share(engine) for engine in engines]
    results = [shared[index].run(tile(8, 8)) for index in (0, 1, 0, 2)]
    assert [engine.order for engine in engines] == [["tile", "tile"], ["tile", "forget"], ["tile"]]
    results.append(shared[1].run(tile(8, 8)))
    assert [engine.order.count("forget") for engine in engines] == [1, 1, 0]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_device_that_likes_batches_gets_them_from_several_requests(device: Device) -> None:
    blocked = Blocked()

    class Graphics(NearestEngine):
        batch_lr_px = 16  # four tiles of two by two
        bytes_per_lr_px = None

        def run_precisely(self, lr: np.ndarray) -> np.ndarray:
            return self.run(lr) + 1

        def free_bytes(self) -> int:
            return 2**30

        def forget(self) -> None:
            self.calls.clear()

    engine = Graphics(blocked)
    shared = device.share(engine)
    assert isinstance(shared, DeviceEngine)
    with busy(device, engine, blocked):
        others = [device.submit(engine, tile(value=value)) for value in range(8)]
    for value, other in enumerate(others):
        np.testing.assert_array_equal(other.result(30), tile(8, 8, value))
    assert [shape[0] for shape in engine.calls] == [1, 4, 4]
    np.testing.assert_array_equal(shared.run_precisely(tile()), tile(8, 8, 1))


class Recorded(TorchEngine):
    """PyTorch's engine, which says what it was given."""

    def __init__(self, blocked: Blocked) -> None:
        network = Generator(2, 8).eval()
        metadata = ModelMetadata("two-x4", 4, network.halo_lr_px, {"blocks": 2, "features": 8})
        super().__init__((network, metadata), device="cpu")
        self.given: list[tuple[tuple[int, ...], str]] = []
        self._blocked = blocked

    def run(self, lr: np.ndarray) -> np.ndarray:
        self.given.append((lr.shape, str(lr.dtype)))
        self._blocked()
        return super().run(lr)

    def submit_levels(self, levels: np.ndarray) -> Callable[[], np.ndarray]:
        self.given.append((levels.shape, str(levels.dtype)))
        return super().submit_levels(levels)


def test_a_graphics_engine_gets_the_levels_of_pictures_here_as_at_the_command_line() -> None:
    blocked = Blocked()
    engine = Recorded(blocked)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3), np.uint8)
    with contextlib.closing(Device(batch_tiles=8)) as device:
        shared = device.share(engine)
        assert isinstance(shared, LevelsEngine)
        with busy(device, engine, blocked):
            waiting = [shared.submit_levels(picture[None]) for picture in pictures]
        together = np.concatenate([wait() for wait in waiting])
        assert engine.given[1:] == [((2, 12, 10, 3), "uint8")]
        alone = [Upscaler(engine=engine).upscale(Picture(picture)).pixels for picture in pictures]
        np.testing.assert_array_equal(Upscaler(engine=shared).upscale(Picture(pictures[0])).pixels, alone[0])
    assert np.abs(together.astype(int) - alone).max() <= 1  # in a batch, sums may be in another order


def test_a_tile_that_fails_fails_alone() -> None:
    blocked = Blocked()

    class Picky(NearestEngine):
        def run(self, lr: np.ndarray) -> np.ndarray:
            if (lr == 3).any():
                raise EngineError("poisoned")
            return super().run(lr)

    engine = Picky(blocked)
    with contextlib.closing(Device(batch_tiles=8)) as device:
        with busy(device, engine, blocked):
            asked = [device.submit(engine, tile(value=value)) for value in range(6)]
        for value, future in enumerate(asked):
            if value == 3:
                with pytest.raises(EngineError, match="poisoned"):
                    future.result(30)
            else:
                np.testing.assert_array_equal(future.result(30), tile(8, 8, value))


def test_tiles_of_who_is_gone_are_dropped_and_closing_refuses_the_rest(device: Device) -> None:
    blocked, gone = Blocked(), Flow()
    engine = NearestEngine(blocked)
    with busy(device, engine, blocked):
        with device.shared_by(gone):
            left = device.submit(engine, tile())
        last = device.submit(engine, tile(4, 4))
        gone.stopped = True
    with pytest.raises(Stopped):
        left.result(30)
    last.result(30)
    device.close()
    with pytest.raises(EngineError, match="shutting down"):
        device.run(engine, tile())
    assert engine.calls == [(1, 3, 2, 2), (1, 3, 4, 4)]


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
        lane, release = Lane(2), asyncio.Event()

        async def ask() -> None:
            async with lane.turn(Ticket("", 1.0, px=1)):
                assert len(lane.working) <= 2
                await release.wait()

        def everybody(count: int) -> list[asyncio.Task[None]]:
            return [asyncio.create_task(ask()) for _ in range(count)]

        tasks = everybody(8)
        await asyncio.sleep(0)
        for task in (tasks[0], tasks[3], tasks[7]):
            task.cancel()
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (lane.waiting, lane.working) == (0, [])
        release.clear()
        tasks = everybody(3)
        await asyncio.sleep(0)
        assert (lane.waiting, len(lane.working)) == (1, 2)  # there are two places, as at first
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(scene())


def test_pictures_of_one_key_together_weigh_as_much_as_one_of_another() -> None:
    async def scene() -> None:
        lane = Lane(5)
        many, single = [Ticket("a", 1.0) for _ in range(3)], Ticket("b", 1.0)
        turns = [lane.turn(ticket) for ticket in (*many, single)]
        for turn in turns:
            await turn.__aenter__()
        assert sum(ticket.flow.weight for ticket in many) == pytest.approx(single.flow.weight)
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
