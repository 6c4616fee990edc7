"""Values and no graph, also while a function is being traced."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def eager_scope() -> Iterator[None]:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            yield
    elif backend == "jax":
        import jax

        with jax.ensure_compile_time_eval():
            yield
    else:
        yield
