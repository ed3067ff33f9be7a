"""Write `vectorbt_equity.json`: what vectorbt says that our fills are worth.

vectorbt is no dependency of this project (its licence restricts use), so its numbers are committed instead. To make them
again, in an environment that has vectorbt and this project: `python tests/ml/oracles/make_vectorbt_numbers.py`.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.data.bars import Bars

PATH = Path(__file__).with_name("vectorbt_equity.json")
ASSETS = ("AAA", "BBB", "CCC")
CASES = (
    {"name": "one_asset_at_the_open", "seed": 1, "n_assets": 1, "has_open": True},
    {"name": "one_asset_at_the_last_close", "seed": 2, "n_assets": 1, "has_open": False},
    {"name": "three_assets_at_the_open", "seed": 3, "n_assets": 3, "has_open": True},
    {"name": "three_assets_at_the_last_close", "seed": 4, "n_assets": 3, "has_open": False},
)
# vectorbt lends no cash and cuts orders that would need it, so some cash is always kept.
CONFIG = {
    "max_gross_exposure": 0.85,
    "window_size": 1,
    "initial_balance": 100_000.0,
    "commission": 0.002,
    "max_weight": 0.8,
}


def our_fills(name, seed, n_assets, has_open, n_bars=30):
    """Walk random targets in the environment; return the case: prices, targets and the unit amounts it filled."""
    rng = np.random.default_rng(seed)
    session = 1.0 + 0.03 * rng.standard_normal((n_bars, n_assets))
    gap = 1.0 + 0.01 * rng.standard_normal((n_bars, n_assets)) * has_open
    # Rounded first, so that the committed prices are the prices.
    close = (50.0 * np.cumprod(gap * session, axis=0)).round(6)
    open_ = (close / session).round(6) if has_open else None
    bars = Bars(pd.date_range("2024-01-01", periods=n_bars, freq="D"), ASSETS[:n_assets], close, open_)
    env = TradingEnvironment(bars, TradingEnvConfig(**CONFIG))
    _, info = env.reset(seed=0)
    first_bar, targets, amounts, done = info["bar"], [], [], False
    while not done:
        target = rng.uniform(-0.8, 0.8, n_assets).round(3)
        target[rng.random(n_assets) < 0.2] = np.nan
        before = env.account_state.position
        _, _, terminated, truncated, _ = env.step(target)
        done = terminated or truncated
        amount = env.account_state.position - before
        targets.append(target)
        # Units come back from weights: without an order, what is left of them is rounding.
        amounts.append(np.where(np.isnan(target), 0.0, amount))
    return {
        "name": name,
        "seed": seed,
        "assets": list(ASSETS[:n_assets]),
        "config": CONFIG,
        "first_bar": first_bar,
        "open": None if open_ is None else open_.tolist(),
        "close": close.tolist(),
        "targets": np.array(targets).tolist(),
        "amounts": np.array(amounts).tolist(),
    }


def vectorbt_equity(case):
    """Hand the unit amounts to vectorbt; return its equity at the close after each fill, as a list."""
    import vectorbt

    first, fills = case["first_bar"], len(case["amounts"])
    close = np.array(case["close"])
    price = close[first : first + fills] if case["open"] is None else np.array(case["open"])[first + 1 :]
    portfolio = vectorbt.Portfolio.from_orders(
        pd.DataFrame(close[first + 1 :], columns=case["assets"]),
        size=np.array(case["amounts"]),
        size_type="amount",
        price=price,
        fees=case["config"]["commission"],
        init_cash=case["config"]["initial_balance"],
        cash_sharing=True,
        group_by=True,
        call_seq="auto",  # Sales first, so that their cash pays for the purchases of the same bar.
        freq="D",
    )
    filled = portfolio.orders.values["size"].sum()
    assert np.isclose(filled, np.abs(case["amounts"]).sum(), rtol=1e-12), "vectorbt refused or cut an order"
    return [float(value) for value in np.asarray(portfolio.value()).ravel()]


def main():
    """Write the file."""
    import vectorbt

    cases = [our_fills(**case) for case in CASES]
    for case in cases:
        case["equity"] = vectorbt_equity(case)
    PATH.write_text(json.dumps({"vectorbt": vectorbt.__version__, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
