"""Kernels for GPUs, generated from a cell's program: all time steps in one launch.

Each block of the grid walks through time with a tile of 16 samples of the batch, with their states
in registers. Per step it multiplies the hidden state with U, which stays in the caches, evaluates
the program, and writes the states. Backward it walks the other way, with the derivative of the
program. What is linear, x W + b and the gradients of the weights, is left to matrix products over
all steps before and after.

`plan` says what is computed, `pallas` and `jax` do it on JAX, `triton` and `torch` on PyTorch.
"""
