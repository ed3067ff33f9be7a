"""How an agent fares when it is trained again and again on the past and lives what follows, over several seeds.

A single run of reinforcement learning says little: runs differ by their seed alone. So every fold is trained several times,
and what is reported of the runs is their interquartile mean with a stratified bootstrap interval (Agarwal et al., 2021).
That interval is about seeds; whether the market was kind is another question, which `excess_interval` is about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ml.tradingbots.components.agent_spaces import check_fits
from ml.tradingbots.components.env_config import TradingEnvConfig
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.rl_environment import TradingEnvironment
from ml.tradingbots.core import metrics
from ml.tradingbots.core.bootstrap import BootstrapInterval, block_bootstrap_interval
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.training.evaluation import act, run_baselines, run_strategy
from ml.tradingbots.training.formatting import format_change, format_interval, format_number, format_percent
from ml.tradingbots.training.resampling_settings import check_resampling
from ml.tradingbots.training.results import BUY_AND_HOLD, NO_INTERVAL, Interval
from ml.tradingbots.training.rl_training import RLTrainingConfig, train_rl_agent
from ml.tradingbots.training.trajectory import FloatArray

IntArray: TypeAlias = npt.NDArray[np.int64]
Paths: TypeAlias = dict[int | str, FloatArray]
AgentFactory: TypeAlias = Callable[[TradingEnvironment, int], Any]

MEASURES = ("sharpe_ratio", "total_return", "max_drawdown")
_FORMATS = {"sharpe_ratio": format_number, "total_return": format_change, "max_drawdown": format_percent}


@dataclass(frozen=True, kw_only=True)
class AgentFoldReport:
    """One agent trained and evaluated in one fold."""

    fold: int
    """Counted from 0."""
    n_folds: int
    seed: int
    sharpe_ratio: float
    """Annualised, on the test bars."""
    total_return: float
    """On the test bars, a fraction."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AgentValidation:
    """What agents lived out of sample, fold by fold and seed by seed.

    Figures, after costs: `sharpe_ratio` (annualised, 0 for an account that never traded), `total_return` and `max_drawdown`
    (fractions, the latter positive).
    """

    runs: pd.DataFrame
    """The figures of every run; rows (fold, seed)."""
    per_fold: pd.DataFrame
    """One row per fold: its bars and dates; of each figure the interquartile mean over seeds, `_low` and `_high` of its
    interval, and `buy_and_hold_` beside it."""
    summary: pd.DataFrame
    """One row per figure: `agent`, the interquartile mean over the runs of all folds, with `low` and `high`; `buy_and_hold`,
    that of its folds; `stitched` and `stitched_buy_and_hold`, of the whole path (for the agent the interquartile mean over
    seeds)."""
    equity: pd.DataFrame
    """Account value out of sample, folds end to end, 1 at the close before the first test bar; columns one per seed and
    `buy_and_hold`."""
    excess: float
    """Mean log return of the agent (mean over seeds) less that of buy-and-hold, a fraction per year."""
    excess_interval: Interval
    """Interval of `excess` by the stationary bootstrap over bars: what another stretch of market might have brought."""
    confidence: float
    """Of the intervals, in (0, 1)."""

    def to_frame(self) -> pd.DataFrame:
        """Return the table of folds."""
        return self.per_fold.copy()

    def formatted_table(self) -> pd.DataFrame:
        """Return the table of folds as text for people, with a last row over all of them."""
        rows = {}
        for fold, row in self.per_fold.iterrows():
            label = f"{row['test_start']:%Y-%m-%d} to {row['test_end']:%Y-%m-%d}"
            rows[f"{fold}: {label}"] = _as_text(
                {name: row[name] for name in MEASURES},
                {name: (row[f"{name}_low"], row[f"{name}_high"]) for name in MEASURES},
                {name: row[f"{BUY_AND_HOLD}_{name}"] for name in MEASURES},
            )
        found = self.summary
        rows["all folds"] = _as_text(
            found["agent"].to_dict(),
            dict(zip(found.index, zip(found["low"], found["high"], strict=True), strict=True)),
            found[BUY_AND_HOLD].to_dict(),
        )
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def n_seeds(self) -> int:
        """Runs per fold."""
        return self.equity.shape[1] - 1

    def verdict(self) -> str:
        """Say plainly whether the agent beat buy-and-hold out of sample, and whether that can be told apart from luck."""
        total = self.summary.loc["total_return"].to_dict()
        own, held = float(total["stitched"]), float(total[f"stitched_{BUY_AND_HOLD}"])
        whose = "one seed" if self.n_seeds == 1 else f"interquartile mean of {self.n_seeds} seeds"
        outcome = (
            f"Out of sample, the agent {'beat' if own > held else 'did not beat'} buy-and-hold: {format_change(own)} against "
            f"{format_change(held)} end to end, after costs ({whose})."
        )
        if np.isnan(self.excess_interval).any():
            return f"{outcome} Whether the difference can be told apart from luck was not estimated."
        sure = self.excess_interval[0] > 0.0 or self.excess_interval[1] < 0.0
        return (
            f"{outcome} The difference is {'' if sure else 'not '}distinguishable from zero: {format_change(self.excess)} a "
            f"year in log return, {self.confidence:.0%} interval {format_interval(self.excess_interval, format_change)}."
        )

    def __repr__(self) -> str:
        """The table of folds and what can be concluded."""
        return (
            f"Out of sample: {len(self.per_fold)} folds, {self.n_seeds} seeds; interquartile means over seeds with "
            f"{self.confidence:.0%} intervals of the seeds\n{self.formatted_table().to_string()}\n{self.verdict()}"
        )


def walk_forward_agents(
    agent_factory: AgentFactory,
    price_data: pd.DataFrame | Bars,
    env_config: TradingEnvConfig,
    training_config: RLTrainingConfig,
    splitter: Any,
    *,
    n_seeds: int = 3,
    confidence: float = 0.95,
    n_bootstrap: int = 1_000,
    seed: int = 0,
    report: Callable[[AgentFoldReport], None] | None = None,
    resume: bool = False,
) -> AgentValidation:
    """Train agents on the past of each fold, and let them live its test bars.

    Training sees the training rows of the fold and nothing else, its normaliser included. The test runs once over the test
    bars, flat at the close before the first of them, which is where the first decision is made; rows before it are context,
    so that windows are full. Every return of a test bar is thus earned once. Each fold starts flat and pays to open; what is
    held at its end is valued at the last close. Buy-and-hold keeps the same terms. Rewards lie inside the training rows, so
    no purge is needed; an embargo stands for the time that training takes.

    Ctrl-C ends the run under way after its step, as in `train_rl_agent`, and raises KeyboardInterrupt: a half-trained agent is
    never evaluated. With a `run_dir` the same call with `resume=True` goes on, on a CPU to the same tables.

    Args:
        agent_factory: `agent_factory(env, seed)` makes an untrained agent for a market environment.
        price_data: what `Bars.from_frame` accepts.
        env_config: of the environments, costs included. `episode_length` and `random_start` concern training alone.
        training_config: of each run; its `seed` is where seeds count from, and with a `run_dir` each run has a folder in it,
            fold_F_seed_S.
        splitter: folds that train on one stretch of bars and test on one stretch after it, such as `WalkForwardValidator`.
        n_seeds: runs per fold, at least 1.
        confidence: of the intervals, in (0, 1).
        n_bootstrap: resamples of the intervals; 0 skips them.
        seed: of the resampling.
        report: called after each run, those that were finished before a resumption included.
        resume: go on with what is in `run_dir`, all else being the same: a run with a checkpoints/last.pt is trained from there
            (not at all where it was finished) and evaluated, others start fresh. False removes such files of these runs first.

    Returns:
        Tables, and the account values end to end.

    Raises:
        ValueError: a setting is out of its range, folds are not as above, there are too few bars before a test for a full
            window, or there is nowhere to resume from.
        CheckpointError: a file to resume from belongs to another agent or market, or is damaged.
        KeyboardInterrupt: training was interrupted.
    """
    if resume and training_config.run_dir is None:
        raise ValueError(
            "resume=True needs training_config.run_dir, the folder of the walk-forward to go on with; got run_dir=None. "
            "Give the run_dir of the interrupted call, or leave resume out"
        )
    if n_seeds < 1:
        raise ValueError(f"n_seeds must be at least 1, got {n_seeds}")
    check_resampling(confidence=confidence, n_bootstrap=n_bootstrap, seed=seed)
    bars = Bars.from_frame(price_data)
    folds = [(np.asarray(train), np.asarray(test)) for train, test in splitter.split(bars.to_frame())]
    _check_folds(folds)
    context = Market(bars, env_config).first_bar
    seeds = [training_config.seed + number for number in range(n_seeds)]
    # All of them now: what can be refused is refused before hours of training.
    test_envs = [_test_environment(bars, env_config, test, context) for _, test in folds]
    train_envs = [TradingEnvironment(bars.slice(train[0], train[-1] + 1), env_config) for train, _ in folds]
    if not resume:
        # What another walk-forward left here must not be taken for a part of this one, should it be interrupted.
        for config in (
            _config_of(training_config, number, run_seed) for number in range(len(folds)) for run_seed in seeds
        ):
            if config.run_dir is not None:
                _checkpoint(config.run_dir).unlink(missing_ok=True)
    runs: list[_Run] = []
    for number, (train_env, test_env) in enumerate(zip(train_envs, test_envs, strict=True)):
        hold = run_baselines(test_env)[BUY_AND_HOLD].strategy_returns
        runs.append(_Run(number, BUY_AND_HOLD, hold, bars.bars_per_year))
        for run_seed in seeds:
            config = _config_of(training_config, number, run_seed)
            earned = _trained(agent_factory, train_env, test_env, config, resume=resume)
            run = _Run(number, run_seed, earned, bars.bars_per_year)
            runs.append(run)
            if report is not None:
                found = {name: run.figures[name] for name in ("sharpe_ratio", "total_return")}
                report(AgentFoldReport(fold=number, n_folds=len(folds), seed=run_seed, **found))
    return _Summary(bars, folds, runs, seeds, confidence, n_bootstrap, seed).verdict()


def interquartile_mean(scores: npt.ArrayLike) -> float:
    """Mean of the middle half of the scores: a quarter of them, rounded down, is cut from each end.

    Args:
        scores: of any shape; NaN entries make the result NaN.

    >>> interquartile_mean([0.0, 1.0, 3.0, 100.0])
    2.0
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    if np.isnan(ordered).any():  # They would be sorted to one end, and cut.
        return float("nan")
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def stratified_interval(scores: FloatArray, *, confidence: float, n_bootstrap: int, seed: int) -> Interval:
    """Percentile interval of the interquartile mean, runs drawn anew within each fold (Agarwal et al., 2021).

    Args:
        scores: (n_seeds, n_folds).
        confidence: in (0, 1).
        n_bootstrap: resamples; 0 estimates nothing.
        seed: of the resampling.

    Returns:
        Its ends; NaN with fewer than two seeds. Three seeds have 27 resamples a fold: such an interval is rough and narrow.
    """
    n_seeds, n_folds = scores.shape
    if n_bootstrap == 0 or n_seeds < 2 or not np.isfinite(scores).all():
        return NO_INTERVAL
    drawn = np.random.default_rng(seed).integers(n_seeds, size=(n_bootstrap, n_seeds, n_folds))
    means = [interquartile_mean(np.take_along_axis(scores, rows, axis=0)) for rows in drawn]
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def _check_folds(folds: Sequence[tuple[IntArray, IntArray]]) -> None:
    last = -1
    for number, (train, test) in enumerate(folds):
        for name, bars in (("training", train), ("test", test)):
            if not len(bars) or (np.diff(bars) != 1).any():
                raise ValueError(
                    f"the {name} bars of fold {number} are not one stretch of bars, and an episode cannot jump over a gap; "
                    "use WalkForwardValidator"
                )
        if train[-1] >= test[0]:
            raise ValueError(f"fold {number} trains on bars after its test; use WalkForwardValidator")
        if test[0] <= last:
            raise ValueError(
                f"fold {number} tests bar {test[0]}, which a fold before tested too: end to end it would count twice. Use a "
                "step not below test_size"
            )
        last = int(test[-1])


def _test_environment(bars: Bars, config: TradingEnvConfig, test: IntArray, context: int) -> TradingEnvironment:
    """Return the environment of the test bars, whose first legal decision is at the close before them."""
    decision, stop = int(test[0]) - 1, int(test[-1]) + 1
    if decision < context:
        raise ValueError(
            f"the first test begins at bar {test[0]}, and the first full window ends at bar {context}: at least {context + 1} "
            "bars must come before it. Use a larger train_size or a smaller window_size"
        )
    start = decision - context
    whole = dataclasses.replace(config, random_start=False, episode_length=None)
    env = TradingEnvironment(bars.slice(start, stop), whole)
    # Columns of the user's own may be undefined at the start of the whole table only: fewer rows of context are then enough.
    while spare := decision - start - env.market.first_bar:
        start += spare
        env = TradingEnvironment(bars.slice(start, stop), whole)
    return env


def _config_of(config: RLTrainingConfig, fold: int, seed: int) -> RLTrainingConfig:
    run_dir = None if config.run_dir is None else str(Path(config.run_dir) / f"fold_{fold}_seed_{seed}")
    return dataclasses.replace(config, seed=seed, run_dir=run_dir)


def _checkpoint(run_dir: str) -> Path:
    """Where `train_rl_agent` keeps what a run is resumed from."""
    return Path(run_dir) / "checkpoints" / "last.pt"


def _trained(
    factory: AgentFactory,
    train_env: TradingEnvironment,
    test_env: TradingEnvironment,
    config: RLTrainingConfig,
    *,
    resume: bool,
) -> FloatArray:
    """Return what an agent, fresh or taken up where its training was cut, earns on the test bars, bar by bar."""
    agent = factory(train_env, config.seed)
    saved = _checkpoint(config.run_dir) if resume and config.run_dir is not None else None
    train_rl_agent(agent, train_env, config, resume_from=saved if saved is not None and saved.is_file() else None)
    check_fits(test_env.action_space, agent)
    trajectory = run_strategy(test_env, lambda seen, _bar: act(agent, seen, test_env.action_mask()), name="agent")
    return trajectory.strategy_returns


@dataclass(frozen=True)
class _Run:
    """What one account earned on the test bars of one fold."""

    fold: int
    strategy: int | str
    """The seed of an agent, or the name of the baseline."""
    returns: FloatArray
    """Simple, one per test bar."""
    bars_per_year: float

    @property
    def figures(self) -> dict[str, float]:
        return _figures(self.returns, self.bars_per_year)


def _figures(strategy_returns: FloatArray, bars_per_year: float) -> dict[str, float]:
    # An account that never traded counts as 0, or one cautious run would leave all of them without a mean.
    idle = not strategy_returns.any()
    return {
        "sharpe_ratio": 0.0 if idle else metrics.sharpe_ratio(strategy_returns, bars_per_year=bars_per_year),
        "total_return": metrics.total_return(strategy_returns),
        "max_drawdown": metrics.max_drawdown(strategy_returns),
    }


@dataclass(frozen=True)
class _Summary:
    """All runs, and how they are to be summed up."""

    bars: Bars
    folds: list[tuple[IntArray, IntArray]]
    runs: list[_Run]
    seeds: list[int]
    confidence: float
    n_bootstrap: int
    seed: int

    def verdict(self) -> AgentValidation:
        """Sum up."""
        strategies: list[int | str] = [*self.seeds, BUY_AND_HOLD]
        paths = {name: self._path(name) for name in strategies}
        excess = self._excess(paths)
        return AgentValidation(
            runs=self._run_table(),
            per_fold=self._fold_table(),
            summary=self._summary(paths),
            equity=self._equity(paths),
            excess=excess.estimate,
            excess_interval=(excess.low, excess.high),
            confidence=self.confidence,
        )

    def _scores(self, measure: str) -> FloatArray:
        """One measure of every run; (n_seeds, n_folds)."""
        of_seeds = [[run.figures[measure] for run in self.runs if run.strategy == seed] for seed in self.seeds]
        return np.array(of_seeds)

    def _held(self, measure: str) -> list[float]:
        return [run.figures[measure] for run in self.runs if run.strategy == BUY_AND_HOLD]

    def _path(self, strategy: int | str) -> FloatArray:
        return np.concatenate([run.returns for run in self.runs if run.strategy == strategy])

    def _interval(self, scores: FloatArray) -> Interval:
        return stratified_interval(scores, confidence=self.confidence, n_bootstrap=self.n_bootstrap, seed=self.seed)

    def _run_table(self) -> pd.DataFrame:
        trained = [run for run in self.runs if run.strategy != BUY_AND_HOLD]
        index = pd.MultiIndex.from_tuples([(run.fold, run.strategy) for run in trained], names=["fold", "seed"])
        return pd.DataFrame([run.figures for run in trained], index=index)

    def _fold_table(self) -> pd.DataFrame:
        times, rows = self.bars.timestamps, []
        scores = {name: self._scores(name) for name in MEASURES}
        held = {name: self._held(name) for name in MEASURES}
        for number, (train, test) in enumerate(self.folds):
            row: dict[str, Any] = {
                "n_train_bars": len(train),
                "n_test_bars": len(test),
                "train_start": times[train[0]],
                "train_end": times[train[-1]],
                "test_start": times[test[0]],
                "test_end": times[test[-1]],
            }
            for name in MEASURES:
                of_fold = scores[name][:, [number]]
                row[name] = interquartile_mean(of_fold)
                row[f"{name}_low"], row[f"{name}_high"] = self._interval(of_fold)
                row[f"{BUY_AND_HOLD}_{name}"] = held[name][number]
            rows.append(row)
        return pd.DataFrame(rows).rename_axis("fold")

    def _summary(self, paths: Paths) -> pd.DataFrame:
        whole = {name: _figures(path, self.bars.bars_per_year) for name, path in paths.items()}
        rows = {}
        for name in MEASURES:
            scores = self._scores(name)
            low, high = self._interval(scores)
            rows[name] = {
                "agent": interquartile_mean(scores),
                "low": low,
                "high": high,
                BUY_AND_HOLD: interquartile_mean(self._held(name)),
                "stitched": interquartile_mean([whole[seed][name] for seed in self.seeds]),
                f"stitched_{BUY_AND_HOLD}": whole[BUY_AND_HOLD][name],
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")

    def _equity(self, paths: Paths) -> pd.DataFrame:
        tested = np.concatenate([test for _, test in self.folds])
        times = self.bars.timestamps[np.concatenate([[tested[0] - 1], tested])]
        columns = {name: metrics.equity_from_returns(path, 1.0) for name, path in paths.items()}
        return pd.DataFrame(columns, index=times.rename("timestamp"))

    def _excess(self, paths: Paths) -> BootstrapInterval:
        # A ruined account stays comparable: a factor of 1e-12 is ruin in any currency.
        logs = {name: np.log(np.maximum(1.0 + path, 1e-12)) for name, path in paths.items()}
        difference = np.mean([logs[seed] for seed in self.seeds], axis=0) - logs[BUY_AND_HOLD]
        yearly = difference * self.bars.bars_per_year
        if self.n_bootstrap == 0 or len(yearly) < 2:
            nan = float("nan")
            return BootstrapInterval(estimate=float(yearly.mean()), low=nan, high=nan, block_length=nan)
        return block_bootstrap_interval(
            lambda batch: batch.mean(1),
            yearly,
            n_samples=self.n_bootstrap,
            confidence=self.confidence,
            seed=self.seed,
            vectorised=True,
        )


def _as_text(figures: dict[Any, float], intervals: dict[str, Interval], held: dict[Any, float]) -> dict[str, str]:
    row = {}
    for name in MEASURES:
        words = name.replace("_", " ").capitalize()
        form = _FORMATS[name]
        row[words] = f"{form(figures[name])} ({format_interval(intervals[name], form)})"
        row[f"{words} of buy-and-hold"] = form(held[name])
    return row
