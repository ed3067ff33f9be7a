"""What every score asks of its arrays: one shape, nothing missing. Arguments go by name, so that errors can say theirs."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]


def aligned(**arrays: ArrayLike) -> list[FloatArray]:
    """Return the arrays as float64, all of one shape with one or two axes and finite; their names are for errors."""
    (first_name, first), *others = ((name, np.asarray(values, dtype=np.float64)) for name, values in arrays.items())
    if first.ndim not in (1, 2) or first.size == 0:
        raise ValueError(
            f"{first_name} must have shape (n_bars,) or (n_bars, n_columns) and at least one entry, got {first.shape}"
        )
    check_known(first_name, first, infinite=False)
    aligned = [first]
    for name, values in others:
        aligned.append(same_shape(first, name, values, infinite=False))
    return aligned


def same_shape(reference: FloatArray, name: str, values: ArrayLike, *, infinite: bool = True) -> FloatArray:
    """Return an array, which must have the reference's shape and no NaN; nor infinities, where they are not allowed."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != reference.shape:
        raise ValueError(f"{name} must be shaped like what it is compared with, {reference.shape}, got {array.shape}")
    check_known(name, array, infinite=infinite)
    return array


def like(reference: FloatArray, **named: ArrayLike) -> FloatArray:
    """Return a number, a row of columns or a full array in the shape of the reference."""
    ((name, values),) = named.items()
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((), reference.shape[1:], reference.shape):
        raise ValueError(
            f"{name} must be a number, one per column or shaped like {reference.shape}, got shape {array.shape}"
        )
    check_known(name, np.atleast_1d(array), infinite=False)
    return np.broadcast_to(array, reference.shape)


def positive(reference: FloatArray, **named: Any) -> FloatArray:
    """Return the same of numbers above 0."""
    array = like(reference, **named)
    if not (array > 0.0).all():
        raise ValueError(f"{next(iter(named))} must be above 0, got {array.min()}")
    return array


def check_known(name: str, array: FloatArray, *, infinite: bool) -> None:
    """Refuse NaN and, unless they are allowed, infinities; raises ValueError with the first row that has one."""
    refused = np.isnan(array) if infinite else ~np.isfinite(array)
    if refused.any():
        n_rows = int(np.count_nonzero(refused.reshape(len(array), -1).any(axis=1)))
        raise ValueError(
            f"{name} must have no missing values: {n_rows} of {len(array)} rows have some, the first is row "
            f"{int(np.argwhere(refused)[0, 0])}. Leave out the bars whose outcome is not known yet before scoring"
        )
