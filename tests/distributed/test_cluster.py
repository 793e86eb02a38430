"""Who the workers are, and what they tell one another."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf

import tfcharrnn
from tfcharrnn.distributed import cluster, connection, local_workers, rendezvous
from tfcharrnn.distributed.cluster import Cluster
from tfcharrnn.errors import ConfigError, UserError

HOSTS = ["a:1", "b:2", "c:3"]


def tf_config(kind, index, **jobs):
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (tf_config("worker", 1, worker=HOSTS), (HOSTS, 1)),
        (tf_config("worker", "1", worker=HOSTS), (HOSTS, 1)),
        (tf_config("chief", 0, chief=["d:4"], worker=HOSTS), (["d:4", *HOSTS], 0)),
        (tf_config("worker", 2, chief=["d:4"], worker=HOSTS), (["d:4", *HOSTS], 3)),
    ],
)
def test_the_chief_is_the_first_worker(text, expected):
    assert cluster._parse_tf_config(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        tf_config("worker", 3, worker=HOSTS),
        tf_config("worker", -1, worker=HOSTS),
        tf_config("chief", 0, worker=HOSTS),
        tf_config("ps", 0, worker=HOSTS, ps=["d:4"]),
        tf_config("worker", 0, chief=["d:4", "e:5"], worker=HOSTS),
        tf_config("worker", 0, worker=[1]),
    ],
)
def test_a_wrong_tf_config_is_named(text, monkeypatch, tmp_path):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match=r"TF_CONFIG describes no workers .*it must be like"):
        tfcharrnn.train_model(tmp_path / "run", strategy="multi_worker")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "multi_worker", "run_dir": ""}, "needs a --run_dir"),
        ({"strategy": "multi_worker"}, "TF_CONFIG is not set"),
        ({"strategy": "mirrored"}, "no GPU; --num_replicas sets"),
        ({"strategy": "none", "num_replicas": 2}, "setting of --strategy=mirrored"),
        ({"strategy": "all"}, "must be one of none, mirrored, multi_worker"),
    ],
)
@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU")
def test_what_cannot_be_joined_is_told(settings, message, monkeypatch, tmp_path):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    with pytest.raises(ConfigError, match=message):
        tfcharrnn.train_model(**{"run_dir": tmp_path / "run", **settings})


def test_tensorflow_must_be_fresh(tmp_path):
    tf.constant(0)
    with pytest.raises(UserError, match=r"before TensorFlow computes anything .*new process"):
        tfcharrnn.train_model(tmp_path / "run", strategy="mirrored", num_replicas=17)


def test_a_task_of_slurm_finds_its_place(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    step = {"ID": "0", "NUM_TASKS": "4", "NODELIST": "n[07-08]", "TASKS_PER_NODE": "2(x2)"}
    for name, value in {**{f"STEP_{name}": value for name, value in step.items()}, "PROCID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(cluster, "_joined_clusters", {})
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda cluster_resolver: Devices(1))
    monkeypatch.setattr(cluster.rendezvous, "wait_for_workers", lambda addresses, index, **_: None)
    one = cluster.join_cluster("multi_worker", quiet=True)
    assert (one.index, one.addresses) == (2, ("n07:8888", "n07:8889", "n08:8888", "n08:8889"))
    assert not one.is_chief and one.num_replicas == 4


def test_a_process_joins_once(monkeypatch):
    monkeypatch.setattr(cluster, "_joined_clusters", {})
    made = []
    monkeypatch.setattr(cluster, "_create_mirrored", lambda number: made.append(number) or Cluster(Devices(number)))
    first = cluster.join_cluster("mirrored", 3)
    assert cluster.join_cluster("mirrored", 3) is first and made == [3]
    with pytest.raises(UserError, match=r"has already joined other devices.*new process"):
        cluster.join_cluster("mirrored", 2)


class Devices:
    """What of a strategy says which devices a worker has."""

    def __init__(self, number):
        self.extended = self
        self.worker_devices = tuple(f"GPU:{index}" for index in range(number))


@pytest.mark.parametrize(("workers", "devices"), [(1, 1), (2, 1), (3, 2), (1, 6)])
def test_every_row_is_one_replicas(workers, devices):
    hosts = [f"h:{index}" for index in range(workers)]
    of_all = [Cluster(Devices(devices), index, hosts).split_batch(36) for index in range(workers)]
    assert [len(of_worker) for of_worker in of_all] == [devices] * workers
    assert [row for of_worker in of_all for rows in of_worker for row in rows] == list(range(36))
    if workers * devices > 1:
        with pytest.raises(ConfigError, match=r"--batch_size=7: .* replicas .* multiple of \d, such as \d+"):
            Cluster(Devices(devices), 0, hosts).split_batch(7)


def test_a_lone_process_needs_nobody():
    alone = Cluster(None)
    assert alone.is_chief and alone.num_replicas == 1
    assert alone.split_batch(5) == [range(5)]
    assert alone.all_gather([1.0, 2.0]).tolist() == [[1.0, 2.0]]
    alone.barrier()
    alone.check_consistent({"anything": 1})
    with alone.chief_first():
        pass


def test_workers_that_differ_are_told_apart(monkeypatch):
    one = Cluster(Devices(1), 1, HOSTS)
    monkeypatch.setattr(one, "all_gather", lambda values: tf.constant([[4.0, 7.0], [4.0, 7.0], [4.0, 8.0]]).numpy())
    with pytest.raises(UserError, match=r"worker 2 has a different first step than worker 0: 8 and 7; .*--run_dir"):
        one.check_consistent({"text": 4, "first step": 7})


@pytest.mark.parametrize(
    ("message", "who"),
    [
        ("Connection reset by peer from remote target /job:worker/replica:0/task:2", "worker 2 at c:3"),
        ("/job:worker/replica:0/task:1 saw that /job:worker/replica:0/task:0 crashed", "worker 0 at a:1"),
        ("Socket closed", "another worker"),
    ],
)
def test_a_worker_that_has_gone_is_named(message, who, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config("worker", 1, worker=HOSTS))
    one = Cluster(Devices(1), 1, HOSTS)
    told = pytest.raises(UserError, match=rf"worker 1 of 3: {who} was lost, .*--resume --run_dir=runs/x")
    with told, one.report_lost_workers("runs/x"):
        raise tf.errors.UnavailableError(None, None, message)
    with pytest.raises(tf.errors.UnavailableError), Cluster(None).report_lost_workers("runs/x"):
        raise tf.errors.UnavailableError(None, None, message)


# The launcher


def launch(code, *flags):
    return subprocess.run(
        [sys.executable, "-m", "tfcharrnn.launch_local", *flags, "--", sys.executable, "-c", code],
        capture_output=True,
        timeout=60,
        text=True,
    )


def test_every_worker_gets_its_place_and_its_prefix():
    done = launch(
        "import json, os, sys; c = json.loads(os.environ['TF_CONFIG']); print(json.dumps(c), flush=True); "
        "print('to', c['task']['index'], file=sys.stderr); sys.exit(0)",
        "--workers=3",
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    configs = [json.loads(line[4:]) for line in lines]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(3)]
    assert len({json.dumps(config["cluster"]) for config in configs}) == 1
    assert len(set(configs[0]["cluster"]["worker"])) == 3
    assert sorted(done.stderr.splitlines()) == ["[0] to 0", "[1] to 1", "[2] to 2"]


def test_the_first_failure_is_the_launchers():
    code = "import json, os, sys, time; i = json.loads(os.environ['TF_CONFIG'])['task']['index']; "
    assert launch(code + "time.sleep(i); sys.exit([0, 4, 5][i])", "--workers=3").returncode == 4
    assert launch(code + "os.kill(os.getpid(), 9) if i else sys.exit(0)").returncode == 128 + 9
    assert subprocess.run([sys.executable, "-m", "tfcharrnn.launch_local"], capture_output=True).returncode == 1


def test_who_is_left_waiting_is_ended(monkeypatch):
    code = (
        "import json, os, time; i = json.loads(os.environ['TF_CONFIG'])['task']['index']; time.sleep(60 * i); exit(3)"
    )
    monkeypatch.setattr(local_workers, "_GRACE_SECONDS", 0.5)
    before = {number: signal.getsignal(number) for number in local_workers.STOP_SIGNALS}
    begun = time.monotonic()
    assert local_workers.run_workers([sys.executable, "-c", code], 2) == 3
    assert time.monotonic() - begun < 50
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_waits_for_the_others_can_be_told_to_end(number, tmp_path):
    config = local_workers.make_tf_configs(2)[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tfcharrnn.train", "--strategy=multi_worker", f"--run_dir={tmp_path / 'run'}"],
        env={**os.environ, "TF_CONFIG": config},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "worker 1 of 2" in process.stderr.readline()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: -15}[number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_go_on_to_every_worker(number, tmp_path):
    code = (
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(print('told') or 0))\n"
        f"pathlib.Path(r'{tmp_path}', str(os.getpid())).touch()\n"
        "time.sleep(50)"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tfcharrnn.launch_local", "--workers=2", "--", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 50
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert sorted(process.communicate(timeout=50)[0].splitlines()) == ["[0] told", "[1] told"]
    assert process.returncode == 0


def test_ports_are_all_different():
    addresses = json.loads(local_workers.make_tf_configs(20)[0])["cluster"]["worker"]
    assert len(set(addresses)) == 20


def test_a_signal_ends_the_wait_of_tensorflow_for_a_worker_that_has_gone():
    code = (
        "import os, threading, time\n"
        "from tfcharrnn.distributed import cluster\n"
        "threading.Timer(3, lambda: print('waiting', flush=True)).start()\n"
        "cluster.join_cluster('multi_worker', quiet=True)\n"
    )
    config = local_workers.make_tf_configs(2)[0]
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "TF_CONFIG": config}, stdout=subprocess.PIPE, text=True
    )
    rendezvous.wait_for_workers(json.loads(config)["cluster"]["worker"], 1, quiet=True)
    assert process.stdout.readline() == "waiting\n", "a thread of the process goes on while TensorFlow waits"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_the_wait_of_tensorflow_has_an_end(monkeypatch):
    gone = threading.Event()
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda cluster_resolver: gone.wait(20))
    with pytest.raises(UserError, match=r"another worker has gone .* waited 0\.1 s"):
        connection.connect_tensorflow(None, 0.1)
    gone.set()


def test_an_error_of_tensorflow_is_raised(monkeypatch):
    def fail(cluster_resolver):
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fail)
    with pytest.raises(tf.errors.UnknownError, match="gRPC"):
        connection.connect_tensorflow(None, 20)


@pytest.fixture
def joined(monkeypatch, tmp_path):
    """What a worker with some settings joins the others with."""

    class JoinedError(Exception):
        pass

    def go(**settings):
        def join(strategy, **given):
            raise JoinedError(given)

        monkeypatch.setattr(cluster, "join_cluster", join)
        with pytest.raises(JoinedError) as caught:
            tfcharrnn.train_model(**{"run_dir": tmp_path / "run", "strategy": "multi_worker", **settings})
        return caught.value.args[0]

    return go


@pytest.mark.parametrize(
    "setting",
    [{"learning_rate": 0.5}, {"seed": 1}, {"batch_size": 4}, {"hidden_size": 7}, {"cell": "lstm"}, {"overlap": 0.5},
     {"eval_every": 7}, {"init_arrays": "x.npz"}],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_workers_compare_every_setting_that_changes_the_weights(joined, setting):
    (name,) = setting
    usual, other = joined()["settings"], joined(**setting)["settings"]
    assert {key for key in usual if usual[key] != other[key]} == {name}
    json.dumps(other)


def test_workers_may_differ_in_what_only_concerns_one_of_them(joined, tmp_path):
    own = {"input": ["elsewhere.txt"], "plot": True, "sample_length": 5, "rendezvous_timeout": 5.0}
    given = joined(**own)
    assert given["settings"] == joined()["settings"]
    assert given["timeout"] == 5.0 and given["run_dir"] == tmp_path / "run"
