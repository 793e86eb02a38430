"""Helpers for tests of texts that are prepared in blocks."""

import contextlib

import joblib
import pytest
from folders import contents, names

from tfcharrnn.data import chunking
from tfcharrnn.errors import UserError
from tfcharrnn.preparation import line_blocks, sharding, staging, text_blocks
from tfcharrnn.preparation.data_folder import prepare_data


@contextlib.contextmanager
def in_blocks(block=16, small=0, shard_bytes=None, sorted_lines=None, piece=10, cores=1):
    """Makes any text a large one, in blocks of `block` bytes; `cores` is the default number of worker processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK_BYTES", block)
        patch.setattr(text_blocks, "_TAIL_BYTES", 16)
        patch.setattr(staging, "SMALL_BYTES", small)
        patch.setattr(line_blocks, "MARGIN", 8)
        patch.setattr(chunking, "CHUNK_LENGTH", piece)
        patch.setattr(joblib, "cpu_count", lambda: cores)
        if shard_bytes:
            patch.setattr(sharding, "_SHARD_BYTES", shard_bytes)
        if sorted_lines is not None:
            patch.setattr(chunking, "SORTED_LINES", sorted_lines)
        yield patch


def prepare_contents(config, path, **how):
    """Prepares a text; returns the content of the data folder, or the error."""
    try:
        data = prepare_data(config, path, **how)
    except UserError as error:
        assert not path.exists()
        return str(error)
    assert names(path.parent) == sorted({path.name, *(name for name in names(path.parent) if name.startswith("text"))})
    return contents(data.path)


def check_same(folder, config, **how):
    """Checks that blocks give the same folder or error as one piece, and returns it."""
    piece = how.pop("piece", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK_LENGTH", piece)
        whole = prepare_contents(config, folder / "whole" / "data")
    with in_blocks(how.pop("block", 16), piece=piece):
        pieces = prepare_contents(config, folder / "pieces" / "data", **how)
    assert pieces == whole
    return whole


def write_texts(folder, *datas):
    paths = []
    for index, data in enumerate(datas):
        paths.append(folder / f"text{index}.txt")
        paths[-1].write_bytes(data)
    return tuple(map(str, paths))


LARGE = {"seq_length": 11, "num_shards": 4, "val_fraction": 0.3}


class Stopped(BaseException):
    """Stands for a kill, which nothing catches."""
