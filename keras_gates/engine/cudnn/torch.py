"""cuDNN on PyTorch."""

import torch

from keras_gates.engine.cudnn.engine import CudnnEngine
from keras_gates.engine.native.torch import pulled_again


class FusedEngine(CudnnEngine):
    """Runs one cell; see `CudnnEngine`."""

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`."""
        values = [sequences, *states, *self.recurrence.values()]
        if torch.is_grad_enabled() and any(v.requires_grad for v in values):
            results = _Forward.apply(_Call(self, dropout, return_sequences), *values)
        else:
            results = self.computed(values, None, dropout, return_sequences)
        return self.apart(results, return_sequences)


class _Call:
    """What of a call no gradient is computed for; and the graph that cuDNN's derivative is in."""

    def __init__(self, engine, dropout, return_sequences):
        self.engine, self.dropout, self.return_sequences = engine, dropout, return_sequences

    def forward(self, values):
        self.values = values
        with torch.enable_grad():
            self.results = self.engine.computed(values, None, self.dropout, self.return_sequences)
        return [result.detach() for result in self.results]

    def backward(self, d_results):
        wanted = [value for value in self.values if value.requires_grad]
        found = iter(torch.autograd.grad(self.results, wanted, d_results, retain_graph=True))
        return [next(found) if v.requires_grad else torch.zeros_like(v) for v in self.values]


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *values):
        ctx.call = call
        ctx.save_for_backward(*values)
        needed = zip(values, ctx.needs_input_grad[1:], strict=True)
        return tuple(call.forward([v.detach().requires_grad_(needs) for v, needs in needed]))

    @staticmethod
    def backward(ctx, *d_results):
        return None, *_Backward.apply(ctx.call, len(d_results), *d_results, *ctx.saved_tensors)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, count, *d_and_values):
        ctx.call, ctx.count = call, count
        ctx.save_for_backward(*d_and_values)
        return tuple(call.backward(d_and_values[:count]))

    @staticmethod
    def backward(ctx, *v):
        call, count = ctx.call, ctx.count
        with torch.enable_grad():
            given = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            found = pulled_again(
                call.engine.recurrence, None, call.dropout, call.return_sequences,
                given[count:], given[:count],
            )  # fmt: skip
            second = torch.autograd.grad(found, given, v, allow_unused=True, materialize_grads=True)
        return None, None, *second
