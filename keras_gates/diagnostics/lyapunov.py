"""The largest Lyapunov exponent of a recurrence along the trajectory that data drive it on.

    λ = lim 1/T Σ_t log |J_t v_(t-1)|,    v_t = J_t v_(t-1) / |J_t v_(t-1)|

J_t = ds_t / ds_(t-1) is the Jacobian of one time step, with respect to all states s of the cell,
at the input of that step. A small difference between two states grows like exp(λ t): λ > 0 is
chaos, or a state that explodes, and λ < 0 forgets within about 1 / |λ| steps. What grows forward
grows backward too, since the gradient goes through the same Jacobians, transposed.

Sources: Benettin et al., "Lyapunov characteristic exponents for smooth dynamical systems", 1980
(the renormalised vector); Engelken, Wolf, Abbott, "Lyapunov spectra of chaotic recurrent neural
networks", 2023; Vogt et al., "On Lyapunov exponents for RNNs", 2022.
"""

import keras
import numpy as np
from keras import ops

# The tangent vector turns towards the direction that grows most during this share of the steps.
_SETTLING = 0.2


def measurable(dtype):
    """Whether differences of values of `dtype` are exact enough."""
    return keras.backend.standardize_dtype(dtype) in ("float32", "float64")


def first_tangents(state):
    """For each row of `state`, (batch, size), the same direction of unit length."""
    direction = np.random.default_rng(0).normal(size=state.shape[-1])
    direction /= np.linalg.norm(direction)
    return ops.zeros_like(state) + ops.convert_to_tensor(direction, state.dtype)


def advance(step, state, tangent):
    """One step of the tangent vector, by a central difference through the cell.

    Args:
        step: from states (2 batch, size) to the states after the step. It is called with
            state + ε v and state - ε v, one below the other.
        state: (batch, size), all states side by side.
        tangent: (batch, size), of unit length.

    Returns:
        The next tangent vector, and the log of its growth in nats, (batch, 1).
    """
    dtype = keras.backend.standardize_dtype(state.dtype)
    # The cube root balances rounding with the error of the difference.
    precision = np.finfo(dtype).eps
    relative = float(np.cbrt(precision))
    rms = ops.sqrt(ops.mean(ops.square(state), axis=-1, keepdims=True))
    epsilon = relative * ops.maximum(rms, ops.ones_like(rms))
    moved = ops.concatenate([state + epsilon * tangent, state - epsilon * tangent], axis=0)
    plus, minus = ops.split(step(moved), 2, axis=0)
    image = (plus - minus) / (2 * epsilon)
    length = ops.sqrt(ops.sum(ops.square(image), axis=-1, keepdims=True))
    # Less than this is rounding; a vector that vanished keeps its direction.
    least = precision / relative
    safe = ops.maximum(length, ops.full_like(length, least))
    return ops.where(length > least, image / safe, tangent), ops.log(safe)


def exponent(growth, valid):
    """The mean growth per valid step, after the tangent vector has settled, in nats.

    Args:
        growth: (samples, time) logs of growth.
        valid: (samples, time), False at masked steps.
    """
    rank = np.cumsum(valid, axis=1)  # position among the valid steps of its sample
    counted = valid & (rank > np.ceil(_SETTLING * valid.sum(axis=1, keepdims=True)))
    if not counted.any():
        counted = valid
    return float(np.mean(growth[counted], dtype="float64")) if counted.any() else None
