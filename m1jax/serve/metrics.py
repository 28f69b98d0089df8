"""What the server has done, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from m1jax.generate.online import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)


class _OfEngine(Collector):
    """What the engine counts itself, read when it is asked for."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        engine, counts = self._engine, self._engine.counts
        timing = counts.timing
        for name, what, value in (
            ("requests", "requests whose prompt was taken up", counts.requests),
            ("cancelled", "requests that nobody waited for any more", counts.cancelled),
            ("failed", "requests that ended with an error of the model or the device", counts.failed),
            ("prompt_tokens", "tokens of prompts", counts.prompt_tokens),
            ("cached_tokens", "tokens of prompts that were not read, because a kept state holds them",
             counts.cached_tokens),
            ("new_tokens", "tokens that were generated", counts.new_tokens),
            ("slot_steps", "steps times slots: new tokens over it is how full the slots were", timing.slot_steps),
            ("decode_seconds", "seconds of generating", timing.decode_seconds),
            ("compile_seconds", "seconds of compiling", timing.compile_seconds),
        ):  # fmt: skip
            yield CounterMetricFamily(f"m1_engine_{name}", what, value)
        yield GaugeMetricFamily("m1_engine_running", "requests that generate or are read", engine.running)
        yield GaugeMetricFamily("m1_engine_waiting", "requests that wait for a place", engine.waiting)
        held = GaugeMetricFamily("m1_engine_cache_bytes", "bytes of keys and values", labels=["of"])
        held.add_metric(["running"], engine.slot_bytes)
        held.add_metric(["kept"], engine.prefixes.bytes)
        yield held


class Metrics:
    """Counters of one server."""

    def __init__(self, engine: Engine):
        """All are 0."""
        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(engine))
        self.answered = Counter(
            "m1_http_requests", "HTTP requests by path and status", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "m1_http_request_seconds", "seconds of HTTP requests", ["path"], buckets=_SECONDS, registry=self._registry
        )
        self.first_token = Histogram(
            "m1_first_token_seconds", "seconds until the first token", buckets=_SECONDS, registry=self._registry
        )

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
