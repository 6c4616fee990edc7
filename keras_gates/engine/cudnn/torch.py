"""cuDNN on PyTorch."""

import torch

from keras_gates.engine.cudnn.engine import CudnnEngine
from keras_gates.engine.differentiable.torch import differentiable, step_by_step


class FusedEngine(CudnnEngine):
    """Runs one cell; see `CudnnEngine`."""

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`."""

        def infer(given):
            return self.computed(given, None, dropout, return_sequences)

        def forward(given):
            """Also the graph that cuDNN's derivative is in."""
            with torch.enable_grad():
                given = [value.detach().requires_grad_() for value in given]
                results = infer(given)
            return [result.detach() for result in results], (given, results)

        def backward(_, kept, d_results, wants):
            given, results = kept
            wanted = [value for value, wants_it in zip(given, wants, strict=True) if wants_it]
            found = iter(torch.autograd.grad(results, wanted, d_results, retain_graph=True))
            return [next(found) if wants_it else None for wants_it in wants]

        def again(given):
            return step_by_step(self.recurrence, given, None, dropout, return_sequences)

        given = [sequences, *states, *self.recurrence.values()]
        results = differentiable(infer, forward, backward, again)(given)
        return self.apart(results, return_sequences)
