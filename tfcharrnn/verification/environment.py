"""Describes what a device is reached through: driver, libraries and versions, and what is wrong with them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import tensorflow as tf

from tfcharrnn import devices, gpu_diagnosis
from tfcharrnn.gpu_diagnosis import describe_failures, find_hardware, open_libraries, query_driver, read_driver_version

# variables that change what a device does
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "KERAS_BACKEND",
    "LD_LIBRARY_PATH",
    "NVIDIA_TF32_OVERRIDE",
    "TF_CUDNN_DETERMINISTIC",
    "TF_DETERMINISTIC_OPS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "TF_GPU_ALLOCATOR",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)


def describe_environment() -> list[tuple[str, str]]:
    """Returns what is known of the device and what it is reached through, as pairs of a name and a text."""
    rows = [("device", devices.describe())]
    for gpu in tf.config.get_visible_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ("unknown",))))
        rows.append((gpu.name[-5:], f"{details.get('device_name')}, compute capability {capability}"))
    rows += _describe_driver()
    info = tf.sysconfig.get_build_info()
    built = f"CUDA {info['cuda_version']}, cuDNN {info.get('cudnn_version')}" if "cuda_version" in info else "CPUs only"
    kernels = ", ".join(info.get("cuda_compute_capabilities", ()))
    rows.append(("TensorFlow", f"{tf.__version__}, built for {built}{f', kernels {kernels}' if kernels else ''}"))
    versions = [f"{name} {_find_version(name)}" for name in ("tfcharrnn", "keras", "numpy")]
    rows.append(("versions", f"{', '.join(versions)}, Python {platform.python_version()}"))
    rows.append(("system", f"{_find_processor()}, {os.cpu_count()} cores, {platform.platform()}"))
    rows += [(name, os.environ[name]) for name in _VARIABLES if name in os.environ]
    return rows


def _describe_driver() -> list[tuple[str, str]]:
    driver = query_driver()
    if not (driver.num_gpus or find_hardware()):
        return [("driver", "none: this machine has no NVIDIA GPU")]
    cuda = f"for CUDA {driver.cuda // 1000}.{driver.cuda % 1000 // 10}" if driver.cuda else driver.failure
    missing = describe_failures(open_libraries())
    return [("driver", f"{read_driver_version() or 'version unknown'}, {cuda}"), ("libraries", missing or "all found")]


def _find_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _find_processor() -> str:
    """Returns the name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def find_problems() -> list[str]:
    """Returns what is wrong with the device, each in one line with its remedy."""
    gpus = tf.config.get_visible_devices("GPU")
    return list(filter(None, [gpu_diagnosis.find_notice(gpus) if gpus else gpu_diagnosis.find_obstacle()]))
