"""On PyTorch."""

import torch


def differentiable(infer, forward, backward, step_by_step):
    """A function of a list of tensors, with its derivatives.

    Args:
        infer: from the list to a list of results.
        forward: likewise to the results, and what it keeps for `backward`.
        backward: from the list, what was kept, gradients at the results and, for each of the list,
            whether a gradient is wanted, to these.
        step_by_step: what `infer` gives, in operations of PyTorch: for second derivatives.
    """
    functions = forward, backward, step_by_step

    def run(given):
        if torch.is_grad_enabled() and any(value.requires_grad for value in given):
            return list(_Forward.apply(functions, *given))
        return infer(given)

    return run


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, functions, *given):
        results, memory = functions[0](list(given))
        ctx.functions, ctx.memory = functions, memory
        ctx.save_for_backward(*given)
        return tuple(results)

    @staticmethod
    def backward(ctx, *d):
        wants = ctx.needs_input_grad[1:]
        given = ctx.saved_tensors
        return None, *_Backward.apply(ctx.functions, ctx.memory, wants, len(d), *d, *given)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, functions, memory, wants, count, *d_and_given):
        ctx.step_by_step, ctx.count = functions[2], count
        ctx.save_for_backward(*d_and_given)
        d, given = d_and_given[:count], d_and_given[count:]
        return tuple(functions[1](list(given), memory, list(d), wants))

    @staticmethod
    def backward(ctx, *v):
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            d, given = tensors[: ctx.count], tensors[ctx.count :]
            pulled = torch.autograd.grad(
                ctx.step_by_step(given), given, d,
                create_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            pairs = [(found, u) for found, u in zip(pulled, v, strict=True) if u is not None]
            second = torch.autograd.grad(
                [found for found, _ in pairs], tensors, [u for _, u in pairs],
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        return None, None, None, None, *second


def step_by_step(recurrence, given, mask, dropout, return_sequences):
    """What an engine gives, [the hidden states,] the last states, in operations of PyTorch.

    Args:
        recurrence: a `Recurrence`.
        given: a list of the sequences, the states and the weights.
        mask, dropout, return_sequences: see `Engine`.
    """
    count = len(given) - len(recurrence.variables)
    (x, *states), values = given[:count], given[count:]
    hidden = []
    for t in range(x.shape[1]):
        states = recurrence.advance(
            values,
            recurrence.project_input(values, x[:, t], dropout),
            recurrence.project_state(values, states[0], dropout),
            states,
            None if mask is None else mask[:, t, None].to(torch.bool),
            dropout._replace(kept=[m[:, t] for m in dropout.kept]),
        )
        hidden.append(states[0])
    return [*([torch.stack(hidden, 1)] if return_sequences else []), *states]
