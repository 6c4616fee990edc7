"""TimeDistributed layers in exported models: one call for all time steps."""

import contextlib

import keras
from keras import ops


@contextlib.contextmanager
def all_steps_at_once(model):
    """While it lasts, TimeDistributed layers in `model` are traced as one call; inference alone.

    The layer inside takes the time steps of all samples as one batch. Where the length is unknown,
    Keras 3.15 calls it in a loop of as many turns as there are samples, which is wrong. Where it is
    known, Keras calls it once per step, and that is left as it is.
    """
    wrappers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.TimeDistributed)
    ]
    before = [vars(wrapper).get("call") for wrapper in wrappers]
    try:
        for wrapper in wrappers:
            vars(wrapper)["call"] = _call_of_all_steps(wrapper)
        yield
    finally:
        for wrapper, call in zip(wrappers, before, strict=True):
            if call is None:
                vars(wrapper).pop("call", None)
            else:
                vars(wrapper)["call"] = call


def _call_of_all_steps(wrapper):
    layer = wrapper.layer

    def call(inputs, training=None, mask=None):
        batch, time, *rest = ops.shape(inputs)
        if isinstance(time, int):
            return type(wrapper).call(wrapper, inputs, training=training, mask=mask)
        given = {}
        if layer._call_has_training_arg:
            given["training"] = False
        if layer._call_has_mask_arg and mask is not None:
            given["mask"] = ops.reshape(mask, (-1,))
        found = layer.call(ops.reshape(inputs, (-1, *rest)), **given)
        return ops.reshape(found, (batch, time, *ops.shape(found)[1:]))

    return call
