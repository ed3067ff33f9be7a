"""How sure a figure is: intervals for statistics of dependent series, by resampling blocks of bars.

Bars of a market are not independent (volatility clusters, overlapping labels share bars), and an interval that pretends
they are is too narrow. The stationary bootstrap (Politis and Romano, 1994) resamples blocks of random length instead.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Statistic: TypeAlias = Callable[..., Any]

# Rows deleted at a time when the block length is estimated: at most this many groups, hence as many evaluations.
N_INFLUENCE_GROUPS = 500
# Entries of one batch of row numbers: 8 MB, small enough to stay in a cache of the last level.
BATCH_ENTRIES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class BootstrapInterval:
    """A statistic and the range that its true value is likely to lie in."""

    estimate: float
    """The statistic of the series as they are."""
    low: float
    """Lower end; NaN where no interval could be estimated."""
    high: float
    """Upper end, likewise."""
    block_length: float
    """Mean length of the resampled blocks, in rows."""

    def excludes(self, value: float) -> bool:
        """Whether the value lies outside; False where there is no interval."""
        return value < self.low or value > self.high


def block_bootstrap_interval(
    statistic: Statistic,
    *series: ArrayLike,
    block_length: float | None = None,
    n_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    vectorised: bool = False,
) -> BootstrapInterval:
    """Percentile interval of a statistic of one or several aligned series, by the stationary bootstrap.

    Rows are resampled together, so that what belongs to one bar (outcome, forecast, all assets) stays together.

    Args:
        statistic: called with the series, returns a number. With `vectorised` it is called with a batch of resampled
            series, each with one more axis in front, (n_batch, n_bars, ...), and returns (n_batch,).
        series: (n_bars,) or (n_bars, n_columns) each, at least 2 bars.
        block_length: mean length of the blocks in rows, at least 1 (1 is the plain bootstrap of independent rows). None
            estimates it, see `automatic_block_length`.
        n_samples: number of resamples, at least 1.
        confidence: share of the intervals that hold the true value, in (0, 1). Nominal: percentile intervals of short or
            strongly dependent series hold it less often (about 0.91 instead of 0.95 for the mean of 500 bars of an AR(1)
            with phi 0.6, where rows resampled one by one hold it 0.64 of the time).
        seed: of the resampling.
        vectorised: whether the statistic takes batches; the interval is the same up to rounding. It saves one call per
            resample, which counts where a call is slow beside its few rows.

    Returns:
        The interval. Its ends are NaN where more than 5% of the resamples have no finite statistic.

    >>> found = block_bootstrap_interval(np.mean, np.sin(np.arange(200.0)), seed=1)
    >>> found.low < 0.0 < found.high
    True
    """
    arrays = _checked(series, n_samples, confidence)
    call = _in_batches(statistic, vectorised)
    whole = [array[None] for array in arrays]
    estimate = float(call(whole)[0])
    if block_length is None:
        block_length = automatic_block_length(statistic, *arrays, vectorised=vectorised)
    if not 1.0 <= block_length < math.inf:
        raise ValueError(f"block_length must be at least 1 row and finite, got {block_length}")
    drawn = np.concatenate(
        [
            call([array[rows] for array in arrays])
            for rows in _resampled_rows(len(arrays[0]), block_length, n_samples, seed)
        ]
    )
    drawn = drawn[np.isfinite(drawn)]
    low = high = math.nan
    # A resample in which nothing happened has no Sharpe ratio. A few such are left out; many mean that there is no
    # interval to speak of.
    if len(drawn) >= 0.95 * n_samples:
        tail = 0.5 * (1.0 - confidence)
        low, high = (float(end) for end in np.quantile(drawn, [tail, 1.0 - tail]))
    return BootstrapInterval(estimate=estimate, low=low, high=high, block_length=float(block_length))


def automatic_block_length(statistic: Statistic, *series: ArrayLike, vectorised: bool = False) -> float:
    """Block length for a statistic, by Politis and White (2004, corrected 2009) on what each row contributes to it.

    Their rule is for the mean of a series. What a statistic averages in effect is the influence of its rows, found here by
    leaving groups of rows out (the jackknife): for a mean that is the series itself, for a variance the squared
    deviations. Squares depend on each other where volatility clusters although the returns do not, so a rule that looks at
    the returns alone would resample single rows and find an interval that is too narrow.

    Args:
        statistic: as for `block_bootstrap_interval`.
        series: (n_bars,) or (n_bars, n_columns) each.
        vectorised: as there.

    Returns:
        Mean length of a block in rows, at least 1 and at most a quarter of the bars. Series of more than 500 bars are cut
        into 500 groups, and a block is then at least one group. Where the statistic is not defined without some group, the
        cube root of the number of bars.
    """
    arrays = _checked(series, 1, 0.95)
    n_bars = len(arrays[0])
    group_size = math.ceil(n_bars / N_INFLUENCE_GROUPS)
    n_groups = n_bars // group_size
    if n_groups < 16:  # Too few for autocorrelations to say anything.
        return _bounded(n_bars ** (1 / 3), n_bars)
    call = _in_batches(statistic, vectorised)
    groups = (slice(first, first + group_size) for first in range(0, n_groups * group_size, group_size))
    influence = np.concatenate([call([np.delete(array, rows, axis=0)[None] for array in arrays]) for rows in groups])
    if not np.isfinite(influence).all():
        return _bounded(n_bars ** (1 / 3), n_bars)
    if np.ptp(influence) <= 1e-12 * np.abs(influence).max():  # A series that does not vary: any length will do.
        return float(group_size)
    # Imported where it is used: arch brings scipy.stats along, which takes longer to import than all of ours.
    from arch.bootstrap import optimal_block_length

    n_in_groups = float(optimal_block_length(influence)["stationary"].iloc[0])
    return _bounded(group_size * max(1.0, n_in_groups), n_bars)


def _resampled_rows(n_bars: int, block_length: float, n_samples: int, seed: int) -> Iterator[IntArray]:
    """Yield row numbers of resamples, (n_batch, n_bars) at a time: blocks of geometric length that wrap around the end."""
    # Two streams, so that the resamples do not depend on the size of the batches.
    start_generator, restart_generator = np.random.default_rng(seed).spawn(2)
    batch_size = max(1, BATCH_ENTRIES // n_bars)
    places = np.arange(n_bars)
    for done in range(0, n_samples, batch_size):
        shape = (min(batch_size, n_samples - done), n_bars)
        starts = start_generator.integers(n_bars, size=shape)
        restarts = restart_generator.random(shape) < 1.0 / block_length
        restarts[:, 0] = True
        # Where the block of each place began; a block goes on row by row from its start.
        began = np.maximum.accumulate(np.where(restarts, places, 0), axis=1)
        yield (np.take_along_axis(starts, began, axis=1) + places - began) % n_bars


def _in_batches(statistic: Statistic, vectorised: bool) -> Callable[[list[FloatArray]], FloatArray]:
    """Return a function from batches of series, (n_batch, n_bars, ...) each, to the statistic of each, (n_batch,)."""

    def call(batches: list[FloatArray]) -> FloatArray:
        n_batch = len(batches[0])
        if vectorised:
            found = np.asarray(statistic(*batches), dtype=np.float64)
            if found.shape != (n_batch,):
                raise ValueError(
                    f"a vectorised statistic must return one number per resample, shape ({n_batch},), got {found.shape}; "
                    "average over axis 1, not over all axes"
                )
            return found
        return np.array([float(statistic(*rows)) for rows in zip(*batches, strict=True)], dtype=np.float64)

    return call


def _checked(series: tuple[ArrayLike, ...], n_samples: int, confidence: float) -> list[FloatArray]:
    if not series:
        raise ValueError("at least one series is required")
    arrays = [np.asarray(values, dtype=np.float64) for values in series]
    shapes = [array.shape for array in arrays]
    if any(array.ndim == 0 for array in arrays) or len({shape[0] for shape in shapes}) > 1 or shapes[0][0] < 2:
        raise ValueError(f"series must have the same number of bars, at least 2, got shapes {shapes}")
    if not n_samples >= 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}; 95% is 0.95")
    return arrays


def _bounded(block_length: float, n_bars: int) -> float:
    return max(1.0, min(block_length, n_bars / 4.0))
