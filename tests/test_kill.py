"""SIGKILL of any one process, with calls under way: who notices?"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from fastside.admin_client import AdminClient
from harness import (
    Origin,
    Raw,
    Sidecar,
    call,
    free_port,
    get,
    process_title,
    request_bytes,
    require_program,
    require_root,
    session_members,
    wait_until,
)
from load import Load, all_workers

SERVICE = "svc-a"


def static(origin: Origin, **config) -> dict:
    """A configuration that knows the origin as svc-a without any registry."""
    return {"services": {SERVICE: {"endpoints": ["{}:{}".format(*origin.address)]}}, **config}


@pytest.fixture
def running(origin):
    with Sidecar(static(origin)) as sidecar:
        yield sidecar


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    return process_title(pid) == ""


def pid_of(sidecar: Sidecar, title: str) -> int:
    return wait_until(lambda: sidecar.processes().get(f"fastside: {title}"), what=f"{title} is up")


def replaced(sidecar: Sidecar, title: str, old: int) -> int:
    """Wait until another process has the title, and return its pid."""
    return wait_until(
        lambda: (pid := sidecar.processes().get(f"fastside: {title}")) and pid != old and pid,
        what=f"{title} is replaced",
    )


def connections_of(sidecar: Sidecar, slot: int) -> int:
    """Downstream connections of a worker."""
    return AdminClient(str(sidecar.admin_socket)).get("/status")["workers"][slot]["connections"]


class TestWorker:
    def test_only_its_own_connections_fail(self, running):
        with Load(running.outbound, SERVICE) as load:
            victim = pid_of(running, "worker 0")
            at_stake = connections_of(running, 0)
            kill(victim)
            report = f"worker 0 (pid {victim}) was killed by SIGKILL; replaced after"
            wait_until(lambda: report in running.log())
            load.wait_for_calls()
        assert len(load.failures) <= at_stake < 8

    @pytest.mark.parametrize("accept", ["handover", "reuseport", "exclusive"])
    @pytest.mark.parametrize("victims", [1, 2])
    def test_connections_that_wait_are_served(self, origin, accept, victims):
        with Sidecar(static(origin, accept=accept)) as sidecar, contextlib.ExitStack() as clients:
            pids = all_workers(sidecar)[:victims]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            raws = [clients.enter_context(Raw(sidecar.outbound)) for _ in range(200)]
            for raw in raws:
                raw.send(request_bytes(SERVICE))
            for pid in pids:
                kill(pid)
            assert [raw.read_response().status for raw in raws] == [200] * 200
            for slot, pid in enumerate(pids):
                replaced(sidecar, f"worker {slot}", pid)

    def test_a_sibling_serves_while_it_keeps_dying(self, running):
        slept = "worker 1 (pid {}) was killed by SIGKILL; the next one starts in"
        with Load(running.outbound, SERVICE, keep_alive=False, callers=4) as load:
            for _ in range(3):  # each dies young, so the delays double: 0.1, 0.2, 0.4 s
                victim = pid_of(running, "worker 1")
                kill(victim)
                wait_until(lambda pid=victim: slept.format(pid) in running.log())
            before = len(load.failures)
            load.wait_for_calls(20)
            assert load.failures[before:] == []
        replaced(running, "worker 1", victim)
        # What a killed worker had accepted is lost, at most one call of each caller.
        assert len(load.failures) <= 3 * 4


class TestControl:
    @pytest.mark.parametrize("keep_alive", [True, False])
    def test_nobody_notices(self, running, keep_alive):
        with Load(running.outbound, SERVICE, keep_alive=keep_alive) as load:
            victim = pid_of(running, "control")
            kill(victim)
            replaced(running, "control", victim)
            running.wait_ready()
            load.wait_for_calls()
        assert load.failures == []
        assert f"control (pid {victim}) was killed by SIGKILL" in running.log()

    def test_its_successor_can_change_the_table(self, running, origin):
        victim = pid_of(running, "control")
        kill(victim)
        replaced(running, "control", victim)
        running.wait_ready()
        running.client.publish("svc-b", origin.port)
        wait_until(lambda: call(running.inbound, "svc-b").status == 200)


class TestMaster:
    @pytest.mark.parametrize("keep_alive", [True, False])
    def test_workers_serve_on_and_a_new_master_takes_over(self, running, keep_alive):
        orphans = all_workers(running)
        with Load(running.outbound, SERVICE, keep_alive=keep_alive) as load:
            kill(running.pid)
            running.process.wait()
            load.wait_for_calls()
            assert load.failures == []
            running.start()
            load.wait_for_calls()
            wait_until(lambda: all(gone(pid) for pid in orphans), what="the old workers end")
            load.wait_for_calls()
        assert load.failures == []
        assert "taking over" in running.log()
        assert len(all_workers(running)) == 2

    def test_waiting_connections_move_to_the_new_master(self, running):
        """Even when no old worker is there to serve them."""
        for pid in all_workers(running):
            os.kill(pid, signal.SIGSTOP)
        kill(running.pid)
        running.process.wait()
        with contextlib.ExitStack() as clients:
            raws = [clients.enter_context(Raw(running.outbound)) for _ in range(200)]
            for raw in raws:
                raw.send(request_bytes(SERVICE))
            session = running.pid
            running.start()
            assert [raw.read_response().status for raw in raws] == [200] * 200
        for pid in session_members(session):
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: not session_members(session), what="the old workers end")

    @pytest.mark.parametrize("workers", [1, 3])
    def test_with_another_number_of_workers(self, running, workers):
        orphans = all_workers(running)
        with Load(running.outbound, SERVICE, keep_alive=False) as load:
            kill(running.pid)
            running.process.wait()
            running.configure({"workers": workers})
            running.start()
            wait_until(lambda: all(gone(pid) for pid in orphans), what="the old workers end")
            load.wait_for_calls()
        assert load.failures == []
        assert len(all_workers(running, workers)) == workers

    def test_control_and_master_together(self, running):
        with Load(running.outbound, SERVICE) as load:
            kill(pid_of(running, "control"))
            kill(running.pid)
            running.process.wait()
            running.start()
            load.wait_for_calls()
        assert load.failures == []

    def test_where_descriptors_cannot_be_copied(self, running, tmp_path, monkeypatch):
        """pidfd_getfd is refused to one that has fewer capabilities than the orphans."""
        require_root()
        setpriv = require_program("setpriv")
        wrapper = tmp_path / "python"
        wrapper.write_text(
            f'#!/bin/sh\nexec {setpriv} --bounding-set=-sys_ptrace --inh-caps=-sys_ptrace {sys.executable} "$@"\n'
        )
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(wrapper))
        orphans = all_workers(running)
        with Load(running.outbound, SERVICE, keep_alive=False) as load:
            kill(running.pid)
            running.process.wait()
            running.start()
            load.wait_for_calls()
            wait_until(lambda: all(gone(pid) for pid in orphans), what="the old workers end")
            load.wait_for_calls()
        assert load.failures == []
        assert "cannot be had (Permission denied)" in running.log()

    def test_a_start_that_fails_leaves_the_old_workers_to_the_next(self, running):
        orphans = all_workers(running)
        with Load(running.outbound, SERVICE) as load, socket.create_server(("127.0.0.1", 0)) as other:
            kill(running.pid)
            running.process.wait()
            api = running.config["api"]
            running.configure({"api": "{}:{}".format(*other.getsockname())})
            running._wait_ready = False
            assert running.start().process.wait(20) == 1
            load.wait_for_calls()
            running.configure({"api": api})
            running.start().wait_ready()
            wait_until(lambda: all(gone(pid) for pid in orphans), what="the old workers end")
            load.wait_for_calls()
        assert load.failures == []

    def test_a_stop_in_the_middle_of_a_takeover_ends_the_old_workers_too(self, running):
        orphans = all_workers(running)
        kill(running.pid)
        running.process.wait()
        running._wait_ready = False
        running.start()
        wait_until(lambda: "taking over" in running.log())
        os.kill(running.pid, signal.SIGTERM)
        assert running.process.wait(20) == 0
        wait_until(lambda: all(gone(pid) for pid in orphans), deadline=1)

    def test_a_live_master_is_not_taken_over(self, running):
        result = running.cli("run", "-c", str(running.config_path), check=False)
        assert result.returncode == 1
        assert f"already running as pid {running.pid}" in result.stderr


class TestRegistry:
    @pytest.fixture
    def registry(self):
        port = free_port()
        command = [sys.executable, "-m", "fastside", "registry", "--bind", f"127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            process.url = f"http://127.0.0.1:{port}"
            yield process
            process.kill()

    def test_calls_go_on_without_it(self, origin, registry):
        with Sidecar({"registry": {"url": registry.url}}) as sidecar:
            sidecar.client.publish(SERVICE, origin.port)
            sidecar.client.subscribe(SERVICE)
            wait_until(lambda: call(sidecar.outbound, SERVICE).status == 200)
            with Load(sidecar.outbound, SERVICE) as load:
                kill(registry.pid)
                registry.wait()
                load.wait_for_calls(20)
            assert load.failures == []
            assert get(("127.0.0.1", sidecar.metrics_port), "/readyz").status == 200
