"""On JAX."""

import jax


def differentiable(infer, forward, backward, step_by_step):
    """A function of `given` and `masks`, with its derivatives at `given`.

    Args:
        infer: from `given` and `masks` to the results.
        forward: likewise to the results, and what it keeps for `backward`.
        backward: from `given`, `masks`, what was kept and gradients at the results to those at
            `given`.
        step_by_step: what `infer` gives, in operations of JAX: for second derivatives.
    """

    @jax.custom_vjp
    def run(given, masks):
        return infer(given, masks)

    @jax.custom_vjp
    def run_and_keep(given, masks):
        return forward(given, masks)

    def remember(given, masks):
        results, memory = run_and_keep(given, masks)
        return results, (given, masks, memory)

    def remember_and_keep(given, masks):
        results, memory = run_and_keep(given, masks)
        return (results, memory), (given, masks, memory)

    @jax.custom_vjp
    def pull(given, masks, memory, d_results):
        return backward(given, masks, memory, d_results)

    def pull_backward(residuals, v):
        given, masks, _, d_results = residuals

        def again(given, d_results):
            _, pulled = jax.vjp(lambda given: step_by_step(given, masks), given)
            return pulled(d_results)[0]

        d_given, d_d = jax.vjp(again, given, d_results)[1](v)
        return d_given, None, None, d_d

    # Each is made of functions with derivatives, so that derivatives have some as well.
    pull.defvjp(lambda *residuals: (pull(*residuals), residuals), pull_backward)
    run_and_keep.defvjp(remember_and_keep, lambda residuals, d: (pull(*residuals, d[0]), None))
    run.defvjp(remember, lambda residuals, d: (pull(*residuals, d), None))
    return run
