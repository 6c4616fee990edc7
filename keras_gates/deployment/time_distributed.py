"""TimeDistributed layers in exported models: one call for all time steps."""

import contextlib

import keras
from keras import ops

from keras_gates._keras.layers import standing_in


@contextlib.contextmanager
def all_steps_at_once(spec):
    """While it lasts, TimeDistributed layers are traced as one call; inference alone.

    The layer inside takes the time steps of all samples as one batch. Where the length is unknown,
    Keras 3.15 calls it in a loop of as many turns as there are samples, which is wrong. Where it is
    known, Keras calls it once per step, and that is left as it is.
    """
    with contextlib.ExitStack() as stack:
        for layer in spec.layers:
            if isinstance(layer, keras.layers.TimeDistributed):
                stack.enter_context(standing_in(layer, call=_call_of_all_steps(layer)))
        yield


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
