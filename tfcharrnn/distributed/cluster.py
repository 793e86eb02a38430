"""The processes and devices that train one model together, on `tf.distribute`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.distributed import rendezvous
from tfcharrnn.errors import ConfigError, UserError, first_line

# how TensorFlow says that another process has gone, or that it waited for it in vain
_GONE = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
# A process sets up its devices once; whoever trains again does it on the same.
_joined: dict[tuple[str, int, str], Cluster] = {}
_TASK = re.compile(r"/job:(\w+)/replica:\d+/task:(\d+)")


class Cluster:
    """The workers, each a process, and the replicas of the model, one on each device of each worker.

    Attributes:
        strategy: TensorFlow's; None: one process, one device, nothing to distribute.
        index: of this worker.
        addresses: of all workers, in the order of their indices; of a single one "".
        devices: of this worker, one for each of its replicas.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy | None, index: int = 0, addresses: Sequence[str] = ("",)
    ) -> None:
        """Takes a strategy, and which of the workers at these addresses this process is."""
        self.strategy = strategy
        self.index = index
        self.addresses = tuple(addresses)
        self.devices: tuple[str, ...] = strategy.extended.worker_devices if strategy else ("",)
        self._gather = tf.function(self._sum_over_replicas)

    @property
    def is_chief(self) -> bool:
        """This is the worker that writes checkpoints, metrics and samples, and talks to the person at the terminal."""
        return self.index == 0

    @property
    def num_workers(self) -> int:
        """How many processes there are."""
        return len(self.addresses)

    @property
    def num_replicas(self) -> int:
        """How many devices there are in all."""
        return self.num_workers * len(self.devices)

    def describe(self) -> str:
        """Where the replicas are, in words."""
        if self.num_workers == 1:
            return f"on {', '.join(re.sub('.*device:', '', device) for device in self.devices)}"
        return f"{len(self.devices)} on each worker: {', '.join(self.addresses)}"

    def rows(self, batch_size: int) -> list[range]:
        """For each replica of this worker, which rows of each batch are its own.

        Args:
            batch_size: of all replicas together.

        Raises:
            ConfigError: they cannot be divided evenly.
        """
        if batch_size % self.num_replicas:
            raise ConfigError(
                f"--batch_size={batch_size}: {self.num_replicas} replicas cannot share it evenly; take a multiple of "
                f"{self.num_replicas}, such as {-(-batch_size // self.num_replicas) * self.num_replicas}"
            )
        size = batch_size // self.num_replicas
        first = self.index * len(self.devices)
        return [range(replica * size, (replica + 1) * size) for replica in range(first, first + len(self.devices))]

    def gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """What each worker has called this with, `[workers, values]`; all must call it, and wait for one another."""
        mine = np.zeros((self.num_workers, len(values)))
        mine[self.index] = values
        if self.num_workers == 1:
            return mine
        total = self._gather(tf.constant(mine)).numpy()
        return np.asarray(total) / len(self.devices)

    def wait(self) -> None:
        """Waits until every worker has come here."""
        self.gather([0.0])

    def check_alike(self, values: dict[str, int]) -> None:
        """Checks that all workers are about to do the same.

        Args:
            values: whole numbers below 2^53 that must be the same on all, by what they are.

        Raises:
            UserError: one has another; told by every worker.
        """
        all_values = self.gather(list(values.values()))
        for name, of_workers in zip(values, all_values.T.tolist(), strict=True):
            for index, value in enumerate(of_workers):
                if value != of_workers[0]:
                    raise UserError(
                        f"worker {index} has another {name} than worker 0: {value:.0f} and {of_workers[0]:.0f}; all "
                        "need the same flags and the same data, and a --run_dir on a disk that they share"
                    )

    @contextlib.contextmanager
    def chief_first(self) -> Iterator[None]:
        """Lets the other workers do the body only after the chief has done it well."""
        if not self.is_chief:
            self.wait()
        yield
        if self.is_chief:
            self.wait()

    @contextlib.contextmanager
    def watching(self, run_dir: str) -> Iterator[None]:
        """Tells in one line that another worker has gone, which TensorFlow says in many ways.

        Raises:
            UserError: it has.
        """
        try:
            yield
        except _GONE as error:
            if self.num_workers == 1:
                raise
            raise UserError(
                f"worker {self.index} of {self.num_workers}: {self._who(str(error))} has gone, so this one stops too; "
                f"start all of them again with --resume --run_dir={run_dir} to go on from the last checkpoint "
                f"({_reason(str(error))})"
            ) from error

    def _sum_over_replicas(self, values: tf.Tensor) -> tf.Tensor:
        def add(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

        assert self.strategy is not None
        return self.strategy.experimental_local_results(self.strategy.run(add, (values,)))[0]

    def _who(self, message: str) -> str:
        """The worker that a message of TensorFlow names, or not."""
        for kind, task in _TASK.findall(message):
            index = int(task) + (kind == "worker" and _has_chief())
            if index != self.index and index < self.num_workers:
                return f"worker {index} at {self.addresses[index]}"
        return "another worker"


def start(name: str, num_replicas: int = 0, *, quiet: bool = False) -> Cluster:
    """Joins the other workers; to be called before TensorFlow computes anything.

    Args:
        name: what `--strategy` says: `none`, `mirrored` or `multi_worker`.
        num_replicas: for `mirrored` how many; 0: one for each GPU.
        quiet: do not say that others are waited for.

    Raises:
        ConfigError: there is no such cluster, or it is described wrongly.
        UserError: TensorFlow has computed something already, or on other devices.
    """
    if num_replicas and name != "mirrored":
        raise ConfigError(f"--num_replicas is a setting of --strategy=mirrored, not of {name}")
    if name == "none":
        return Cluster(None)
    asked = (name, num_replicas, os.environ.get("TF_CONFIG", ""))
    try:
        if not _joined:
            _joined[asked] = _mirrored(num_replicas) if name == "mirrored" else _multi_worker(quiet)
        if asked not in _joined:  # TensorFlow's sums over other devices would go astray
            raise RuntimeError("this process has joined other devices before")
        return _joined[asked]
    except RuntimeError as error:
        raise UserError(
            f"--strategy={name}: must be set up before TensorFlow computes anything ({first_line(error)}); "
            "begin with it in a new process"
        ) from None


def _mirrored(num_replicas: int) -> Cluster:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        if not num_replicas:
            raise ConfigError(
                "--strategy=mirrored: TensorFlow sees no GPU; --num_replicas says how many devices to make of the CPU"
            )
        (cpu, *_) = tf.config.list_physical_devices("CPU")
        if len(tf.config.get_logical_device_configuration(cpu) or ()) < num_replicas:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_replicas)
    elif num_replicas > len(gpus):
        raise ConfigError(f"--num_replicas={num_replicas}: there are {len(gpus)} GPUs")
    kind = "GPU" if gpus else "CPU"
    devices = [f"{kind}:{index}" for index in range(num_replicas or len(gpus))]
    return Cluster(tf.distribute.MirroredStrategy(devices))


def _multi_worker(quiet: bool) -> Cluster:
    """The cluster that `TF_CONFIG` describes, or of the Slurm job that this process is a task of."""
    if os.environ.get("TF_CONFIG"):
        addresses, index = _tf_config(os.environ["TF_CONFIG"])
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    elif "SLURM_STEP_ID" in os.environ:
        # it deals out ports by GPUs, of which there may be none; which GPUs a task sees is for Slurm to say
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
        )
        addresses, index = resolver.cluster_spec().job_tasks("worker"), resolver.task_id
    else:
        raise ConfigError(
            "--strategy=multi_worker: TF_CONFIG is not set, and this is no task of Slurm; set it for each worker, or "
            "try workers on this machine with python -m tfcharrnn.launch_local"
        )
    rendezvous.meet(addresses, index, quiet=quiet)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    if threading.current_thread() is threading.main_thread():  # TensorFlow's own handler would keep us from ending
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return Cluster(strategy, index, addresses)


def _tf_config(text: str) -> tuple[list[str], int]:
    """The workers' addresses, the chief first, and which of them this one is.

    Raises:
        ConfigError: it says something else.
    """
    example = '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'
    try:
        value = json.loads(text)
        cluster, task = value["cluster"], value["task"]
        chief, workers = list(cluster.get("chief", [])), list(cluster.get("worker", []))
        kind, index = task["type"], int(task["index"])
        own = {"chief": chief, "worker": workers}[kind]
        if not 0 <= index < len(own) or len(chief) > 1 or not all(isinstance(a, str) for a in chief + workers):
            raise ValueError(f"no {kind} {index} in the cluster")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"TF_CONFIG describes no workers ({type(error).__name__}: {first_line(error)}); it must be like {example}"
        ) from None
    return chief + workers, index + (len(chief) if kind == "worker" else 0)


def _has_chief() -> bool:
    return '"chief"' in os.environ.get("TF_CONFIG", "")


def _reason(message: str) -> str:
    """Of a message of TensorFlow the line that says what happened."""
    lines = [line.strip() for line in message.splitlines()]
    told = [line for line in lines if "abort" in line or "onnect" in line or "crash" in line]
    return (told or lines or [""])[0][:200]
