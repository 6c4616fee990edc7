"""The kernels on PyTorch."""

import torch
from keras import tree

from keras_gates.engine.differentiable.torch import differentiable, step_by_step
from keras_gates.engine.gpu import triton
from keras_gates.engine.gpu.engine import GPUEngine


class FusedEngine(GPUEngine):
    """Runs one cell; see `GPUEngine`.

    Where TRITON_INTERPRET=1 is set, Triton interprets the kernels, on any processor, and slowly.
    """

    kernels = triton

    @staticmethod
    def vjp(function, *primals):
        with torch.enable_grad():
            given = tree.map_structure(lambda t: t.detach().requires_grad_(), list(primals))
            found = function(*given)

        def pull(gradients):
            flat = torch.autograd.grad(
                found, tree.flatten(given), gradients, allow_unused=True, materialize_grads=True
            )
            return tree.pack_sequence_as(given, list(flat))

        return [block.detach() for block in found], pull

    def results(self, run_of, given, masks, gradients):
        run = run_of(masks)

        def packed(flat):
            return tree.pack_sequence_as(given, list(flat))

        def forward(flat):
            results, steps = run.forward(packed(flat))
            return tree.flatten(results), steps

        def backward(flat, steps, d_results, wants):
            d = run.split(d_results)
            return tree.flatten(run.backward(packed(flat), steps, d))

        def infer(flat):
            return tree.flatten(run.infer(packed(flat)))

        def again(flat):
            return step_by_step(run.recurrence, list(flat), *masks, run.return_sequences)

        function = differentiable(infer, forward, backward, again) if gradients else infer
        return run.split(function(tree.flatten(given)))
