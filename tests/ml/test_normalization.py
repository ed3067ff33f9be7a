"""Statistics of a stream are those of the whole, and what networks see follows from them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ml.tradingbots.components.normalization import CLIP, ObservationNormalizer, RunningMeanStd

CPU = torch.device("cpu")


@st.composite
def samples_and_cuts(draw):
    n = draw(st.integers(1, 40))
    samples = draw(arrays(np.float64, (n, 3), elements=st.floats(-1e6, 1e6, width=32)))
    cuts = draw(st.lists(st.integers(0, n), max_size=6))
    return samples, sorted(cuts)


@settings(deadline=None, max_examples=150)
@given(samples_and_cuts())
def test_any_split_into_batches_gives_the_statistics_of_the_whole(samples_and_cuts):
    samples, cuts = samples_and_cuts
    statistics = RunningMeanStd((3,))
    for batch in np.split(samples, cuts):
        statistics.update(torch.from_numpy(batch))
    assert statistics.count == len(samples)
    scale = max(np.abs(samples).max(), 1.0)
    # Both sides round in float64; errors are relative to the largest sample and to its square.
    np.testing.assert_allclose(statistics.mean, samples.mean(0), atol=1e-13 * scale)
    np.testing.assert_allclose(statistics.var, samples.var(0), atol=1e-12 * scale**2)


def test_statistics_survive_a_large_offset():
    # Squares minus squared mean would lose everything here; 1e-6 is float64 at 1e6 away from the mean.
    samples = 1e6 + torch.randn(1_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = RunningMeanStd((1,))
    for batch in samples.split(7):
        statistics.update(batch)
    assert statistics.var.item() == pytest.approx(samples.var(unbiased=False).item(), rel=1e-6)


def test_an_empty_batch_changes_nothing():
    statistics = RunningMeanStd((2,))
    statistics.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    statistics.update(torch.empty(0, 2))
    assert statistics.mean.tolist() == [2.0, 3.0]
    assert statistics.count == 2


def test_scalars_have_statistics_too():
    statistics = RunningMeanStd()
    statistics.update(torch.tensor([1.0, 3.0]))
    assert (statistics.mean.item(), statistics.var.item()) == (2.0, 1.0)


def test_a_constant_column_is_centred_and_not_divided():
    statistics = RunningMeanStd((2,))
    statistics.update(torch.tensor([[5.0, 0.0], [5.0, 2.0]]))
    assert statistics.normalize(torch.tensor([[5.5, 2.0]])).tolist() == [[0.5, 1.0]]


def test_normalised_values_are_clipped():
    statistics = RunningMeanStd((1,))
    statistics.update(torch.tensor([[-1.0], [1.0]]))
    assert statistics.normalize(torch.tensor([[1e9], [-1e9]])).tolist() == [[CLIP], [-CLIP]]


def test_an_agent_begins_by_seeing_raw_observations():
    observations = torch.tensor([[1e9, -3.0]])
    assert torch.equal(ObservationNormalizer(2, CPU)(observations), observations)


def test_fixed_statistics_scale_what_is_seen():
    normalizer = ObservationNormalizer(2, CPU)
    normalizer.fix(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5]))
    # Powers of two: exact in float32.
    assert normalizer(torch.tensor([[3.0, 3.0]])).tolist() == [[1.0, 2.0]]


def test_fixed_statistics_do_not_follow_the_stream():
    normalizer = ObservationNormalizer(1, CPU)
    normalizer.fix(torch.tensor([0.0]), torch.tensor([1.0]))
    normalizer.update(torch.full((100, 1), 50.0))
    assert normalizer(torch.tensor([[3.0]])).item() == 3.0


def test_running_statistics_follow_the_stream():
    normalizer = ObservationNormalizer(1, CPU)
    normalizer.run()
    normalizer.update(torch.tensor([[2.0], [6.0]]))
    assert normalizer(torch.tensor([[6.0]])).item() == 1.0


def test_seeing_does_not_change_running_statistics():
    normalizer = ObservationNormalizer(1, CPU)
    normalizer.run()
    normalizer.update(torch.tensor([[2.0], [6.0]]))
    normalizer(torch.full((10, 1), 1e6))
    assert normalizer.statistics.count == 2


def test_without_a_mode_the_stream_is_ignored():
    normalizer = ObservationNormalizer(1, CPU)
    normalizer.update(torch.tensor([[2.0], [6.0]]))
    assert normalizer.statistics.count == 0


def test_a_constant_entry_is_centred_only_in_what_an_agent_sees():
    normalizer = ObservationNormalizer(1, CPU)
    normalizer.fix(torch.tensor([5.0]), torch.tensor([0.0]))
    assert normalizer(torch.tensor([[5.5]])).item() == 0.5


def test_what_an_agent_sees_is_clipped():
    normalizer = ObservationNormalizer(1, CPU)
    normalizer.fix(torch.tensor([0.0]), torch.tensor([1.0]))
    assert normalizer(torch.tensor([[1e6], [-1e6]])).tolist() == [[CLIP], [-CLIP]]


@pytest.mark.parametrize("mode", ["off", "fixed", "running"])
def test_a_saved_normaliser_sees_the_same(mode):
    normalizer = ObservationNormalizer(3, CPU)
    generator = torch.Generator().manual_seed(0)
    if mode == "fixed":
        normalizer.fix(torch.rand(3, generator=generator), torch.rand(3, generator=generator))
    elif mode == "running":
        normalizer.run()
        normalizer.update(torch.randn(50, 3, generator=generator))
    restored = ObservationNormalizer(3, CPU)
    restored.load_state_dict(normalizer.state_dict())
    observations = torch.randn(20, 3, generator=generator)
    assert torch.equal(restored(observations), normalizer(observations))


def test_a_restored_normaliser_goes_on_following_by_itself():
    normalizer = ObservationNormalizer(1, CPU)
    normalizer.run()
    normalizer.update(torch.tensor([[2.0], [6.0]]))
    restored = ObservationNormalizer(1, CPU)
    restored.load_state_dict(normalizer.state_dict())
    restored.update(torch.tensor([[100.0]]))
    assert restored.statistics.count == 3
    assert normalizer.statistics.mean.item() == 4.0
