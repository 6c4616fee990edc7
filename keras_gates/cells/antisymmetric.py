"""The antisymmetric recurrent network, without and with a gate."""

from typing import Unpack

import keras
from keras import ops

from keras_gates.cells.base import GatedCell
from keras_gates.types import CellArguments
from keras_gates.validation import nonnegative_number


@keras.saving.register_keras_serializable(package="keras_gates")
class AntisymmetricRNNCell(GatedCell):
    """Antisymmetric recurrent network, one time step.

        h' = h + ε φ(x W + b + h (U - Uᵀ - γ I))

    A step of an ordinary differential equation whose Jacobian has eigenvalues near the imaginary
    axis: states neither explode nor fade.

    Weights: kernel W (features, units), recurrent kernel U (units, units), bias b (units,). Both
    kernels start normal, of variance one over their numbers of rows.

    Args:
        units: positive integer.
        epsilon: ε, the size of the step.
        gamma: γ, the diffusion, which makes steps of a finite size stable.
        Further arguments: see `GatedCell`, except `gate_activation`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="antisymmetric", epsilon=0.05)
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Chang, Chen, Haber, Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural
    networks", 2019.
    """

    recurrent_blocks = ("candidate",)

    def __init__(
        self,
        units: int,
        *,
        epsilon: float = 0.1,
        gamma: float = 0.01,
        **kwargs: Unpack[CellArguments],
    ) -> None:
        for name in ("kernel_initializer", "recurrent_initializer"):
            kwargs.setdefault(name, keras.initializers.LecunNormal())  # type: ignore[misc]
        super().__init__(units, **kwargs)
        self.epsilon = nonnegative_number("epsilon", epsilon)
        self.gamma = nonnegative_number("gamma", gamma)

    def parametrize(self, recurrent_kernel):
        u = recurrent_kernel
        return u - ops.transpose(u) - self.gamma * ops.eye(self.units, dtype=u.dtype)

    def update(self, x, u, states):
        (h,) = states
        return (h + self.epsilon * self.candidate(x.candidate + u.candidate),)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon, "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="keras_gates")
class GatedAntisymmetricRNNCell(AntisymmetricRNNCell):
    """Antisymmetric recurrent network with an input gate, one time step.

        z  = σ(x W_z + b_z + h (U - Uᵀ - γ I))
        h' = h + ε z * φ(x W_n + b_n + h (U - Uᵀ - γ I))

    Gate and candidate share the recurrent product. Weights: kernel W (features, 2 units), recurrent
    kernel U (units, units), bias b (2 units,), with columns n, z.

    Args:
        units: positive integer.
        Further arguments: see `AntisymmetricRNNCell`.

    Example:

    >>> layer = keras_gates.GatedRNN(8, cell="gated_antisymmetric", gamma=0.001)
    >>> layer(numpy.zeros((2, 5, 3))).shape
    TensorShape([2, 8])

    Source: Chang, Chen, Haber, Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural
    networks", 2019.
    """

    blocks = ("candidate", "update")

    def update(self, x, u, states):
        (h,) = states
        z = self.gate("update", x.update + u.candidate)
        return (h + self.epsilon * z * self.candidate(x.candidate + u.candidate),)
