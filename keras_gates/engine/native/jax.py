"""The kernel on JAX, as a function of XLA, on a CPU."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from keras_gates.engine import jax as scans
from keras_gates.engine.differentiable.jax import differentiable
from keras_gates.engine.native import library
from keras_gates.engine.native.engine import NativeEngine
from keras_gates.engine.recurrence import Dropout

_NAME = "keras_gates_call"
jax.ffi.register_ffi_target(_NAME, jax.ffi.pycapsule(library.load().call_by_xla), platform="cpu")


class FusedEngine(NativeEngine):
    """Runs one cell; see `NativeEngine`."""

    def __init__(self, cell):
        super().__init__(cell)
        self._scans = scans.FusedEngine(cell)

    @staticmethod
    def dtype_of(cell):
        x64 = jax.config.jax_enable_x64
        return NativeEngine.dtype_of(cell) if x64 else "float32"

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`; JAX itself knows whether `gradients` are asked for."""
        given = [sequences, *states, *self.recurrence.values()]
        given = [jnp.asarray(value, self.dtype) for value in given]
        masks = [] if mask is None else [jnp.asarray(mask, bool)]
        masks += [jnp.asarray(m, self.dtype) for each in dropout[:2] for m in each]
        masks += [jnp.asarray(m, bool) for m in dropout.kept]
        counts = (int(mask is not None), *map(len, dropout))
        *hidden, last = self._function(counts, return_sequences, len(states))(given, masks)
        last = [r.astype(state.dtype) for r, state in zip(last, states, strict=True)]
        return (hidden[0].astype(sequences.dtype) if hidden else None), last

    def _function(self, counts, return_sequences, states):
        """The results, of `given` and `masks`, with their derivatives."""

        def done(direction, arrays):
            call = self.call(direction, counts, return_sequences)
            results = [jax.ShapeDtypeStruct(s, self.dtype) for s in call.shapes(arrays)]
            do = jax.ffi.ffi_call(_NAME, results, vmap_method="sequential")
            return do(*arrays, call=np.int64(call.number))

        def ordered(results):
            """([hidden states,] last states)"""
            return [*results[: len(results) - states], list(results[len(results) - states :])]

        def step_by_step(given, masks):
            """The same, so that it can be differentiated twice."""
            x, before, values = given[0], given[1 : 1 + states], given[1 + states :]
            mask = masks[0] if counts[0] else None
            ends = itertools.accumulate(counts)
            dropout = Dropout(*[masks[a:b] for a, b in itertools.pairwise(ends)])
            hidden, last = self._scans.over(x, before, mask, dropout, return_sequences, values)
            return [*([hidden] if return_sequences else []), last]

        def infer(given, masks):
            return ordered(done("infer", [*given, *masks]))

        def forward(given, masks):
            *results, memory = done("forward", [*given, *masks])
            return ordered(results), memory

        def backward(given, masks, memory, d_results):
            *d_hidden, d_last = d_results
            return done("backward", [*given, *masks, memory, *d_hidden, *d_last])

        return differentiable(infer, forward, backward, step_by_step)
