"""The processes and devices that train one model together, with `tf.distribute`."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.distributed import connection, rendezvous
from tfcharrnn.errors import ConfigError, UserError, command_line, first_line

# what TensorFlow raises when a peer has terminated or does not respond
_LOST_PEER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
# The cluster that this process has joined, by strategy, number of replicas and TF_CONFIG. TensorFlow sets up devices
# once per process, so later runs in this process share them.
_joined_clusters: dict[tuple[str, int, str], Cluster] = {}
_TASK = re.compile(r"/job:(\w+)/replica:\d+/task:(\d+)")


class Cluster:
    """Workers, each a process, with a replica of the model on each of their devices.

    Attributes:
        strategy: TensorFlow's strategy; None for one process with one device.
        index: index of this worker.
        addresses: `host:port` of each worker by index; `("",)` for a single one.
        devices: devices of this worker, one for each of its replicas.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy | None, index: int = 0, addresses: Sequence[str] = ("",)
    ) -> None:
        self.strategy = strategy
        self.index = index
        self.addresses = tuple(addresses)
        self.devices: tuple[str, ...] = strategy.extended.worker_devices if strategy else ("",)
        self._sum_function = tf.function(self._sum_over_replicas, autograph=False)

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes checkpoints, metrics and samples, and shows progress."""
        return self.index == 0

    @property
    def num_workers(self) -> int:
        """Number of processes."""
        return len(self.addresses)

    @property
    def num_replicas(self) -> int:
        """Number of devices of all workers."""
        return self.num_workers * len(self.devices)

    def describe(self) -> str:
        """Describes where the replicas are."""
        if self.num_workers == 1:
            return f"on {', '.join(re.sub('.*device:', '', device) for device in self.devices)}"
        return f"{len(self.devices)} on each worker: {', '.join(self.addresses)}"

    def check_batch_size(self, batch_size: int) -> None:
        """Checks that the replicas can share a batch evenly.

        Args:
            batch_size: batch size over all replicas.

        Raises:
            ConfigError: they cannot.
        """
        if batch_size % self.num_replicas:
            raise ConfigError(
                f"--batch_size={batch_size}: {self.num_replicas} replicas cannot share it evenly; use a multiple of "
                f"{self.num_replicas}, such as {-(-batch_size // self.num_replicas) * self.num_replicas}"
            )

    def split_batch(self, batch_size: int) -> list[range]:
        """Returns the rows of a batch that each replica of this worker processes.

        Raises:
            ConfigError: the replicas cannot share the batch evenly.
        """
        self.check_batch_size(batch_size)
        size = batch_size // self.num_replicas
        first = self.index * len(self.devices)
        return [range(replica * size, (replica + 1) * size) for replica in range(first, first + len(self.devices))]

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Collects the values of every worker, `[workers, values]`; blocks until all workers have called this."""
        own = np.zeros((self.num_workers, len(values)))
        own[self.index] = values
        if self.num_workers == 1:
            return own
        total = self._sum_function(tf.constant(own)).numpy()
        return np.asarray(total) / len(self.devices)

    def barrier(self) -> None:
        """Blocks until every worker has called this."""
        self.all_gather([0.0])

    def check_consistent(self, values: dict[str, int]) -> None:
        """Checks that some values are the same on all workers.

        Args:
            values: integers below 2^53, by their description.

        Raises:
            UserError: a worker has a different value; raised on every worker.
        """
        gathered = self.all_gather(list(values.values()))
        for name, of_workers in zip(values, gathered.T.tolist(), strict=True):
            for index, value in enumerate(of_workers):
                if value != of_workers[0]:
                    raise UserError(
                        f"worker {index} has a different {name} than worker 0: {value:.0f} and {of_workers[0]:.0f}; "
                        "all need the same flags and the same data, and a --run_dir on a shared disk"
                    )

    @contextlib.contextmanager
    def chief_first(self) -> Iterator[None]:
        """Runs the body on the chief first, then on the other workers if it succeeded."""
        if not self.is_chief:
            self.barrier()
        yield
        if self.is_chief:
            self.barrier()

    @contextlib.contextmanager
    def report_lost_workers(self, run_dir: str) -> Iterator[None]:
        """Turns TensorFlow's errors for the loss of another worker into one message.

        Raises:
            UserError: another worker was lost during the body.
        """
        try:
            yield
        except _LOST_PEER_ERRORS as error:
            if self.num_workers == 1:
                raise
            raise UserError(
                f"worker {self.index} of {self.num_workers}: {self._name_lost_worker(str(error))} was lost, so this "
                f"one stops too; start all of them again with --resume --run_dir={run_dir} to continue from the last "
                f"checkpoint ({_extract_reason(str(error))})"
            ) from error

    def _sum_over_replicas(self, values: tf.Tensor) -> tf.Tensor:
        def add(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

        assert self.strategy is not None
        return self.strategy.experimental_local_results(self.strategy.run(add, (values,)))[0]

    def _name_lost_worker(self, message: str) -> str:
        """Names the worker that an error message of TensorFlow mentions, if any."""
        for kind, task in _TASK.findall(message):
            index = int(task) + (kind == "worker" and _has_separate_chief())
            if index != self.index and index < self.num_workers:
                return f"worker {index} at {self.addresses[index]}"
        return "another worker"


def join_cluster(
    strategy: str,
    num_replicas: int = 0,
    *,
    settings: dict[str, Any] | None = None,
    run_dir: Path | None = None,
    timeout: float = rendezvous.TIMEOUT,
    quiet: bool = False,
) -> Cluster:
    """Joins the other workers; must be called before TensorFlow computes anything.

    Args:
        strategy: the value of `--strategy`: `none`, `mirrored` or `multi_worker`.
        num_replicas: number of replicas for `mirrored`; 0: one for each GPU.
        settings: for `multi_worker`, JSON-compatible values that all workers must have in common.
        run_dir: for `multi_worker`, the run folder that they share; None: they must have a token, or be on one machine.
        timeout: seconds to wait for other workers.
        quiet: print nothing while waiting for other workers.

    Raises:
        ConfigError: the cluster does not exist, or its description is invalid.
        UserError: TensorFlow has already computed something, this process has joined another cluster, or a worker is
            missing or has other settings.
    """
    if num_replicas and strategy != "mirrored":
        raise ConfigError(f"--num_replicas is a setting of --strategy=mirrored, not of {strategy}")
    if strategy == "none":
        return Cluster(None)
    key = (strategy, num_replicas, os.environ.get("TF_CONFIG", ""))
    try:
        if not _joined_clusters:
            _joined_clusters[key] = (
                _create_mirrored(num_replicas)
                if strategy == "mirrored"
                else _create_multi_worker(settings or {}, run_dir, timeout, quiet)
            )
        if key not in _joined_clusters:  # TensorFlow's collective operations would use the wrong devices
            raise RuntimeError("this process has already joined other devices")
        return _joined_clusters[key]
    except RuntimeError as error:
        raise UserError(
            f"--strategy={strategy}: must be set up before TensorFlow computes anything ({first_line(error)}); "
            "use it in a new process"
        ) from None


def _create_mirrored(num_replicas: int) -> Cluster:
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        if not num_replicas:
            raise ConfigError(
                "--strategy=mirrored: TensorFlow found no GPU; --num_replicas sets how many devices to make of the CPU"
            )
        (cpu, *_) = tf.config.list_physical_devices("CPU")
        if len(tf.config.get_logical_device_configuration(cpu) or ()) < num_replicas:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_replicas)
    elif num_replicas > len(gpus):
        raise ConfigError(f"--num_replicas={num_replicas}: there are {len(gpus)} GPUs")
    kind = "GPU" if gpus else "CPU"
    devices = [f"{kind}:{index}" for index in range(num_replicas or len(gpus))]
    return Cluster(tf.distribute.MirroredStrategy(devices))


def _create_multi_worker(settings: dict[str, Any], run_dir: Path | None, timeout: float, quiet: bool) -> Cluster:
    """Joins the cluster that `TF_CONFIG` or the Slurm job of this process describes."""
    if os.environ.get("TF_CONFIG"):
        addresses, index = _parse_tf_config(os.environ["TF_CONFIG"])
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    elif "SLURM_STEP_ID" in os.environ:
        # The resolver numbers ports by GPU, so claim one for each task; Slurm itself assigns the real ones, if any.
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
        )
        addresses, index = resolver.cluster_spec().job_tasks("worker"), resolver.task_id
    else:
        raise ConfigError(
            "--strategy=multi_worker: TF_CONFIG is not set, and this is not a Slurm task; set it for each worker, or "
            f"try workers on this machine with {command_line('launch_local')}"
        )
    rendezvous.wait_for_workers(addresses, index, settings=settings, run_dir=run_dir, timeout=timeout, quiet=quiet)
    return Cluster(connection.connect_tensorflow(resolver, timeout), index, addresses)


def _parse_tf_config(text: str) -> tuple[list[str], int]:
    """Returns the addresses of the workers, the chief's first, and the index of this one.

    Raises:
        ConfigError: the text is not a valid `TF_CONFIG`.
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


def _has_separate_chief() -> bool:
    return '"chief"' in os.environ.get("TF_CONFIG", "")


def _extract_reason(message: str) -> str:
    """Returns the line of a TensorFlow error message that states the cause."""
    lines = [line.strip() for line in message.splitlines()]
    causes = [line for line in lines if "abort" in line or "onnect" in line or "crash" in line]
    return (causes or lines or [""])[0][:200]
