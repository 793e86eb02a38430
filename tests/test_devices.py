"""Devices are set up before their first use, and a GPU that cannot be used is explained, all without a GPU."""

import ctypes
import os
import pathlib
import subprocess
import sys
import tempfile
import types

import pytest
import tensorflow as tf
from paths import ROOT

from tfcharrnn import cli, devices, gpu_diagnosis
from tfcharrnn.distributed import cluster
from tfcharrnn.errors import UserError
from tfcharrnn.model import backends

OVERCOMMIT = pathlib.Path("/proc/sys/vm/overcommit_memory")
GPUS = [types.SimpleNamespace(name="GPU:0"), types.SimpleNamespace(name="GPU:1")]


class Settings:
    """Stands for TensorFlow's settings of devices, on a machine with two GPUs."""

    def __init__(self, patch, gpus=GPUS, is_used=False):
        self.visible, self.growing, self.is_used = list(gpus), [], is_used
        self.details = {"device_name": "NVIDIA A100", "compute_capability": (8, 0)}
        self.split = []
        patch.setattr(tf.config, "list_physical_devices", lambda kind: list(gpus))
        patch.setattr(tf.config, "get_visible_devices", lambda kind: self.visible)
        patch.setattr(tf.config, "set_visible_devices", self.hide)
        patch.setattr(tf.config, "list_logical_devices", lambda kind: self.visible)
        patch.setattr(tf.config, "get_logical_device_configuration", lambda gpu: self.split)
        patch.setattr(tf.config.experimental, "set_memory_growth", self.grow)
        patch.setattr(tf.config.experimental, "get_device_details", lambda gpu: self.details)

    def hide(self, those, kind):
        if self.is_used:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        self.visible = those

    def grow(self, gpu, enable):
        if self.is_used:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        assert enable
        self.growing.append(gpu)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(devices, "_warned", set())
    monkeypatch.setattr(devices, "_chosen", "auto")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def settings(monkeypatch):
    return Settings(monkeypatch)


def test_memory_grows_on_every_gpu(settings, capfd):
    devices.set_up()
    assert settings.growing == GPUS
    assert capfd.readouterr().err == ""


def test_a_device_that_the_caller_has_set_up_or_used_stays_as_it_is(settings, monkeypatch):
    settings.split = ["two halves"]
    devices.set_up()
    assert not settings.growing
    Settings(monkeypatch, is_used=True)
    devices.set_up()


def test_training_and_loading_set_it_up_first(monkeypatch, tmp_path):
    import tfcharrnn

    calls = []
    monkeypatch.setattr(devices, "set_up", lambda *device: calls.append(device))
    with pytest.raises(UserError):
        tfcharrnn.train_model(tmp_path / "run", cell="nonsense")
    with pytest.raises(UserError):
        tfcharrnn.load_model(tmp_path / "run")
    assert calls == [(), ()]


def test_a_cpu_hides_the_gpus_for_good(settings):
    devices.set_up("cpu")
    devices.set_up()
    assert settings.visible == [] and not settings.growing
    assert devices.list_gpus() == [] and not backends.is_cudnn_available()
    assert devices.describe().startswith("CPU, ")


def test_a_gpu_that_is_hidden_is_not_chosen(settings, monkeypatch):
    """As by `tf.config.set_visible_devices`; the physical devices would still list it."""
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    assert backends.is_cudnn_available()
    settings.visible = []
    assert not backends.is_cudnn_available()
    with pytest.raises(UserError, match="--strategy=mirrored: TensorFlow found no GPU"):
        cluster._create_mirrored(0)


def test_a_gpu_that_is_demanded_must_be_there(monkeypatch):
    Settings(monkeypatch, [])
    monkeypatch.setattr(gpu_diagnosis, "find_obstacle", lambda: "")
    with pytest.raises(UserError, match=r"^--device=gpu: TensorFlow found no GPU; or use --device=cpu"):
        devices.set_up("gpu")
    monkeypatch.setattr(gpu_diagnosis, "find_obstacle", lambda: "its driver is old")
    with pytest.raises(UserError, match=r"^--device=gpu: its driver is old"):
        devices.set_up("gpu")


def test_the_reason_is_a_warning_once_and_with_a_cpu_never(monkeypatch, capfd):
    Settings(monkeypatch, [])
    monkeypatch.setattr(gpu_diagnosis, "find_obstacle", lambda: "there is a GPU, but")
    devices.set_up("cpu")
    devices.set_up()
    assert capfd.readouterr().err == ""
    devices.set_up("auto")
    devices.set_up()
    assert capfd.readouterr().err == "warning: there is a GPU, but\n"


def test_metal_falls_back_to_the_cpu(settings, monkeypatch, capfd):
    monkeypatch.setattr(gpu_diagnosis.sys, "platform", "darwin")
    devices.set_up()
    assert settings.visible == []
    assert capfd.readouterr().err.startswith("warning: tensorflow-metal has no XLA")
    settings.visible = GPUS
    with pytest.raises(UserError, match="--device=gpu: tensorflow-metal has no XLA"):
        devices.set_up("gpu")


@pytest.mark.parametrize(("capability", "is_noticed"), [((9, 0), False), ((10, 0), True), ((12, 0), True)])
def test_a_card_newer_than_the_kernels_is_named(settings, monkeypatch, capfd, capability, is_noticed):
    info = {"cuda_compute_capabilities": ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]}
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: info)
    settings.details = {"device_name": "NVIDIA RTX 5090", "compute_capability": capability}
    devices.set_up()
    shown = capfd.readouterr().err
    assert ("NVIDIA RTX 5090 has compute capability" in shown and "up to 9.0" in shown) == is_noticed
    assert settings.visible == GPUS


# How exact, and how repeatable


def test_the_flags_set_tensorflow_once_for_all_and_the_header_says_so(settings, monkeypatch, tmp_path):
    import tfcharrnn

    calls = []
    monkeypatch.setattr(tf.config.experimental, "enable_tensor_float_32_execution", calls.append)
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: calls.append("deterministic"))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(tf.config.experimental, "tensor_float_32_execution_enabled", lambda: False not in calls)
    monkeypatch.setattr(devices, "is_deterministic", lambda: "deterministic" in calls)
    devices.set_numerics(tf32=True)
    assert calls == [] and "CUBLAS_WORKSPACE_CONFIG" not in devices.os.environ
    assert devices.describe() == "GPU, NVIDIA A100, TF32 for float32 products on"
    with pytest.raises(UserError, match="corpus"):
        tfcharrnn.train_model(tmp_path / "run", tf32=False, deterministic=True, corpus="nonsense")
    assert calls == [False, "deterministic"] and devices.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert devices.describe().endswith("TF32 for float32 products off, deterministic")


def test_a_run_keeps_them_and_its_model_is_loaded_likewise(monkeypatch, tmp_path):
    import tfcharrnn

    calls = []
    monkeypatch.setattr(devices, "set_numerics", lambda **settings: calls.append(settings))
    sizes = {"hidden_size": 2, "seq_length": 9, "batch_size": 4, "steps": 1}
    tfcharrnn.train_model(tmp_path / "run", text="some text " * 50, tf32=False, **sizes, quiet=True)
    tfcharrnn.load_model(tmp_path / "run")
    settings = {"deterministic": True, "tf32": True, "steps": 2}
    tfcharrnn.train_model(tmp_path / "run", text="some text " * 50, resume=True, **settings, quiet=True)
    kept, changed = {"tf32": False}, {"tf32": True, "deterministic": True}
    assert calls == [kept | {"deterministic": False}, kept, changed]


def test_deterministic_training_repeats_its_bits():
    """In a process of its own, since TensorFlow cannot switch it off again."""
    code = (
        "import tfcharrnn, sys; from tfcharrnn import devices\n"
        "sizes = dict(hidden_size=4, cell='gru', dropout=0.5, num_layers=2, seq_length=9, batch_size=4, quiet=True)\n"
        "for name in 'ab':\n"
        "    tfcharrnn.train_model(name, text='some text ' * 50, steps=5, deterministic=True, **sizes)\n"
        "    weights = tfcharrnn.load_model(name).model.trainable_variables\n"
        "    print(devices.is_deterministic(), hash(b''.join(v.numpy().tobytes() for v in weights)))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": folder}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second and first.startswith("True ")


# Why a GPU is not used


def make_driver(code=0, version=12050, count=1):
    """Stands for the driver's library."""

    def set_value(value):
        return lambda *arguments: setattr(arguments[-1]._obj, "value", value)

    return types.SimpleNamespace(
        cuInit=lambda flags: code,
        cuDriverGetVersion=set_value(version),
        cuDeviceGetCount=set_value(count),
        cuGetErrorString=set_value(b"forward compatibility was attempted on non supported HW"),
    )


@pytest.fixture
def machine(monkeypatch):
    """A machine whose driver and libraries are those of a dict, by name; a text is why one cannot be opened."""
    Settings(monkeypatch, [])
    info = {"cuda_version": "12.5.1", "is_cuda_build": True}
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: info)
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    monkeypatch.setattr(gpu_diagnosis.platform, "system", lambda: "Linux")
    monkeypatch.setattr(gpu_diagnosis, "find_hardware", lambda: True)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(tf, "__file__", str(ROOT / "no such folder" / "tensorflow" / "__init__.py"))
    libraries = {"libcuda.so.1": make_driver(), "libnvidia-ml.so.1": None}
    libraries |= dict.fromkeys(gpu_diagnosis.LIBRARIES[12])

    def open_library(name):
        if isinstance(libraries[name], str):
            raise OSError(f"{name}: {libraries[name]}")
        return libraries[name]

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    return libraries


GONE = "cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("libraries", "reason", "remedy"),
    [
        ({"libcudnn.so.9": GONE}, "not found: libcudnn.so.9", "pip install 'tfcharrnn[gpu]'"),
        ({"libcudnn.so.9": "invalid ELF header"}, "unreadable (invalid ELF header): libcudnn.so.9", "; replace or"),
        ({"libcudnn.so.9": "invalid", "libcufft.so.11": GONE}, "libcufft.so.11, unreadable", "[gpu]', and replace or"),
        ({"libcublas.so.12": GONE, "libcufft.so.11": GONE}, "not found: libcublas.so.12, libcufft.so.11", "pip"),
        ({"libcuda.so.1": GONE}, "not found: libcuda.so.1", "--gpus=all"),
        ({"libnvidia-ml.so.1": GONE}, "not found: libnvidia-ml.so.1", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
        ({"libcuda.so.1": make_driver(version=11040)}, "its driver supports CUDA 11.4", "525.60"),
        ({"libcuda.so.1": make_driver(code=804)}, "error 804, forward compatibility", "nvidia-smi must work"),
        ({}, "for a reason that only it knows", "TF_CPP_MAX_VLOG_LEVEL=1 tfcharrnn doctor --debug"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_the_remedy(machine, libraries, reason, remedy):
    machine.update(libraries)
    obstacle = gpu_diagnosis.find_obstacle()
    assert obstacle.startswith("there is an NVIDIA GPU, which TensorFlow cannot use")
    assert reason in obstacle and remedy in obstacle and "\n" not in obstacle


def test_a_library_that_needs_another_names_that(machine, monkeypatch):
    def open_library(name):
        raise OSError(f"libnvJitLink.so.12: {GONE}")

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    assert gpu_diagnosis.open_libraries()["libcusolver.so.11"] == "without libnvJitLink.so.12, which it needs"


def test_a_library_in_place_of_the_drivers_is_named(machine):
    class Library:
        def __getattr__(self, name):
            raise AttributeError(f"/opt/libcuda.so.1: undefined symbol: {name}")

    machine["libcuda.so.1"] = Library()
    assert "unreadable (undefined symbol: cuInit) in /opt: libcuda.so.1" in gpu_diagnosis.find_obstacle()


def make_library_file(folder, text="no library"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "libcudnn.so.9"
    path.write_text(text)
    return path


def test_a_file_that_is_no_library_is_named_with_its_folder(monkeypatch, tmp_path):
    """With the real loader."""
    make_library_file(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert gpu_diagnosis._open_library("libcudnn.so.9") == f"unreadable (file too short) in {tmp_path}"


@pytest.mark.parametrize(
    ("reason", "is_opened"),
    [
        ("cannot open shared object file: Permission denied", True),
        ("wrong ELF class: ELFCLASS32", True),
        (GONE, True),
        ("invalid ELF header", False),
        ("undefined symbol: f", False),
    ],
)
def test_the_first_file_decides_unless_the_loader_passes_over_it(machine, monkeypatch, tmp_path, reason, is_opened):
    first, second = (make_library_file(tmp_path / name) for name in ("first", "tensorflow/nvidia/cudnn/lib"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(first.parent))
    monkeypatch.setattr(tf, "__file__", str(tmp_path / "tensorflow" / "tensorflow" / "__init__.py"))
    machine |= {str(first): reason, str(second): None, "libcudnn.so.9": GONE}
    assert (gpu_diagnosis._open_library("libcudnn.so.9") == "") == is_opened


def test_the_file_that_needs_another_decides(machine, monkeypatch, tmp_path):
    paths = [str(make_library_file(tmp_path / name)) for name in "ab"]
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/a:{tmp_path}/b")
    tried = []

    def open_library(path):
        tried.append(path)
        raise OSError(f"libz.so.1: {GONE}")

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    assert gpu_diagnosis._open_library("libcudnn.so.9") == "without libz.so.1, which it needs"
    assert tried == paths[:1]


@pytest.mark.parametrize("has_driver", [True, False])
def test_cusolver_is_loaded_from_pips_folder_where_there_is_a_driver(machine, monkeypatch, tmp_path, has_driver):
    path = tmp_path / "nvidia" / "cusolver" / "lib" / "libcusolver.so.11"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(tf, "__file__", str(tmp_path / "tensorflow" / "__init__.py"))
    opened = []

    def open_library(name):
        opened.append(name)
        if not has_driver:
            raise OSError(f"{name}: {GONE}")

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    devices.set_up()
    loaded = ["libcuda.so.1", str(path)] if has_driver else ["libcuda.so.1"]
    assert opened[: len(loaded)] == loaded and (has_driver or str(path) not in opened)


def test_nothing_is_said_without_a_gpu_or_of_one_that_is_hidden(machine, monkeypatch):
    machine["libcudnn.so.9"] = GONE
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpu_diagnosis.find_obstacle() == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    machine["libcuda.so.1"] = make_driver(code=100)
    monkeypatch.setattr(gpu_diagnosis, "find_hardware", lambda: False)
    assert gpu_diagnosis.find_obstacle() == ""


def test_hardware_is_found_without_its_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_diagnosis, "_PCI_DEVICES", tmp_path)
    monkeypatch.setattr(gpu_diagnosis, "_DEVICE_FILES", (tmp_path / "nvidia0",))
    for name, vendor, kind in (("a", "0x10de", "0x040300"), ("b", "0x8086", "0x030000")):  # a sound card; Intel's
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert not gpu_diagnosis.find_hardware()
    (tmp_path / "b" / "vendor").write_text("0x10de\n")
    assert gpu_diagnosis.find_hardware()


def test_the_drivers_version_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_diagnosis, "_DRIVER_VERSION", tmp_path / "version")
    assert gpu_diagnosis.read_driver_version() == ""
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    (tmp_path / "version").write_text(line)
    assert gpu_diagnosis.read_driver_version() == "550.54.15"


# Memory that runs out


@pytest.mark.skipif(
    OVERCOMMIT.exists() and OVERCOMMIT.read_text().strip() == "1",
    reason="this system refuses no allocation",
)
def test_memory_that_runs_out_is_one_line(capfd):
    with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        tf.zeros([10**6, 10**6])
    message = devices.explain_exhausted(caught.value)
    assert message.startswith(
        "not enough memory on CPU:0: 3,725.29 GiB were wanted, for a tensor of float [1000000, 1000000]; reduce --batch"
    )
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.flags, "FLAGS", types.SimpleNamespace(debug=False))
        cli._run_main(lambda: tf.zeros([10**6, 10**6]))
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            tf.errors.ResourceExhaustedError(None, None, "Out of memory while trying to allocate 3.64TiB. [Op:f]"),
            ": 3.64TiB were",
        ),
        (
            tf.errors.InternalError(None, None, "RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB (2147B)"),
            ": 2.00GiB were",
        ),
        (MemoryError("Unable to allocate 5 GiB"), " (Unable to allocate 5 GiB); reduce --batch_size"),
    ],
)
def test_what_was_wanted_is_told(error, wanted):
    assert devices.explain_exhausted(error).startswith(f"not enough memory{wanted}")


def test_other_errors_are_not_of_memory():
    assert devices.explain_exhausted(tf.errors.InternalError(None, None, "cuDNN failed")) == ""
    assert devices.explain_exhausted(ValueError("x")) == ""
