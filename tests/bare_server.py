"""Answers requests as TensorFlow Serving does over REST, in a process in which tfcharrnn cannot be imported.

A line on standard input is `[SAVED_MODEL, BODY]` as JSON, and so is the answer on standard output. As the server does,
it runs the SavedModel's graph by its SignatureDef in a session, and makes tensors of the body by the documented rules
(https://www.tensorflow.org/tfx/serving/api_rest): `instances`, a list of objects, each with every input; or `inputs`,
an object with every input. `predictions` or `outputs` come back, as bare values where there is one output alone.
"""

import json
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.modules["tfcharrnn"] = None

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

_NUMBERS = {tf.int32: int, tf.int64: int, tf.float32: (int, float)}
_SESSIONS = {}


def load(path):
    if path not in _SESSIONS:
        session = tf.compat.v1.Session(graph=tf.Graph())
        with session.graph.as_default():
            _SESSIONS[path] = session, tf.compat.v1.saved_model.loader.load(session, ["serve"], path)
    return _SESSIONS[path]


def tensor(value, dtype):
    """A tensor of exactly the JSON types that the server takes for a type."""
    leaves = tf.nest.flatten(value)
    wanted = str if dtype == tf.string else _NUMBERS[dtype]
    if any(not isinstance(leaf, wanted) or isinstance(leaf, bool) for leaf in leaves):
        raise ValueError(f"JSON Value: {value} is not of expected type: {dtype.name}")
    if dtype == tf.string:
        value = tf.nest.map_structure(lambda text: text.encode(), value)
    return np.array(value, object if dtype == tf.string else dtype.as_numpy_dtype)


def answer(path, body):
    session, meta = load(path)
    signature = meta.signature_def[body.get("signature_name", "serving_default")]
    types = {name: tf.as_dtype(info.dtype) for name, info in signature.inputs.items()}
    by_row = "instances" in body
    if by_row:
        rows = body["instances"]
        if not all(row.keys() == types.keys() for row in rows):
            raise ValueError(f"keys must be equal to: {','.join(sorted(types))}")
        inputs = {name: [row[name] for row in rows] for name in types}
    else:
        inputs = body["inputs"]
        missing = sorted(types.keys() - inputs.keys())
        if missing:
            raise ValueError(f"Missing named input: {missing[0]} in 'inputs' object.")
    feed = {signature.inputs[name].name: tensor(inputs[name], dtype) for name, dtype in types.items()}
    outputs = session.run({name: info.name for name, info in signature.outputs.items()}, feed)
    outputs = {
        name: tf.nest.map_structure(lambda x: x.decode() if isinstance(x, bytes) else x, array.tolist())
        for name, array in outputs.items()
    }
    if not by_row:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
    rows = [dict(zip(outputs, values, strict=True)) for values in zip(*outputs.values(), strict=True)]
    return {"predictions": rows if len(outputs) > 1 else [next(iter(row.values())) for row in rows]}


for line in sys.stdin:
    try:
        result = answer(*json.loads(line))
    except Exception as error:
        result = {"error": str(error)}
    print(json.dumps(result), flush=True)
