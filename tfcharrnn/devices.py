"""Chooses the device that TensorFlow computes on, and sets it up before its first use."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfcharrnn import gpu_diagnosis
from tfcharrnn.errors import UserError, first_line, warn

if TYPE_CHECKING:
    import tensorflow as tf

DEVICES = ("auto", "cpu", "gpu")
# a deterministic cuBLAS needs a fixed workspace (cuBLAS documentation, "Results reproducibility")
_CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_WANTED = re.compile(r"(?:trying to allocate|Failed to allocate request for) ([\d.]+ ?[A-Za-z]+)")
_TENSOR = re.compile(r"allocating tensor with shape\[([\d,]*)\] and type (\w+) on \S*device:(\w+:\d+)")
_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "half": 2, "bfloat16": 2, "float": 4, "int32": 4, "double": 8, "int64": 8}

_warned: set[str] = set()
_chosen = "auto"


def set_up(device: str = "") -> None:
    """Makes the devices ready; to be called before TensorFlow computes anything, and harmless after that.

    A GPU's memory is taken as it is needed, so that several programs can share it, unless the caller has set up its
    memory. A GPU that cannot be used is said in a warning, once.

    Args:
        device: `cpu` hides all GPUs; `gpu` demands one; `auto` uses GPUs if there are any that work; empty: as chosen
            before, or `auto`.

    Raises:
        UserError: a GPU is demanded, and there is none that can be used.
    """
    global _chosen
    import tensorflow as tf

    device = _chosen = device or _chosen
    gpu_diagnosis.load_cusolver()
    gpus = tf.config.get_visible_devices("GPU")
    reason = gpu_diagnosis.find_unsupported(gpus)
    if gpus and (device == "cpu" or (device == "auto" and reason)):
        _try(lambda: tf.config.set_visible_devices([], "GPU"))
        gpus = []
    if device == "gpu" and (reason or not gpus):
        reason = reason or gpu_diagnosis.find_obstacle() or "TensorFlow found no GPU"
        raise UserError(f"--device=gpu: {reason}; or use --device=cpu")
    for gpu in gpus:
        # a device split by the caller has fixed shares of the memory
        if not tf.config.get_logical_device_configuration(gpu):
            _try(functools.partial(tf.config.experimental.set_memory_growth, gpu, True))
    if device != "cpu":
        notice = reason or (gpu_diagnosis.find_notice(gpus) if gpus else gpu_diagnosis.find_obstacle())
        if notice and notice not in _warned:
            _warned.add(notice)
            warn(notice)


def _try(change: Callable[[], Any]) -> None:
    """Changes a setting of a device, which TensorFlow refuses once it has used the device."""
    try:
        change()
    except (RuntimeError, ValueError):
        return


def list_gpus() -> list[tf.config.LogicalDevice]:
    """Lists the GPUs that TensorFlow computes on; those that are hidden or too small are not among them.

    This starts TensorFlow's runtime, after which devices cannot be set up any more.
    """
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU")


def describe() -> str:
    """Describes the device that TensorFlow computes on."""
    import tensorflow as tf

    if not list_gpus():
        return f"CPU, {os.cpu_count()} cores"
    gpu = tf.config.get_visible_devices("GPU")[0]
    name = tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
    tf32 = "on" if tf.config.experimental.tensor_float_32_execution_enabled() else "off"
    return f"GPU, {name}, TF32 for float32 products {tf32}{', deterministic' if is_deterministic() else ''}"


def set_numerics(*, tf32: bool, deterministic: bool = False) -> None:
    """Sets how exact and how repeatable the arithmetic on a GPU is, for the rest of the process.

    TensorFlow has one setting for all models; so what one of them switches off or on stays so.

    Args:
        tf32: float32 products may be rounded to TF32, 10 bits of mantissa, as TensorFlow does by default.
        deterministic: the same operation gives the same bits every time, even where that is slower.
    """
    import tensorflow as tf

    if not tf32:
        tf.config.experimental.enable_tensor_float_32_execution(False)
    if deterministic:
        os.environ.setdefault(*_CUBLAS_WORKSPACE)
        tf.config.experimental.enable_op_determinism()


def is_deterministic() -> bool:
    """Whether operations are deterministic, see `set_numerics`."""
    from tensorflow.python.framework import config  # the public API can set it, not tell it

    return bool(config.is_op_determinism_enabled())


def explain_exhausted(error: BaseException) -> str:
    """Explains that memory ran out: how much was wanted and what to make smaller; "" for another error."""
    exhausted: Any = getattr(sys.modules.get("tensorflow"), "errors", None)
    if isinstance(error, MemoryError):
        wanted = f" ({error})" if str(error) else ""
    elif exhausted and isinstance(error, (exhausted.ResourceExhaustedError, exhausted.InternalError)):
        text = str(error)
        if isinstance(error, exhausted.InternalError) and "RESOURCE_EXHAUSTED" not in text:
            return ""
        wanted = _describe_wanted(text) or f" ({first_line(error)})"
    else:
        return ""
    remedy = "reduce --batch_size, --seq_length or --hidden_size (generate: --num_samples)"
    beside = "" if isinstance(error, MemoryError) else ", or end other programs on the device"
    return f"not enough memory{wanted}; {remedy}{beside}"


def _describe_wanted(text: str) -> str:
    """Describes what an allocator's message says it could not allocate; "" if it does not say."""
    if found := _TENSOR.search(text):
        shape, kind, place = found.groups()
        size = _BYTES.get(kind, 4)
        for length in filter(None, shape.split(",")):
            size *= int(length)
        return f" on {place}: {size / 2**30:,.2f} GiB were wanted, for a tensor of {kind} [{shape.replace(',', ', ')}]"
    if found := _WANTED.search(text):
        return f": {found[1]} were wanted"
    return ""
