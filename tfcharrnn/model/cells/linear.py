"""The base class of cells whose state enters linearly, which can be run for all steps of a sequence at once."""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, State
from tfcharrnn.model.cells.checks import check_tensor, check_tensors, name_cell


class LinearCell(Cell):
    """A cell with the recurrence c' = a c + b, in which a and b depend on the input alone, and h' = output(p, c').

    Nothing in a step waits for the state but a product and a sum, so `tfcharrnn.model.linear_recurrence` computes all
    steps at once (Martin & Cundy 2018). A cell is complete with `coefficients`; the output is c' itself unless
    `output` says otherwise, and then the state is (h, c) and `num_state_tensors` 2.

    Both methods work on the last axis alone: p is `[batch, gates * hidden]` of one step, or
    `[time, batch, gates * hidden]` of all.
    """

    num_recurrent_gates = 0
    is_linear = True

    @classmethod
    @abc.abstractmethod
    def coefficients(cls, *args: Any, **extras: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a and b of c' = a c + b, as `coefficients(p, **extras)`.

        Args:
            *args: p = x W + b, `[..., gates * hidden]`.
            **extras: the extra weights.

        Returns:
            Two tensors `[..., hidden]`. |a| should not be above 1, or the state grows without bound.
        """

    @classmethod
    def output(cls, *args: Any, **extras: Any) -> tf.Tensor:
        """Returns the output h `[..., hidden]` from p and the state after the step, c: `output(p, c, **extras)`."""
        return args[1]

    @classmethod
    def forward(cls, p: tf.Tensor, q: tf.Tensor | None, state: State, **extras: Any) -> State:
        """Computes one step."""
        a, b = cls.run_coefficients(p, extras)
        c = a * state[-1] + b
        return (c,) if cls.num_state_tensors == 1 else (cls.run_output(p, c, extras), c)

    @classmethod
    def run_coefficients(cls, p: tf.Tensor, extras: dict[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        """Calls `coefficients`.

        Raises:
            CellError: it fails, or does not return two tensors `[..., hidden]`.
        """
        with name_cell(cls, "coefficients"):
            result = cls.coefficients(p, **extras)
        like = p[..., : p.shape[-1] // cls.num_gates]
        a, b = check_tensors(cls, "coefficients", result, [like, like], "a and b of c' = a c + b")
        return a, b

    @classmethod
    def run_output(cls, p: tf.Tensor, c: tf.Tensor, extras: dict[str, Any]) -> tf.Tensor:
        """Calls `output`.

        Raises:
            CellError: it fails, or does not return a tensor `[..., hidden]`.
        """
        with name_cell(cls, "output"):
            h = cls.output(p, c, **extras)
        check_tensor(cls, "output", h, c)
        return h
