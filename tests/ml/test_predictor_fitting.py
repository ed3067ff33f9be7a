import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ml.tradingbots.components.cnn_predictor import CNNConfig, CNNPricePredictor
from ml.tradingbots.components.lstm_predictor import LSTMConfig, LSTMPricePredictor
from ml.tradingbots.components.predictor_fitting import DEVICE_AT_ONCE, LEAST_AT_ONCE, Fitting, windows_at_once
from ml.tradingbots.components.transformer_predictor import (
    SHORT,
    TransformerConfig,
    TransformerPricePredictor,
    attend,
    attention_weights,
)
from ml.tradingbots.data.synthetic import autoregressive

CLASSES = (LSTMPricePredictor, TransformerPricePredictor, CNNPricePredictor)


def gradients(kind, head, pass_size):
    predictor = kind(window_size=20, head=head, horizons=(1, 3), seed=1)
    table = predictor._table(autoregressive(400, volatility=0.01, seed=2).prices)
    origins = table.origins(None, labelled=True)
    predictor.assets_ = table.bars.assets
    predictor._learn_scales(table, origins)
    fitting: Fitting = predictor._new_fitting(table)
    fitting.pass_size = pass_size
    samples = predictor._samples(table, origins)
    loss = fitting._backward(samples, torch.arange(100))
    return float(loss), torch.cat([parameter.grad.ravel() for parameter in fitting.parameters])


@pytest.mark.parametrize("head", ["gaussian", "quantile"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_batch_in_several_passes_has_the_gradient_of_the_whole_batch(kind, head):
    whole_loss, whole = gradients(kind, head, 1_000)
    # 100 windows are four passes of 25 if 30 may pass at once, and 34, 33 and 33 if 45 may.
    for pass_size in (30, 45):
        loss, found = gradients(kind, head, pass_size)
        assert loss == pytest.approx(whole_loss, rel=1e-5)  # float32 sums in another order
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-5)


def test_fewer_windows_pass_at_once_the_more_is_made_of_them():
    small, wide = LSTMConfig(window_size=60), LSTMConfig(window_size=60, hidden_dim=128)
    assert windows_at_once(small) == 4 * windows_at_once(wide) + 1  # Rounded down from 273.07 and 68.3.
    assert windows_at_once(LSTMConfig(window_size=5_000, hidden_dim=512)) == LEAST_AT_ONCE
    assert windows_at_once(LSTMConfig(window_size=60, device="cuda")) == DEVICE_AT_ONCE
    for config in (small, TransformerConfig(window_size=60), CNNConfig(window_size=60)):
        assert windows_at_once(config) >= config.batch_size  # What is usual needs one pass.


@pytest.mark.parametrize("n_tokens", [1, 5, 15, 16, 17, SHORT, SHORT + 1])
@pytest.mark.parametrize("last_only", [False, True])
def test_attention_is_that_of_pytorch_however_many_tokens(n_tokens, last_only):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, n_tokens, 8, generator=generator)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True)
    if last_only:
        query, expected = query[:, :, -1:], expected[:, :, -1:]
    torch.testing.assert_close(attend(query, key, value, 0.0), expected, rtol=1e-4, atol=1e-6)


def test_attention_weights_are_nothing_for_tokens_that_are_not_there():
    weights = attention_weights(*torch.randn(2, 3, 4, 5, 8, generator=torch.Generator().manual_seed(0)))
    assert weights.shape == (3, 4, 5, 16)
    assert float(weights[..., 5:].abs().max()) == 0.0
    assert float(weights.triu(1).abs().max()) == 0.0


def test_the_last_token_alone_says_what_it_says_among_all():
    predictor = TransformerPricePredictor(window_size=30, n_layers=2)
    network: nn.Module = predictor._new_network(1, 2)
    block = network.blocks[-1]
    x = torch.randn(6, 8, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x, last_only=True), block(x)[:, -1:], rtol=1e-5, atol=1e-6)
