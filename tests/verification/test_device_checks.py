"""`doctor` and `pytest -m gpu`: the same checks of the device, which find what is wrong."""

import os
import subprocess
import sys

import pytest
import software_cudnn
import tensorflow as tf
from paths import ROOT

from tfcharrnn import cell_registry, doctor, gpu_diagnosis
from tfcharrnn.errors import UserError
from tfcharrnn.model.cells.gru import GRUCell
from tfcharrnn.verification import device_checks, environment
from tfcharrnn.verification.device_checks import Check, CheckError, NotApplicableError

HAS_GPU = bool(tf.config.list_physical_devices("GPU"))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="TensorFlow found no GPU")
@pytest.mark.parametrize("check", device_checks.list_checks(), ids=lambda check: check.name)
def test_the_gpu_passes(check):
    outcome = device_checks.run_check(check)
    if outcome.result == "not applicable":
        pytest.skip(outcome.detail)
    assert outcome.result == "passed", outcome.detail


def find(name):
    (check,) = [check for check in device_checks.list_checks() if check.name == name]
    return check


def test_every_implementation_of_every_cell_is_checked():
    names = {check.name for check in device_checks.list_checks()}
    for cell in cell_registry.BUILT_IN:
        assert {f"{cell} custom {precision}" for precision in ("float32", "TF32", "bfloat16")} <= names
    assert {f"{cell} {name} float32" for cell in ("rnn", "lstm", "gru") for name in ("keras", "cudnn")} <= names
    own = [check.name for check in device_checks.list_checks(("mine",))]
    assert own[0] == "mine custom float64, central differences" and all("mine" in name for name in own)


@pytest.mark.parametrize("name", ["sru custom float32", "rnn keras float32", "gru custom bfloat16", "train lines, gru"])
def test_what_is_right_passes(name):
    outcome = device_checks.run_check(find(name))
    assert (outcome.result, outcome.name) == ("passed", name), outcome.detail
    assert outcome.memory > 1 and outcome.seconds > 0


def test_greedy_text_is_that_of_the_reference():
    assert device_checks.run_check(find("greedy text by the reference")).result == "passed"


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("gru cudnn float32", "cuDNN"), ("lstm custom TF32", "TF32"), ("sampled text as on the CPU", "only device")],
)
def test_what_a_cpu_has_not_does_not_apply(name, reason):
    outcome = device_checks.run_check(find(name))
    assert outcome.result == "not applicable" and reason in outcome.detail


def test_cudnn_is_checked_as_the_others_are(monkeypatch):
    software_cudnn.SoftwareCudnn(monkeypatch)
    assert device_checks.run_check(find("lstm cudnn float32")).result == "passed"
    monkeypatch.setitem(device_checks.backends._CUDNN_GATES, "gru", (0, 1, 2))
    outcome = device_checks.run_check(find("gru cudnn float32"))
    assert outcome.result == "failed" and "above 2e-05" in outcome.detail


def test_a_run_goes_on_in_a_process_on_the_cpu():
    assert device_checks.check_moving("gru", on_cpu=True).startswith("10 steps here, 5 on the CPU, 5 here: loss")


class WrongGRUCell(GRUCell):
    """Its gradient is one per cent too large."""

    @staticmethod
    def backward(saved, before, after, d_after):
        d_p, d_q, d_before = GRUCell.backward(saved, before, after, d_after)
        return d_p, 1.01 * d_q, d_before


def test_a_wrong_gradient_in_a_cell_is_found(monkeypatch, capsys):
    monkeypatch.setattr("tfcharrnn.model.char_rnn.get_cell_class", lambda *_: WrongGRUCell)
    make_flags(monkeypatch)
    checks = [find("gru custom float32")]
    monkeypatch.setattr(device_checks, "list_checks", lambda own: checks)
    with pytest.raises(UserError, match=r"^1 checks failed: gru custom float32"):
        doctor.main()
    row = capsys.readouterr().out.splitlines()[-3]
    assert row.startswith("gru custom float32  failed") and "cells/" in row


OWN_CELL = """
import tensorflow as tf
import tfcharrnn

@tfcharrnn.register_cell("mine")
class Mine(tfcharrnn.Cell):
    num_gates = 1

    @classmethod
    def forward(cls, p, q, state):
        return (tf.tanh(p + q),)

    @staticmethod
    def backward(kept, before, after, d_after):
        (h,), (dh,) = after, d_after
        d_sum = dh * (1.0 - tf.abs(h))
        return d_sum, d_sum, (tf.zeros_like(h),)
"""


def test_a_wrong_gradient_in_a_cell_of_ones_own_ends_with_1(tmp_path):
    (tmp_path / "own.py").write_text(OWN_CELL)
    done = subprocess.run(
        [sys.executable, "-m", "tfcharrnn.doctor", "--cell_module=own.py", "--device=cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("doctor: 1 checks failed: mine custom float64, central differences")
    assert len(done.stderr.splitlines()) == 1
    assert "train stream, mine" in done.stdout and done.stdout.splitlines()[0].startswith("device     CPU")
    assert not list(tmp_path.glob("runs*"))


def test_any_other_error_is_a_failure(capsys):
    def crash():
        raise tf.errors.InternalError(None, None, "cuDNN failed\nand more")

    def refuse():
        raise NotApplicableError("no such thing")

    def fail():
        raise CheckError("1.0 above 0.1")

    def trace():
        return tf.function(lambda x: undefined)(tf.constant(0.0))  # noqa: F821

    assert device_checks.run_check(Check("e", trace)).detail.endswith("'undefined' is not defined")
    checks = [Check("a", crash), Check("b", refuse), Check("c", fail), Check("d", lambda: "fine")]
    assert doctor.run_checks(checks) == ["a", "c"]
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "2 failed, 1 not applicable, 1 passed"


def test_tf32_is_off_in_checks_and_as_before_after_them():
    seen = []
    check = Check("a", lambda: seen.append(tf.config.experimental.tensor_float_32_execution_enabled()) or "")
    device_checks.run_check(check)
    assert seen == [False] and tf.config.experimental.tensor_float_32_execution_enabled()


def make_flags(monkeypatch, device="auto", cell_module=()):
    flags = type(
        "Flags", (), {"device": device, "bench": False, "bench_rows": [], "json": "", "cell_module": list(cell_module)}
    )()
    monkeypatch.setattr(doctor, "_FLAGS", flags)
    monkeypatch.setattr(doctor.cli, "load_cells", lambda: ("mine",) if cell_module else ())
    monkeypatch.setattr(doctor.cli, "load_tensorflow", lambda: None)


def test_a_gpu_that_cannot_be_used_is_a_failure(monkeypatch, capsys):
    line = "there is an NVIDIA GPU, which TensorFlow cannot use: not found: libcudnn.so.9; pip install 'tfcharrnn[gpu]'"
    monkeypatch.setattr(gpu_diagnosis, "find_obstacle", lambda: line)
    monkeypatch.setattr(environment.tf.config, "get_visible_devices", lambda kind: [])
    monkeypatch.setattr(device_checks, "list_checks", lambda own: [Check("a", lambda: "fine")])
    make_flags(monkeypatch)
    with pytest.raises(UserError, match=r"not found: libcudnn\.so\.9; pip install"):
        doctor.main()
    assert f"problem    {line}\n" in capsys.readouterr().out
    make_flags(monkeypatch, "cpu")
    doctor.main()


def test_the_driver_and_its_libraries_are_described(monkeypatch):
    monkeypatch.setattr(environment, "query_driver", lambda: gpu_diagnosis.Driver("", 12040, 1))
    monkeypatch.setattr(environment, "read_driver_version", lambda: "550.54.15")
    monkeypatch.setattr(environment, "open_libraries", lambda: {"libcudnn.so.9": "not found", "libcufft.so.11": ""})
    rows = dict(environment.describe_environment())
    assert rows["driver"] == "550.54.15, for CUDA 12.4"
    assert rows["libraries"] == "not found: libcudnn.so.9"
    assert rows["TensorFlow"].startswith(tf.__version__)
