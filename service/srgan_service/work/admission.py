"""Who may come in: bounds on requests, upload bytes and pixels, decided before anything is read or worked on."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from srgan_service.http.problems import Problem, draining
from srgan_service.work.fair import FairQueue, Flow


@dataclass(eq=False)
class Ticket:
    """A request that was let in. `key`: name of its API key, "" without keys. `flow`: its turns at the device.

    `px`: pixels of its picture, once that is decoded, and `lane` where it waits and works.
    """

    key: str
    share: float
    bytes: int = 0
    px: int = 0
    lane: str = ""
    flow: Flow = field(default_factory=Flow)


class Gate:
    """Counts what is inside, and refuses what would be too much. Used from the event loop's thread alone.

    `requests`, `bytes`, `px`: the bounds, of everything together; one key may have its share of each. What would
    not be done within `deadline_s` is not begun. A refusal says when there will be room again, from `px_per_s`,
    the speed of late, 0 if it is not known.
    """

    def __init__(
        self,
        *,
        requests: int,
        bytes: int,
        px: int,
        deadline_s: float = math.inf,
        px_per_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._requests, self._bytes, self._px = requests, bytes, px
        self._deadline_s = deadline_s
        self._px_per_s = px_per_s
        self._inside: set[Ticket] = set()
        self.draining = False

    @property
    def inside(self) -> int:
        """How many requests are inside."""
        return len(self._inside)

    @property
    def px(self) -> int:
        """Pixels that are decoded and not yet answered."""
        return sum(ticket.px for ticket in self._inside)

    @property
    def bytes(self) -> int:
        """Bytes of uploads that are held."""
        return sum(ticket.bytes for ticket in self._inside)

    def enter(self, key: str, share: float, expected_bytes: int) -> Ticket:
        """Let a request in, to be followed by `leave`, or raise the Problem that refuses it.

        `share`: what `key` may have of everything. `expected_bytes`: what its upload says of its length, or 0.
        """
        self.refuse_if_draining()
        if len(self._inside) >= self._requests:
            raise self._full("the queue is full")
        if self._inside and self.px >= self._px:
            raise self._full("the queue is full of pictures", excess_px=self.px - self._px)
        ticket = Ticket(key, share)
        if self._of_key(ticket, lambda ticket: 1) + 1 > max(1, share * self._requests):
            raise self._over_share(ticket)
        self._inside.add(ticket)
        try:
            self.add_bytes(ticket, expected_bytes)
        except Problem:
            self.leave(ticket)
            raise
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Count `ticket` no longer."""
        self._inside.discard(ticket)

    def add_bytes(self, ticket: Ticket, count: int) -> None:
        """Count bytes of the upload, or raise the Problem that ends it."""
        others = self._inside - {ticket}
        if others and self.bytes + count > self._bytes:
            raise self._full("too many uploads are under way")
        if others and self._of_key(ticket, lambda ticket: ticket.bytes) + count > ticket.share * self._bytes:
            raise self._over_share(ticket)
        ticket.bytes += count

    def weigh(self, ticket: Ticket, px: int, lane: str = "") -> None:
        """Count the pixels of the decoded picture instead of the bytes, or raise the Problem that refuses them.

        `lane`: where it will wait. A picture that finds nobody else inside is let through, whatever its size.
        """
        ticket.bytes = 0
        if self.px and self.px + px > self._px:
            raise self._full("the queue is full of pictures", excess_px=self.px + px - self._px)
        of_key = self._of_key(ticket, lambda ticket: ticket.px)
        if of_key and of_key + px > ticket.share * self._px:
            raise self._over_share(ticket)
        self._refuse_if_late(ticket, px, lane)
        ticket.px, ticket.lane = px, lane

    def _refuse_if_late(self, ticket: Ticket, px: int, lane: str) -> None:
        """Refuse what its deadline would end while it waits for others."""
        groups: Counter[tuple[str, str]] = Counter()
        for other in self._inside:
            groups[other.key, other.lane] += other.px
        mine = groups.pop((ticket.key, lane), 0) + px
        # Keys and lanes share the device evenly, so of who has more only as much is done meanwhile.
        until_done_px = mine + sum(min(mine, others) for others in groups.values())
        speed = self._px_per_s()
        if speed and px < until_done_px > self._deadline_s * speed:
            excess_px = until_done_px - int(self._deadline_s * speed)
            raise self._full("the queue is longer than a request may take", excess_px)

    def refuse_if_draining(self) -> None:
        """Raise a Problem if the service is about to end."""
        if self.draining:
            raise draining()

    def _of_key(self, ticket: Ticket, what: Callable[[Ticket], int]) -> int:
        return sum(what(other) for other in self._inside if other.key == ticket.key)

    def _full(self, what: str, excess_px: int | None = None) -> Problem:
        if excess_px is None:  # the next of those inside will do; they share the device
            excess_px = self.px // max(1, len(self._inside))
        return Problem("queue-full", f"{what}; try again later", retry_after_s=self._seconds(excess_px))

    def _over_share(self, ticket: Ticket) -> Problem:
        count = self._of_key(ticket, lambda ticket: 1)
        backlog_px = self._of_key(ticket, lambda ticket: ticket.px)
        return Problem(
            "key-over-share",
            f"this API key has {count} requests in work, which is its share; wait for one of them",
            retry_after_s=self._seconds(backlog_px // max(1, count)),
        )

    def _seconds(self, px: int) -> float:
        speed = self._px_per_s()
        return px / speed if speed else 1.0


_Waiting = tuple[str, asyncio.Future[None]]  # the name of a key, and its turn


class Lane:
    """Lets `at_once` pictures be worked on at the same time; who waits is served by turns among the API keys.

    `of_key`: how many of them may be of one key, where there are keys; the rest is for others at any moment.
    """

    def __init__(self, at_once: int, of_key: int | None = None) -> None:
        self._free = at_once
        self._of_key = max(1, of_key or at_once)
        self._taken: Counter[str] = Counter()
        self._waiting: FairQueue[_Waiting] = FairQueue()
        self._flows: dict[str, Flow] = {}
        self.working: list[Ticket] = []

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a turn and have it for as long as the context lasts."""
        await self._wait(ticket)
        self.working.append(ticket)
        self._weigh(ticket.key)
        try:
            yield
        finally:
            self.working.remove(ticket)
            self._weigh(ticket.key)
            self._give_back(ticket.key)

    def refuse_waiting(self, problem: Problem) -> None:
        """End the waiting of everybody with `problem`."""
        while self._waiting:
            _, turn = self._waiting.get()
            if not turn.done():
                turn.set_exception(problem)

    async def _wait(self, ticket: Ticket) -> None:
        if self._free > 0 and self._may_take(ticket.key):
            self._take(ticket.key)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = ticket.key, turn
        self._waiting.put(self._flows.setdefault(ticket.key, Flow()), max(1, ticket.px), waiting)
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.remove(waiting)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give_back(ticket.key)  # the turn came in the same moment
            raise

    def _may_take(self, key: str) -> bool:
        return not key or self._taken[key] < self._of_key

    def _take(self, key: str) -> None:
        self._free -= 1
        self._taken[key] += 1

    def _give_back(self, key: str) -> None:
        self._free += 1
        self._taken[key] -= 1
        while self._free and (waiting := self._waiting.get_first(lambda other: self._may_take(other[0]))):
            key, turn = waiting
            if not turn.done():
                self._take(key)
                turn.set_result(None)

    def _weigh(self, key: str) -> None:
        """Give all of a key's pictures together the weight of one."""
        of_key = [ticket for ticket in self.working if ticket.key == key]
        for ticket in of_key:
            ticket.flow.weight = 1 / len(of_key)
