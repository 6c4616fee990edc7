"""The loop over time of an exported GatedRNN: plain TensorFlow operations, few of them per step.

Keras' own loop pays, at every turn, for the turn itself, for reading an input and writing an output
and for a product with the kernel. Here a turn takes several time steps: one slice of the inputs,
one product with the kernel for all of them, then the steps written out one after the other. The
steps that are left over at the end take turns of their own.

The product of a state with its kernel is too small for TensorFlow to share it among cores. So the
two halves of a larger batch run in loops of their own, which do not wait for each other.
"""

import functools

import tensorflow as tf

from keras_gates import engine
from keras_gates.cells.program import trace, weights_by_name
from keras_gates.cells.step import projected_blocks, recurrent_blocks
from keras_gates.equations import NotTraceableError, leaf, tensors
from keras_gates.equations.values import ordered
from keras_gates.layers import GatedRNN

# Time steps of a turn. More of them cost size, and save little more time.
STEPS = 8
# From so many samples on, halves of a batch gain more by the second core than they lose by being
# smaller.
_HALVED = 16


def plain_loops(spec):
    """While it lasts, every GatedRNN of a model is traced as such a loop; inference alone.

    Layers that ask for an unrolled loop, and cells whose step or equations are known by running
    them alone, are left to Keras.
    """
    engines = {}
    for layer in spec.layers:
        program = known_program(layer) if isinstance(layer, GatedRNN) else None
        if program is not None:
            engines[layer] = PlainEngine(layer.cell, program)
    return engine.use(engines.get)


def known_program(layer):
    """The program of a GatedRNN's cell, or None where Keras has to run it."""
    if engine.why_not_fusable(layer) is not None:
        return None
    try:
        return trace(layer.cell, opaque=True)
    except NotTraceableError:
        return None


class PlainEngine(engine.Engine):
    """Plain loops, without gradients or dropout."""

    def __init__(self, cell, program):
        self.cell, self.program = cell, program

    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        # A function, so that the graph holds it once.
        run = tf.function(
            functools.partial(self._run, return_sequences=return_sequences), autograph=False
        )
        masks = [] if mask is None else [mask]
        given = [tf.convert_to_tensor(value) for value in (sequences, *states, *masks)]
        batch = tf.shape(sequences)[0]

        def halves():
            half = batch // 2
            parts = [run(*(v[:half] for v in given)), run(*(v[half:] for v in given))]
            return [tf.concat(values, 0) for values in zip(*parts, strict=True)]

        found = tf.cond(batch >= _HALVED, halves, lambda: run(*given))
        for value, known in zip(found, states, strict=False):
            value.set_shape(known.shape)
        if not return_sequences:
            return None, found
        hidden = found.pop()
        return tf.ensure_shape(hidden, (*sequences.shape[:2], self.cell.units)), found

    def _run(self, sequences, *given, return_sequences):
        """The last states, and with `return_sequences` the hidden states of all steps."""
        count = len(self.cell.state_names)
        states, mask = given[:count], given[count] if given[count:] else None
        x = tf.transpose(sequences, (1, 0, 2))
        valid = None if mask is None else tf.transpose(tf.cast(mask, tf.bool))[:, :, None]
        step = HoistedStep(self.cell, self.program)
        time = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
        turns = time // STEPS

        def turn(first, steps, states):
            """The states after some time steps, and the hidden state of each."""
            xs, masks = x[first : first + steps], [None] * steps
            if valid is not None:
                masks = tf.unstack(valid[first : first + steps], steps)
            hidden = []
            for given, mask in zip(step.project_inputs(xs, steps), masks, strict=True):
                states = step.advance(given, states, mask)
                hidden.append(states[0])
            return states, tf.stack(hidden)

        whole, rest = (0, STEPS, turns), (turns * STEPS, 1, time - turns * STEPS)
        pieces = []
        for of_turns in (whole, rest):
            states, hidden = self._repeat(turn, *of_turns, list(states), return_sequences)
            pieces.append(hidden)
        if not return_sequences:
            return states
        return [*states, tf.transpose(tf.concat(pieces, 0), (1, 0, 2))]

    def _repeat(self, turn, first, steps, turns, states, return_sequences):
        """The states after so many turns, and the hidden states by time."""
        batch, units = tf.shape(states[0])[0], self.cell.units
        if isinstance(turns, int) and turns * steps < 2:  # needs no loop
            nothing = tf.zeros((0, batch, units), states[0].dtype)
            return turn(first, 1, states) if turns else (states, nothing)
        arrays = []
        if return_sequences:
            # With one more element, because an empty array does not know its batch size.
            shape = (steps, states[0].shape[0], units)
            array = tf.TensorArray(states[0].dtype, turns + 1, element_shape=shape)
            arrays = [array.write(turns, tf.zeros((steps, batch, units), states[0].dtype))]

        def body(index, states, arrays):
            states, hidden = turn(first + index * steps, steps, states)
            return index + 1, states, [array.write(index, hidden) for array in arrays]

        _, states, arrays = tf.while_loop(
            lambda index, *_: index < turns, body, (0, states, arrays)
        )
        if not return_sequences:
            return states, None
        return states, tf.reshape(arrays[0].stack()[:turns], (turns * steps, batch, units))


class HoistedStep:
    """Time steps of a program, with weights that are read, and cut into groups of blocks, before
    the loop.

    Args:
        cell: a built GatedCell.
        program: its program.
    """

    def __init__(self, cell, program):
        self.cell, self.forward = cell, program.forward
        self.sums = _sums(cell, self.forward)
        projected = len(projected_blocks(cell))
        added, count = len(self.sums), len(cell.blocks)
        of_input, of_state = cell.biases
        self.of_input = self._weights(cell.kernel, of_input, [added] + [1] * (count - added))
        self.of_state = []
        if recurrent := len(recurrent_blocks(cell)):
            sizes = [projected] + [1] * (recurrent - projected)
            bias = None if of_state is None else of_state[: recurrent * cell.units]
            self.of_state = self._weights(cell.parametrized_kernel, bias, sizes)
        weights = weights_by_name(cell)
        self.given = {
            leaf: tf.convert_to_tensor(weights[name], cell.compute_dtype)
            for (kind, name), leaf in program.leaves.items()
            if kind == "weight"
        }

    def project_inputs(self, x, steps):
        """`x W + b` for each of some time steps: one tensor for what is added, one per block."""
        batch, features = x.shape[1:]
        x = tf.reshape(x, (-1 if batch is None else steps * batch, features))
        parts = [tf.split(_product(x, *weights), steps) for weights in self.of_input]
        return zip(*parts, strict=True)

    def project_all_inputs(self, x):
        """The same for all time steps at once, each tensor (time, batch, columns)."""
        return [_product(x, kernel[None], bias) for kernel, bias in self.of_input]

    def advance(self, x, states, mask):
        """The states after a time step.

        Args:
            x: one tensor of each of those that `project_inputs` gives.
            states: those before, each (batch, units).
            mask: (batch, 1), whether they change, or None.
        """
        cell = self.cell
        given = {**self.given, **self._projected(list(x), states[0])}
        given |= {leaf("state", n): s for n, s in zip(cell.state_names, states, strict=True)}
        new = tensors.run(self.forward, given, self._recurrent, cell.units, cell.compute_dtype)
        if mask is None:
            return new
        return [tf.where(mask, after, before) for after, before in zip(new, states, strict=True)]

    def _projected(self, x, hidden):
        """The tensors of what is projected: of the sums x_k + u_k, and of the other x_k and u_k."""
        projected, added = projected_blocks(self.cell), len(self.sums)
        u = []
        if projected:
            u = self._split(
                _product(hidden, *self.of_state[0]), [added] + [1] * (len(projected) - added)
            )
        sums = self._split(x.pop(0) + u.pop(0), [1] * added) if added else []
        leaves = [
            *self.sums,
            *[leaf("x", block) for block in self.cell.blocks[added:]],
            *[leaf("u", block) for block in projected[added:]],
        ]
        return dict(zip(leaves, [*sums, *x, *u], strict=True))

    def _recurrent(self, block, value):
        cell = self.cell
        index, projected = cell.blocks.index(block), len(projected_blocks(cell))
        if index >= projected:
            return _product(value, *self.of_state[index - len(recurrent_blocks(cell))])
        kernel, bias = self.of_state[0]
        columns = slice(index * cell.units, (index + 1) * cell.units)
        return _product(value, kernel[:, columns], None if bias is None else bias[columns])

    def _weights(self, kernel, bias, sizes):
        """(kernel, bias) of each group of so many blocks."""
        kernels = self._split(tf.convert_to_tensor(kernel), sizes)
        if bias is None:
            return [(kernel, None) for kernel in kernels]
        return list(zip(kernels, self._split(tf.convert_to_tensor(bias), sizes), strict=True))

    def _split(self, value, sizes):
        sizes = [size * self.cell.units for size in sizes if size]
        return [value] if len(sizes) == 1 else tf.split(value, sizes, axis=-1)


def _sums(cell, forward):
    """The values x_k + u_k of the first blocks k, of those that the equations use so alone.

    All of them are computed at once.
    """
    found, values = [], ordered(forward)
    for block in projected_blocks(cell):
        pair = {leaf("x", block), leaf("u", block)}
        users = {v for v in values if pair & set(v.arguments)}
        if len(users) != 1 or pair & set(forward):
            break
        (value,) = users
        if value.operation != "add" or set(value.arguments) != pair:
            break
        found.append(value)
    return found


def _product(value, kernel, bias):
    product = tf.matmul(value, kernel)
    return product if bias is None else tf.nn.bias_add(product, bias)
