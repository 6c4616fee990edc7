"""The bound on the gradients of a cell: the norm or value, and where it is kept."""

import typing

from keras_gates.types import ClipPlace
from keras_gates.validation import one_of, positive_number

CLIP_PLACES = typing.get_args(ClipPlace)


def checked(value, norm, place, dtype_policy):
    """`grad_clip_value`, `grad_clip_norm` and `grad_clip_at` of a cell of this dtype policy."""
    if value is not None and norm is not None:
        raise ValueError(
            "Give `grad_clip_value` or `grad_clip_norm`, not both. Received: "
            f"grad_clip_value={value!r}, grad_clip_norm={norm!r}"
        )
    value = None if value is None else positive_number("grad_clip_value", value)
    norm = None if norm is None else positive_number("grad_clip_norm", norm)
    one_of("grad_clip_at", place, CLIP_PLACES)
    clips = value is not None or norm is not None
    if place != CLIP_PLACES[0] and not clips:
        raise ValueError(
            "`grad_clip_at` says where to clip, and there is no bound to clip to: give "
            f"`grad_clip_value` or `grad_clip_norm`. Received: grad_clip_at={place!r}"
        )
    if clips and dtype_policy.compute_dtype == "float16":
        raise ValueError(
            "`grad_clip_value` and `grad_clip_norm` cannot be kept under float16: its loss "
            "scaling multiplies all gradients by a changing factor, so that the bound would "
            "mean another one at every step. Use mixed_bfloat16 or float32, or clip in the "
            f"optimizer. Received: dtype={dtype_policy.name!r}"
        )
    return value, norm, place
