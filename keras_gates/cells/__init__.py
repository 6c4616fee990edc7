"""The cells, and the names that `GatedRNN(cell=...)` knows them by."""

from keras_gates.cells.antisymmetric import AntisymmetricRNNCell, GatedAntisymmetricRNNCell
from keras_gates.cells.base import GatedCell
from keras_gates.cells.brc import NBRCCell
from keras_gates.cells.cifg import CIFGCell
from keras_gates.cells.fast import FastGRNNCell
from keras_gates.cells.gru import GRUCell
from keras_gates.cells.ind_rnn import IndRNNCell
from keras_gates.cells.janet import JANETCell
from keras_gates.cells.lem import LEMCell
from keras_gates.cells.light import LiGRUCell
from keras_gates.cells.lstm import LSTMCell
from keras_gates.cells.mgu import MGUCell
from keras_gates.cells.minimal import MinGRUCell, MinLSTMCell
from keras_gates.cells.multiplicative import MultiplicativeLSTMCell
from keras_gates.cells.normalized import LayerNormGRUCell, LayerNormLSTMCell
from keras_gates.cells.peephole import PeepholeLSTMCell
from keras_gates.cells.simple import SimpleRNNCell
from keras_gates.cells.sru import SRUCell
from keras_gates.cells.star import STARCell
from keras_gates.cells.ugrnn import UGRNNCell

CELLS = {
    "gru": GRUCell,
    "lstm": LSTMCell,
    "simple": SimpleRNNCell,
    "antisymmetric": AntisymmetricRNNCell,
    "cifg": CIFGCell,
    "fast_grnn": FastGRNNCell,
    "gated_antisymmetric": GatedAntisymmetricRNNCell,
    "ind_rnn": IndRNNCell,
    "janet": JANETCell,
    "layer_norm_gru": LayerNormGRUCell,
    "layer_norm_lstm": LayerNormLSTMCell,
    "lem": LEMCell,
    "li_gru": LiGRUCell,
    "mgu": MGUCell,
    "min_gru": MinGRUCell,
    "min_lstm": MinLSTMCell,
    "multiplicative_lstm": MultiplicativeLSTMCell,
    "n_brc": NBRCCell,
    "peephole_lstm": PeepholeLSTMCell,
    "sru": SRUCell,
    "star": STARCell,
    "ugrnn": UGRNNCell,
}

__all__ = ["CELLS", "GatedCell", *(cell.__name__ for cell in CELLS.values())]
