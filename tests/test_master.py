"""The master through a running sidecar: start, reload, drain, what its processes hold."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from fastside.admin_client import AdminClient
from harness import Raw, Sidecar, call, free_port, get, session_members, wait_until
from load import Load, all_workers

SERVICE = "svc-a"


@pytest.fixture
def static(origin):
    """A configuration that knows the origin as svc-a without any registry."""
    return {"services": {SERVICE: {"endpoints": ["{}:{}".format(*origin.address)]}}}


def refused(address: tuple[str, int]) -> bool:
    try:
        Raw(address).close()
    except ConnectionRefusedError:
        return True
    return False


class TestStart:
    def test_a_relative_path_is_that_of_the_start(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with Sidecar(directory=tmp_path) as sidecar:
            absolute = sidecar.config_path
            sidecar.stop()
            sidecar.config_path = absolute.relative_to(tmp_path)
            sidecar.start()
            assert sidecar.cli("status", "-o", "json").stdout.count(str(absolute)) == 1
            sidecar.config_path = absolute

    def test_says_what_it_does(self, sidecar):
        wait_until(lambda: "try: fastside publish svc-a --port 20880\n" in sidecar.log())
        log = sidecar.log()
        for line in (
            f"pid {sidecar.pid}",
            f"  configuration  {sidecar.config_path}",
            "  workers        2: as configured",
            f"  outbound       127.0.0.1:{sidecar.outbound_port} (outbound auto)",
            f"  API            {sidecar.api}",
            "  registry       its own, in this sidecar",
            "from 0 s connections close when idle or at their next response; at 5 s what is left is cut",
        ):
            assert line in log
        assert sorted(sidecar.processes()) == [
            "fastside: control",
            "fastside: master",
            "fastside: worker 0",
            "fastside: worker 1",
        ]

    def test_a_port_in_use_is_named_with_its_holder(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            listeners = [{"name": "inbound", "bind": f"127.0.0.1:{port}"}]
            sidecar = Sidecar({"listeners": listeners}, directory=tmp_path, wait_ready=False)
            sidecar.start()
            assert sidecar.process.wait(20) == 1
        message = f"fastside: listener inbound: cannot listen on 127.0.0.1:{port}: it is in use by python"
        assert f"{message}" in sidecar.log()
        assert f"(pid {os.getpid()})" in sidecar.log()
        assert session_members(sidecar.pid) == {}
        assert not (sidecar.directory / "run/master.lock").exists()

    @pytest.mark.parametrize("key", ["api", "metrics"])
    def test_a_port_that_control_needs_is_in_use(self, key, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            sidecar = Sidecar({key: f"127.0.0.1:{port}"}, directory=tmp_path, wait_ready=False)
            sidecar.start()
            assert sidecar.process.wait(20) == 1
        assert f"127.0.0.1:{port}" in sidecar.log()
        assert "so the sidecar cannot run here" in sidecar.log()
        assert session_members(sidecar.pid) == {}

    def test_tells_the_service_manager(self, tmp_path):
        path = tmp_path / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(path))
            manager.settimeout(20)
            with Sidecar(env={"NOTIFY_SOCKET": str(path)}) as sidecar:
                assert manager.recv(100) == b"READY=1"
                os.kill(sidecar.pid, signal.SIGHUP)
                reloading = manager.recv(100)
                assert reloading.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert int(reloading.rpartition(b"=")[2]) <= time.monotonic() * 1e6
                assert manager.recv(100) == b"READY=1"
            assert manager.recv(100) == b"STOPPING=1"

    def test_connections_before_it_is_ready_are_served(self, static):
        sidecar = Sidecar(static, wait_ready=False)
        with sidecar:
            wait_until(lambda: not refused(sidecar.outbound))
            assert call(sidecar.outbound, SERVICE).status == 200


class TestProcesses:
    def test_each_worker_accepts(self, static):
        """Without hand-over a worker has only what it accepted itself. The kernel gives all of 40 connections to one of
        two sockets as often as 40 tosses of a coin are equal."""
        with Sidecar({**static, "workers": 2, "accept": "reuseport"}) as sidecar, ExitStack() as clients:
            for _ in range(40):
                clients.enter_context(Raw(sidecar.outbound)).call(SERVICE)
            workers = AdminClient(str(sidecar.admin_socket)).get("/status")["workers"]
            assert all(worker["connections"] for worker in workers)

    def test_each_holds_only_what_it_needs(self, sidecar):
        def held(title: str) -> list[str]:
            directory = Path(f"/proc/{sidecar.processes()[title]}/fd")
            return [os.readlink(link) for link in directory.iterdir() if int(link.name) > 2]

        def inode(name: str) -> int:
            return int(name.partition("[")[2][:-1])

        listening = {
            int(line.split()[9])
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if int(line.split()[1].partition(":")[2], 16) in (sidecar.inbound_port, sidecar.outbound_port)
            and line.split()[3] == "0A"
        }
        assert len(listening) == 4
        master = held("fastside: master")
        assert listening <= {inode(name) for name in master if name.startswith("socket:")}
        control = held("fastside: control")
        assert not listening & {inode(name) for name in control if name.startswith("socket:")}
        for slot in range(2):
            worker = held(f"fastside: worker {slot}")
            sockets = [inode(name) for name in worker if name.startswith("socket:")]
            # The listeners' sockets, its own inbox, and the way to both inboxes: nothing of control's.
            assert listening <= {*sockets}
            assert len(sockets) == 4 + 1 + 2
            # The pipe's reading end only, or the workers could not see the master's death.
            assert len([name for name in worker if name.startswith("pipe:")]) == 1
            assert len(worker) == len(sockets) + 1 + len(
                [name for name in worker if "eventfd" in name or "eventpoll" in name or "memfd:" in name]
            )

    def test_the_master_has_no_client_or_server_library(self, sidecar):
        libraries = Path(f"/proc/{sidecar.pid}/maps").read_text()
        assert "_core" in libraries
        for name in ("aiohttp", "multidict", "yarl", "_ssl"):
            assert name not in libraries

    def test_a_terminal_s_interrupt_drains(self, sidecar):
        """Ctrl-C reaches every process of the foreground group; only the master acts on it."""
        os.killpg(sidecar.pid, signal.SIGINT)
        assert sidecar.process.wait(20) == 0
        assert "SIGINT: stopping" in sidecar.log()
        assert "was killed" not in sidecar.log()
        assert session_members(sidecar.pid) == {}


class TestReload:
    def test_a_listener_comes_and_goes(self, static, origin):
        with Sidecar(static) as sidecar:
            port = free_port()
            extra = {"name": "extra", "direction": "outbound", "bind": f"127.0.0.1:{port}", "protocol": "tcp"}
            sidecar.configure({"listeners": [{**extra, "service": SERVICE}]})
            sidecar.cli("reload")
            # A tcp listener relays bytes to the service's endpoints, whatever they are.
            assert get(("127.0.0.1", port), "/").body == origin.name.encode()
            assert "reloaded: listeners.extra: added" in sidecar.log()
            sidecar.config["listeners"].pop()
            sidecar.configure({})
            sidecar.cli("reload")
            assert refused(("127.0.0.1", port))
            assert call(sidecar.outbound, SERVICE).status == 200

    def test_no_call_fails_while_listeners_and_settings_change(self, static):
        with Sidecar(static) as sidecar:
            keeping = Load(sidecar.outbound, SERVICE, callers=4)
            connecting = Load(sidecar.outbound, SERVICE, callers=4, keep_alive=False)
            with keeping, connecting:
                for round_ in range(4):
                    # The same port again with another attribute: the sockets stay.
                    outbound = {"name": "outbound", "service_header": f"x-service-{round_}"}
                    sidecar.configure({"timeouts": {"connect": 2 + round_}, "listeners": [outbound]})
                    sidecar.cli("reload")
                    keeping.wait_for_calls()
                    connecting.wait_for_calls()
                with Raw(sidecar.outbound) as raw:
                    assert raw.call("nobody", headers=[("X-Service-3", SERVICE)]).status == 200
            assert keeping.failures == []
            assert connecting.failures == []

    def test_more_changes_than_a_worker_has_room_for_at_a_time(self, static):
        with Sidecar(static) as sidecar:
            for round_ in range(80):
                sidecar.configure({"listeners": [{"name": "outbound", "service_header": f"x-{round_}"}]})
                before = sidecar.log().count("reloaded: ")
                os.kill(sidecar.pid, signal.SIGHUP)
                wait_until(lambda before=before: sidecar.log().count("reloaded: ") > before)
            with Raw(sidecar.outbound) as raw:
                assert raw.call("nobody", headers=[("X-79", SERVICE)]).status == 200

    def test_a_bad_file_changes_nothing(self, static):
        with Sidecar(static) as sidecar:
            with Load(sidecar.outbound, SERVICE) as load:
                sidecar.config_path.write_text("listeners:\n  - {name: inbound, bind: '0.0.0.0:99999'}\n")
                result = sidecar.cli("reload", check=False)
                assert result.returncode != 0
                assert "port 99999 is out of range" in result.stderr
                assert "fastside.yaml:2:" in result.stderr
                load.wait_for_calls()
            assert load.failures == []
            assert "the running configuration stays in force" in sidecar.log()
            sidecar.configure({})
            sidecar.cli("reload")

    def test_a_port_in_use_refuses_the_whole_reload(self, static):
        with Sidecar(static) as sidecar, socket.create_server(("127.0.0.1", 0)) as other:
            good, taken = free_port(), other.getsockname()[1]
            listeners = [
                {"name": f"n{port}", "direction": "outbound", "bind": f"127.0.0.1:{port}"} for port in (good, taken)
            ]
            sidecar.configure({"listeners": listeners, "timeouts": {"connect": "3s"}})
            result = sidecar.cli("reload", check=False)
            assert result.returncode != 0
            assert f"listener n{taken}: cannot listen on 127.0.0.1:{taken}: it is in use by" in result.stderr
            assert refused(("127.0.0.1", good))
            assert call(sidecar.outbound, SERVICE).status == 200

    def test_what_cannot_change_is_said(self, sidecar):
        sidecar.configure({"workers": 3, "ejection": {"failures": 7}})
        result = sidecar.cli("reload")
        assert "workers: 2 -> 3 (takes effect at the next start)" in result.stdout
        assert "ejection.failures: 3 -> 7\n" in result.stdout
        assert len(all_workers(sidecar)) == 2

    def test_a_worker_that_does_not_answer_is_named(self, sidecar):
        [stopped, _] = all_workers(sidecar)
        os.kill(stopped, signal.SIGSTOP)
        sidecar.configure({"ejection": {"failures": 7}})
        result = sidecar.cli("reload", check=False)
        os.kill(stopped, signal.SIGCONT)
        assert result.returncode != 0
        assert f"worker 0 (pid {stopped}) did not confirm it" in result.stderr
        sidecar.cli("reload")

    def test_its_own_new_listeners_are_known_as_loops(self, sidecar):
        port = free_port()
        sidecar.client.subscribe("me")
        sidecar.configure({"listeners": [{"name": "new", "direction": "outbound", "bind": f"0.0.0.0:{port}"}]})
        sidecar.cli("reload")
        sidecar.configure({"services": {"me": {"endpoints": [f"127.0.0.1:{port}"]}}})
        result = sidecar.cli("reload", check=False)
        assert "this sidecar's own listener `new`: a loop" in result.stderr


class TestDrain:
    def test_serves_on_for_the_delay_and_fails_no_call(self, static):
        with Sidecar({**static, "drain": {"delay": "1s", "deadline": "20s"}}) as sidecar:
            with Load(sidecar.outbound, SERVICE) as keeping, Load(sidecar.outbound, SERVICE, keep_alive=False) as new:
                os.kill(sidecar.pid, signal.SIGTERM)
                wait_until(lambda: sidecar.health("readyz") == 503)
                keeping.wait_for_calls()
                new.wait_for_calls()
                assert sidecar.process.poll() is None
                assert keeping.failures == new.failures == []
            assert sidecar.process.wait(20) == 0
            log = sidecar.log()
            assert "SIGTERM: stopping; at 0 s not ready" in log
            assert "from 1 s connections close" in log
            assert "at 20 s what is left is cut" in log
            assert list((sidecar.directory / "run").iterdir()) == []

    def test_a_call_under_way_is_finished(self, static, origin):
        with Sidecar(static) as sidecar, Raw(sidecar.outbound) as raw:
            raw.send(b"GET /gate HTTP/1.1\r\nHost: svc-a\r\n\r\n")
            origin.wait_for_requests(1)
            os.kill(sidecar.pid, signal.SIGTERM)
            wait_until(lambda: refused(sidecar.outbound))
            origin.gate.set()
            response = raw.read_response()
            assert (response.status, response.header("connection")) == (200, "close")
            assert sidecar.process.wait(20) == 0

    def test_what_is_left_at_the_deadline_is_cut(self, static, origin):
        with Sidecar({**static, "drain": {"delay": 0, "deadline": "500ms"}}) as sidecar, Raw(sidecar.outbound) as raw:
            raw.send(b"GET /gate HTTP/1.1\r\nHost: svc-a\r\n\r\n")
            origin.wait_for_requests(1)
            os.kill(sidecar.pid, signal.SIGTERM)
            assert sidecar.process.wait(20) == 0
            assert "the drain's deadline has come: 1 connections are cut" in sidecar.log()
            origin.gate.set()

    def test_a_second_signal_ends_at_once(self, static, origin):
        with Sidecar({**static, "drain": {"delay": "60s", "deadline": "100s"}}) as sidecar:
            with Raw(sidecar.outbound) as raw:
                assert raw.call(SERVICE).status == 200
                os.kill(sidecar.pid, signal.SIGTERM)
                wait_until(lambda: "SIGTERM: stopping" in sidecar.log())
                os.kill(sidecar.pid, signal.SIGTERM)
                assert sidecar.process.wait(20) == 128 + signal.SIGTERM
            assert session_members(sidecar.pid) == {}
            assert list((sidecar.directory / "run").iterdir()) == []

    def test_a_worker_killed_during_the_delay_is_replaced(self, static):
        with Sidecar({**static, "drain": {"delay": "60s", "deadline": "100s"}}) as sidecar:
            os.kill(sidecar.pid, signal.SIGTERM)
            wait_until(lambda: "SIGTERM: stopping" in sidecar.log())
            [victim, _] = all_workers(sidecar)
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: "replaced after" in sidecar.log())
            assert call(sidecar.outbound, SERVICE).status == 200
            os.kill(sidecar.pid, signal.SIGINT)
            sidecar.process.wait(20)

    def test_by_command(self, sidecar):
        sidecar.cli("drain")
        assert sidecar.process.wait(20) == 0
        assert "fastside drain: stopping" in sidecar.log()

    def test_before_it_is_ready(self):
        sidecar = Sidecar(wait_ready=False)
        with sidecar:
            wait_until(lambda: "stopping " in sidecar.log())
            os.kill(sidecar.pid, signal.SIGTERM)
            assert sidecar.process.wait(20) == 0
