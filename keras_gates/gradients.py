"""Gradient clipping inside backpropagation through time: identity forward, clipped backward.

`_identity`, an operation with a backward pass of its own, depends on the backend.
"""

import keras
from keras import ops


def clip_by_value(gradient, bound):
    """`gradient` with every element moved to the nearest point of [-bound, bound].

    NaN stays NaN. An infinity becomes the bound of its sign, except in float16, where it stays:
    loss scaling has to see it.
    """
    clipped = ops.where(gradient > bound, bound, ops.where(gradient < -bound, -bound, gradient))
    return _keep_overflow(gradient, ops.cast(clipped, gradient.dtype), ops.isinf(gradient))


def clip_by_norm(gradient, bound):
    """`gradient`, shape (batch, ...), with each sample scaled to an L2 norm of at most `bound`.

    The norm is taken relative to the sample's largest element, so that squaring cannot overflow
    (of both a fourth, because XLA divides by multiplying with 1 / x, which may underflow to 0).
    A sample with infinite elements becomes the limit: those elements share the bound and the
    finite ones vanish; in float16 it stays as it is. NaN makes the whole sample NaN.
    """
    axes = tuple(range(1, len(gradient.shape)))
    exact = ops.cast(gradient, at_least_float32(gradient.dtype))
    largest = ops.max(ops.abs(exact), axis=axes, keepdims=True)
    infinite = ops.isinf(largest)
    direction = ops.where(
        infinite,
        ops.where(ops.isinf(exact), ops.sign(exact), 0 * exact),
        (exact / 4) / ops.where(largest > 0, largest / 4, ops.ones_like(largest)),
    )
    square = ops.sum(ops.square(direction), axis=axes, keepdims=True)
    length = ops.sqrt(ops.where(square == 0, ops.ones_like(square), square))  # for the slope
    clipped = ops.where(largest * length <= bound, exact, direction * (bound / length))
    return _keep_overflow(gradient, ops.cast(clipped, gradient.dtype), infinite)


def clip_gradient(x, value=None, norm=None):
    """`x`, unchanged; in the backward pass the gradient that arrives here is clipped.

    Args:
        x: tensor, shape (batch, units).
        value: bound for `clip_by_value`.
        norm: bound for `clip_by_norm`, per sample. With neither, the gradient passes unchanged.
    """
    if value is None and norm is None:
        return x
    return _identity(x, lambda gradient: clipped(gradient, value, norm))


def clipped(gradient, value=None, norm=None):
    """`gradient`, shape (batch, units), clipped to one of the two bounds, if there is one."""
    if value is not None:
        return clip_by_value(gradient, value)
    return gradient if norm is None else clip_by_norm(gradient, norm)


def at_least_float32(dtype):
    """The dtype to add up values of `dtype` in."""
    dtype = keras.backend.standardize_dtype(dtype)
    return dtype if dtype == "float64" else "float32"


def _keep_overflow(gradient, clipped, overflowed):
    if keras.backend.standardize_dtype(gradient.dtype) == "float16":
        return ops.where(overflowed, gradient, clipped)
    return clipped


def _identity(x, backward):
    """`x` as it is, with `backward` applied to the gradient on its way back."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.custom_gradient(lambda t: (tf.identity(t), backward))(x)
    if backend == "jax":
        import jax

        identity = jax.custom_vjp(lambda t: t)
        identity.defvjp(lambda t: (t, None), lambda _, gradient: (backward(gradient),))
        return identity(x)
    if backend == "torch":
        import torch

        class Identity(torch.autograd.Function):
            @staticmethod
            def forward(ctx, t):
                return t.view_as(t)

            @staticmethod
            def backward(ctx, gradient):
                return backward(gradient)

        return Identity.apply(x)
    return x  # NumPy, OpenVINO: no gradient ever comes back
