"""Connects TensorFlow to the other workers so that a signal can end the wait for them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfcharrnn.errors import UserError

# seconds after which a signal is noticed
_SIGNAL_INTERVAL = 0.2


def connect_tensorflow(resolver: Any, timeout: float) -> tf.distribute.Strategy:
    """Makes TensorFlow's strategy for several workers, which blocks until all of them do so.

    TensorFlow blocks in a thread of its own, while this one can be interrupted.

    Args:
        resolver: TensorFlow's description of the workers.
        timeout: seconds to wait.

    Raises:
        UserError: another worker has gone since the rendezvous.
    """
    future: concurrent.futures.Future[tf.distribute.Strategy] = concurrent.futures.Future()

    def connect() -> None:
        try:
            with _release_interpreter_lock():
                future.set_result(tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    end = time.monotonic() + timeout
    while not future.done() and time.monotonic() < end:
        concurrent.futures.wait([future], timeout=_SIGNAL_INTERVAL)
        if threading.current_thread() is threading.main_thread():
            # TensorFlow installs a SIGTERM handler that would prevent a clean exit
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    if not future.done():
        raise UserError(
            f"another worker has gone since all of them met: TensorFlow waited {timeout:g} s for it; start all of them "
            "again"
        )
    return future.result()


@contextlib.contextmanager
def _release_interpreter_lock() -> Iterator[None]:
    """Lets other Python threads run while TensorFlow waits for the other workers.

    TensorFlow calls the function of its C API that waits without releasing Python's global lock; `ctypes` releases it.
    Where a version of TensorFlow does not have that function, it is called as usual.
    """
    try:
        from tensorflow.python import pywrap_tfe

        original = pywrap_tfe.TFE_EnableCollectiveOps
        replacement = _make_unlocked_call()
    except (ImportError, AttributeError, OSError):
        yield
        return
    pywrap_tfe.TFE_EnableCollectiveOps = replacement
    try:
        yield
    finally:
        pywrap_tfe.TFE_EnableCollectiveOps = original


def _make_unlocked_call() -> Any:
    """Returns `TFE_EnableCollectiveOps(context, server_def)` without Python's global lock.

    Raises:
        AttributeError, OSError: this version of TensorFlow does not have it.
    """
    library = ctypes.CDLL(str(Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"))
    function, new_status = library.TFE_EnableCollectiveOps, library.TF_NewStatus
    get_code, get_message, delete_status = library.TF_GetCode, library.TF_Message, library.TF_DeleteStatus
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
    function.restype, new_status.restype, get_message.restype = None, ctypes.c_void_p, ctypes.c_char_p
    get_code.argtypes = get_message.argtypes = delete_status.argtypes = [ctypes.c_void_p]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

    def enable(context: Any, server_def: bytes) -> None:
        status = new_status()
        try:
            function(get_pointer(context, None), server_def, len(server_def), status)
            if code := get_code(status):
                message = (get_message(status) or b"").decode("utf-8", "replace")
                raise tf.compat.v1.errors.exception_type_from_error_code(code)(None, None, message)
        finally:
            delete_status(status)

    return enable
