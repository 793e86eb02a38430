"""Trains on two replicas, with one step in a call and with several, and prints what each gives.

A process of its own, since TensorFlow's devices are set up once.
"""

import json

import numpy as np
import replicated
import tensorflow as tf

from tfcharrnn.training import data_parallel

NAMES = ("rnn on a stream", "incomplete of lines")
BAD_SYMBOL, BAD_BATCHES = replicated.SYMBOLS - 1, (3, 6)


class Runner:
    """Runs calls from the same weights again and again, without compiling anew."""

    def __init__(self, setting):
        self._trainer = replicated.make_trainer(2, *setting)
        self._run_steps = self._trainer._run_steps
        self._variables = [*replicated.list_variables(self._trainer), *self._trainer.optimizer.variables]
        self._start = [variable.numpy() for variable in self._variables]

    def run(self, calls, steps_at_once, skips_left=0, *, stop=False, bad=False):
        """Runs calls.

        Args:
            calls: the calls.
            steps_at_once: how many steps are run before it returns to Python.
            skips_left: see `StepRunner.run`.
            stop: whether a stop is requested.
            bad: whether the weights of `BAD_SYMBOL` are NaN.
        """
        for variable, value in zip(self._variables, self._start, strict=True):
            variable.assign(value)
        if bad:
            kernel = self._trainer.model.named_variables["cells/0/kernel"]
            kernel.assign(np.where(np.arange(replicated.SYMBOLS)[:, np.newaxis] == BAD_SYMBOL, np.nan, kernel))
        self._trainer._is_synchronized = False
        self._trainer._steps_at_once = steps_at_once
        data_parallel.SECONDS_BETWEEN_RETURNS = 0.0 if steps_at_once == 1 else 60.0
        sizes = []

        def count(first_step, begin, end, *others):
            sizes.append(int(end - begin))
            return self._run_steps(first_step, begin, end, *others)

        self._trainer._run_steps = count
        results = [result for call in calls for result in self._trainer.run(call, skips_left, lambda: stop)]
        return {
            "sizes": sizes,
            "steps": [row for result in results for row in result.per_step()],
            "values": [variable.numpy().astype(float).ravel().tolist() for variable in self._variables],
            "stopped": results[-1].stopped,
        }


def put_bad_symbol(call):
    """Leaves the bad symbol in two batches only, in the rows of one replica."""
    ids = np.where(call.ids == BAD_SYMBOL, BAD_SYMBOL - 1, call.ids)
    ids[BAD_BATCHES, 0, 1] = BAD_SYMBOL
    return call._replace(ids=tf.constant(ids))


def compare(name):
    runner = Runner(replicated.SETTINGS[name])
    calls = [call for call, _ in zip(replicated.make_calls(*replicated.SETTINGS[name]), range(2), strict=False)]
    bad, many = [put_bad_symbol(calls[0])], replicated.CALL
    return {
        "single": runner.run(calls, 1),
        "several": runner.run(calls, many),
        "stopped": runner.run(calls[:1], many, stop=True),
        "skipped": {
            skips_left: [runner.run(bad, number, skips_left, bad=True) for number in (1, many)]
            for skips_left in range(len(BAD_BATCHES) + 1)
        },
    }


if __name__ == "__main__":
    print(json.dumps({name: compare(name) for name in NAMES}))
