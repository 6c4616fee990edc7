"""The kernels on JAX."""

import jax

from keras_gates.engine import jax as scans
from keras_gates.engine.differentiable.jax import differentiable
from keras_gates.engine.gpu import pallas
from keras_gates.engine.gpu.engine import GPUEngine


class FusedEngine(GPUEngine):
    """Runs one cell; see `GPUEngine`.

    Args:
        cell: a built GatedCell.
        interpret: whether JAX interprets the kernels, on any processor, and slowly.
    """

    vjp = staticmethod(jax.vjp)

    def __init__(self, cell, interpret=False):
        super().__init__(cell)
        self.kernels = pallas.Kernels(interpret)
        self._scans = scans.FusedEngine(cell)

    def results(self, run_of, given, masks, gradients):
        """JAX itself knows whether `gradients` are asked for."""

        def step_by_step(given, masks):
            (x, states, values), (mask, dropout) = given, masks
            sequences = run_of(masks).return_sequences
            hidden, last = self._scans.over(x, states, mask, dropout, sequences, values)
            return ([hidden] if sequences else []), last

        return differentiable(
            lambda given, masks: run_of(masks).infer(given),
            lambda given, masks: run_of(masks).forward(given),
            lambda given, masks, steps, d: run_of(masks).backward(given, steps, d),
            step_by_step,
        )(given, masks)
