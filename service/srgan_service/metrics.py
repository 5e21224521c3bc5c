"""What /metrics tells; one registry for each application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and gauges, in the names of Prometheus."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "srgan_requests", "Answered requests.", ["method", "route", "status"], registry=registry
        )
        self.latency = Histogram(
            "srgan_request_seconds", "From head to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.wait = Histogram(
            "srgan_queue_wait_seconds", "From upload to work.", ["lane"], buckets=_SECONDS, registry=registry
        )
        self.rejections = Counter(
            "srgan_rejections", "Requests answered with a problem.", ["code"], registry=registry
        )
        self.cancelled = Counter("srgan_cancelled", "Requests whose client went away.", registry=registry)
        self.pixels_in = Counter("srgan_pixels_in", "Pixels of pictures upscaled.", registry=registry)
        self.pixels_out = Counter("srgan_pixels_out", "Pixels of their results.", registry=registry)
        self.jobs_ended = Counter("srgan_jobs_ended", "Jobs that ended.", ["state"], registry=registry)

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(name, help, registry=self._registry).set_function(value)

    def total(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a counter that somebody else keeps."""
        self._registry.register(_Total(name, help, value))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class _Total(Collector):
    name: str
    help: str
    value: Callable[[], float]

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self.name, self.help, value=self.value())
