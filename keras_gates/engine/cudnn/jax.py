"""cuDNN on JAX."""

import jax
import jax.numpy as jnp

from keras_gates.engine import jax as scans
from keras_gates.engine.cudnn.engine import CudnnEngine
from keras_gates.engine.differentiable.jax import differentiable
from keras_gates.engine.recurrence import Dropout


class FusedEngine(CudnnEngine):
    """Runs one cell; see `CudnnEngine`."""

    def __init__(self, cell):
        super().__init__(cell)
        self._scans = scans.FusedEngine(cell)

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`; JAX itself knows whether `gradients` are asked for."""

        def infer(given, masks):
            return self.computed(given, None, Dropout(masks, []), return_sequences)

        def forward(given, masks):
            results, pulled = jax.vjp(lambda given: infer(given, masks), given)
            return results, _Kept(pulled)

        def backward(given, masks, kept, d_results):
            return kept.pulled(d_results)[0]

        def step_by_step(given, masks):
            count = 1 + len(states)
            (x, *before), values, dropout = given[:count], given[count:], Dropout(masks, [])
            hidden, last = self._scans.over(x, before, None, dropout, return_sequences, values)
            return [*([hidden] if return_sequences else []), *last]

        given = [jnp.asarray(v) for v in (sequences, *states, *self.recurrence.values())]
        run = differentiable(infer, forward, backward, step_by_step)
        return self.apart(run(given, dropout.inputs), return_sequences)


@jax.tree_util.register_pytree_node_class
class _Kept:
    """The function that `jax.vjp` gives, as arrays and a form, which two traces of one function
    have in common: JAX itself would call them different."""

    def __init__(self, pulled):
        self.pulled = pulled

    def tree_flatten(self):
        arrays, form = jax.tree.flatten(self.pulled)
        return arrays, _Form(form)

    @classmethod
    def tree_unflatten(cls, form, arrays):
        return cls(jax.tree.unflatten(form.form, arrays))


class _Form:
    def __init__(self, form):
        self.form = form

    def __eq__(self, other):
        return isinstance(other, _Form) and self.form.num_leaves == other.form.num_leaves

    def __hash__(self):
        return hash(self.form.num_leaves)
