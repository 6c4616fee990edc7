"""Where the gates of a cell start, for `initialization=`: from how long units are to remember.

```python
layer = keras_gates.GatedRNN(128, "lstm", initialization=keras_gates.initializers.Chrono(784))
```

What is in here says how gates are spread; which gates of a cell these are, and what bias gives them
a value through their own activation, is derived from its equations, in `cells.initialization`.
"""

import dataclasses
from typing import Any, Literal, get_args

import keras
import numpy as np

from keras_gates.validation import one_of

__all__ = ["Chrono"]

Spread = Literal["log", "uniform"]


@keras.saving.register_keras_serializable(package="keras_gates")
@dataclasses.dataclass(frozen=True)
class Chrono:
    """Gates that remember for 1 to `longest` time steps from the start: chrono initialization.

    A gate that carries a state on by v = t / (1 + t) keeps it for about t steps. Each unit gets
    a time t of its own, and its gate starts at v: its bias is the inverse of its own activation
    there, log(t) for sigmoid. Gates that carry the state on by 1 - v, and those that what is added
    is multiplied by, such as the input gate of an LSTM, start at 1 - v.

    Args:
        longest: how many time steps back the input may matter, at least 3: the length of the
            sequences, if nothing else is known.
        spread: between which the times lie evenly, rather than at random: "log", log(t) between 0
            and log(longest); "uniform", t between 1 and longest - 1, which is the distribution of
            the paper, with which nearly all units remember for long.

    Example:

    >>> layer = keras_gates.GatedRNN(
    ...     64, cell="lstm", initialization=keras_gates.initializers.Chrono(150))

    Source: Tallec, Ollivier, "Can recurrent neural networks warp time?", 2018.
    """

    longest: int
    spread: Spread = "log"

    def __post_init__(self):
        is_number = isinstance(self.longest, (int, np.integer))
        if not is_number or self.longest < 3:
            raise ValueError(
                "`longest` must be a number of time steps, an integer of at least 3. "
                f"Received: longest={self.longest!r}"
            )
        one_of("spread", self.spread, get_args(Spread))

    def __str__(self):
        return f"Chrono({self.longest}{'' if self.spread == 'log' else f', {self.spread!r}'})"

    def times(self, units: int) -> np.ndarray:
        """The time of each unit, in steps: (units,), rising."""
        share = (np.arange(units) + 0.5) / units
        if self.spread == "log":
            return self.longest**share
        return 1 + (self.longest - 2) * share

    def shares(self, units: int) -> np.ndarray:
        """Where the gates that carry the state on start: (units,)."""
        return 1 - 1 / (1 + self.times(units))

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Chrono":
        return cls(**config)
