"""A predictor's file loads wherever it is, and a device that is not there is refused before anything is fitted."""

import numpy as np
import pytest
import torch

from ml.tradingbots.components import (
    CNNPricePredictor,
    EnsemblePricePredictor,
    LSTMEnsemble,
    LSTMPricePredictor,
    RidgePredictor,
    load_predictor,
)
from ml.tradingbots.components.predictor_config import available_devices, can_use
from ml.tradingbots.data.synthetic import autoregressive

torch.set_num_threads(1)
PRICES = autoregressive(120, seed=1).prices
TINY = {"window_size": 3, "hidden_dim": 4, "max_epochs": 1, "batch_size": 64}
# More of them than any machine has.
ABSENT = "cuda:99"
EACH = {
    "lstm": lambda: LSTMPricePredictor(**TINY),
    "lstm_ensemble": lambda: LSTMEnsemble(2, **TINY),
    "ensemble": lambda: EnsemblePricePredictor([LSTMPricePredictor(**TINY), RidgePredictor()]),
}
each = pytest.mark.parametrize("name", EACH)


def elsewhere(predictor):
    """Say of a fitted predictor that it was fitted on a device that is not here."""
    for network in getattr(predictor, "members_", {"": predictor}).values():
        if isinstance(network, LSTMPricePredictor):
            object.__setattr__(network.config, "device", ABSENT)
    return predictor


def devices(predictor):
    networks = getattr(predictor, "members_", {"": predictor}).values()
    return {network.config.device for network in networks if isinstance(network, LSTMPricePredictor)}


@each
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_file_fitted_on_a_device_that_is_not_here_loads_on_the_processor(name, device, tmp_path):
    fitted = EACH[name]().fit(PRICES)
    said = fitted.predict(PRICES)
    path = elsewhere(fitted).save(tmp_path / "predictor.pt")
    for loaded in (load_predictor(path, device), type(fitted)().load(path, device=device)):
        assert devices(loaded) == {"cpu"}
        np.testing.assert_array_equal(loaded.predict(PRICES), said)


@each
def test_a_file_is_not_loaded_onto_a_device_that_is_not_here(name, tmp_path):
    fitted = EACH[name]().fit(PRICES)
    path = fitted.save(tmp_path / "predictor.pt")
    for load in (load_predictor, type(fitted)().load):
        with pytest.raises(ValueError, match=r"device must be one that can be used here, cpu.*got 'cuda:99'"):
            load(path, device=ABSENT)


@pytest.mark.parametrize("device", [ABSENT, "no device", "meta"])
@pytest.mark.parametrize("kind", [LSTMPricePredictor, CNNPricePredictor, LSTMEnsemble])
def test_fitting_on_a_device_that_cannot_be_used_is_refused(kind, device):
    with pytest.raises(ValueError, match=rf"device must be one that can be used here, cpu.*got '{device}'; use device"):
        kind(window_size=3, device=device).fit(PRICES)


def test_every_available_device_can_be_used():
    assert available_devices()[0] == "cpu"
    assert all(can_use(device) for device in available_devices())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_file_fitted_on_a_gpu_stays_there_unless_told_otherwise(tmp_path):
    fitted = LSTMPricePredictor(**TINY, device="cuda").fit(PRICES)
    path = fitted.save(tmp_path / "predictor.pt")
    assert devices(load_predictor(path)) == {"cuda"}
    on_processor = load_predictor(path, "cpu")
    assert devices(on_processor) == {"cpu"}
    np.testing.assert_allclose(on_processor.predict(PRICES), fitted.predict(PRICES), rtol=1e-3, atol=1e-6)
