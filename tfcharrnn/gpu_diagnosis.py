"""Finds out why a GPU that is in the machine is not used, or may fail, and how to mend that, each in one line."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_PCI_DEVICES = Path("/sys/bus/pci/devices")
# device files of a driver that is loaded: of Linux, and of Windows' Linux subsystem
_DEVICE_FILES = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
_DRIVER = "libcuda.so.1"
# NVIDIA's management library, a part of the driver, without which TensorFlow 2.21 registers no GPU either
_MANAGEMENT = "libnvidia-ml.so.1"
# What TensorFlow opens before it registers a GPU, by the major version of CUDA that it is built for; without any one of
# them it registers none, and does not say which one it was.
LIBRARIES = {
    12: (
        "libcudart.so.12",
        "libcublas.so.12",
        "libcublasLt.so.12",
        "libcufft.so.11",
        "libcusolver.so.11",
        "libcusparse.so.12",
        "libcudnn.so.9",
    )
}
# the loader goes on to the next folder after a file for which it says one of these, and after no other
_PASSED_OVER = ("No such file", "Permission denied", "wrong ELF class")
# the oldest driver for each major version of CUDA (CUDA release notes, "minor version compatibility")
_OLDEST_DRIVER = {12: "525.60"}
_INSTALL = "pip install 'tfcharrnn[gpu]'"


class Driver(NamedTuple):
    """What the driver says of itself.

    Attributes:
        failure: why it cannot be used, or "".
        cuda: the newest version of CUDA that it supports, 1000 major + 10 minor, or 0.
        num_gpus: how many GPUs it sees.
    """

    failure: str
    cuda: int
    num_gpus: int


def find_obstacle() -> str:
    """Returns why TensorFlow does not use the NVIDIA GPU of this machine, with the remedy.

    Returns:
        One line; "" if there is no such GPU, TensorFlow uses it, or the user has hidden it.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU") or os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    driver = query_driver()
    if not (driver.num_gpus or find_hardware()):
        return ""
    start = "there is an NVIDIA GPU, which TensorFlow cannot use"
    if not tf.test.is_built_with_cuda():
        return f"{start}: this build of TensorFlow is for CPUs only; {_INSTALL}"
    major = get_cuda_major()
    needed = f"a driver for CUDA {major}" + (f", {_OLDEST_DRIVER[major]} or newer" if major in _OLDEST_DRIVER else "")
    if driver.failure:
        return f"{start}: {driver.failure}; install {needed} (nvidia-smi must work), in a container pass --gpus=all"
    if driver.cuda < 1000 * major:
        return f"{start}: its driver supports CUDA {driver.cuda // 1000}.{driver.cuda % 1000 // 10}; install {needed}"
    failures = open_libraries()
    if described := describe_failures(failures):
        return f"{start}: {described}; {_choose_remedy(failures)}"
    if failure := _open_library(_MANAGEMENT):
        return (
            f"{start}: {failure}: {_MANAGEMENT}, which is its driver's; install {needed} (nvidia-smi must work), in a "
            "container set NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        )
    return f"{start}, for a reason that only it knows; TF_CPP_MAX_VLOG_LEVEL=1 tfcharrnn doctor --debug shows it"


def _choose_remedy(failures: dict[str, str]) -> str:
    """Returns how to mend what `open_libraries` found; pip does not replace a file that is there."""
    kinds = {failure.startswith("unreadable") for failure in failures.values() if failure}
    remedies = {False: _INSTALL, True: "replace or remove what is unreadable"}
    return ", and ".join(remedies[kind] for kind in sorted(kinds))


def find_unsupported(gpus: Sequence[Any]) -> str:
    """Returns why the GPUs that TensorFlow sees cannot run this library, or ""."""
    if gpus and sys.platform == "darwin":
        return "tensorflow-metal has no XLA, which compiles the recurrent loops; the CPU is used"
    return ""


def find_notice(gpus: Sequence[Any]) -> str:
    """Returns what the user should know of a GPU that TensorFlow uses, with the remedy, or ""."""
    import tensorflow as tf

    newest = get_newest_capability()
    for gpu in gpus:
        details = tf.config.experimental.get_device_details(gpu)
        capability = details.get("compute_capability")
        if capability and newest and tuple(capability) > newest and capability[0] > newest[0]:
            name = details.get("device_name", gpu.name)
            return (
                f"{name} has compute capability {capability[0]}.{capability[1]}, and this TensorFlow has kernels up to "
                f"{newest[0]}.{newest[1]}, so it may fail or compile for minutes; use a newer TensorFlow, NVIDIA's "
                "TensorFlow container, or --device=cpu"
            )
    return ""


def get_newest_capability() -> tuple[int, int] | None:
    """Returns the newest compute capability that TensorFlow has kernels for, or None if it does not say."""
    import tensorflow as tf

    names = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", ())
    numbers = [int(name.rpartition("_")[2].rstrip("af")) for name in names]
    return divmod(max(numbers), 10) if numbers else None


def get_cuda_major() -> int:
    """Returns the major version of CUDA that TensorFlow is built for; 0 for a build without CUDA."""
    import tensorflow as tf

    version = str(tf.sysconfig.get_build_info().get("cuda_version", ""))
    return int(version.partition(".")[0]) if version[:1].isdigit() else 0


def find_hardware() -> bool:
    """Whether the machine has an NVIDIA GPU, with or without a driver."""
    for device in _PCI_DEVICES.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY_CLASS):
            return True
    return any(path.exists() for path in _DEVICE_FILES)


def read_driver_version() -> str:
    """Returns the version of the NVIDIA driver that Linux has loaded, or ""."""
    try:
        words = _DRIVER_VERSION.read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def query_driver() -> Driver:
    """Asks the driver's library for its state, as TensorFlow does."""
    if platform.system() != "Linux":
        return Driver("it supports CUDA on Linux only", 0, 0)
    try:
        library = ctypes.CDLL(_DRIVER)
        code = library.cuInit(0)
    except (OSError, AttributeError) as error:  # the latter: it is a library, but not the driver's
        return Driver(f"{_explain_open_error(error, _DRIVER)}: {_DRIVER}, which is its driver's", 0, 0)
    if code:
        return Driver(f"its driver fails with error {code}{_describe_code(library, code)}", 0, 0)
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    return Driver("", version.value, count.value)


def _describe_code(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return f", {text.value.decode(errors='replace')}" if text.value else ""


def open_libraries() -> dict[str, str]:
    """Tries to open each library that TensorFlow needs for a GPU; returns what went wrong, or "", by name."""
    return {name: _open_library(name) for name in LIBRARIES.get(get_cuda_major(), ())}


def load_cusolver() -> None:
    """Loads cuSOLVER, if there is a driver; to be called before TensorFlow looks for GPUs.

    TensorFlow 2.21 searches the folders of pip's other libraries, but not that of cuSOLVER, and registers no GPU
    without it. A library that is loaded already is found by its name.
    """
    if platform.system() != "Linux":
        return
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return
    for name in LIBRARIES.get(get_cuda_major(), ()):
        if name.startswith("libcusolver"):
            _open_library(name)


def _open_library(name: str) -> str:
    """Opens a library as TensorFlow does, from the first place that has it; returns what went wrong, or ""."""
    failure = ""
    for path in _find_candidates(name):
        try:
            ctypes.CDLL(path)
            return ""
        except OSError as error:
            failure = failure or _explain_open_error(error, path)
            culprit, _, reason = str(error).partition(": ")
            if culprit != path or not any(text in reason for text in _PASSED_OVER):
                break
    return failure


def _find_candidates(name: str) -> list[str]:
    """Lists where the loader looks for a library of TensorFlow, in its order, ld.so(8), and last its name alone."""
    import tensorflow as tf

    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    folders += (Path(tf.__file__).parents[1] / "nvidia").glob("*/lib")  # pip's, where TensorFlow's RUNPATH points
    return [*(str(folder / name) for folder in folders if os.path.lexists(folder / name)), name]


def _explain_open_error(error: Exception, path: str) -> str:
    """Shortens the loader's message: a library is missing, itself or one that it needs, or cannot be read."""
    culprit, _, reason = str(error).partition(": ")
    name = Path(path).name
    if "No such file" in reason:
        missing = Path(culprit).name
        return "not found" if missing == name else f"without {missing}, which it needs"
    folder = Path(path if "/" in path else culprit).parent
    reason = reason.removeprefix("cannot open shared object file: ").removeprefix("cannot read file data: ")
    return f"unreadable ({reason}){f' in {folder}' if folder.name else ''}"


def describe_failures(failures: dict[str, str]) -> str:
    """Describes what `open_libraries` found missing, libraries with the same reason together; "" if nothing is."""
    by_reason: dict[str, list[str]] = {}
    for name, failure in failures.items():
        if failure:
            by_reason.setdefault(failure, []).append(name)
    return ", ".join(f"{failure}: {', '.join(names)}" for failure, names in by_reason.items())
