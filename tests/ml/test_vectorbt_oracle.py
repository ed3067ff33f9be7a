"""Identity 7 against vectorbt itself, where it is installed; elsewhere `test_identities.py` checks its committed numbers."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vectorbt")

ORACLES = Path(__file__).parent / "oracles"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_vectorbt_numbers", ORACLES / "make_vectorbt_numbers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment_equity(script, case):
    bars_type, env_type, config_type = script.Bars, script.TradingEnvironment, script.TradingEnvConfig
    open_ = None if case["open"] is None else np.array(case["open"])
    timestamps = script.pd.date_range("2024-01-01", periods=len(case["close"]), freq="D")
    env = env_type(
        bars_type(timestamps, tuple(case["assets"]), np.array(case["close"]), open_), config_type(**case["config"])
    )
    env.reset(seed=0)
    return [env.step(np.array(target))[4]["equity"] for target in case["targets"]]


@pytest.mark.parametrize("n_assets", [1, 3])
@pytest.mark.parametrize("has_open", [True, False], ids=["open", "close_only"])
@pytest.mark.parametrize("seed", range(10, 15))
def test_our_fills_are_worth_the_same_in_vectorbt(script, n_assets, has_open, seed):
    case = script.our_fills("case", seed, n_assets, has_open, n_bars=60)
    np.testing.assert_allclose(script.vectorbt_equity(case), environment_equity(script, case), rtol=1e-9)


def test_the_committed_numbers_are_those_of_vectorbt(script):
    for case in json.loads((ORACLES / "vectorbt_equity.json").read_text())["cases"]:
        np.testing.assert_allclose(script.vectorbt_equity(case), case["equity"], rtol=1e-12)
