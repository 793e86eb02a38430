"""How workers meet: all of them, nobody else, and with the same settings."""

import concurrent.futures
import contextlib
import json
import os
import socket
import stat
import time

import pytest

from tfcharrnn.distributed import local_workers, membership, rendezvous
from tfcharrnn.errors import ConfigError, UserError


def make_addresses(count):
    return json.loads(local_workers.make_tf_configs(count)[0])["cluster"]["worker"]


def meet(addresses, *workers):
    """Lets workers meet, each with its own arguments; returns what each raised."""

    def come(index, arguments):
        try:
            rendezvous.wait_for_workers(addresses, index, **{"quiet": True, "timeout": 20, **arguments})
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        return [future.result(timeout=50) for future in [pool.submit(come, *one) for one in enumerate(workers)]]


def wait_for_all(addresses, delays):
    """Each worker comes after a delay; when each goes on, in seconds from the start."""
    begun = time.monotonic()

    def come(index, delay):
        time.sleep(delay)
        rendezvous.wait_for_workers(addresses, index, quiet=True)
        return time.monotonic() - begun

    with concurrent.futures.ThreadPoolExecutor(len(delays)) as pool:
        return [future.result(timeout=50) for future in [pool.submit(come, *one) for one in enumerate(delays)]]


@pytest.mark.parametrize("delays", [(0, 0, 0), (1.5, 0, 0), (0, 0.7, 1.5)])
def test_nobody_goes_on_before_all_are_there(delays):
    addresses = json.loads(local_workers.make_tf_configs(3)[0])["cluster"]["worker"]
    for _ in range(2):  # the addresses are free again at once
        assert min(wait_for_all(addresses, delays)) >= max(delays)


def test_who_hangs_up_before_all_are_there_is_waited_for_again():
    addresses = json.loads(local_workers.make_tf_configs(2)[0])["cluster"]["worker"]
    port = int(addresses[0].rpartition(":")[2])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        chief = pool.submit(rendezvous.wait_for_workers, [*addresses, "127.0.0.1:1"], 0, quiet=True)
        for said in (b"1\n", b"GET / HTTP/1.1\n", b""):
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as line:
                    line.sendall(said)
                    time.sleep(0.1)
                    break
        second = pool.submit(rendezvous.wait_for_workers, [*addresses, "127.0.0.1:1"], 2, quiet=True)
        time.sleep(1)
        assert not chief.done() and not second.done(), "worker 1 has gone again"
        rendezvous.wait_for_workers([*addresses, "127.0.0.1:1"], 1, quiet=True)
        chief.result(timeout=20)
        second.result(timeout=20)


def test_a_chief_that_is_at_work_already_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            late = pool.submit(rendezvous.wait_for_workers, [f"127.0.0.1:{port}", "127.0.0.1:1"], 1, quiet=True)
            server.accept()[0].sendall(b"PRI * HTTP/2.0")
            with pytest.raises(UserError, match=r"worker 0 at .* is already training without worker 1.*--resume"):
                late.result(timeout=20)


@pytest.mark.parametrize(
    "address", ["host", "host:port", "host:²", ":5", "host:0", "host:99999", "host:1" + "0" * 5000]
)
@pytest.mark.parametrize("index", [0, 1])
def test_an_address_that_is_none_is_named(address, index):
    for addresses in ([address, "b:2"], ["b:2", address], [address]):
        with pytest.raises(ConfigError, match=r"must be host:port, with a port up to 65535\. Received: "):
            rendezvous.wait_for_workers(addresses, index)
    with socket.create_server(("", 0)) as server, pytest.raises(ConfigError, match="cannot listen at port"):
        rendezvous.wait_for_workers([f"127.0.0.1:{server.getsockname()[1]}", "b:2"], 0, quiet=True)


def test_the_first_setting_that_differs_is_named_on_every_worker():
    settings = {"cell": "gru", "learning_rate": 0.001, "seed": 0}
    others = [{**settings, "learning_rate": 0.01, "seed": 5}, settings]
    said = meet(make_addresses(3), *({"settings": one} for one in [settings, *others]))
    message = "--learning_rate: worker 1 has 0.01, and worker 0 has 0.001; start all workers with the same flags"
    assert said == [message] * 3
    assert meet(make_addresses(3), *[{"settings": settings}] * 3) == [None] * 3


@pytest.mark.parametrize("index", [0, 1])
def test_waiting_has_an_end(index, capsys):
    with pytest.raises(UserError, match=rf"^worker {index} of 2 at .* waited 0\.5 s for .*--rendezvous_timeout"):
        rendezvous.wait_for_workers(make_addresses(2), index, timeout=0.5)
    assert capsys.readouterr().err.count("is waiting for worker") == 1


def test_the_token_is_in_the_run_folder_until_all_have_met(tmp_path, monkeypatch):
    monkeypatch.delenv(membership.TOKEN_VARIABLE, raising=False)
    run_dir = tmp_path / "runs" / "new"
    with membership.share_token(run_dir) as token:
        assert len(token) == 64 and membership.read_token(run_dir) == token
        assert stat.S_IMODE((run_dir / ".rendezvous").stat().st_mode) == 0o600
        assert os.listdir(run_dir) == [".rendezvous"]
    assert membership.read_token(run_dir) is None and not run_dir.exists()
    assert meet(make_addresses(2), {"run_dir": run_dir}, {"run_dir": run_dir}) == [None, None]
    assert not run_dir.exists()


def test_a_token_is_not_read_through_a_link(tmp_path, monkeypatch):
    monkeypatch.delenv(membership.TOKEN_VARIABLE, raising=False)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / ".rendezvous").symlink_to(tmp_path / "secret")
    assert membership.read_token(tmp_path) is None
    with membership.share_token(tmp_path):
        pass
    assert (tmp_path / "secret").read_text() == "secret"


def test_who_does_not_know_the_token_is_not_let_in(tmp_path):
    addresses = make_addresses(2)
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    with membership.share_token(folders[1]):
        said = meet(addresses, *({"run_dir": folder, "timeout": 1} for folder in folders))
    assert "waited 1 s for worker 1;" in said[0]
    assert "waited 1 s for worker 0 at" in said[1] and "which has another token" in said[1]


@pytest.mark.parametrize("token", ["", "secret"])
def test_the_environment_may_hold_the_token(token, monkeypatch, tmp_path):
    monkeypatch.setenv(membership.TOKEN_VARIABLE, token)
    assert (
        meet(make_addresses(2), {"run_dir": tmp_path / "a"}, {"run_dir": tmp_path / ("b" if token else "a")})
        == [None] * 2
    )


def test_a_stranger_is_not_told_to_proceed(monkeypatch):
    monkeypatch.setenv(membership.TOKEN_VARIABLE, "secret")
    addresses = make_addresses(2)
    host, port = membership.parse_address(addresses[0])
    said = [b"1\n", b"tfcharrnn hello 1 00\ntfcharrnn 00 {}\n", b"tfcharrnn hello 7 00\n", b"\xff\n", b"a" * 2**21]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chief = pool.submit(rendezvous.wait_for_workers, addresses, 0, quiet=True)
        for line in said:
            while True:
                try:
                    stranger = socket.create_connection((host, port), timeout=20)
                    break
                except OSError:
                    time.sleep(0.05)
            with stranger:
                heard = b""
                with contextlib.suppress(OSError):
                    stranger.sendall(line)
                    while data := stranger.recv(2**16):
                        heard += data
            assert heard.count(b"\n") <= 1, "no more than the chief's own proof, and hung up"
        rendezvous.wait_for_workers(addresses, 1, quiet=True)
        chief.result(timeout=20)


def test_the_chief_listens_at_its_address_alone_and_others_need_a_token(monkeypatch):
    monkeypatch.delenv(membership.TOKEN_VARIABLE, raising=False)
    wait = rendezvous._Wait("worker 0", 20, True)
    with rendezvous._listen("127.0.0.1", make_port(), b"", wait) as server:
        assert server.getsockname()[0] == "127.0.0.1"
    with pytest.raises(
        ConfigError, match=r"^TF_CONFIG: worker 0 at 0\.0\.0\.0:\d+ can be reached by others; set TFCHARRNN_TOKEN"
    ):
        rendezvous.wait_for_workers([f"0.0.0.0:{make_port()}", "b:2"], 0, quiet=True)
    with pytest.raises(ConfigError, match=r"cannot listen at port \d+ of 192\.0\.2\.1 .*an address of its machine"):
        rendezvous._listen("192.0.2.1", make_port(), b"secret", wait)


def make_port():
    return membership.parse_address(make_addresses(1)[0])[1]


@pytest.mark.parametrize(
    ("addresses", "count"),
    [
        (["127.0.0.1:1", "10.0.0.1:1", "[::1]:1"], 0),
        (["10.0.0.1:1", "8.8.8.8:1", "1.1.1.1:1"], 1),
        (["[2600::1]:5"], 1),
    ],
)
def test_a_public_address_is_warned_of_once(addresses, count, capsys):
    membership.warn_if_public(addresses)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == count
    if count:
        index = len(addresses) // 2
        assert warnings[0].startswith(f"warning: worker {index} at {addresses[index]} has a public address")
