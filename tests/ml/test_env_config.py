"""A config says what is wrong with it, by name, before anything is simulated."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.core.costs import TransactionCosts

REFUSED = [
    ("window_size", "20", "an integer, got '20'"),
    ("window_size", 20.0, "an integer, got 20.0"),
    ("window_size", True, "an integer, got True"),
    ("window_size", None, "an integer, got None"),
    ("commission", "0.001", "a finite number, got '0.001'"),
    ("commission", False, "a finite number, got False"),
    ("commission", 10**400, "a finite number"),
    ("allow_short", "no", "True or False, got 'no'"),
    ("allow_short", 1, "True or False, got 1"),
    ("episode_length", 2.5, "an integer or None, got 2.5"),
    ("reward", ["log_return"], "one of log_return"),
    ("features", 3, "a sequence of names, got 3"),
    ("features", ("log_return", 5), "a sequence of names"),
    ("execution_delay", 1_001, "at most 1000 bars"),
    ("initial_balance", 0.0, "positive"),
    ("initial_balance", float("inf"), "a finite number"),
    ("initial_balance", float("nan"), "a finite number"),
    ("max_weight", -1.0, "positive"),
    ("max_gross_exposure", 0.0, "positive"),
    ("window_size", 0, "at least 1"),
    ("execution_delay", -1, "at least 0"),
    ("reward_warmup_bars", -1, "at least 0"),
    ("drawdown_weight", -0.1, "at least 0"),
    ("tail_threshold", float("nan"), "a finite number"),
    ("tail_weight", -1.0, "at least 0"),
    ("reward", "sharp", "one of log_return"),
    ("action_type", "box", "one of continuous, discrete"),
    ("episode_length", 0, "at least 1 bar"),
    ("ruin_fraction", 1.0, "between 0 and 1"),
    ("ruin_fraction", -0.1, "between 0 and 1"),
    ("reward_decay", 1.0, "between 0 and 1"),
    ("reward_decay", 0.0, "above 0"),
    ("max_drawdown", 0.0, "above 0"),
    ("max_drawdown", 1.5, "between 0 and 1"),
    ("reward_scaling", 0.0, "other than 0"),
    ("reward_scaling", float("nan"), "a finite number"),
    ("slippage_rate", -0.001, "at least 0"),
    ("minimum_commission", float("nan"), "a finite number"),
    ("borrow_rate", -0.01, "at least 0"),
    ("impact_coefficient", float("inf"), "a finite number"),
]


@pytest.mark.parametrize(("field", "value", "rule"), REFUSED)
def test_a_bad_value_is_refused_with_its_name_and_the_rule(field, value, rule):
    with pytest.raises(ValueError, match=f"{field}.* {rule}"):
        TradingEnvConfig(**{field: value})


def test_a_single_feature_without_its_tuple_is_refused_with_the_way_to_write_it():
    with pytest.raises(ValueError, match=r"sequence of names, got 'momentum:5'; write \('momentum:5',\)"):
        TradingEnvConfig(features="momentum:5")


def test_numbers_of_numpy_become_plain_ones():
    given_ = {"window_size": np.int64(5), "commission": np.float64(0.25), "allow_short": np.bool_(False)}
    values = dataclasses.asdict(TradingEnvConfig(**given_, features=["log_return"]))
    kept = {name: values[name] for name in (*given_, "features")}
    assert kept == {"window_size": 5, "commission": 0.25, "allow_short": False, "features": ("log_return",)}
    assert [type(value) for value in kept.values()] == [int, float, bool, tuple]


def test_a_commission_in_percent_is_refused():
    with pytest.raises(ValueError, match=r"rates are fractions"):
        TradingEnvConfig(commission=0.6)


def test_an_agent_that_would_see_no_market_is_refused():
    with pytest.raises(ValueError, match="the agent would see no market"):
        TradingEnvConfig(features=(), use_extra_columns=False)


def test_the_cost_rates_arrive_in_the_cost_model():
    config = TradingEnvConfig(
        commission=0.002,
        slippage_rate=0.001,
        minimum_commission=1.0,
        borrow_rate=0.03,
        margin_rate=0.05,
        cash_rate=0.02,
        impact_coefficient=0.5,
    )
    assert config.costs == TransactionCosts(
        commission_rate=0.002,
        slippage_rate=0.001,
        minimum_commission=1.0,
        borrow_rate=0.03,
        margin_rate=0.05,
        cash_rate=0.02,
        impact_coefficient=0.5,
    )


@pytest.mark.parametrize(("allow_short", "lowest"), [(True, -0.4), (False, 0.0)])
def test_the_lowest_weight_is_minus_the_largest_or_zero_without_shorts(allow_short, lowest):
    assert TradingEnvConfig(max_weight=0.4, allow_short=allow_short).min_weight == lowest


def test_features_given_as_a_list_become_a_tuple():
    assert TradingEnvConfig(features=["log_return", "rsi"]).features == ("log_return", "rsi")


def test_a_config_cannot_be_changed_after_its_check():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TradingEnvConfig().window_size = 5


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    window_size=st.integers(1, 50),
    commission=st.floats(0.0, 0.4),
    reward=st.sampled_from(["log_return", "return", "differential_sharpe", "sortino", "calmar", "cvar"]),
    episode_length=st.none() | st.integers(1, 1000),
    allow_short=st.booleans(),
)
def test_a_config_survives_a_trip_through_json(**values):
    config = TradingEnvConfig(**values)
    assert TradingEnvConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_an_unknown_field_of_a_saved_config_is_refused():
    with pytest.raises(ValueError, match="unknown TradingEnvConfig fields: leverage, margin"):
        TradingEnvConfig.from_dict({"margin": 1, "leverage": 2})


def test_a_saved_config_is_checked_again():
    with pytest.raises(ValueError, match="window_size must be at least 1"):
        TradingEnvConfig.from_dict({"window_size": 0})
