"""The shards of a data folder."""

import json

import pytest
from large_texts import in_blocks, write_texts

from tfcharrnn.config import DataConfig
from tfcharrnn.data import tfrecord_writer
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.preparation.data_folder import prepare_data


def test_shards_have_about_the_size_that_is_asked_for(tmp_path):
    config = DataConfig(input=write_texts(tmp_path, b"abc d" * 2000), seq_length=11, val_fraction=0.1)
    with in_blocks(shard_bytes=5000):
        data = prepare_data(config, tmp_path / "data", jobs=1)
    sizes = [(data.path / name).stat().st_size for name in data.splits["train"].shards]
    assert len(sizes) > 3
    assert all(2500 < size < 10_000 for size in sizes)
    assert len(data.splits["val"].shards) == round(sum(sizes) / 9 / 5000)
    assert json.loads((data.path / "dataset.json").read_text())["num_shards"] == len(sizes)
    assert data.vocabulary.decode(data.read("train").ids) == "abc d" * 1800


def test_a_file_is_checked_without_tensorflow(tmp_path):
    path = tmp_path / "x"
    data = prepare_data(DataConfig(input=write_texts(tmp_path, b"abc d" * 200), seq_length=11), tmp_path / "data")
    shard = data.path / data.splits["train"].shards[0]
    whole = shard.read_bytes()
    assert tfrecord_writer.check_file(shard) == data.splits["train"].records
    for at in range(0, 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(UserError, match="damaged"):
            tfrecord_writer.check_file(path)
    for size in range(1, len(whole) // data.splits["train"].records):
        path.write_bytes(whole[:-size])
        with pytest.raises(UserError, match="damaged"):
            tfrecord_writer.check_file(path)


def test_num_shards_may_be_chosen():
    with pytest.raises(ConfigError, match="at least 0"):
        DataConfig(num_shards=-1)
