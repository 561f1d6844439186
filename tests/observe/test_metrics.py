"""A server's counts for Prometheus, as its own parser and promtool read them."""
from __future__ import annotations

import importlib
import math
import shutil
import socketserver
import subprocess
import sys
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, MetricsHandler, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from threaded_echo import ClientHandler, ThreadedMixIn, ThreadedTCPServer, ThreadedUnixStreamServer
from threaded_echo.observe.metrics import ServerCollector

from ..tools import LOOPBACK, Echo, ask, connect, receive, receive_all, until, wait_until

Samples = dict[str, float]


def samples_of(text: str) -> Samples:
    """Parse what is scraped: values by the name and the values of the labels."""
    return {" ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


def registry_of(*collectors: ServerCollector) -> CollectorRegistry:
    """Make a registry of its own."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry


def scrape(registry: CollectorRegistry) -> Samples:
    """Do as a scrape does, without HTTP."""
    return samples_of(generate_latest(registry).decode())


def counters_of(samples: Samples) -> Samples:
    """Leave out what may go down."""
    return {name: value for name, value in samples.items()
            if name.partition(" ")[0].endswith(("_total", "_count", "_sum", "_bucket"))}


def assert_consistent(samples: Samples, before: Samples) -> None:
    """Check that every client is counted once, and that no counter has gone down."""
    refused = sum(value for name, value in samples.items() if name.startswith("threaded_echo_refused_total"))
    assert samples["threaded_echo_connections_total"] == (
        samples["threaded_echo_clients"] + samples["threaded_echo_finished_total"] + refused)
    assert samples["threaded_echo_connection_duration_seconds_count"] == samples["threaded_echo_finished_total"]
    for name, value in counters_of(before).items():
        assert samples[name] >= value, name


class Various(ClientHandler):
    """Does what its client says."""

    def process(self, data):
        """Disconnect it, fail, compute, or echo."""
        if data == b"disconnect":
            self.client.disconnect()
        if data == b"fail":
            raise LookupError("as it was asked to")
        return self.offload(bytes.upper, data) if data == b"compute" else data


def go_through(server: ThreadedTCPServer) -> None:
    """Have one client of each kind: with ``max_clients=1`` and ``at_limit="refuse"``."""
    for number, (question, answer) in enumerate([(b"compute", b"COMPUTE"), (b"fail", b""), (b"disconnect", b"")], 1):
        with connect(server) as client:
            client.sendall(question)
            if answer:
                assert receive(client, len(answer)) == answer
                with connect(server) as refused:
                    assert receive_all(refused) == b""
            else:
                assert receive_all(client) == b""
        until(lambda number=number: server.stats().finished == number)


def test_scrape_by_http_has_the_counts_of_the_statistics(serve, caplog):
    """Read by urllib and by the parser of prometheus_client; what has not occurred is there as 0."""
    server = serve(Various, max_clients=1, at_limit="refuse")
    registry = registry_of(ServerCollector(server))
    go_through(server)
    with ThreadedTCPServer(LOOPBACK, MetricsHandler.factory(registry)).start() as metrics:
        host, port = metrics.server_address
        with urllib.request.urlopen(f"http://{host}:{port}/metrics") as response:
            found = samples_of(response.read().decode())
    stats = server.stats()
    assert (stats.accepted, stats.finished, stats.failed, stats.refused) == (4, 3, 1, 1)
    assert found.pop("threaded_echo_uptime_seconds") > 0
    assert found.items() >= {
        "threaded_echo_clients": 0, "threaded_echo_clients_peak": 1, "threaded_echo_connections_total": 4,
        "threaded_echo_finished_total": 3, "threaded_echo_failures_total": 1,
        "threaded_echo_disconnects_total disconnect": 1, "threaded_echo_disconnects_total idle": 0,
        "threaded_echo_disconnects_total lifetime": 0, "threaded_echo_disconnects_total send": 0,
        "threaded_echo_disconnects_total stop": 0, "threaded_echo_disconnects_total thread": 0,
        "threaded_echo_refused_total limit": 1, "threaded_echo_refused_total host limit": 0,
        "threaded_echo_refused_total handshake": 0, "threaded_echo_refused_total verify": 0,
        "threaded_echo_accept_errors_total": 0, "threaded_echo_offloads_done_total": 1,
        "threaded_echo_offloads_failed_total": 0, "threaded_echo_offloads running": 0,
        "threaded_echo_offloads waiting": 0, "threaded_echo_offload_run_seconds_count": 1,
        "threaded_echo_offload_wait_seconds_count": 1, "threaded_echo_connection_duration_seconds_count": 3,
        "threaded_echo_connection_duration_seconds_bucket +Inf": 3,
        "threaded_echo_connection_duration_seconds_bucket 86400.0": 3}.items()
    assert found["threaded_echo_threads busy"] + found["threaded_echo_threads idle"] >= 1
    if sys.platform == "linux":
        assert found["threaded_echo_received_bytes_total"] == stats.bytes_received == 7 + 4 + 10
        assert found["threaded_echo_sent_bytes_total"] == stats.bytes_sent == 7


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_metrics_keep_the_conventions_of_prometheus(serve, caplog):
    """Its own tool reads them and has nothing to remark, also on the label of several servers."""
    server = serve(Various, max_clients=1, at_limit="refuse")
    registry = registry_of(ServerCollector({"one": server, "other\n\"": server}), ServerCollector(server, "chat"))
    go_through(server)
    done = subprocess.run(["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_clients_that_come_and_go_during_a_scrape_are_counted_once(serve, monkeypatch):
    """One is there at the snapshot and gone when its bytes are read, and another one has come and gone in between."""
    server = serve(Echo)
    registry = registry_of(ServerCollector(server))
    clients = server._threaded_state.registry
    before = scrape(registry)
    with connect(server) as leaving:
        leaving.sendall(b"hello")
        assert receive(leaving, 5) == b"hello"

        def interrupted():
            """Let them come and go after the snapshot."""
            found = totals()
            monkeypatch.undo()
            leaving.close()
            assert ask(server) == b"ping\n"
            until(lambda: not server.clients)
            return found

        totals = clients.totals
        monkeypatch.setattr(clients, "totals", interrupted)
        found = scrape(registry)
    assert_consistent(found, before)
    assert (found["threaded_echo_clients"], found["threaded_echo_connections_total"]) == (1, 1)
    if sys.platform == "linux":
        assert found["threaded_echo_received_bytes_total"] == 5
    later = scrape(registry)
    assert_consistent(later, found)
    assert (later["threaded_echo_clients"], later["threaded_echo_connections_total"]) == (0, 2)


def test_client_that_leaves_in_the_middle_of_a_snapshot_is_counted_once(serve, monkeypatch):
    """It is among the live ones when these are listed, and among those that have gone when these are counted."""
    server = serve(Echo)
    registry = registry_of(ServerCollector(server))
    clients = server._threaded_state.registry
    with connect(server) as leaving:
        leaving.sendall(b"hello")
        assert receive(leaving, 5) == b"hello"

        def interrupted():
            """Let it leave after the live ones have been listed."""
            found = listed()
            monkeypatch.undo()
            leaving.close()
            until(lambda: not clients.live)
            return found

        listed = clients.clients
        monkeypatch.setattr(clients, "clients", interrupted)
        found = scrape(registry)
    assert_consistent(found, {})
    assert (found["threaded_echo_clients"], found["threaded_echo_finished_total"]) == (0, 1)
    if sys.platform == "linux":
        assert found["threaded_echo_received_bytes_total"] == 5


def test_scrapes_beside_busy_clients_are_consistent(serve):
    """Whatever the moment, each client is counted once and no counter goes down."""
    server = serve(Echo)
    registry = registry_of(ServerCollector(server))

    def come_and_go():
        """Be several clients, one after the other."""
        for _ in range(25):
            assert ask(server) == b"ping\n"

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    before: Samples = {}
    while any(thread.is_alive() for thread in threads):
        found = scrape(registry)
        assert_consistent(found, before)
        before = found
    for thread in threads:
        thread.join()
    server.stop()
    last = scrape(registry)
    assert_consistent(last, before)
    assert last["threaded_echo_finished_total"] == 100


def test_counters_go_on_when_the_server_serves_again(serve):
    """A stop is no reset: neither of a client that it has ended, nor of those that were gone."""
    server = serve(Various)
    registry = registry_of(ServerCollector(server))
    assert ask(server) == b"ping\n"
    with connect(server) as stopped:
        stopped.sendall(b"compute")
        assert receive(stopped, 7) == b"COMPUTE"
        before = scrape(registry)
        server.shutdown()
        assert receive_all(stopped) == b""
    between = scrape(registry)
    assert_consistent(between, before)
    assert between["threaded_echo_disconnects_total stop"] == 1
    server.start()
    assert ask(server, b"compute") == b"COMPUTE"
    server.stop()
    after = scrape(registry)
    assert_consistent(after, between)
    assert (after["threaded_echo_finished_total"], after["threaded_echo_offloads_done_total"]) == (3, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no bytes are known")
def test_bytes_of_a_handler_that_closes_its_socket_stay_counted(serve):
    """As they were at the last scrape: afterwards the kernel tells nothing any more."""
    closed, goes_on, ends = threading.Event(), threading.Event(), threading.Event()

    class Closing(socketserver.BaseRequestHandler):
        """Closes its socket by itself, and goes on."""

        def handle(self):
            """Echo once."""
            self.request.sendall(self.request.recv(100))
            wait_until(goes_on)
            self.request.close()
            closed.set()
            wait_until(ends)

    server = serve(Closing)
    registry = registry_of(ServerCollector(server))
    with connect(server) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        before = scrape(registry)
        assert before["threaded_echo_received_bytes_total"] == 5
        goes_on.set()
        wait_until(closed)
        assert_consistent(scrape(registry), before)
        ends.set()
    server.stop()
    assert_consistent(scrape(registry), before)


def test_registering_a_collector_collects_nothing(monkeypatch):
    """Its names are known without a snapshot, and stay taken: two servers need a mapping or two namespaces."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server, ThreadedTCPServer(LOOPBACK, Echo) as other:
        collectors = [ServerCollector(server), ServerCollector(other), ServerCollector(other, namespace="other")]
        with monkeypatch.context() as patch:
            patch.setattr(ThreadedMixIn, "_threaded_measure", None)
            registry = registry_of(collectors[0])
            with pytest.raises(ValueError, match="Duplicated timeseries"):
                registry.register(collectors[1])
            registry.register(collectors[2])
        assert {"threaded_echo_clients", "other_clients"} <= scrape(registry).keys()


def test_servers_of_one_registry_are_told_apart_by_a_label():
    """The mapping is read at each scrape, so that a server may come later, and go."""
    with ThreadedTCPServer(LOOPBACK, Echo).start() as chat, ThreadedTCPServer(LOOPBACK, Echo) as admin:
        servers = {"chat": chat}
        registry = registry_of(ServerCollector(servers))
        ask(chat)
        assert scrape(registry)["threaded_echo_connections_total chat"] == 1
        servers["admin"] = admin
        found = scrape(registry)
        assert found["threaded_echo_connections_total chat"] == 1
        assert found["threaded_echo_connections_total admin"] == found["threaded_echo_refused_total limit admin"] == 0
        del servers["chat"]
        assert "threaded_echo_connections_total chat" not in scrape(registry)


def test_name_of_a_server_may_be_its_port():
    """prometheus_client fails on a label that is no text, in the middle of the scrape."""
    with ThreadedTCPServer(LOOPBACK, Echo) as server:
        assert scrape(registry_of(ServerCollector({9999: server})))["threaded_echo_connections_total 9999"] == 0


def test_wrong_server_or_name_is_told_at_once():
    """Not at the first scrape."""
    with socketserver.TCPServer(LOOPBACK, Echo) as server, pytest.raises(TypeError, match="built on threaded_echo.Thr"):
        ServerCollector(server)
    with ThreadedTCPServer(LOOPBACK, Echo) as server, pytest.raises(ValueError, match="a b"):
        ServerCollector(server, namespace="a b")


@pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")
def test_bytes_that_the_platform_cannot_tell_are_left_out(tmp_path):
    """As for Unix sockets: no value is better than a wrong one. A program's own ``stats`` is not in the way."""
    class Server(ThreadedUnixStreamServer):
        """Has a method of that name."""

        def stats(self):
            """Tell something else."""
            return "something else"

    with Server(tmp_path / "socket", Echo).start() as server:
        registry = registry_of(ServerCollector(server))
        assert ask(server) == b"ping\n"
        found = scrape(registry)
    assert found["threaded_echo_connections_total"] == 1
    assert "threaded_echo_received_bytes_total" not in found


def test_durations_are_recorded_only_for_a_collector(serve):
    """Without one they cost nothing; those that have gone before it is made are not in the histogram."""
    server = serve(Echo)
    assert ask(server) == b"ping\n"
    until(lambda: server.stats().finished == 1)
    assert server.stats().durations is None
    ServerCollector(server)
    assert ask(server) == b"ping\n"
    server.stop()
    found = server.stats().durations
    assert (found.count, found.buckets[-1]) == (1, (math.inf, 1))
    assert 0 < found.sum < 50


def test_missing_package_is_an_error_that_names_the_extra(monkeypatch):
    """Whoever imports the module is told what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    monkeypatch.delitem(sys.modules, "threaded_echo.observe.metrics")
    with pytest.raises(ImportError, match=r'the package prometheus-client \(the extra "metrics"\)'):
        importlib.import_module("threaded_echo.observe.metrics")
