"""The paths that the sequences of a layer can take, and which of them they take.

On a GPU cuDNN comes first, then the fused engine of the backend. Everything else goes through the
loop of `keras.layers.RNN` and the backend's own automatic differentiation.
"""

import dataclasses
import functools
import warnings

import keras

from keras_gates import engine
from keras_gates._keras.calls import stacklevel
from keras_gates.engine import cudnn
from keras_gates.engine.base import PLAIN, Engine
from keras_gates.engine.native import library
from keras_gates.engine.recurrence import NotFusableError
from keras_gates.equations import NotTraceableError


@dataclasses.dataclass
class Path:
    """One of an engine, which is made when it is first taken.

    Attributes:
        obstacles: from "training" and "inference" to why it was not taken when last traced for
            that, or None.
    """

    engine: Engine | None = None
    obstacles: dict[str, str | None] = dataclasses.field(default_factory=dict)


class Paths:
    """Those of one layer.

    Args:
        layer: a GatedRNN.
    """

    def __init__(self, layer):
        self._layer = layer
        self.cudnn, self.fused = Path(), Path()
        self._not_fusable = None  # what the fused engine said when it could not run the cell
        self._warned = set()  # of these obstacles

    def run(self, sequences, states, mask, training):
        """What `keras.layers.RNN.inner_loop` returns, for the states with the sums of penalties;
        None where its own loop is to do that.

        Raises:
            ValueError: the fused engine was asked for, and cannot run the layer.
        """
        if engine.is_symbolic(sequences):
            return None
        given = sequences, states, mask, training
        what = "training" if training else "inference"
        if cudnn.is_near(sequences):
            found = self._by_cudnn(what, *given)
            if found is not None:
                return found
        obstacle = self._obstacle()
        if obstacle and self._layer.backprop == "fused":
            raise ValueError(
                f"backprop='fused' is impossible in {self._layer.name!r}: {obstacle}. Use 'auto'."
            )
        if sequences.shape[0] == 0:
            obstacle = obstacle or "there are no samples"
        if not obstacle:
            obstacle = engine.why_not_fused_here(self._layer, sequences)
            self._warn_of(obstacle)
        self.fused.obstacles[what] = obstacle
        if obstacle:
            return None
        try:
            if self.fused.engine is None:
                forced = self._layer.backprop == "fused"
                self.fused.engine = engine.make_engine(self._layer.cell, forced)
            return self.fused.engine.run(self._layer, *given)
        except (NotFusableError, NotTraceableError) as reason:
            self._not_fusable = str(reason)
            return self.run(*given)

    def _by_cudnn(self, what, sequences, states, mask, training):
        reason = self._never_cudnn or engine.why_not_cudnn_here(sequences, mask)
        if not reason:
            try:
                if self.cudnn.engine is None:
                    self.cudnn.engine = engine.make_cudnn(self._layer.cell)
                found = self.cudnn.engine.run(self._layer, sequences, states, mask, training)
            except NotImplementedError:
                reason = f"Keras {keras.__version__} could not call it here"
            else:
                self.cudnn.obstacles[what] = self.fused.obstacles[what] = None
                return found
        self.cudnn.obstacles[what] = reason
        return None

    @functools.cached_property
    def _never_cudnn(self):
        """Why cuDNN cannot run the layer, once it is built."""
        return engine.why_not_cudnn(self._layer)

    def _obstacle(self):
        """Why the fused engine cannot run the layer at all, or None."""
        if self._layer.backprop == "autodiff":
            return "backprop='autodiff' was given"
        if self._layer.return_gates:
            return "return_gates=True was given"
        return self._not_fusable or engine.why_not_fusable(self._layer)

    def _warn_of(self, obstacle):
        """Says once that it is not fused although it shall be. Of a missing kernel there is a
        warning already; exported models are never fused."""
        if self._layer.backprop != "fused" or obstacle in self._warned:
            return
        if obstacle in (None, PLAIN, library.why_none()):
            return
        self._warned.add(obstacle)
        warnings.warn(
            f"{self._layer.name!r} was made with backprop='fused', and runs in Keras' own loop "
            f"here: {obstacle}.",
            stacklevel=stacklevel(),
        )

    def explained(self, unreadable):
        """Which path is taken and why: in words what holds always, and a line for each way of
        calling the layer so far.

        Args:
            unreadable: why the equations cannot be traced, or None.
        """
        obstacle = self._obstacle() or engine.why_never_fused_here(self._layer)
        # Of a layer that was not called yet; on JAX there are scans for such equations.
        if not (obstacle or self.fused.obstacles or keras.backend.backend() == "jax"):
            obstacle = unreadable
        if obstacle:
            return f"Keras' own loop, because {obstacle}", []
        lines = [f"{what}, when last traced: {self._taken(what)}" for what in self.fused.obstacles]
        return f"can run fused on {keras.backend.backend()}", lines

    def _taken(self, what):
        if what in self.cudnn.obstacles and not self.cudnn.obstacles[what]:
            return self.cudnn.engine.how
        obstacle = self.fused.obstacles[what]
        path = f"Keras' own loop, because {obstacle}" if obstacle else self.fused.engine.how
        if what in self.cudnn.obstacles:
            path += f"; not cuDNN, because {self.cudnn.obstacles[what]}"
        return path
