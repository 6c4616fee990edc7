"""`python -m keras_gates` is the command `keras-gates`."""

import sys

from keras_gates_command import main

if __name__ == "__main__":
    sys.exit(main())
