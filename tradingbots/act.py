"""`tradingbots act`: what a trained agent wants to hold after the last bar, as JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tradingbots.console import Checkpoint, OptionalDate, OptionalJson, Prices, at_the_door, note, parse

if TYPE_CHECKING:
    from ml.tradingbots.training.live import LiveAccount


# Observations are float32; a share of equity beyond this is a slip of the hand.
LARGEST_FRACTION = 1e6


@dataclass(frozen=True, kw_only=True)
class Act:
    """Print the weights that a trained agent wants to hold after a bar, as JSON on stdout and nothing else.

    `target_weights` are signed shares of equity to trade to at the next open (null: no order), within the limits the agent
    was trained with; `action` is its raw answer before limits, and `account` the account it answered for. The numbers are
    those of the training environment at that bar, at full precision.

    The agent's answer depends on the account. By default that is the one it would hold now: it is replayed through the
    prices, flat at first. For a real account give --current-weights, and --unrealised-return and --drawdown as far as they
    are known: they count as 0 where they are not given.
    """

    checkpoint: Checkpoint
    """File of the agent: agent.pt, best.pt or checkpoints/last.pt of a run."""
    prices: Prices
    """A source of `tradingbots data`, a .csv, .csv.gz or .parquet file, or yfinance:AAPL,MSFT."""
    at: OptionalDate = None
    """Act at the last bar known at this date; None is the last bar."""
    start: OptionalDate = None
    """First date at which the replay decides; None is the first bar with a full window."""
    account: Literal["replay", "flat"] = "replay"
    """replay: the account the agent would hold by then. flat: one that holds nothing."""
    current_weights: OptionalJson = None
    """Signed shares of equity held, as JSON: '{"AAPL": 0.4}'; assets not named are not held. Replaces --account."""
    unrealised_return: OptionalJson = None
    """Return of each open position since its average entry price, a fraction, as JSON: '{"AAPL": 0.1}'."""
    drawdown: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Fall of the account from its highest close, a fraction (0.05 is 5%)."""
    orders_under_way: OptionalJson = None
    """Targets ordered and not yet filled, oldest first, as JSON: '[{"AAPL": 0.5}]'; for agents trained with a delay."""


def run(argv: list[str]) -> int:
    """Print one decision."""
    arguments: Act = parse(Act, "act", argv)

    from ml.tradingbots.training.live import target_weights
    from tradingbots.evaluate import load_agent
    from tradingbots.periods import load_bars

    with at_the_door():
        account = _account(arguments)
        agent = load_agent(arguments.checkpoint)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            decision = target_weights(
                agent, load_bars(arguments.prices), at=arguments.at, account=account, start=arguments.start
            )
    for warning in warned:
        note(str(warning.message))
    answer = decision.to_dict() | {"agent": agent.agent_type, "checkpoint": arguments.checkpoint}
    print(json.dumps(answer, indent=2, allow_nan=False))
    return 0


def _account(arguments: Act) -> LiveAccount | None:
    """Return the account that the arguments tell, None for a replay."""
    from ml.tradingbots.training.live import LiveAccount

    details = {
        "--unrealised-return": arguments.unrealised_return,
        "--drawdown": arguments.drawdown,
        "--orders-under-way": arguments.orders_under_way,
    }
    given = [flag for flag, value in details.items() if value is not None]
    if arguments.current_weights is None and arguments.account == "replay":
        if given:
            raise ValueError(f"{given[0]} belongs to an account that is told: give --current-weights or --account flat")
        return None
    if arguments.current_weights is not None and arguments.account == "flat":
        raise ValueError("--account flat holds nothing: leave it out, or leave out --current-weights")
    orders = _from_json("--orders-under-way", arguments.orders_under_way or "[]", '[{"AAPL": 0.5}]')
    if not isinstance(orders, list) or not all(isinstance(order, dict) for order in orders):
        raise ValueError(f"--orders-under-way must be a JSON list such as '[{{\"AAPL\": 0.5}}]', got {orders!r}")
    for order in orders:
        _check_shares("--orders-under-way", order)
    return LiveAccount(
        weights=_by_asset("--current-weights", arguments.current_weights),
        unrealised_return=_by_asset("--unrealised-return", arguments.unrealised_return),
        drawdown=arguments.drawdown or 0.0,
        orders_under_way=tuple(orders),
    )


def _by_asset(flag: str, text: str | None) -> Mapping[str, float]:
    values = _from_json(flag, text or "{}", '{"AAPL": 0.4}')
    if not isinstance(values, dict):
        raise ValueError(f"{flag} must be a JSON object such as '{{\"AAPL\": 0.4}}', got {text!r}")
    _check_shares(flag, values)
    return values


def _check_shares(flag: str, values: Mapping[str, Any]) -> None:
    """Refuse numbers that no share of equity or return can be; what else they must be is checked with the account."""
    for asset, value in values.items():
        if isinstance(value, float) and not abs(value) <= LARGEST_FRACTION:
            raise ValueError(
                f"{flag} of {asset!r} must be a fraction between -{LARGEST_FRACTION:,.0f} and {LARGEST_FRACTION:,.0f} "
                f"(0.4 is 40%), got {value:g}"
            )


def _from_json(flag: str, text: str, example: str) -> Any:
    try:
        return json.loads(text, parse_int=float)  # Integers have no largest value; floats become inf, and are refused.
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} must be JSON such as '{example}', got {text!r} ({error})") from error
