"""Every use of private parts of Keras, KerasTuner and TensorFlow, each behind a name of ours.

Tried on Keras 3.8 to 3.15 and TensorFlow 2.18 to 2.21. `tests/test_private.py` names each part, so
that a release that lacks one fails there first.
"""
