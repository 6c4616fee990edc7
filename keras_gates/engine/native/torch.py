"""The kernel on PyTorch, on a CPU."""

import torch

from keras_gates.engine.native.engine import NativeEngine


class FusedEngine(NativeEngine):
    """Runs one cell; see `NativeEngine`."""

    @torch.compiler.disable
    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`."""
        dtype = getattr(torch, self.dtype)
        values = [v.to(dtype) for v in (sequences, *states, *self.recurrence.values())]
        more = [] if mask is None else [mask.to(torch.bool)]
        more += [m.to(dtype) for masks in dropout[:2] for m in masks]
        more += [m.to(torch.bool) for m in dropout.kept]
        call = _Call(self, mask, dropout, return_sequences, more)
        if gradients and torch.is_grad_enabled() and any(v.requires_grad for v in values):
            results = list(_Forward.apply(call, *values))
        else:
            results = call.forward(values, gradients=False)
        hidden = results.pop(0).to(sequences.dtype) if return_sequences else None
        return hidden, [r.to(state.dtype) for r, state in zip(results, states, strict=True)]


class _Call:
    """What of a call no gradient is computed for."""

    def __init__(self, engine, mask, dropout, return_sequences, more):
        self.engine, self.mask, self.dropout = engine, mask, dropout
        self.return_sequences, self.more = return_sequences, _arrays(more)
        self.counts = (int(mask is not None), *map(len, dropout))

    def forward(self, values, gradients):
        direction = "forward" if gradients else "infer"
        call = self.engine.call(direction, self.counts, self.return_sequences)
        found = call([*_arrays(values), *self.more])
        if gradients:
            self.memory = found.pop()
        return [torch.from_numpy(array) for array in found]

    def backward(self, values, d_results, wants_d_x):
        call = self.engine.call("backward", self.counts, self.return_sequences, wants_d_x)
        found = call([*_arrays(values), *self.more, self.memory, *_arrays(d_results)])
        return [*[None] * (not wants_d_x), *map(torch.from_numpy, found)]


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *values):
        ctx.call = call
        ctx.save_for_backward(*values)
        return tuple(call.forward(values, gradients=True))

    @staticmethod
    def backward(ctx, *d_results):
        wants_d_x = ctx.needs_input_grad[1]
        found = _Backward.apply(ctx.call, wants_d_x, len(d_results), *d_results, *ctx.saved_tensors)
        return None, *found


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, wants_d_x, count, *d_and_values):
        ctx.call, ctx.count = call, count
        ctx.save_for_backward(*d_and_values)
        return tuple(call.backward(d_and_values[count:], d_and_values[:count], wants_d_x))

    @staticmethod
    def backward(ctx, *v):
        with torch.enable_grad():
            given = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            call = ctx.call
            found = pulled_again(
                call.engine.recurrence, call.mask, call.dropout, call.return_sequences,
                given[ctx.count :], given[: ctx.count],
            )  # fmt: skip
            pairs = [(f, u) for f, u in zip(found, v, strict=True) if u is not None]
            second = torch.autograd.grad(
                [f for f, _ in pairs],
                given,
                [u for _, u in pairs],
                allow_unused=True,
                materialize_grads=True,
            )
        return None, None, None, *second


def pulled_again(recurrence, mask, dropout, return_sequences, values, d_results):
    """The gradients at `values` from those at the results, step by step, so that they can be
    differentiated.

    Args:
        recurrence: a `Recurrence`.
        mask: (batch, time) or None.
        dropout: a `Dropout` of masks.
        return_sequences: whether the hidden states of all steps are among the results.
        values: what the recurrence is a function of: the sequences, the states, the weights.
        d_results: gradients at the results.
    """
    count = len(values) - len(recurrence.variables)
    x, *states = values[:count]
    hidden = []
    for t in range(x.shape[1]):
        states = recurrence.advance(
            values[count:],
            recurrence.project_input(values[count:], x[:, t], dropout),
            recurrence.project_state(values[count:], states[0], dropout),
            states,
            None if mask is None else mask[:, t, None].to(torch.bool),
            dropout._replace(kept=[m[:, t] for m in dropout.kept]),
        )
        hidden.append(states[0])
    results = [*([torch.stack(hidden, 1)] if return_sequences else []), *states]
    return torch.autograd.grad(
        results, values, d_results, create_graph=True, allow_unused=True, materialize_grads=True
    )


def _arrays(tensors):
    return [t.detach().contiguous().numpy() for t in tensors]
