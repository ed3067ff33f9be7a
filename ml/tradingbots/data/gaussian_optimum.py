"""Best scores where outcome and expectation are jointly normal, such as on an AR(1): what no forecaster can pass."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ml.tradingbots.data.synthetic import Autoregressive, FloatArray

_STANDARD_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class GaussianOptimum:
    """The scores of the true expectation where it and the outcome are jointly normal with mean zero."""

    r2: float
    """Share of the outcome's variance that can be known beforehand, in [0, 1)."""
    deviation: float
    """Standard deviation of the outcome y."""

    @property
    def error_deviation(self) -> float:
        """Standard deviation of the outcome around its true expectation."""
        return self.deviation * math.sqrt(1.0 - self.r2)

    @property
    def information_coefficient(self) -> float:
        """Pearson correlation of expectation and outcome."""
        return math.sqrt(self.r2)

    @property
    def rank_ic(self) -> float:
        """Spearman correlation of expectation and outcome."""
        return 6.0 / math.pi * math.asin(0.5 * math.sqrt(self.r2))

    @property
    def directional_accuracy(self) -> float:
        """Probability that the expectation has the sign of the outcome."""
        return 0.5 + math.asin(math.sqrt(self.r2)) / math.pi

    @property
    def crps(self) -> float:
        """Mean CRPS of the true distribution given what is known."""
        return self.error_deviation / math.sqrt(math.pi)

    def pinball_loss(self, quantile: float) -> float:
        """Mean pinball loss of the true conditional quantile."""
        return self.error_deviation * _STANDARD_NORMAL.pdf(_STANDARD_NORMAL.inv_cdf(quantile))

    def quantile(self, expected: FloatArray, quantile: float) -> FloatArray:
        """True conditional quantile given the true expectation, shaped like it."""
        return expected + self.error_deviation * _STANDARD_NORMAL.inv_cdf(quantile)

    def sharpe_of_sign(self, *, bars_per_year: float) -> float:
        """Annual Sharpe ratio, before costs, of holding the sign of the expectation; horizon 1."""
        edge = math.sqrt(self.r2) * math.sqrt(2.0 / math.pi)
        return edge / math.sqrt(1.0 - edge**2) * math.sqrt(bars_per_year)

    def sharpe_of_linear(self, *, bars_per_year: float) -> float:
        """Annual Sharpe ratio, before costs, of holding a multiple of the expectation, without a limit; horizon 1."""
        return math.sqrt(self.r2 / (1.0 + self.r2)) * math.sqrt(bars_per_year)


def autoregressive_optimum(parameters: Autoregressive, horizon: int = 1) -> GaussianOptimum:
    """Best scores on an AR(1) over a horizon: at horizon 1, R² is phi² and the IC |phi|.

    They hold for outcomes about their mean; with a `mean_log_return` other than 0 directions and Sharpe ratios gain a little.

    Args:
        parameters: the process.
        horizon: bars over which the outcome is measured; its log returns are summed up, which hides what the last return
            says about the first bar of them behind the noise of all the others.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 bar, got {horizon}")
    phi = parameters.phi
    lags = np.arange(1, horizon)
    variance = horizon + 2.0 * float(np.sum((horizon - lags) * phi**lags))
    known = _expected_multiple(phi, horizon) ** 2
    return GaussianOptimum(r2=known / variance, deviation=parameters.stationary_deviation * math.sqrt(variance))


def autoregressive_expectation(parameters: Autoregressive, last: FloatArray, horizon: int = 1) -> FloatArray:
    """Expected log return over the next `horizon` bars of an AR(1) given its last log return; shaped like `last`."""
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 bar, got {horizon}")
    mean = parameters.mean_log_return
    return horizon * mean + _expected_multiple(parameters.phi, horizon) * (last - mean)


def _expected_multiple(phi: float, horizon: int) -> float:
    """What an AR(1)'s next `horizon` log returns are expected to sum to, for a last one of 1 above its mean."""
    return phi * (1.0 - phi**horizon) / (1.0 - phi)
