"""cuDNN on JAX."""

import jax
import jax.numpy as jnp

from keras_gates.engine import jax as scans
from keras_gates.engine.cudnn.engine import CudnnEngine
from keras_gates.engine.recurrence import Dropout


class FusedEngine(CudnnEngine):
    """Runs one cell; see `CudnnEngine`."""

    def __init__(self, cell):
        super().__init__(cell)
        self._scans = scans.FusedEngine(cell)

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """See `Engine`; JAX itself knows whether `gradients` are asked for."""
        given = [jnp.asarray(v) for v in (sequences, *states, *self.recurrence.values())]
        run = self._function(len(states), return_sequences)
        return self.apart(run(given, dropout.inputs), return_sequences)

    def _function(self, states, return_sequences):
        """The results, of `given` and the dropout masks of inputs, with their derivatives."""

        def by_cudnn(given, masks):
            return self.computed(given, None, Dropout(masks, []), return_sequences)

        def step_by_step(given, masks):
            """The same, so that it can be differentiated twice."""
            x, before, values = given[0], given[1 : 1 + states], given[1 + states :]
            dropout = Dropout(masks, [])
            hidden, last = self._scans.over(x, before, None, dropout, return_sequences, values)
            return [*([hidden] if return_sequences else []), *last]

        @jax.custom_vjp
        def run_and_keep(given, masks):
            results, pulled = jax.vjp(lambda given: by_cudnn(given, masks), given)
            return results, _Kept(pulled)

        def forward(given, masks):
            results, kept = run_and_keep(given, masks)
            return results, (given, masks, kept)

        def forward_and_keep(given, masks):
            results, kept = run_and_keep(given, masks)
            return (results, kept), (given, masks, kept)

        @jax.custom_vjp
        def pull(given, masks, kept, d_results):
            return kept.pulled(d_results)[0]

        def pull_backward(residuals, v):
            given, masks, _, d_results = residuals

            def again(given, d_results):
                _, pulled = jax.vjp(lambda given: step_by_step(given, masks), given)
                return pulled(d_results)[0]

            d_given, d_d = jax.vjp(again, given, d_results)[1](v)
            return d_given, None, None, d_d

        # Each is made of functions with derivatives, so that derivatives have some as well.
        pull.defvjp(lambda *residuals: (pull(*residuals), residuals), pull_backward)
        run_and_keep.defvjp(forward_and_keep, lambda residuals, d: (pull(*residuals, d[0]), None))
        run = jax.custom_vjp(by_cudnn)
        run.defvjp(forward, lambda residuals, d: (pull(*residuals, d), None))
        return run


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
