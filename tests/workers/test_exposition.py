"""Many pages of metrics become one that Prometheus reads: each family once, every series of a worker labelled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_fd_to_metric_families, text_string_to_metric_families

from relay.workers.exposition import merged


def page(streams: float, *, ends: tuple[str, ...] = ()) -> str:
    registry = CollectorRegistry()
    Gauge("relay_streams", "Open {streams} here.", registry=registry).set(streams)
    counter = Counter("relay_ends_total", "How it ended.", ["reason"], registry=registry)
    for reason in ends:
        counter.labels(reason).inc()
    Histogram("relay_lag_seconds", "Lag.", registry=registry, buckets=(1, 2)).observe(1.5)
    return generate_latest(registry).decode()


def series(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is told twice"
            found[key] = sample.value
    return found


def test_every_series_of_a_worker_has_its_label_and_its_value() -> None:
    told = series(merged("", {0: page(1.0), 1: page(2.0, ends=("cut",))}))
    assert told[("relay_streams", (("worker", "0"),))] == 1.0
    assert told[("relay_streams", (("worker", "1"),))] == 2.0
    assert told[("relay_ends_total", (("reason", "cut"), ("worker", "1")))] == 1.0
    assert told[("relay_lag_seconds_bucket", (("le", "2.0"), ("worker", "0")))] == 1.0
    assert told[("relay_lag_seconds_count", (("worker", "1"),))] == 1.0


def test_every_family_is_told_once_and_in_one_piece() -> None:
    text = merged(page(0.0), {0: page(1.0, ends=("a",)), 1: page(2.0, ends=("b",)), 2: page(3.0)})
    heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads)) == 5  # the counter and the histogram have a _created family each
    at: list[str] = []
    for line in text.splitlines():
        family = line.split()[2] if line.startswith("#") else at[-1]
        if not at or at[-1] != family:
            at.append(family)
        if not line.startswith("#"):
            assert line.startswith(family)
    assert len(at) == len(set(at))


def test_what_the_parent_tells_itself_has_no_label() -> None:
    told = series(merged(page(7.0), {3: page(1.0)}))
    assert told[("relay_streams", ())] == 7.0
    assert told[("relay_streams", (("worker", "3"),))] == 1.0


def test_without_any_worker_it_is_the_parents_own_page() -> None:
    own = page(7.0)
    assert merged(own, {}) == own


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4, unique=True), st.integers(0, 63))
def test_no_labels_value_is_touched(reasons: list[str], number: int) -> None:
    alone, together = (
        series(page(0.5, ends=tuple(reasons))),
        series(merged("", {number: page(0.5, ends=tuple(reasons))})),
    )
    worker = ("worker", str(number))
    wanted = {name for name, _ in alone}
    assert {(name, tuple(sorted((*labels, worker)))) for name, labels in alone} == set(together)
    assert {name for name, _ in together} == wanted


def test_the_real_page_is_read_by_the_real_parser(tmp_path: object) -> None:
    from io import StringIO

    from relay import telemetry

    text = merged(
        telemetry.page(telemetry.PARENT).decode(), {0: telemetry.page().decode(), 1: telemetry.page().decode()}
    )
    families = list(text_fd_to_metric_families(StringIO(text)))
    assert {family.type for family in families} <= {"counter", "gauge", "histogram"}
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {"relay_workers_wanted", "relay_workers_running", "relay_worker_restarts", "relay_worker_silent"} <= set(
        names
    )
