"""A mask forbids only what would trade nothing anyway, and every environment hands it out with its observation."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.rl_agents import AGENTS, create_rl_agent
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.components.vector_adapter import TensorVectorEnv, as_vector_env
from ml.tradingbots.components.vector_environment import TradingVectorEnv

LONG_ONLY = {"allow_short": False}
VARIANTS = {
    "shorts": {},
    "long_only": LONG_ONLY,
    "partly_invested": {**LONG_ONLY, "max_weight": 0.6},
    "leveraged": {"max_weight": 1.5, "max_gross_exposure": 1.5, "margin_rate": 0.1, "borrow_rate": 0.1},
    "leverage_cut_to_one": {**LONG_ONLY, "max_weight": 1.5, "cash_rate": 0.05},
    "tickets": {**LONG_ONLY, "minimum_commission": 150.0},
    "everything": {**LONG_ONLY, "impact_coefficient": 0.3, "slippage_rate": 0.001, "cash_rate": 0.03},
    "delayed": {**LONG_ONLY, "execution_delay": 1},
}
each_variant = pytest.mark.parametrize("variant", sorted(VARIANTS))
each_kind = pytest.mark.parametrize("n_assets", [1, 3])
each_data = pytest.mark.parametrize("has_open", [True, False], ids=["open", "close_only"])

# Sums over assets may be added in another order.
SAME = {"rtol": 1e-9, "atol": 1e-9}


def config_of(**changes):
    return TradingEnvConfig(**{"window_size": 2, "action_type": "discrete", **changes})


def choices(rng, env):
    """Return random choices; one asset takes an int."""
    drawn = rng.integers(0, 3, env.market.n_assets)
    return int(drawn[0]) if env.market.n_assets == 1 else drawn


def after(env, action):
    """Return equity and weights that an action would lead to; `env` stays where it is."""
    tried = copy.deepcopy(env, {id(env.market): env.market})
    info = tried.step(action)[4]
    return np.append(info["weight"], info["equity"] / env.config.initial_balance)


def mask_after(make_prices, actions, *, n_assets=1, constant=False, has_open=True, **changes):
    frame = make_prices(20, n_assets, seed=1, has_open=has_open)
    if constant:
        frame[:] = 10.0
    env = TradingEnvironment(frame, config_of(**changes))
    info = env.reset(seed=0)[1]
    for action in actions:
        info = env.step(action)[4]
    return info["action_mask"].tolist()


# What is masked.


@each_variant
@each_kind
@each_data
def test_a_masked_choice_does_what_a_hold_does(make_prices, variant, n_assets, has_open):
    frame = make_prices(50, n_assets, seed=2, has_open=has_open, volume=True)
    frame.iloc[20:30] = frame.iloc[20].to_numpy()  # Prices that stand still let weights stay at their targets.
    env = TradingEnvironment(frame, config_of(**VARIANTS[variant]))
    rng = np.random.default_rng(3)
    mask, ended = env.reset(seed=0)[1]["action_mask"], False
    while not ended:
        legal = mask.reshape(n_assets, 3).astype(bool)
        assert legal[:, 0].all()
        for asset, choice in np.argwhere(~legal):
            asked = rng.integers(0, 3, n_assets)  # Whatever is chosen for the other assets.
            asked[asset] = choice
            held = asked.copy()
            held[asset] = 0
            asked, held = (int(a[0]) if n_assets == 1 else a for a in (asked, held))
            np.testing.assert_allclose(after(env, asked), after(env, held), **SAME)
        _, _, terminated, truncated, info = env.step(choices(rng, env))
        mask, ended = info["action_mask"], terminated or truncated


def test_flat_without_shorts_there_is_nothing_to_sell(make_prices):
    assert mask_after(make_prices, [], **LONG_ONLY) == [1, 1, 0]


def test_flat_with_shorts_every_choice_trades(make_prices):
    assert mask_after(make_prices, []) == [1, 1, 1]


def test_fully_invested_there_is_nothing_to_buy(make_prices):
    assert mask_after(make_prices, [1, 0, 0], **LONG_ONLY) == [1, 0, 1]


def test_after_a_sale_there_is_nothing_more_to_sell(make_prices):
    assert mask_after(make_prices, [1, 2], **LONG_ONLY) == [1, 1, 0]


def test_a_part_of_the_equity_drifts_over_the_gap_and_can_be_bought_back(make_prices):
    assert mask_after(make_prices, [1], constant=True, max_weight=0.6) == [1, 1, 1]


@pytest.mark.parametrize(("choice", "expected"), [(1, [1, 0, 1]), (2, [1, 1, 0])])
def test_without_a_gap_the_weight_held_cannot_be_asked_for_again(make_prices, choice, expected):
    assert mask_after(make_prices, [choice], constant=True, has_open=False, max_weight=0.6) == expected


def test_a_short_position_drifts_over_the_gap(make_prices):
    assert mask_after(make_prices, [2], constant=True) == [1, 1, 1]


def test_orders_under_way_leave_nothing_certain_and_nothing_is_masked(make_prices):
    assert mask_after(make_prices, [1, 2, 2], execution_delay=1, **LONG_ONLY) == [1, 1, 1]


def test_in_a_portfolio_each_asset_has_a_mask_of_its_own(make_prices):
    assert mask_after(make_prices, [np.array([1, 0])], n_assets=2, **LONG_ONLY) == [1, 1, 1, 1, 1, 0]


def test_in_a_portfolio_buying_is_never_masked_because_it_shares_the_exposure_with_the_others(make_prices):
    assert mask_after(make_prices, [np.array([1, 0])], n_assets=2, constant=True, has_open=False) == [1] * 6


@each_kind
def test_a_mask_is_one_int8_per_choice(make_prices, n_assets):
    env = TradingEnvironment(make_prices(20, n_assets), config_of())
    mask = env.reset(seed=0)[1]["action_mask"]
    assert (mask.dtype, mask.shape) == (np.int8, (env.action_space_dim,))


def test_gymnasium_samples_with_the_mask(make_prices):
    env = TradingEnvironment(make_prices(20), config_of(**LONG_ONLY))
    mask = env.reset(seed=0)[1]["action_mask"]
    env.action_space.seed(4)
    assert {int(env.action_space.sample(mask)) for _ in range(50)} == {0, 1}


def test_target_weights_have_no_mask(make_prices):
    env = TradingEnvironment(make_prices(20), config_of(action_type="continuous"))
    assert "action_mask" not in env.reset(seed=0)[1]
    assert "action_mask" not in env.step(0.5)[4]


# Many accounts.


@each_variant
@each_kind
@each_data
@pytest.mark.parametrize("synchronous", [True, False])
def test_masks_of_many_accounts_are_those_of_each_alone(make_prices, variant, n_assets, has_open, synchronous):
    config = config_of(episode_length=15, **VARIANTS[variant])
    market = Market(make_prices(40, n_assets, seed=5, has_open=has_open, volume=True), config)
    env = TradingVectorEnv(market, config, n_envs=2, synchronous=synchronous)
    starts = [market.first_bar, market.first_bar + 7]
    alone = [TradingEnvironment(market, config) for _ in starts]
    masks = [
        single.reset(options={"start_bar": bar})[1]["action_mask"] for single, bar in zip(alone, starts, strict=True)
    ]
    infos = env.reset(options={"start_bar": torch.tensor(starts)})[1]
    assert infos["action_mask"].tolist() == np.array(masks, dtype=bool).tolist()
    rng = np.random.default_rng(6)
    for _ in range(20):
        actions = [choices(rng, single) for single in alone]
        infos = env.step(torch.as_tensor(np.array(actions)))[4]
        steps = [single.step(action) for single, action in zip(alone, actions, strict=True)]
        assert infos["next_action_mask"].tolist() == np.array([s[4]["action_mask"] for s in steps], dtype=bool).tolist()
        masks = [
            single.reset()[1]["action_mask"] if step[2] or step[3] else step[4]["action_mask"]
            for single, step in zip(alone, steps, strict=True)
        ]
        assert infos["action_mask"].dtype is torch.bool
        assert infos["action_mask"].tolist() == np.array(masks, dtype=bool).tolist()
        assert torch.equal(env.action_mask(), infos["action_mask"])


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_fresh_episode_has_a_mask_of_its_own(make_prices, synchronous):
    config = config_of(episode_length=3, **LONG_ONLY)
    env = TradingVectorEnv(make_prices(20, seed=7), config, n_envs=1, synchronous=synchronous)
    env.reset()
    for _ in range(3):
        infos = env.step(torch.tensor([1]))[4]
    assert infos["next_action_mask"].tolist() == [[True, False, True]]
    assert infos["action_mask"].tolist() == env.action_mask().tolist() == [[True, True, False]]


def test_a_loaded_state_brings_its_mask(make_prices):
    env, other = (TradingVectorEnv(make_prices(20, seed=8), config_of(**LONG_ONLY), n_envs=2) for _ in range(2))
    env.reset()
    env.step(torch.tensor([1, 0]))
    other.load_state_dict(env.state_dict())
    assert other.action_mask().tolist() == [[True, False, True], [True, True, False]]


def test_accounts_with_target_weights_have_no_mask(make_prices):
    env = TradingVectorEnv(make_prices(20), config_of(action_type="continuous"), n_envs=2)
    assert env.reset()[1] == {}
    assert not any("mask" in name for name in env.step(torch.zeros(2, 1))[4])
    assert env.action_mask() is None


# Other environments.


class Corridor(gymnasium.Env):
    """Walk a corridor of five cells: 0 left, 1 right, 2 jump two cells. Moves into a wall are masked, as in Taxi.

    The episode ends in the last cell. The info holds a mask in the cells of `given`.
    """

    observation_space = spaces.Box(0.0, 4.0, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, given=range(5), start=0):
        self.given, self.start = given, start

    def legal(self):
        return np.array([self.cell > 0, self.cell < 4, self.cell < 3], dtype=np.int8)

    def say(self):
        info = {"action_mask": self.legal()} if self.cell in self.given else {}
        return np.array([self.cell], dtype=np.float32), info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = self.start
        return self.say()

    def step(self, action):
        assert self.action_space.contains(action)
        self.cell += (-1, 1, 2)[action]
        observation, info = self.say()
        return observation, 1.0, self.cell == 4, False, info


class Pair(gymnasium.Env):
    """Two dials of two and three positions; the mask is a tuple of arrays, as `MultiDiscrete.sample` takes it."""

    observation_space = spaces.Box(0.0, 2.0, (2,), np.float32)
    action_space = spaces.MultiDiscrete([2, 3], dtype=np.int32)
    given = (np.array([1, 0], dtype=np.int8), np.array([0, 1, 1], dtype=np.int8))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {"action_mask": self.given}

    def step(self, action):
        assert self.action_space.contains(action)
        assert action.dtype == np.int32
        return action.astype(np.float32), 0.0, False, False, {"action_mask": self.given}


def copies(*envs):
    return TensorVectorEnv(SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=AutoresetMode.SAME_STEP))


def test_masks_of_other_environments_are_passed_on():
    env = copies(Corridor(), Corridor(start=1))
    _, infos = env.reset()
    assert infos["action_mask"].dtype is torch.bool
    assert infos["action_mask"].tolist() == [[False, True, True], [True, True, True]]
    infos = env.step(torch.tensor([2, 2]))[4]
    assert infos["action_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert torch.equal(infos["next_action_mask"], infos["action_mask"])
    assert torch.equal(env.action_mask(), infos["action_mask"])


def test_at_the_end_of_an_episode_the_mask_before_the_reset_is_kept():
    env = copies(Corridor(), Corridor(start=3))
    env.reset()
    infos = env.step(torch.tensor([1, 1]))[4]
    assert infos["action_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert infos["next_action_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert torch.equal(env.action_mask(), infos["action_mask"])


def test_a_copy_that_gives_no_mask_may_choose_anything():
    env = copies(Corridor(given=()), Corridor())
    _, infos = env.reset()
    assert infos["action_mask"].tolist() == [[True, True, True], [False, True, True]]


@pytest.mark.parametrize(
    ("given", "kept", "last"),
    [((0,), [False, True, True], [True, True, True]), ((4,), [True, True, True], [True, False, False])],
)
def test_a_mask_on_one_side_of_a_reset_says_nothing_about_the_other(given, kept, last):
    env = copies(Corridor(given=given), Corridor())  # The other one tells its masks from the first reset on.
    env.reset()
    env.step(torch.tensor([2, 2]))
    infos = env.step(torch.tensor([2, 2]))[4]
    assert infos["action_mask"][0].tolist() == kept
    assert infos["next_action_mask"][0].tolist() == last


def test_an_environment_without_masks_has_none():
    env = copies(Corridor(given=()), Corridor(given=()))
    assert env.reset()[1] == {}
    assert "action_mask" not in env.step(torch.tensor([1, 1]))[4]
    assert env.action_mask() is None


def test_where_nothing_is_legal_nothing_is_masked():
    class Over(Corridor):
        def legal(self):
            return np.zeros(3, dtype=np.int8)

    assert copies(Over()).reset()[1]["action_mask"].tolist() == [[True, True, True]]


def test_a_mask_of_another_length_is_refused():
    class Wrong(Corridor):
        def legal(self):
            return np.ones(4, dtype=np.int8)

    with pytest.raises(ValueError, match="action_mask must have 3 entries, one per choice; got 4"):
        copies(Wrong()).reset()


def test_masks_of_several_dimensions_are_laid_end_to_end():
    env = as_vector_env(Pair())
    assert env.reset()[1]["action_mask"].tolist() == [[True, False, False, True, True]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_choices_in_several_dimensions_reach_the_environment(dtype):
    env = copies(Pair(), Pair())
    env.reset()
    observation, *_ = env.step(torch.tensor([[1, 2], [0, 1]], dtype=dtype))
    assert observation.tolist() == [[1.0, 2.0], [0.0, 1.0]]


@pytest.mark.parametrize(("env", "action"), [(Corridor(), torch.tensor([1.0])), (Pair(), torch.tensor([[0.5, 1.0]]))])
def test_choices_that_are_no_integers_are_refused(env, action):
    vector = as_vector_env(env)
    vector.reset()
    with pytest.raises(ValueError, match="must be an integer tensor, got torch"):
        vector.step(action)


@each_kind
def test_the_adapter_shows_the_masks_of_the_trading_environment(make_prices, n_assets):
    config = config_of(episode_length=6, **LONG_ONLY)
    market = Market(make_prices(30, n_assets, seed=9), config)
    wrapped = copies(*(TradingEnvironment(market, config) for _ in range(3)))
    env = TradingVectorEnv(market, config, n_envs=3)
    assert torch.equal(wrapped.reset()[1]["action_mask"], env.reset()[1]["action_mask"])
    rng = np.random.default_rng(10)
    for _ in range(15):
        actions = torch.as_tensor(rng.integers(0, 3, (3,) if n_assets == 1 else (3, n_assets)))
        ours, theirs = env.step(actions)[4], wrapped.step(actions)[4]
        for name in ("action_mask", "next_action_mask"):
            assert torch.equal(ours[name], theirs[name])


# Masks that come and go.


class Sometimes(Corridor):
    """A corridor that tells its mask in `reset` only, or in `step` only."""

    def __init__(self, told_in):
        super().__init__()
        self.told_in = told_in

    def reset(self, **settings):
        observation, info = super().reset(**settings)
        return observation, info if self.told_in == "reset" else {}

    def step(self, action):
        self.cell = min(max(self.cell + (-1, 1, 2)[action], 0), 4)  # Walls hold those who know of no mask.
        observation, info = self.say()
        return observation, 1.0, self.cell == 4, False, info if self.told_in == "step" else {}


def test_where_only_the_reset_tells_a_mask_every_later_choice_is_legal():
    env = copies(Sometimes("reset"))
    assert env.reset()[1]["action_mask"].tolist() == [[False, True, True]]
    infos = env.step(torch.tensor([1]))[4]
    assert infos["action_mask"].tolist() == infos["next_action_mask"].tolist() == [[True, True, True]]
    assert env.action_mask().tolist() == [[True, True, True]]
    env.step(torch.tensor([1]))
    infos = env.step(torch.tensor([2]))[4]  # The end, and the mask of the reset that follows.
    assert infos["next_action_mask"].tolist() == [[True, True, True]]
    assert infos["action_mask"].tolist() == [[False, True, True]]


def test_where_only_steps_tell_a_mask_it_is_refused():
    env = copies(Sometimes("step"))
    assert env.reset()[1] == {}
    with pytest.raises(ValueError, match="came from step and not from the first reset: it must come from both"):
        env.step(torch.tensor([1]))


MASKED_AGENTS = {
    "dqn": {"batch_size": 8, "learning_starts": 8, "buffer_size": 100},
    "ppo": {"action_type": "discrete", "n_steps": 8, "batch_size": 8},
    "a2c": {"action_type": "discrete", "n_steps": 8},
}
each_masked_agent = pytest.mark.parametrize("agent_type", MASKED_AGENTS)


def corridor_agent(agent_type):
    config = AGENTS[agent_type].config_class(hidden_dim=8, **MASKED_AGENTS[agent_type])
    return create_rl_agent(agent_type, 1, 3, config, seed=0)


@each_masked_agent
def test_an_agent_learns_where_only_the_reset_tells_a_mask(agent_type):
    agent = corridor_agent(agent_type).train(Sometimes("reset"), 40)
    assert agent.num_updates > 0


@each_masked_agent
def test_an_agent_is_told_that_masks_must_come_from_the_reset_too(agent_type):
    with pytest.raises(ValueError, match="it must come from both"):
        corridor_agent(agent_type).train(Sometimes("step"), 40)


@pytest.mark.parametrize("masks_first", [False, True])
@each_masked_agent
def test_a_memory_made_without_masks_is_not_reused_with_them_nor_the_other_way(agent_type, masks_first):
    masked, unmasked = Corridor(), Sometimes("never")
    agent = corridor_agent(agent_type)
    for env in (masked, unmasked) if masks_first else (unmasked, masked):
        agent.train(env, 24)
        n_updates = agent.num_updates
        if agent_type == "dqn":
            assert (agent.replay.mask_dim, agent.replay.size) == (3 if env is masked else 0, 24)
        else:
            assert (agent.rollouts.tensors["mask"].shape[-1] == 3) is (env is masked)
    assert n_updates > 0
