"""Data folders as they are read."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf
from folders import TEXT, contents, prepare

from tfcharrnn.config import DataConfig
from tfcharrnn.data.dataset import open_data
from tfcharrnn.errors import UserError
from tfcharrnn.preparation.data_folder import prepare_data


def test_same_text_and_settings_make_the_same_bytes(tmp_path):
    first, second = (prepare(tmp_path / name, TEXT, seq_length=20, num_shards=2) for name in "ab")
    assert contents(first.path) == contents(second.path)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("settings", [{"seq_length": 21}, {"overlap": 0.1}, {"val_fraction": 0.1}, {"lowercase": True}])
def test_other_settings_make_another_fingerprint(tmp_path, settings):
    first = prepare(tmp_path / "a", TEXT, **{"seq_length": 20})
    second = prepare(tmp_path / "b", TEXT, **{"seq_length": 20, **settings})
    assert first.fingerprint != second.fingerprint


def test_folder_can_be_moved(folder, tmp_path):
    before = open_data(folder)
    moved = folder.rename(tmp_path / "moved")
    assert open_data(moved).fingerprint == before.fingerprint
    assert open_data(moved).read("val").pad().shape == (2, 50)


@pytest.mark.parametrize("name", ["with space", "dätä", "a*[b]?", os.fsdecode(b"not-utf8-\xff")])
def test_folder_may_have_any_name(tmp_path, name):
    data = prepare(tmp_path / name, TEXT, seq_length=11)
    assert data.vocabulary.decode(data.read("train").ids) == TEXT


def test_opening_a_folder_does_not_load_tensorflow(good):
    code = "import sys, tfcharrnn; tfcharrnn.open_data(sys.argv[1]); assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(good)], check=True)


def test_very_many_files_are_not_all_named(tmp_path):
    paths = [tmp_path / f"{index:02d}.txt" for index in range(30)]
    for path in paths:
        path.write_text("abc" * 9)
    data = prepare_data(DataConfig(input=tuple(map(str, paths)), seq_length=5), tmp_path / "data")
    assert data.name == "00.txt, 01.txt, 02.txt, 27 more"


@pytest.mark.parametrize("settings", [{"seq_length": 20}, {"layout": "lines"}, {"layout": "stream", "seq_length": 20}])
def test_compressed_shards_hold_the_same(tmp_path, settings):
    plain = prepare(tmp_path / "plain", TEXT, num_shards=2, **settings)
    packed = prepare(tmp_path / "packed", TEXT, num_shards=2, compression="gzip", **settings)
    assert packed.fingerprint == plain.fingerprint
    assert packed.splits == plain.splits
    assert packed.read("train").ids.tolist() == plain.read("train").ids.tolist()
    for name in plain.splits["train"].shards:
        compressed = tf.data.TFRecordDataset(str(packed.path / name), compression_type="GZIP")
        assert list(compressed.as_numpy_iterator()) == list(
            tf.data.TFRecordDataset(str(plain.path / name)).as_numpy_iterator()
        )
        assert (packed.path / name).read_bytes()[:2] == b"\x1f\x8b", "the magic number of gzip"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: data[:20],
        lambda data: b"text" + data,
        lambda data: data[:40] + b"\0\0\0" + data[43:],
    ],
)
def test_damaged_compressed_shards_are_refused(tmp_path, damage):
    data = prepare(tmp_path / "data", TEXT, seq_length=20, compression="gzip")
    shard = data.path / data.splits["train"].shards[0]
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=f"{shard.name}: damaged"):
        data.read("train")
