"""Several workers on one port: viewers cannot tell, whoever dies is replaced, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from relay.web.admit import hash_of
from tests.conftest import embedded
from tests.support.needs import recording
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import Crowd, RedisProcess, crowd
from tests.system.team import Team, alive, team, until
from tests.system.watching import KINDS

pytestmark = [pytest.mark.system]

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def events_of(relay: Team, run_id: str) -> str:
    return f"{relay.url}/v1/runs/{run_id}/events"


def play(upstream: ScriptedUpstream, rate: float) -> str:
    """Its last part waits until the test says so."""
    return upstream.play(recording("long-answer"), rate=rate, hold=300)


async def everywhere(relay: Team, people: Crowd, count: int = 24) -> list[float]:
    """Loyal viewers, enough of them that every worker has some; how many each has."""
    for i in range(count):
        people.join(KINDS[i % 4])
    await people.all_saw(lambda viewer: viewer.cursor > 20)
    shares = [share or 0.0 for share in await relay.by_worker("relay_viewers")]
    assert all(shares), shares
    assert sum(shares) == count
    return shares


async def owner_of_the_only_run(relay: Team) -> int:
    streams = [count or 0.0 for count in await relay.by_worker("relay_upstream_connections")]
    assert sorted(streams) == [0.0] * (relay.wanted - 1) + [1.0]
    return streams.index(1.0)


async def nothing_left(relay: Team, pids: list[int]) -> None:
    await until(lambda: not any(alive(pid) for pid in pids), what="nothing left")
    assert not [pid for pid in relay.workers if alive(pid)]


# ── serving ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_viewers_on_every_worker_see_the_same_events_of_one_upstream_stream(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with team(upstream.url, tmp_path) as relay:
        run_id = play(upstream, 150)
        async with crowd(events_of(relay, run_id)) as people:
            await everywhere(relay, people)
            await owner_of_the_only_run(relay)
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
            assert {viewer.connections for viewer in people.viewers} == {1}
        assert upstream.max_following(run_id) == 1
        assert upstream.counters(run_id)["max_draining"] <= 1


async def test_kill_9_of_the_worker_that_pumps_costs_no_viewer_an_event(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with team(upstream.url, tmp_path) as relay:
        run_id = play(upstream, 100)
        async with crowd(events_of(relay, run_id)) as people:
            shares = await everywhere(relay, people)
            number = await owner_of_the_only_run(relay)
            dead = relay.tell(number, signal.SIGKILL)
            pid = await relay.replaced(number)
            assert pid != dead
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
            connections = [viewer.connections for viewer in people.viewers]
            assert connections.count(1) == len(connections) - shares[number], "only its own viewers came back"
            (died,) = relay.told("worker.died")
            assert (died["worker"], died["pid"], died["signal"]) == (number, dead, "SIGKILL")
        assert upstream.max_following(run_id) == 1
        assert await relay.of_parent("relay_worker_restarts_total", reason="killed") == 1
        assert await relay.of_parent("relay_workers_running") == relay.wanted
        assert await relay.of_parent("relay_workers_wanted") == relay.wanted


async def test_a_worker_asked_to_stop_drains_and_is_replaced(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with team(upstream.url, tmp_path) as relay:
        run_id = play(upstream, 100)
        async with crowd(events_of(relay, run_id)) as people:
            shares = await everywhere(relay, people)
            number = await owner_of_the_only_run(relay)
            relay.tell(number, signal.SIGTERM)
            await relay.replaced(number)
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
            told = [viewer for viewer in people.viewers if viewer.said("relay.goodbye")]
            assert {goodbye["code"] for viewer in told for goodbye in viewer.said("relay.goodbye")} == {"drain"}
            assert len(told) == shares[number]
            assert all(viewer.connections == 1 for viewer in people.viewers if viewer not in told)
            (draining,) = relay.told("relay.draining")
            assert draining["worker"] == number
        assert upstream.max_following(run_id) == 1
        assert await relay.of_parent("relay_worker_restarts_total", reason="stopped") == 1


async def test_a_viewer_token_of_one_worker_opens_all_of_them_and_their_replacements(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """No secret is configured: the one that was made for all must be the same for those that come later."""
    with embedded(tmp_path / "redis") as server:
        async with team(upstream.url, tmp_path, workers=2, redis_url=server.url) as relay:
            run_id = upstream.play(recording("web-search"), rate=1000)
            url = f"{relay.url}/v1/runs/{run_id}"
            async with relay.session.post(f"{url}/tokens") as response:
                assert response.status == 201, await response.text()
                token = (await response.json())["token"]

            async def opened_by_all() -> None:
                before = await relay.by_worker("relay_http_requests_total")
                while True:
                    async with aiohttp.ClientSession() as session:
                        query = {"access_token": token, "follow": "false"}
                        headers = {"Accept": "application/json"}
                        async with session.get(f"{url}/events", params=query, headers=headers) as response:
                            assert response.status == 200, await response.text()
                    now = await relay.by_worker("relay_http_requests_total")
                    if all((a or 0) > (b or 0) for a, b in zip(now, before, strict=True)):
                        return

            async with asyncio.timeout(60):
                await opened_by_all()
            for number in range(2):
                relay.tell(number, signal.SIGKILL)
                await relay.replaced(number)
            async with asyncio.timeout(60):
                await opened_by_all()


async def test_a_worker_carries_no_setting_and_no_secret_where_others_may_look(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with team(upstream.url, tmp_path, workers=2) as relay:
        for pid in relay.workers:
            shown = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
            assert b"RELAY_" not in shown
            assert b"upstream-secret" not in shown
            assert (tmp_path / "data" / "token.secret").read_bytes().strip() not in shown
        assert "upstream-secret" not in relay.log.read_text()


async def test_a_worker_that_dies_at_once_again_and_again_is_replaced_more_and_more_slowly(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with team(upstream.url, tmp_path, workers=2) as relay:
        run_id = play(upstream, 60)
        async with crowd(events_of(relay, run_id)) as people:
            people.join_all()
            descriptors = len(list(Path(f"/proc/{relay.pid}/fd").iterdir()))
            for times in range(1, 5):
                relay.tell(1, signal.SIGKILL)
                await relay.replaced(1, times)
            assert len(list(Path(f"/proc/{relay.pid}/fd").iterdir())) <= descriptors, "each worker leaves one behind"
            assert sorted(children_of(relay.pid)) == sorted([*relay.workers, relay.server]), "a worker is not reaped"
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        at = [datetime.fromisoformat(line["timestamp"]) for line in relay.told("worker.died")]
        back = [datetime.fromisoformat(line["timestamp"]) for line in relay.told("worker.replaced")]
        pauses = [(b - a).total_seconds() for a, b in zip(at, back, strict=True)]
        for least, pause in zip([0.0, 0.5, 1.0, 2.0], pauses, strict=True):
            assert pause >= least, pauses
        assert await relay.of_parent("relay_worker_restarts_total", reason="killed") == 4


# ── the admin listener ──────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_page_of_metrics_is_whole_and_a_frozen_worker_does_not_spoil_it(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    key = "rk_admin"
    auth = {"keys": f"[{{name: ops, hash: '{hash_of(key)}', admin: true}}]"}
    async with team(upstream.url, tmp_path, auth=auth) as relay:
        run_id = play(upstream, 150)
        async with crowd(events_of(relay, run_id)) as people:
            await everywhere(relay, people)
            assert None not in await relay.by_worker("relay_append_seconds_count")
            admin = {"headers": {"Authorization": f"Bearer {key}"}}
            status, runs = await relay.get("/admin/runs", **admin)
            assert status == 200
            assert {entry["worker"] for entry in runs["watched"]} == {0, 1, 2}
            assert sum(entry["readers"] for entry in runs["watched"]) == len(people.viewers)
            assert [entry["run"] for entry in runs["pumped"] if entry["owned"]] == [f"main/{run_id}"]
            assert runs["silent"] == []

            relay.tell(1, signal.SIGSTOP)
            try:
                sums = await relay.by_worker("relay_append_seconds_count")
                assert [number for number, value in enumerate(sums) if value is None] == [1]
                assert await relay.of_parent("relay_worker_silent_total", question="metrics") >= 1
                status, runs = await relay.get("/admin/runs", **admin)
                assert (status, runs["silent"]) == (200, [1])
                assert {entry["worker"] for entry in runs["watched"]} == {0, 2}
                assert (await relay.get("/readyz"))[0] == 200
                assert (await relay.get("/healthz"))[0] == 200
            finally:
                relay.tell(1, signal.SIGCONT)
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert None not in await relay.by_worker("relay_append_seconds_count")
        status, shown = await relay.get("/admin/config", **admin)
        assert (status, shown["server"]["workers"]) == (200, 3)
        for headers, refused in (({}, 401), ({"Authorization": "Bearer rk_other"}, 401)):
            for path in ("/admin/runs", "/admin/config"):
                assert (await relay.get(path, headers=headers))[0] == refused
        assert (await relay.get("/metrics", headers={"Host": "evil.example"}))[0] == 403


async def test_ready_follows_redis_and_the_first_start_waits_for_it(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    server = RedisProcess(tmp_path / "redis")
    relay = Team(upstream.url, tmp_path, workers=2, redis_url=server.url, redis={"timeout_s": 0.5})
    relay.session = aiohttp.ClientSession()
    starting = asyncio.create_task(relay.start(60))
    try:
        await until(lambda: relay.told("redis.waiting"), what="a worker waits for Redis")
        status, said = await relay.get("/readyz")
        assert (status, said["reason"]) == (503, "waiting for Redis")
        assert (await relay.get("/healthz"))[0] == 200
        assert relay.workers == []
        os.kill(next(pid for pid in children_of(relay.pid)), signal.SIGKILL)  # killed while it waits: no reason to go
        await until(lambda: relay.told("worker.died"), what="its death is noticed")
        with server:
            await starting
            assert (await relay.get("/readyz"))[0] == 200
            server.signal(signal.SIGSTOP)
            await readyz_says(relay, 503)
            assert (await relay.get("/healthz"))[0] == 200
            server.signal(signal.SIGCONT)
            await readyz_says(relay, 200)
            assert relay.workers == children_of(relay.pid), "nobody died of it"
            assert await relay.stop() == 0
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await relay.__aexit__()


async def readyz_says(relay: Team, status: int) -> None:
    """In the end: an answer may have been on its way already."""
    async with asyncio.timeout(60):
        while (await relay.get("/readyz"))[0] != status:
            await asyncio.sleep(0.05)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ── the port ────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_port_0_is_one_port_for_all_and_told_once(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    relay = Team(upstream.url, tmp_path, workers=3, server={"port": 0, "admin_port": 0})
    relay.session = aiohttp.ClientSession()
    starting = asyncio.create_task(relay.start())  # it asks a port that is not the one
    try:
        await until(lambda: len(relay.told("worker.started")) == 3, what="every worker started")
        (ready,) = relay.told("relay.ready")
        relay.url, relay.admin_url = ready["address"], ready["admin"]
        run_id = play(upstream, 400)
        async with crowd(events_of(relay, run_id)) as people:
            await everywhere(relay, people)
            relay.tell(0, signal.SIGKILL)
            await relay.replaced(0)
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert len(relay.told("relay.ready")) == 1
        assert await relay.stop() == 0
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await relay.__aexit__()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_relay_does_not_slip_into_the_port(
    upstream: ScriptedUpstream, tmp_path: Path, workers: int
) -> None:
    async with team(upstream.url, tmp_path, workers=2) as relay:
        (tmp_path / "second").mkdir()
        second = Team(upstream.url, tmp_path / "second", workers=workers, server={"port": relay.port})
        with pytest.raises(RuntimeError, match=f"exited with 1:(.|\n)*server: 127.0.0.1:{relay.port} is in use"):
            await second.start()
        assert second.workers == []


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_kill_9_of_the_parent_leaves_nothing_and_the_next_one_goes_on(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with team(upstream.url, tmp_path) as relay:
        run_id = play(upstream, 100)
        async with crowd(events_of(relay, run_id)) as people:
            await everywhere(relay, people)
            left = [*relay.workers, relay.server]
            await relay.kill()
            await nothing_left(relay, left)
            assert [line["window_s"] for line in relay.told("relay.draining")] == [0.0] * 3, "the port is needed"
            await relay.start()
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) == 1


@pytest.mark.parametrize("number", SIGNALS)
async def test_told_to_stop_everybody_is_told_goodbye_and_nothing_is_left(
    upstream: ScriptedUpstream, tmp_path: Path, number: signal.Signals
) -> None:
    async with team(upstream.url, tmp_path) as relay:
        run_id = play(upstream, 100)
        async with crowd(events_of(relay, run_id)) as people:
            await everywhere(relay, people)
            left = [*relay.workers, relay.server]
            assert await relay.signal(number) == 0
            await nothing_left(relay, left)
            for viewer in people.viewers:
                await viewer.until(lambda viewer: viewer.said("relay.goodbye"))
                assert viewer.polite_ends == 0
            assert sorted(line["worker"] for line in relay.told("relay.draining")) == [0, 1, 2]
            assert relay.told("worker.died") == []
            assert "bye bye" in (tmp_path / "data" / "server.log").read_text(), "its server ended in order"
            await relay.start()
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_a_signal_for_every_process_at_once_is_still_a_polite_end(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """As systemd does by default: it tells the whole control group."""
    with embedded(tmp_path / "redis") as server:
        async with team(upstream.url, tmp_path, redis_url=server.url) as relay:
            run_id = play(upstream, 100)
            async with crowd(events_of(relay, run_id)) as people:
                await everywhere(relay, people)
                for pid in (*relay.workers, relay.pid):
                    os.kill(pid, signal.SIGTERM)
                assert await relay.ended() == 0
                for viewer in people.viewers:
                    await viewer.until(lambda viewer: viewer.said("relay.goodbye"))
                await relay.start()
                await upstream.go_on(run_id)
                await people.ended()
                people.check(upstream.truth(run_id))


async def test_ctrl_c_in_a_terminal_reaches_workers_once(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with team(upstream.url, tmp_path, workers=2) as relay:
        assert {os.getsid(pid) for pid in relay.workers}.isdisjoint({os.getsid(relay.pid)})
        assert {os.getpgid(pid) for pid in relay.workers}.isdisjoint({os.getpgid(relay.pid)})
        assert await relay.signal(signal.SIGINT) == 0
        assert len(relay.told("relay.draining")) == 2


async def test_told_twice_it_ends_now_and_its_server_still_in_order(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with team(upstream.url, tmp_path, drain={"close_s": 60.0}) as relay:
        left = [*relay.workers, relay.server]
        relay.tell(1, signal.SIGSTOP)  # it will never drain
        os.kill(relay.pid, signal.SIGTERM)
        await until(lambda: len(relay.told("relay.draining")) == 2, what="the others drain")
        status, said = await relay.get("/readyz")
        assert (status, said["reason"]) == (503, "stopping")
        await until(lambda: not any(alive(left[number]) for number in (0, 2)), what="the others are gone")
        assert alive(left[1])
        assert await relay.signal(signal.SIGTERM) == 1
        await nothing_left(relay, left)
        assert "bye bye" in (tmp_path / "data" / "server.log").read_text()


async def test_a_worker_that_does_not_end_in_time_is_ended(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with team(upstream.url, tmp_path, workers=2, drain={"close_s": 0.2}) as relay:
        left = [*relay.workers, relay.server]
        relay.tell(0, signal.SIGSTOP)
        assert await relay.signal(signal.SIGTERM) == 0
        await nothing_left(relay, left)
        (overdue,) = relay.told("worker.overdue")
        assert overdue["worker"] == 0


async def test_a_worker_that_dies_while_relay_stops_is_not_replaced(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with team(upstream.url, tmp_path, workers=2) as relay:
        left = [*relay.workers, relay.server]
        relay.tell(1, signal.SIGSTOP)
        os.kill(relay.pid, signal.SIGTERM)
        await until(lambda: not alive(left[0]), what="the other one is gone")
        relay.tell(1, signal.SIGKILL)
        assert await relay.ended() == 0
        await nothing_left(relay, left)
        assert relay.told("worker.replaced") == []
        assert len(relay.told("worker.started")) == 2


async def test_the_embedded_servers_death_ends_everything(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with team(upstream.url, tmp_path, workers=2) as relay:
        left = relay.workers
        os.kill(relay.server, signal.SIGKILL)
        assert await relay.ended() == 1
        await nothing_left(relay, left)


@pytest.mark.parametrize("after", ["embedded.started", "worker.started"])
async def test_told_to_stop_while_it_starts(upstream: ScriptedUpstream, tmp_path: Path, after: str) -> None:
    relay = Team(upstream.url, tmp_path, workers=3)
    relay.session = aiohttp.ClientSession()
    starting = asyncio.create_task(relay.start())
    try:
        await until(lambda: told_somehow(relay, after), what=after)
        if after == "embedded.started":  # from here on the signal is relay's to deal with
            await until(lambda: children_of(relay.pid)[1:], what="a worker is started")
        left = children_of(relay.pid)
        assert await relay.signal(signal.SIGTERM) == 0, relay.log.read_text()
        await nothing_left(relay, left)
        assert "Traceback" not in relay.log.read_text()
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await relay.__aexit__()


def told_somehow(relay: Team, event: str) -> bool:
    return relay.log.exists() and f'"{event}"' in relay.log.read_text()


async def test_a_viewer_that_comes_and_goes_all_the_time_while_workers_die_all_the_time(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    import random

    async with team(upstream.url, tmp_path) as relay:
        run_id = play(upstream, 60)
        async with crowd(events_of(relay, run_id)) as people:
            for i in range(16):
                people.join(KINDS[i % 4], chance=random.Random(i) if i >= 8 else None, within_s=1.0)
            dice = random.Random(7)
            for _ in range(5):
                number = dice.randrange(3)
                before = sum(line["worker"] == number for line in relay.told("worker.replaced"))
                relay.tell(number, dice.choice([signal.SIGKILL, signal.SIGTERM]))
                await relay.replaced(number, before + 1)
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) == 1
