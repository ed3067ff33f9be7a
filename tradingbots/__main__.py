"""`tradingbots VERB`, also as `python -m tradingbots VERB`.

Each verb is a module with `run(argv) -> int`, imported only when it is asked for: help is there at once, and a price table
is described without loading torch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from importlib.metadata import version

from tradingbots.console import UsageError, guarded

VERBS = {
    "train": "Train an agent on the past and judge it on what came after",
    "evaluate": "Judge a trained agent on prices, beside buy-and-hold",
    "act": "Print the weights that a trained agent wants to hold, as JSON",
    "fit": "Fit a predictor of returns on the past and judge it on what came after",
    "forecast": "Print what a fitted predictor expects, and how sure it is",
    "portfolio": "Manage portfolios over past prices, beside equal weights and other simple ones",
    "walk-forward": "Fit predictors, or agents, again and again on the past, and judge them on what follows",
    "regimes": "Tell bull from bear and calm from wild markets, bar by bar, without looking ahead",
    "transfer": "Carry what an agent learned in some markets to another one, beside learning there from scratch",
    "multitask": "Train one agent on several assets, or for several rewards, and judge it task by task",
    "data": "List the price sources, or check and describe one",
    "demo": "Train SAC on the S&P 500 and judge it on 2013-2018",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments after the program's name; None takes those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the user can mend (one line on stderr), 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    return guarded(lambda: _dispatch([argument for argument in arguments if argument != "--debug"]), debug=debug)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    verb, *rest = arguments
    if verb == "--version":
        print(f"tradingbots {version('tradingbots')}")
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb.lower(), [*VERBS, "--help", "--version", "--debug"], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        kind = "option" if verb.startswith("-") else "verb"
        raise UsageError(f"unknown {kind} {verb!r}.{hint} Verbs: {', '.join(VERBS)} (see tradingbots --help)")
    code: int = importlib.import_module(f"tradingbots.{verb.replace('-', '_')}").run(rest)
    return code


def _help() -> str:
    lines = [f"  {verb:<14}{description}" for verb, description in VERBS.items()]
    return "\n".join(
        [
            "usage: tradingbots VERB [OPTIONS]",
            "",
            "Machine learning for trading that can be trusted.",
            "",
            "verbs:",
            *lines,
            "",
            "options:",
            "  --help    Show this, or after a verb its options",
            "  --version Print the version",
            "  --debug   Show the traceback of an error (or set TRADINGBOTS_DEBUG=1)",
            "",
            "Start with `tradingbots demo`.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
