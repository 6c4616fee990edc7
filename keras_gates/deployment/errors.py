"""What `export` raises when it writes nothing."""


class NotExportableError(ValueError):
    """A format cannot hold a model.

    The message names the layer, the reason, and what would work instead.
    """


NotExportable = NotExportableError  # the name that it had


class ParityError(RuntimeError):
    """A written file disagrees with the model it was made from.

    The message says by how much, and on which sample. The file is gone; an older one is kept.
    """
