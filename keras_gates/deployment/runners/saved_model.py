"""Runs a SavedModel, with TensorFlow alone."""

import shared


def load(path):
    import tensorflow as tf

    signatures = tf.saved_model.load(str(path)).signatures

    def call(signature, inputs):
        given = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in signatures[signature](**given).items()}

    return call


shared.run(load, without=["keras"])
