"""Training examples: spans of one long array of ids."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Examples:
    """Many short sequences of ids, as spans of one array; spans may overlap.

    Attributes:
        ids: int32 `[symbols]`.
        starts: where each example begins, int64 `[examples]`.
        lengths: how many symbols it has, int64 `[examples]`.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def side_by_side(cls, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> Examples:
        """Examples that stand one after another and fill the array."""
        return cls(ids, np.cumsum(lengths) - lengths, lengths)

    @classmethod
    def of_rows(cls, rows: npt.NDArray[np.int32]) -> Examples:
        """Examples of one length, `[examples, length]`."""
        return cls.side_by_side(rows.ravel(), np.full(len(rows), rows.shape[1], np.int64))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def width(self) -> int:
        """The length of the longest example."""
        return int(self.lengths.max(initial=0))

    def gather(self, indices: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int32]:
        """Some examples as an array, zeros after the end of each.

        Args:
            indices: which, `[...]`.
            width: at least the length of the longest.

        Returns:
            `[..., width]`.
        """
        return gather(self.ids, self.starts[indices], self.lengths[indices], width)

    def padded(self) -> npt.NDArray[np.int32]:
        """All examples, `[examples, width]`, zeros after the end of each."""
        return self.gather(np.arange(len(self)), self.width)


def gather(
    ids: npt.NDArray[Any], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], width: int
) -> npt.NDArray[Any]:
    """Spans of `ids` as rows of an array, `[..., width]` for starts and lengths `[...]`, zeros after their ends."""
    positions = np.arange(width)
    rows = ids.take(starts[..., np.newaxis] + positions, mode="clip")
    if np.any(lengths < width):
        rows[positions >= lengths[..., np.newaxis]] = 0
    return rows
