"""`doctor --bench` measures every way to do some work, at batches that grow until that no longer helps."""

import json
import types

import pytest
import tensorflow as tf

from tfcharrnn import doctor
from tfcharrnn.errors import ConfigError
from tfcharrnn.model import backends
from tfcharrnn.model.compiled_loops import compile_in_graphs
from tfcharrnn.verification import device_bench
from tfcharrnn.verification.workloads import Generation, Training

RATES = {"float32": 1e9, "TF32": 1e9, "bfloat16": 1e9}
TINY = Training("X", "gru", 2, 5, 3, 1, 7)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(device_bench, "_ROUNDS", 1)
    monkeypatch.setattr(device_bench, "_SECONDS_PER_ROUND", 0.0)
    monkeypatch.setattr(device_bench.importlib.util, "find_spec", lambda name: None)


def pretend(monkeypatch, milliseconds):
    """Each size takes this long, by a function of the size."""
    made = []
    monkeypatch.setattr(device_bench, "_make_job", lambda work, variant: made.append(work.batch) or work.batch)
    monkeypatch.setattr(device_bench, "_measure_seconds", lambda batch: milliseconds(batch) / 1e3)
    return made


def test_the_work_is_done_in_every_way(monkeypatch):
    monkeypatch.setattr(device_bench, "_LARGEST_FACTOR", 1)
    for work, share in ((TINY, True), (Generation("Y", "rnn", 3, 1, 2, length=4), False)):
        results = list(device_bench.measure_row(work, RATES))
        assert [(result.variant, result.precision) for result in results] == [
            ("custom", "float32"), ("custom", "bfloat16"),
        ]  # fmt: skip
        assert all(result.size == 2 and result.characters_per_second > 0 for result in results)
        assert all((result.share is not None) == share for result in results)


def test_a_gpu_has_more_ways(monkeypatch):
    monkeypatch.setattr(device_bench.devices, "list_gpus", lambda: ["a GPU"])
    monkeypatch.setattr(backends, "is_cudnn_available", lambda: True)
    monkeypatch.setattr(device_bench.importlib.util, "find_spec", lambda name: "it is installed")
    ways = {(variant.name, variant.precision) for variant in device_bench.list_variants(TINY)}
    both = {(name, precision) for name in ("custom", "cudnn", "pytorch") for precision in ("float32", "TF32")}
    assert both | {("custom", "bfloat16"), ("custom, unroll 8", "TF32"), ("cudnn, tries algorithms", "TF32")} <= ways
    assert {name for name, _ in ways if "cudnn" in name} == {"cudnn", "cudnn, tries algorithms"}


def test_batches_grow_until_the_throughput_does_not(monkeypatch):
    made = pretend(monkeypatch, lambda batch: max(1.0, batch / 8))
    results = list(device_bench.measure_row(TINY, RATES))
    assert made == [2, 4, 8, 16] * 2
    assert results[3].characters_per_second == results[2].characters_per_second == 8 * 5 * 1000


def test_a_batch_too_large_for_the_memory_ends_the_row(monkeypatch):
    def run_out(batch):
        if batch > 4:
            raise tf.errors.ResourceExhaustedError(None, None, "Out of memory while trying to allocate 3.64TiB.")
        return 1.0

    pretend(monkeypatch, run_out)
    assert [result.size for result in device_bench.measure_row(TINY, RATES)] == [2, 4] * 2
    pretend(monkeypatch, lambda batch: run_out(10 * batch))
    with pytest.raises(tf.errors.ResourceExhaustedError):
        list(device_bench.measure_row(TINY, RATES))


def test_tf32_is_that_of_the_way(monkeypatch):
    seen = []
    pretend(monkeypatch, lambda batch: seen.append(tf.config.experimental.tensor_float_32_execution_enabled()) or 1e9)
    monkeypatch.setattr(device_bench, "_LARGEST_FACTOR", 1)
    monkeypatch.setattr(
        device_bench, "list_variants", lambda work: [device_bench.Variant("a", p, {}) for p in ("float32", "TF32")]
    )
    list(device_bench.measure_row(TINY, RATES))
    assert seen == [False, True]


def test_loops_are_compiled_for_tf32_and_without_it():
    """XLA compiles it in, so a loop that was compiled with it must not serve without it."""
    traced = []
    loop = compile_in_graphs(lambda cell, dtype, x: traced.append(dtype) or x + 1.0)
    for precision in ("TF32", "float32", "TF32"):
        with device_bench.use_precision(precision):
            tf.function(lambda x: loop(None, tf.float32, x) * 2.0)(tf.constant(1.0))
    assert len(traced) == 2


def test_the_command_prints_markdown_and_writes_json(monkeypatch, capsys, tmp_path):
    result = device_bench.Measurement("A: RNN", "cudnn", "TF32", 256, 1.234, 5e7, 0.31)
    monkeypatch.setattr(device_bench, "measure_product_rates", lambda: RATES)
    monkeypatch.setattr(device_bench, "measure_row", lambda work, rates: iter([result]))
    path = tmp_path / "bench.json"
    flags = types.SimpleNamespace(bench=True, bench_rows=["A"], json=str(path), device="auto")
    monkeypatch.setattr(doctor, "_FLAGS", flags)
    doctor.run_benchmark([("device", "a GPU")])
    head, line, row = capsys.readouterr().out.splitlines()[-3:]
    assert head.count("|") == line.count("|") == row.count("|") == 8
    assert row == "| A: RNN | cudnn | TF32 | 256 | 1.23 | 50,000,000 | 31% |"
    written = json.loads(path.read_text())
    assert written["environment"] == {"device": "a GPU"} and written["results"][0]["share"] == 0.31
    flags.bench = False
    with pytest.raises(ConfigError, match=r"^--json: is for --bench"):
        doctor.main()
    flags.bench_rows = ["M"]
    with pytest.raises(ConfigError, match="--bench_rows: 'M' is not one of A, B"):
        doctor.main()
