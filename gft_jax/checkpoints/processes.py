"""What one process of several decides or writes for all of them."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_ERRORS: dict[str, type[Exception]] = {each.__name__: each for each in (ValueError, FileExistsError)}


def agreed(decide: Callable[[], Any]) -> Any:
    """What ``decide`` returns in the first process, in all of them; they all have to call this.

    It is called in the first process alone, and the others wait for it: what it writes is there when this returns. In
    a program of a single process it is called, and that is all.

    Args:
        decide: returns what JSON can hold.

    Raises:
        Exception: in the first process what ``decide`` raises; in the others a ValueError or FileExistsError where it
            raised one of these, and an OSError for anything else, all with its message.
    """
    if jax.process_count() == 1:
        return decide()
    outcome, error = {}, None
    if jax.process_index() == 0:
        try:
            outcome = {"decided": decide()}
        except Exception as raised:
            outcome, error = {"error": type(raised).__name__, "text": str(raised)}, raised
    outcome = json.loads(_broadcast(json.dumps(outcome).encode()))
    if error is not None:
        raise error
    if "error" in outcome:
        raise _ERRORS.get(outcome["error"], OSError)(f"in the first process: {outcome['text']}")
    return outcome["decided"]


def _broadcast(content: bytes) -> bytes:
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    buffer = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        buffer[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()
