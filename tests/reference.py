"""An independent reference: the cells and BPTT by hand, in float64 NumPy.

Nothing here comes from the package or from a framework. Weights are (W, U, b) in Keras' layout.
Every derivative is written out; `clip` is applied where the contracts say.
"""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


# name -> (function of the pre-activation, derivative at the pre-activation)
ACTIVATIONS = {
    "sigmoid": (sigmoid, lambda a: sigmoid(a) * (1 - sigmoid(a))),
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "relu": (lambda a: np.maximum(a, 0), lambda a: (a > 0).astype(float)),
    "linear": (lambda a: a, np.ones_like),
    "softsign": (lambda a: a / (1 + np.abs(a)), lambda a: 1 / (1 + np.abs(a)) ** 2),
    "hard_sigmoid": (
        lambda a: np.clip(a + 3, 0, 6) / 6,
        lambda a: ((a > -3) & (a < 3)) / 6,
    ),
}


class Clip:
    """Gradient clipping: by value, or by the norm of each row."""

    def __init__(self, value=None, norm=None, at="state"):
        self.value, self.norm, self.at = value, norm, at

    def __call__(self, at, d):
        if at != self.at:
            return d
        if self.value is not None:
            return np.where(d > self.value, self.value, np.where(d < -self.value, -self.value, d))
        if self.norm is not None:
            lengths = np.sqrt((d**2).sum(axis=1, keepdims=True))
            return d * np.minimum(1, self.norm / np.maximum(lengths, 1e-300))
        return d


class Simple:
    states = 1

    def __init__(self, weights, candidate="tanh", clip=None):
        self.W, self.U, self.b = weights
        self.phi, self.dphi = ACTIVATIONS[candidate]
        self.clip = clip or Clip()

    def forward(self, x, states):
        (h,) = states
        a = x @ self.W + h @ self.U + self.b
        return (self.phi(a),), (x, h, a), {"candidate": self.phi(a)}

    def backward(self, d_states, saved, d_candidate=0):
        x, h, a = saved
        (d,) = d_states
        d = self.clip("state", d)
        da = self.clip("preactivation", (d + d_candidate) * self.dphi(a))
        return da @ self.W.T, (da @ self.U.T,), (x.T @ da, h.T @ da, da.sum(0))


class LSTM:
    states = 2

    def __init__(self, weights, gate="sigmoid", candidate="tanh", output=None, clip=None):
        self.W, self.U, self.b = weights
        gates = gate if isinstance(gate, dict) else dict.fromkeys("ifo", gate)
        self.sigma = {k: ACTIVATIONS[v] for k, v in gates.items()}
        self.phi, self.dphi = ACTIVATIONS[candidate]
        self.psi, self.dpsi = ACTIVATIONS[output or candidate]
        self.clip = clip or Clip()

    def forward(self, x, states):
        h, c = states
        a = x @ self.W + h @ self.U + self.b
        ai, af, ag, ao = np.split(a, 4, axis=1)
        i, f, o = (self.sigma[k][0](v) for k, v in zip("ifo", (ai, af, ao), strict=True))
        g = self.phi(ag)
        c_new = f * c + i * g
        return (o * self.psi(c_new), c_new), (x, h, c, a, i, f, g, o, c_new), {"candidate": g}

    def backward(self, d_states, saved, d_candidate=0):
        x, h, c, a, i, f, g, o, c_new = saved
        dh, dc = d_states
        ai, af, ag, ao = np.split(a, 4, axis=1)
        dh = self.clip("state", dh)
        dc = self.clip("state", dc + dh * o * self.dpsi(c_new))
        da = np.concatenate(
            [
                dc * g * self.sigma["i"][1](ai),
                dc * c * self.sigma["f"][1](af),
                (dc * i + d_candidate) * self.dphi(ag),
                dh * self.psi(c_new) * self.sigma["o"][1](ao),
            ],
            axis=1,
        )
        da = self.clip("preactivation", da)
        return da @ self.W.T, (da @ self.U.T, dc * f), (x.T @ da, h.T @ da, da.sum(0))


class GRU:
    states = 1

    def __init__(self, weights, gate="sigmoid", candidate="tanh", reset_after=True, clip=None):
        self.W, self.U, self.b = weights
        gates = gate if isinstance(gate, dict) else dict.fromkeys("zr", gate)
        self.sigma = {k: ACTIVATIONS[v] for k, v in gates.items()}
        self.phi, self.dphi = ACTIVATIONS[candidate]
        self.reset_after = reset_after
        self.clip = clip or Clip()

    def forward(self, x, states):
        (h,) = states
        n_units = h.shape[1]
        if self.reset_after:
            xz, xr, xn = np.split(x @ self.W + self.b[0], 3, axis=1)
            uz, ur, un = np.split(h @ self.U + self.b[1], 3, axis=1)
        else:
            xz, xr, xn = np.split(x @ self.W + self.b, 3, axis=1)
            uz, ur = np.split(h @ self.U[:, : 2 * n_units], 2, axis=1)
        az, ar = xz + uz, xr + ur
        z, r = self.sigma["z"][0](az), self.sigma["r"][0](ar)
        if not self.reset_after:
            un = (r * h) @ self.U[:, 2 * n_units :]
        an = xn + (r * un if self.reset_after else un)
        n = self.phi(an)
        return (z * h + (1 - z) * n,), (x, h, az, ar, an, un, z, r, n), {"candidate": n}

    def backward(self, d_states, saved, d_candidate=0):
        x, h, az, ar, an, un, z, r, n = saved
        n_units = h.shape[1]
        (d,) = d_states
        d = self.clip("state", d)
        dan = (d * (1 - z) + d_candidate) * self.dphi(an)
        daz = d * (h - n) * self.sigma["z"][1](az)
        dh = d * z
        if self.reset_after:
            dar = dan * un * self.sigma["r"][1](ar)
            du = self.clip("preactivation", np.concatenate([daz, dar, dan * r], axis=1))
            dU, dc = h.T @ du, du.sum(0)
            dh = dh + du @ self.U.T
        else:
            dun = self.clip("preactivation", dan)
            drh = dun @ self.U[:, 2 * n_units :].T
            dar = drh * h * self.sigma["r"][1](ar)
            du = self.clip("preactivation", np.concatenate([daz, dar], axis=1))
            dU = np.concatenate([h.T @ du, (r * h).T @ dun], axis=1)
            dh = dh + drh * r + du @ self.U[:, : 2 * n_units].T
        dx = self.clip("preactivation", np.concatenate([daz, dar, dan], axis=1))
        db = np.stack([dx.sum(0), dc]) if self.reset_after else dx.sum(0)
        return dx @ self.W.T, (dh,), (x.T @ dx, dU, db)


class Sequence:
    """A cell over time: Keras' masks, direction and outputs, and BPTT by hand.

    `first` is what a masked step at the very start outputs: "zero" (Keras on TensorFlow and
    torch) or "state", the initial hidden state (Keras on JAX).
    """

    def __init__(self, cell, go_backwards=False, zero_output_for_mask=False, first="zero"):
        self.cell = cell
        self.go_backwards = go_backwards
        self.zero_output = zero_output_for_mask
        self.first = first

    def forward(self, x, mask=None, states=None):
        batch, time, _ = x.shape
        units = self.cell.U.shape[0]
        order = range(time)[::-1] if self.go_backwards else range(time)
        mask = np.ones((batch, time), bool) if mask is None else mask
        states = states or [np.zeros((batch, units)) for _ in range(self.cell.states)]
        previous = states[0] if self.first == "state" else np.zeros((batch, units))
        self.saved, outputs, self.activated = [], [], []
        for t in order:
            m = mask[:, t : t + 1]
            new, saved, activated = self.cell.forward(x[:, t], states)
            self.saved.append((t, m, saved))
            self.activated.append((m, activated))
            output = np.where(m, new[0], 0 if self.zero_output else previous)
            states = [np.where(m, s, old) for s, old in zip(new, states, strict=True)]
            outputs.append(output)
            previous = output
        self.shape = x.shape
        return np.stack(outputs, axis=1), states

    def backward(self, d_outputs, d_states, d_hidden=0.0, d_candidate=0.0):
        """Gradients of x, of the initial states and of (W, U, b).

        `d_outputs` (batch, time, units) in output order, `d_states` of the last states. `d_hidden`
        and `d_candidate` multiply sign(h) and sign(n) at every valid step: an L1 penalty.
        """
        dx = np.zeros(self.shape)
        d_states = [d.copy() for d in d_states]
        weights = [np.zeros_like(w) for w in (self.cell.W, self.cell.U, self.cell.b)]
        d_previous = np.zeros_like(d_states[0])  # to the output of the step before, by repetition
        for step in reversed(range(len(self.saved))):
            t, m, saved = self.saved[step]
            d_output = d_outputs[:, step] + d_previous
            d_previous = np.zeros_like(d_output) if self.zero_output else np.where(m, 0, d_output)
            new, _, activated = self.cell.forward(saved[0], self._states_of(saved))
            # A masked sample takes no part in the step: its gradients below are all zero.
            into = [np.where(m, d, 0) for d in d_states]
            into[0] = into[0] + np.where(m, d_output + d_hidden * np.sign(new[0]), 0)
            candidate = np.where(m, d_candidate * np.sign(activated["candidate"]), 0)
            d_x, d_before, d_weights = self.cell.backward(into, saved, candidate)
            dx[:, t] += d_x
            d_states = [np.where(m, 0, d) + b for d, b in zip(d_states, d_before, strict=True)]
            weights = [w + d for w, d in zip(weights, d_weights, strict=True)]
        if self.first == "state":
            d_states[0] = d_states[0] + d_previous
        return dx, d_states, weights

    def _states_of(self, saved):
        return saved[1 : 1 + self.cell.states]
