"""The portfolio manager: skfolio's weights, forecasts and agents as sources; the stages of a decision; orders."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skfolio.optimization import (
    EqualWeighted,
    HierarchicalRiskParity,
    InverseVolatility,
    MeanRisk,
    ObjectiveFunction,
    RiskBudgeting,
)

from ml.tradingbots.components import (
    PortfolioConfig,
    PortfolioManager,
    PortfolioState,
    PPOAgent,
    PPOConfig,
    RidgePredictor,
    SkfolioAllocator,
    TradingEnvConfig,
    TradingEnvironment,
    ZeroPredictor,
    create_allocator,
    create_rl_agent,
    list_allocators,
)
from ml.tradingbots.components.portfolio_sources import AgentSource, PredictorSource
from ml.tradingbots.components.portfolio_state import Proposal
from ml.tradingbots.core.portfolio_constraints import excesses, is_within
from ml.tradingbots.core.portfolio_projection import InfeasibleLimitsError
from ml.tradingbots.data import Bars
from ml.tradingbots.data.synthetic import autoregressive

DIRECT = {
    "equal_weight": EqualWeighted(),
    "inverse_volatility": InverseVolatility(),
    "minimum_variance": MeanRisk(),
    "max_ratio": MeanRisk(objective_function=ObjectiveFunction.MAXIMIZE_RATIO),
    "mean_risk": MeanRisk(objective_function=ObjectiveFunction.MAXIMIZE_UTILITY),
    "risk_budgeting": RiskBudgeting(),
    "hierarchical_risk_parity": HierarchicalRiskParity(),
}
ASSETS = ("AAA", "BBB", "CCC", "DDD")
UNLIMITED = {"allow_short": True, "max_weight": None, "max_gross_exposure": None}


class Wanted:
    """A source that wants the same weights at every bar."""

    def __init__(self, weights, mean=None):
        self.weights, self.mean = np.array(weights, dtype=np.float64), mean

    def first_bar(self, bars):
        return 0

    def propose(self, bars, state):
        return Proposal(weights=self.weights.copy(), mean=self.mean)


@pytest.fixture(scope="module")
def prices(make_prices):
    return make_prices(130, 4, seed=2)


def returns_of(prices, n_returns):
    close = Bars.from_frame(prices).close[-n_returns - 1 :]
    return pd.DataFrame(close[1:] / close[:-1] - 1.0, columns=list(ASSETS))


@pytest.mark.parametrize("name", list_allocators())
def test_allocators_give_the_weights_that_skfolio_gives(name, prices):
    window = returns_of(prices, 100)
    direct = DIRECT[name].fit(window).weights_
    np.testing.assert_array_equal(create_allocator(name).weights(window), direct)
    decision = PortfolioManager(source=name, window_size=100, **UNLIMITED).decide(prices)
    np.testing.assert_array_equal(decision.target_weights, direct)


def test_every_allocator_has_its_test():
    assert set(DIRECT) == set(list_allocators())


def test_any_estimator_of_skfolio_can_be_given(prices):
    estimator = MeanRisk(max_weights=0.4)
    decision = PortfolioManager(source=SkfolioAllocator(estimator), window_size=60, **UNLIMITED).decide(prices)
    np.testing.assert_array_equal(
        decision.target_weights, MeanRisk(max_weights=0.4).fit(returns_of(prices, 60)).weights_
    )
    assert not hasattr(estimator, "weights_")


def test_an_allocator_of_ones_own_needs_one_method(prices):
    class Last:
        def weights(self, returns_window):
            return returns_window.iloc[-1].rank() / 10.0

    decision = PortfolioManager(source=Last(), window_size=5).decide(prices)
    assert sorted(decision.target_weights) == [0.1, 0.2, 0.3, 0.4]


def test_where_no_ratio_can_be_maximised_variance_is_minimised(prices):
    falling = -returns_of(prices, 60).abs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skfolio says that it fell back.
        found = create_allocator("max_ratio").weights(falling)
    np.testing.assert_array_equal(found, MeanRisk().fit(falling).weights_)


def test_a_window_that_skfolio_refuses_is_named():
    still = pd.DataFrame(np.zeros((20, 2)), columns=["A", "B"])
    with pytest.raises(ValueError, match=r"MeanRisk found no weights for the 20 returns.*fallback=EqualWeighted"):
        create_allocator("minimum_variance").weights(still)


@pytest.mark.parametrize(
    ("name", "message"),
    [("minimum_varianse", "Did you mean 'minimum_variance'"), ("markowitz", "Known: equal_weight")],
)
def test_an_unknown_allocator_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        PortfolioManager(source=name)


def test_what_is_no_source_is_refused():
    with pytest.raises(TypeError, match="source must be an allocator"):
        PortfolioManager(source=3)


def test_an_allocator_that_answers_for_other_assets_is_refused(prices):
    class Other:
        def weights(self, returns_window):
            return pd.Series([1.0], index=["EEE"])

    with pytest.raises(ValueError, match="one weight for each of"):
        PortfolioManager(source=Other(), window_size=5).decide(prices)


# Predictors


@pytest.fixture(scope="module")
def ridge():
    market = autoregressive(600, phi=0.3, seed=1).prices
    return RidgePredictor(horizons=(1, 5), volatility_bars=0).fit(market), autoregressive(200, phi=0.3, seed=2).prices


def test_mean_over_variance_is_the_forecast_over_the_trailing_variance(ridge):
    predictor, prices = ridge
    source = PredictorSource(predictor, scale=0.5, risk_window=40)
    log_returns = np.diff(np.log(Bars.from_frame(prices).close[:, 0]))[-40:]
    forecast = predictor.predict(prices).iloc[-1].xs(1, level="horizon").to_numpy()
    expected = 0.5 * forecast / log_returns.var(ddof=1)
    found = source.propose(Bars.from_frame(prices), PortfolioState.flat(1)).weights
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_sign_of_the_forecast_is_shared_out_among_the_assets(ridge):
    predictor, prices = ridge
    found = PredictorSource(predictor, rule="sign").propose(Bars.from_frame(prices), PortfolioState.flat(1)).weights
    assert found.tolist() == [np.sign(predictor.predict(prices).iloc[-1, 0])]


def test_the_spread_of_quantiles_can_stand_for_risk(ridge):
    predictor, prices = ridge
    source = PredictorSource(predictor, horizon=5, risk="quantiles")
    spread = predictor.predict_quantiles(prices, (0.05, 0.95)).iloc[-1].xs(5, level="horizon").to_numpy()
    deviation = (spread[1] - spread[0]) / (2.0 * 1.6448536269514722)
    forecast = predictor.predict(prices).iloc[-1].xs(5, level="horizon").to_numpy()
    found = source.propose(Bars.from_frame(prices), PortfolioState.flat(1)).weights
    np.testing.assert_allclose(found, forecast / deviation**2, rtol=1e-9)


def test_no_forecast_means_no_position(prices):
    decision = PortfolioManager(source=ZeroPredictor().fit(prices)).decide(prices)
    assert decision.target_weights.tolist() == [0.0] * 4


def test_a_horizon_that_the_predictor_lacks_is_refused(ridge):
    with pytest.raises(ValueError, match=r"horizon must be one of the predictor's, \(1, 5\), got 2"):
        PredictorSource(ridge[0], horizon=2)


# Agents


@pytest.fixture(scope="module")
def agent(prices):
    env = TradingEnvironment(prices, TradingEnvConfig(window_size=5))
    agent = create_rl_agent(
        "ppo",
        env.observation_space_dim,
        env.action_space_dim,
        PPOConfig(n_steps=32, batch_size=32, hidden_dim=16),
        seed=0,
    )
    assert isinstance(agent, PPOAgent)
    agent.train(env, total_timesteps=64)
    return agent


def test_an_agent_sees_what_its_environment_would_show_it(agent, prices):
    from ml.tradingbots.training.live import LiveAccount, target_weights

    weights = {"AAA": 0.3, "BBB": -0.2}
    state = PortfolioState(equity=1.0, weights=np.array([0.3, -0.2, 0.0, 0.0]), drawdown=0.1)
    live = target_weights(agent, prices, account=LiveAccount(weights=weights, drawdown=0.1))
    proposal = AgentSource(agent).propose(Bars.from_frame(prices), state)
    np.testing.assert_array_equal(proposal.weights, live.target_weights)


def test_an_agent_may_be_shown_its_assets_in_another_order(agent, prices):
    bars = Bars.from_frame(prices)
    turned = AgentSource(agent).propose(bars.select(ASSETS[::-1]), PortfolioState.flat(4)).weights
    np.testing.assert_array_equal(turned[::-1], AgentSource(agent).propose(bars, PortfolioState.flat(4)).weights)


def test_an_agent_trained_on_other_assets_is_refused(agent, make_prices):
    with pytest.raises(ValueError, match="the agent was trained on the assets AAA"):
        PortfolioManager(source=agent).decide(make_prices(60, 2))


# Stages


def state_of(weights, **changes):
    return PortfolioState(equity=1_000.0, weights=np.array(weights, dtype=np.float64), **changes)


def decide(prices, weights, held=(0.0,) * 4, *, state=None, mean=None, **settings):
    manager = PortfolioManager(source=Wanted(weights, mean), **settings)
    return manager.decide(prices, state or state_of(held))


def test_without_limits_the_source_has_its_way_to_the_last_bit(prices):
    weights = [1.7, -0.3, np.nan, 0.1]
    np.testing.assert_array_equal(decide(prices, weights, **UNLIMITED).target_weights, weights)


LIMITED = {
    "allow_short": True,
    "max_weight": 0.4,
    "max_weights": {"DDD": 0.1},
    "max_gross_exposure": 1.2,
    "min_net_exposure": -0.2,
    "max_net_exposure": 0.7,
    "groups": {"first": ("AAA", "BBB")},
    "max_group_exposure": {"first": 0.5},
}
wanted = st.lists(st.floats(-2.0, 2.0), min_size=4, max_size=4)


@settings(deadline=None, max_examples=60)
@given(wanted, wanted, st.booleans(), st.sampled_from([0.0, 0.05]), st.sampled_from([None, 0.1]), st.booleans())
def test_every_limit_holds_whatever_is_wanted_and_held(weights, held, short, band, target, brake):
    config = PortfolioConfig(
        **LIMITED | {"allow_short": short},
        drift_band=band,
        volatility_target=target,
        brake_start=0.1 if brake else None,
        kelly_fraction=0.5 if brake else None,
    )
    decision = PortfolioManager(config, Wanted(weights)).decide(PRICES, state_of(held, drawdown=0.2))
    reached = np.where(np.isnan(decision.target_weights), held, decision.target_weights)
    assert max(excesses(reached, config.limits(ASSETS)).values()) <= 1e-9


@settings(deadline=None, max_examples=60)
@given(wanted, wanted, st.sampled_from([0.05, 0.3, 5.0]))
def test_turnover_is_capped_and_the_limits_hold(weights, held, max_turnover):
    config = PortfolioConfig(**LIMITED, max_turnover=max_turnover)
    manager = PortfolioManager(config, Wanted(weights))
    try:
        reached = manager.decide(PRICES, state_of(held)).target_weights
    except InfeasibleLimitsError:  # So far outside that no trade of this size leads in.
        assert not is_within(np.array(held), config.limits(ASSETS))
        return
    found = excesses(reached, config.limits(ASSETS), held=np.array(held), max_turnover=max_turnover)
    assert max(found.values()) <= 1e-9


@settings(deadline=None, max_examples=40)
@given(wanted, st.sampled_from([0.02, 0.1, 0.5]))
def test_the_volatility_expected_is_never_above_its_target(weights, target):
    manager = PortfolioManager(PortfolioConfig(**LIMITED, volatility_target=target), Wanted(weights))
    reached = manager.decide(PRICES).target_weights
    covariance = np.cov(returns_of(PRICES, 60).to_numpy(), rowvar=False) * Bars.from_frame(PRICES).bars_per_year
    assert np.sqrt(reached @ covariance @ reached) <= target * (1.0 + 1e-9)


@pytest.fixture(scope="module", autouse=True)
def _prices_for_hypothesis(prices):
    # Hypothesis draws arguments; the table is the same for all of them.
    global PRICES
    PRICES = prices


def test_volatility_is_targeted_from_below_too_as_far_as_the_limits_go(prices):
    small = decide(prices, [0.01] * 4, volatility_target=0.1)
    assert small.volatility_scale > 1.0
    assert decide(prices, [0.01] * 4, volatility_target=10.0).target_weights.sum() == pytest.approx(1.0, abs=1e-12)


def test_where_nothing_is_in_the_way_the_volatility_expected_is_its_target(prices):
    unlimited = {"max_weight": 100.0, "max_gross_exposure": 100.0, "max_net_exposure": 100.0}
    for target in (0.02, 0.3):  # From above and from below.
        reached = decide(prices, [0.3, 0.2, 0.2, 0.1], volatility_target=target, **unlimited).target_weights
        covariance = np.cov(returns_of(prices, 60).to_numpy(), rowvar=False) * Bars.from_frame(prices).bars_per_year
        assert np.sqrt(reached @ covariance @ reached) == pytest.approx(target, rel=1e-9)


def test_the_mean_that_a_predictor_hands_to_the_kelly_cap_is_that_of_one_bar(ridge):
    predictor, prices = ridge
    forecast = predictor.predict(prices).iloc[-1].xs(5, level="horizon").to_numpy()
    found = PredictorSource(predictor, horizon=5).propose(Bars.from_frame(prices), PortfolioState.flat(1)).mean
    np.testing.assert_allclose(found, np.expm1(forecast) / 5.0, rtol=1e-12)


@pytest.mark.parametrize("weights", [[0.1], [0.1] * 5, [0.1, np.inf, 0.0, 0.0]])
def test_a_source_that_proposes_what_is_no_portfolio_is_named(prices, weights):
    with pytest.raises(ValueError, match=r"the source Wanted must propose weights \(4,\), finite or NaN"):
        decide(prices, weights)


def test_the_kelly_cap_takes_the_forecasts_mean(prices):
    covariance = np.cov(returns_of(prices, 60).to_numpy(), rowvar=False)
    mean = np.array([1e-5, 0.0, 0.0, 0.0])
    decision = decide(prices, [0.5, 0.0, 0.0, 0.0], mean=mean, kelly_fraction=0.5)
    assert decision.target_weights[0] == pytest.approx(0.5 * 1e-5 / covariance[0, 0], rel=1e-9)


def test_a_drawdown_brakes_what_is_bought(prices):
    state = state_of([0.0] * 4, drawdown=0.2)
    braked = decide(prices, [0.25] * 4, state=state, brake_start=0.1, brake_full=0.3, brake_floor=0.5)
    assert braked.brake == pytest.approx(0.75)
    np.testing.assert_allclose(braked.target_weights, 0.75 * 0.25)


def test_the_same_drawdown_brakes_what_is_kept_only_once(prices):
    hold, brake = [np.nan] * 4, {"brake_start": 0.1, "brake_full": 0.3, "brake_floor": 0.5}
    first = decide(prices, hold, state=state_of([0.2] * 4, drawdown=0.2), **brake)
    np.testing.assert_allclose(first.target_weights, 0.75 * 0.2)
    second = decide(prices, hold, state=state_of([0.15] * 4, drawdown=0.2, brake=first.brake), **brake)
    assert np.isnan(second.target_weights).all()


def test_inside_the_band_nothing_is_traded(prices):
    held = [0.26, 0.24, 0.25, 0.25]
    assert np.isnan(decide(prices, [0.25] * 4, held, drift_band=0.02).target_weights).all()
    some = decide(prices, [0.25] * 4, [0.26, 0.24, 0.10, 0.40], drift_band=0.02).target_weights
    np.testing.assert_array_equal(np.isnan(some), [True, True, False, False])


def test_what_stays_inside_its_band_takes_room_from_the_others(prices):
    target = decide(prices, [0.25] * 4, [0.26, 0.26, 0.1, 0.1], drift_band=0.02).target_weights
    np.testing.assert_allclose(target[2:], 0.24)


def test_orders_below_the_least_notional_are_not_decided(prices):
    target = decide(prices, [0.25] * 4, [0.2495, 0.25, 0.0, 0.0], minimum_notional=1.0).target_weights
    np.testing.assert_array_equal(np.isnan(target), [True, True, False, False])


def test_a_turnover_cap_moves_straight_toward_the_target(prices):
    found = decide(prices, [0.25] * 4, max_turnover=0.2).target_weights
    np.testing.assert_allclose(found, 0.05)


def test_limits_out_of_reach_are_an_error_or_are_traded_to_as_asked(prices):
    settings_ = {"min_net_exposure": 1.0, "max_turnover": 0.1}
    with pytest.raises(InfeasibleLimitsError, match="exceed_turnover=True"):
        decide(prices, [0.25] * 4, **settings_)
    found = decide(prices, [0.25] * 4, exceed_turnover=True, **settings_).target_weights
    assert found.sum() == pytest.approx(1.0, abs=1e-9)


def test_limits_that_no_portfolio_satisfies_are_named(prices):
    with pytest.raises(InfeasibleLimitsError, match=r"largest weights \(together 0.8\), min_net_exposure \(1\)"):
        decide(prices, [0.25] * 4, max_weight=0.2, min_net_exposure=1.0)


def test_the_stages_of_a_decision_are_shown(prices):
    decision = decide(prices, [2.0, 0.0, 0.0, 0.0], max_weight=0.5, max_turnover=0.1)
    assert decision.stages.index.tolist() == ["proposed", "limits", "exposure", "band", "turnover"]
    np.testing.assert_allclose(decision.stages["AAA"], [2.0, 0.5, 0.5, 0.5, 0.1])


# Orders


def test_orders_are_whole_shares_that_cash_can_pay_for(prices):
    manager = PortfolioManager(source=Wanted([0.25] * 4), lot_size=1.0)
    state = PortfolioState.flat(4, equity=10_000.0)
    decision = manager.decide(prices, state)
    orders = manager.orders(decision, state)
    assert (orders["units"] == orders["units"].round()).all()
    assert orders["notional"].sum() + orders["costs"].sum() <= 10_000.0
    np.testing.assert_allclose(orders["costs"], 0.001 * orders["notional"].abs())


def test_orders_are_sized_at_the_prices_they_will_meet(prices):
    manager = PortfolioManager(source=Wanted([1.0, 0.0, 0.0, 0.0]), lot_size=1.0)
    state = PortfolioState.flat(4, equity=10_000.0)
    decision = manager.decide(prices, state)
    orders = manager.orders(decision, state, prices=dict.fromkeys(ASSETS, 1_001.0))
    assert orders.loc["AAA", "units"] == 9.0


def test_an_account_that_the_prices_have_wiped_out_is_refused(prices):
    manager = PortfolioManager(source=Wanted([0.25] * 4), allow_short=True)
    state = PortfolioState(equity=1_000.0, weights=np.array([-1.0, 0.0, 0.0, 0.0]))
    decision = manager.decide(prices, state)
    doubled = dict(zip(ASSETS, decision.close * 2.5, strict=True))
    with pytest.raises(ValueError, match="equity must be a positive number at the fill"):
        manager.orders(decision, state, prices=doubled)


def test_orders_for_an_account_of_other_assets_are_refused(prices):
    manager = PortfolioManager(source=Wanted([0.25] * 4))
    decision = manager.decide(prices)
    with pytest.raises(ValueError, match=r"state.weights must have 4 entries, one per asset, got 1"):
        manager.orders(decision, PortfolioState.flat(1))


def test_an_account_can_be_told_in_cash_and_units():
    state = PortfolioState.of_positions(500.0, {"BBB": 5.0}, {"AAA": 10.0, "BBB": 100.0})
    assert state.equity == 1_000.0
    assert state.weights.tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match="units names 'CCC', which has no price"):
        PortfolioState.of_positions(500.0, {"CCC": 5.0}, {"AAA": 10.0})


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_weight": 0.0}, "max_weight must be above 0, or None"),
        ({"drift_band": -0.1}, "drift_band must be at least 0"),
        ({"risk_window": 1}, "risk_window must be at least 2 bars"),
        ({"brake_start": 0.4}, "brake_start < brake_full"),
        ({"max_group_exposure": {"tech": 0.3}}, "names the group 'tech', which groups does not have"),
        ({"groups": {"tech": "AAA"}}, "must name one or more assets in a tuple"),
        ({"max_weights": {"AAA": -1.0}}, r"max_weights\['AAA'\] must be a share of equity"),
        ({"min_net_exposure": 1.2}, "cannot be had with max_gross_exposure 1.0"),
        ({"max_net_exposure": -0.1}, "needs allow_short=True"),
        (
            {"min_net_exposure": 1.0, "volatility_target": 0.1},
            "volatility_target reduces exposure, which min_net_exposure",
        ),
        ({"rebalance": "ME"}, "rebalance must fall on the starts of periods"),
        ({"rebalance": 0}, "rebalance must be at least 1 bar"),
        ({"max_turnover": "all"}, "max_turnover must be a finite number or None"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        PortfolioConfig(**changes)


def test_limits_on_assets_that_are_not_traded_are_refused(prices):
    with pytest.raises(ValueError, match=r"max_weights names 'AAB', which is not traded. Did you mean 'AAA'"):
        decide(prices, [0.0] * 4, max_weights={"AAB": 0.1})
