"""The kernel on PyTorch, on a CPU."""

import torch

from keras_gates.engine.differentiable.torch import differentiable, step_by_step
from keras_gates.engine.native.engine import NativeEngine


class FusedEngine(NativeEngine):
    """Runs one cell; see `NativeEngine`."""

    @torch.compiler.disable
    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`."""
        dtype = getattr(torch, self.dtype)
        given = [v.to(dtype) for v in (sequences, *states, *self.recurrence.values())]
        masks = [] if mask is None else [mask.to(torch.bool)]
        masks += [m.to(dtype) for each in dropout[:2] for m in each]
        masks += [m.to(torch.bool) for m in dropout.kept]
        masks = _arrays(masks)
        counts = (int(mask is not None), *map(len, dropout))

        def infer(given):
            found = self.call("infer", counts, return_sequences)([*_arrays(given), *masks])
            return [torch.from_numpy(array) for array in found]

        def forward(given):
            call = self.call("forward", counts, return_sequences)
            *found, memory = call([*_arrays(given), *masks])
            return [torch.from_numpy(array) for array in found], memory

        def backward(given, memory, d_results, wants):
            call = self.call("backward", counts, return_sequences, wants[0])
            found = call([*_arrays(given), *masks, memory, *_arrays(d_results)])
            return [*[None] * (not wants[0]), *map(torch.from_numpy, found)]

        def again(given):
            return step_by_step(self.recurrence, given, mask, dropout, return_sequences)

        results = differentiable(infer, forward, backward, again)
        results = results(given) if gradients else infer(given)
        hidden = results.pop(0).to(sequences.dtype) if return_sequences else None
        return hidden, [r.to(state.dtype) for r, state in zip(results, states, strict=True)]


def _arrays(tensors):
    return [t.detach().contiguous().numpy() for t in tensors]
