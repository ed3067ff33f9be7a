"""`tradingbots evaluate`: a trained agent on prices, beside baselines that pay the same costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from tradingbots.console import (
    Checkpoint,
    OptionalDate,
    OptionalPath,
    Prices,
    at_the_door,
    note,
    parse,
    show_result,
)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judge a trained agent on prices, beside buy-and-hold, flat and momentum, all after costs.

    The environment's settings (window, features, costs, limits) are those saved with the agent.
    """

    checkpoint: Checkpoint
    """File of the agent: agent.pt, best.pt or checkpoints/last.pt of a run."""
    prices: Prices
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    start: OptionalDate = None
    """First date to judge; the bars before it only fill windows. None judges from the first full window on."""
    end: OptionalDate = None
    """First date not to judge any more; None is the end of the data."""
    report: OptionalPath = None
    """HTML file to write the report to."""
    sample: Literal["auto", "in", "out"] = "auto"
    """What the verdict calls these prices. auto: out of sample if all of them come after what the run has seen, in sample
    otherwise or where that is not known."""


def run(argv: list[str]) -> int:
    """Evaluate, print, report."""
    arguments: Evaluate = parse(Evaluate, "evaluate", argv)

    from ml.tradingbots.components.agent_regimes import with_regimes_of
    from ml.tradingbots.training import evaluate_agent, write_report
    from ml.tradingbots.training.live import environment_for, trained_config
    from tradingbots.periods import load_bars, with_context
    from tradingbots.run_folder import read_seen_until
    from tradingbots.train import costs_in_words, show_next

    with at_the_door():
        agent = load_agent(arguments.checkpoint)
        # Before the bars are cut: what a detector says of one depends on those before it.
        bars = with_regimes_of(agent, load_bars(arguments.prices))
        # Checked on all prices first: a wrong table must not be reported as a wrong date.
        config = environment_for(agent, bars).config
        env = environment_for(agent, with_context(bars, config, arguments.start, arguments.end))
        seen_until = read_seen_until(agent.environment_spec.get("seen_until"), arguments.checkpoint)
    if agent.environment_spec.get("has_open") and not bars.has_open:
        note("the agent was trained with opens and these prices have none: orders are filled at the last close")
    market = env.market
    first = market.bars.timestamps[market.first_bar]
    result = evaluate_agent(agent, env, name=agent.agent_type, sample=_sample(arguments, seen_until, first))
    show_result(result)
    report = None
    if arguments.report is not None:
        report = write_report(
            arguments.report,
            result,
            title=f"{agent.agent_type.upper()} on {Path(arguments.prices).name}",
            facts={
                "Prices": arguments.prices,
                "Costs": costs_in_words(trained_config(agent)),
                "Agent": arguments.checkpoint,
            },
        )
    show_next(report, Path(arguments.checkpoint), arguments.prices, start=arguments.start)
    return 0


def load_agent(checkpoint: str) -> Any:
    """Load an agent from a file; a folder is answered with the files that were probably meant.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file cannot be used.
    """
    from ml.tradingbots.components import load_rl_agent

    path = Path(checkpoint)
    if path.is_dir():
        found = [str(path / name) for name in ("agent.pt", "best.pt") if (path / name).is_file()]
        hint = f" Did you mean {' or '.join(found)}?" if found else ""
        raise FileNotFoundError(f"{checkpoint} is a folder, and the file of an agent is required.{hint}")
    return load_rl_agent(path)


def _sample(
    arguments: Evaluate, seen_until: pd.Timestamp | None, first: pd.Timestamp
) -> Literal["out of sample", "in sample"]:
    """Say whether the agent had never seen the prices from `first` on."""
    if arguments.sample != "auto":
        return "out of sample" if arguments.sample == "out" else "in sample"
    if seen_until is None:
        note("the file does not say which prices the agent has seen, so these count as in sample (see --sample)")
        return "in sample"
    if first > seen_until:
        return "out of sample"
    note(
        f"the agent has seen prices until {seen_until.isoformat()}, so these count as in sample (see --start and --sample)"
    )
    return "in sample"
