"""Encoders see every row of the window, know their order, hand on the account, and act the same in every mode."""

import pytest
import torch
from torch import nn

from ml.tradingbots.components.encoders import WindowShape, make_encoder, window_shape
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.vector_environment import TradingVectorEnv

WINDOW_ENCODERS = ("cnn", "lstm", "transformer")
WINDOW = WindowShape(window_size=20, row_dim=3, account_dim=4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(network, window=WINDOW, hidden_dim=32, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make_encoder(network, window.state_dim, window, hidden_dim)


def observations(batch, window=WINDOW, seed=0):
    return torch.randn(batch, window.state_dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window_size", [1, 2, 5, 20, 60])
@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_any_window_becomes_hidden_dim_numbers_and_the_account(network, window_size):
    window = WindowShape(window_size, row_dim=2, account_dim=3)
    encoder = build(network, window, hidden_dim=16)
    encoded = encoder(observations(7, window))
    assert encoded.shape == (7, encoder.output_dim)
    assert encoder.output_dim == 16 + 3
    assert encoded.dtype == torch.float32


@pytest.mark.parametrize("hidden_dim", [1, 7, 64])
@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_any_width_can_be_asked_for(network, hidden_dim):
    assert build(network, hidden_dim=hidden_dim)(observations(2)).shape == (2, hidden_dim + 4)


@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_a_window_without_account_features_is_encoded_too(network):
    window = WindowShape(5, 2, 0)
    assert build(network, window)(observations(3, window)).shape == (3, 32)


def test_the_plain_network_gets_the_observation_itself_and_has_no_parameters():
    encoder, observation = make_encoder("mlp", 9, None, 32), torch.randn(4, 9)
    assert encoder(observation) is observation
    assert encoder.output_dim == 9
    assert not list(encoder.parameters())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("window_size", [1, 2, 5, 20, 60])
@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_every_number_of_the_observation_moves_the_output(network, window_size, seed):
    window = WindowShape(window_size, row_dim=3, account_dim=2)
    encoder = build(network, window, seed=seed)
    observation = observations(16, window, seed).requires_grad_()
    # Random weights on the outputs: a plain sum could cancel, and the sum of normalised numbers always does.
    weights = torch.randn(encoder.output_dim, generator=torch.Generator().manual_seed(seed))
    (encoder(observation) @ weights).sum().backward()
    assert torch.isfinite(observation.grad).all()
    # Far above rounding (1e-8), so that the first row of a long window is heard and not only computed.
    assert observation.grad.abs().amax(0).min().item() > 1e-5


@pytest.mark.parametrize("window_size", [2, 5, 20, 60])
@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_the_order_of_the_rows_matters(network, window_size):
    window = WindowShape(window_size, row_dim=2, account_dim=1)
    encoder, observation = build(network, window), observations(8, window)
    swapped = observation.clone()
    swapped[:, :2], swapped[:, 2:4] = observation[:, 2:4], observation[:, :2]  # The two oldest rows, heard least.
    with torch.inference_mode():
        difference = (encoder(observation) - encoder(swapped)).abs().amax(1)
    assert (difference > 1e-5).all()


@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_the_account_passes_through_untouched_and_leaves_the_window_alone(network):
    encoder, observation = build(network), observations(5)
    changed = observation.clone()
    changed[:, -4:] += 1.0
    before, after = encoder(observation), encoder(changed)
    assert torch.equal(before[:, -4:], observation[:, -4:])
    assert torch.equal(after[:, :-4], before[:, :-4])


@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_a_batch_is_encoded_like_its_rows_alone(network):
    encoder, observation = build(network), observations(33)
    with torch.inference_mode():
        together = encoder(observation)
        alone = torch.cat([encoder(row) for row in observation.split(1)])
    # Products of another shape may sum in another order: numbers of size 1 and float32 leave 1e-6.
    torch.testing.assert_close(together, alone, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_acting_sees_what_training_sees(network):
    encoder, observation = build(network), observations(33)
    trained_on = encoder.train()(observation)
    assert trained_on.requires_grad
    encoder.eval()
    with torch.inference_mode():
        acted_on = encoder(observation)
    # Where no gradient is asked for, torch may take other kernels, which differ by rounding.
    torch.testing.assert_close(acted_on, trained_on.detach(), rtol=0.0, atol=1e-5)
    assert torch.equal(encoder(observation), trained_on)


# torch leaves an LSTM out of its graphs, and looks for the gradient of what it returns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_compiling_changes_nothing_but_rounding(network):
    encoder, observation = build(network), observations(9)
    compiled = torch.compile(encoder, backend="aot_eager")  # Traced like any backend, without a minute of C++.
    expected, found = encoder(observation), compiled(observation)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    found.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_the_seed_alone_decides_the_first_weights(network):
    first, again, other = (build(network, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("row_dim", [1, 100])
@pytest.mark.parametrize("window_size", [1, 60])
@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_the_output_begins_on_the_scale_of_the_input_whatever_the_window(network, window_size, row_dim):
    window = WindowShape(window_size, row_dim, 1)
    encoded = build(network, window, hidden_dim=256)(observations(128, window))[:, :-1].detach()
    # An agent's own layers expect numbers of about 1, like the account beside them; an LSTM's states stay well below.
    assert 0.05 < encoded.square().mean().sqrt().item() < 2.0


@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_a_rise_from_the_first_rows_to_the_last_can_be_learned(network):
    window = WindowShape(12, 1, 1)
    encoder = build(network, window, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = nn.Sequential(encoder, nn.Linear(encoder.output_dim, 1))

    def rising(observation):
        return (observation[:, 9:12].mean(1) > observation[:, :3].mean(1)).float()

    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(120):
        observation = observations(64, window, seed=100 + step)
        loss = nn.functional.binary_cross_entropy_with_logits(model(observation).squeeze(1), rising(observation))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = observations(2000, window, seed=7)
    with torch.inference_mode():
        accuracy = ((model(unseen).squeeze(1) > 0.0).float() == rising(unseen)).float().mean().item()
    # A coin is right half of the time, with a standard deviation of 0.011 over 2,000 draws.
    assert accuracy > 0.8


@pytest.mark.parametrize("execution_delay", [0, 2])
@pytest.mark.parametrize("n_assets", [1, 3])
def test_the_window_of_a_market_is_read_from_its_specification(make_prices, n_assets, execution_delay):
    config = TradingEnvConfig(
        window_size=7, features=("log_return", "rsi:5"), use_extra_columns=True, execution_delay=execution_delay
    )
    market = Market(make_prices(80, n_assets, extra=True), config)
    window = window_shape(market.specification(config), market.observation_dim)
    assert window == WindowShape(7, 3 * n_assets, market.account_dim)
    assert window.window_size * window.row_dim == market.window_dim
    assert window.state_dim == market.observation_dim


def test_the_rows_of_an_observation_are_the_market_features_oldest_first(make_prices):
    config = TradingEnvConfig(window_size=4, features=("log_return", "rsi:5"), random_start=False)
    env = TradingVectorEnv(make_prices(80, 2), config, n_envs=2)
    observation, _ = env.reset(seed=0)
    window = window_shape(env.specification(), env.observation_space_dim)
    rows = observation[0, : window.window_size * window.row_dim].reshape(window.window_size, window.row_dim)
    first = env.market.first_bar
    assert torch.equal(rows, torch.as_tensor(env.market.features[first - 3 : first + 1]))


SPECIFICATION = {"config": {"window_size": 5, "execution_delay": 0}, "assets": ["A"], "features": ["log_return"]}


def changed(**entries):
    config = {name: entries.pop(name) for name in list(entries) if name in SPECIFICATION["config"]}
    return SPECIFICATION | {"config": SPECIFICATION["config"] | config} | entries


@pytest.mark.parametrize(
    "specification",
    [
        {},
        None,
        [],
        {"config": None},
        {"config": {}},
        changed(window_size=0),
        changed(window_size=True),
        changed(window_size=5.0),
        changed(window_size="5"),
        changed(window_size=10**5000),
        changed(window_size=-(10**5000)),
        changed(execution_delay=-1),
        changed(execution_delay=10**30),
        changed(assets=[]),
        changed(assets="A"),
        changed(assets=[1]),
        changed(features={"log_return": 1}),
        changed(features=None),
    ],
)
def test_a_specification_without_a_sound_window_is_refused_with_a_way_out(specification):
    with pytest.raises(ValueError, match="use network='mlp', or train in a TradingEnvironment"):
        window_shape(specification, 8)


@pytest.mark.parametrize(
    "specification", [changed(window_size=4), changed(assets=["A", "B"]), changed(execution_delay=1)]
)
def test_a_specification_that_does_not_add_up_is_refused(specification):
    assert window_shape(SPECIFICATION, 8) == WindowShape(5, 1, 3)
    with pytest.raises(ValueError, match="does not add up"):
        window_shape(specification, 8)


@pytest.mark.parametrize("sizes", [(0, 1, 0), (1, 0, 0), (1, 1, -1), (True, 1, 0), (1.0, 1, 0)])
def test_a_window_of_impossible_sizes_is_refused(sizes):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        WindowShape(*sizes)


def test_a_window_too_long_for_any_market_is_refused_before_networks_are_made():
    with pytest.raises(ValueError, match="at most 10000"):
        WindowShape(10_001, 1, 0)


@pytest.mark.parametrize("network", WINDOW_ENCODERS)
def test_an_encoder_without_a_window_is_refused_with_a_way_out(network):
    with pytest.raises(ValueError, match="use network='mlp'"):
        make_encoder(network, 64, None, 32)
    with pytest.raises(ValueError, match="describes 64 numbers, the observation has 65"):
        make_encoder(network, 65, WINDOW, 32)


def test_an_unknown_network_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'transformer'"):
        make_encoder("transfomer", 64, WINDOW, 32)


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="hidden_dim must be at least 1"):
        make_encoder("cnn", 64, WINDOW, 0)
