"""Writes `docs/reports/portfolio-agents.md` from what `portfolio_agents.py` kept.

python benchmarks/portfolio_agents_page.py            # the page, and runs/portfolio-agents/figure.html
python benchmarks/portfolio_agents_page.py --check    # says whether the page is what was kept

The picture in the page is a browser's screenshot of the figure, 1100 by 560 pixels.
"""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from string import Template
from typing import Any

from records import RESULTS, ROOT

PAGE, FIGURE = ROOT / "docs" / "reports" / "portfolio-agents.md", ROOT / "runs" / "portfolio-agents" / "figure.html"
COMMISSION = 0.001
AGENTS = ("ppo", "a2c", "sac", "td3", "ddpg")
# Property, heading, format, whether more is better; None where that depends.
FIGURES: tuple[tuple[str, str, str, bool | None], ...] = (
    ("annual_return", "net return a year", ".1%", True),
    ("sharpe_ratio", "Sharpe", ".2f", True),
    ("max_drawdown", "max drawdown", ".1%", False),
    ("annual_turnover", "turnover a year", ".1f", None),
    ("cost_share", "costs paid, of initial equity", ".1%", False),
)
TEMPLATE = Template("""\
# Can agents hold twenty stocks better than equal weights?

$verdict

Five agents, five seeds each, hold the twenty stocks of `sp500-stocks`: long only, gross exposure at most 1, a new target at
every close, filled at that close (the source has no opens), 10 basis points of commission on everything traded. They see four
numbers for each stock (`log_return`, `momentum:20`, `momentum:250`, `volatility:60`), scaled by statistics of the training
years, and their own account; they are paid the log return after costs. Training saw 1990 to 2014, and the test is 2015 to 2022.

```
python benchmarks/portfolio_agents.py --choose --resume    # settings, on 2012 to 2014
python benchmarks/portfolio_agents.py --resume
python benchmarks/portfolio_agents_page.py
```

## 2015 to 2022, after costs

Medians over five seeds, with the worst and the best seed. The portfolios in italics learn nothing: they are decided on the
first day of each month from the last 252 returns, in the same kind of account at the same commission, and buy-and-hold buys
equal weights once. For turnover the brackets are the smallest and the largest.

$scores

## Beside equal weights

The annual Sharpe ratio less that of equal weights. The interval is the 95% one of the stationary block bootstrap, in which an
agent's seeds and equal weights are resampled on the same days; a seed counts as different where its own interval leaves zero
out.

$gains

![What 1 became from 2015 to 2022: medians of the agents' seeds, and the baselines](portfolio-agents.png)

## How the settings were chosen

Discount and timesteps were chosen per agent by the Sharpe ratio of 2012 to 2014, trained on the years before with seed 100,
which is none of the five. Everything else was fixed beforehand. Equal weights bought once had $held there.

$choices

## Trained four times as long

The same agents after 200,000 timesteps in place of the chosen number, for whoever doubts that it is enough; 2015 to 2022 again,
with the Sharpe ratio less that of equal weights on the right.

$longer

## What follows

$findings
- **The twenty stocks are survivors, picked with hindsight**: all of them were large at the end. Being long in them looks better
  than it was, for agents and baselines alike, and no row of this page is evidence of skill. What it says is how they compare.
- One stretch of one market is one draw. The intervals say how little eight years know about a Sharpe ratio.
""")


def main() -> None:
    """Write the page, or check it."""
    text = page(_rows(), _content()["summary"])
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{PAGE.relative_to(ROOT)} differs from results: run benchmarks/portfolio_agents_page.py")
        return
    if sys.argv[1:]:
        raise SystemExit(__doc__)
    PAGE.write_text(text, encoding="utf-8")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    FIGURE.write_text(_figure_html(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and {FIGURE.relative_to(ROOT)}")


def page(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """Return the page of these rows."""
    runs, longer = (
        {agent: [row for row in rows if row["kind"] == kind and row["name"] == agent] for agent in AGENTS}
        for kind in ("agent", "longer")
    )
    missing = [agent for found in (runs, longer) for agent in AGENTS if len(found[agent]) != 5]
    if missing:
        raise SystemExit(f"results lack seeds of {', '.join(missing)}: run benchmarks/portfolio_agents.py --resume")
    baselines = {row["name"]: row for row in rows if row["kind"] == "baseline"}
    return TEMPLATE.substitute(
        verdict=_verdict(runs, summary["agent"], baselines),
        scores=_table(_score_rows(runs, baselines)),
        gains=_table(_gain_rows(runs, summary["agent"]) + _baseline_gain_rows(baselines)),
        longer=_table(_longer_rows(longer, summary["longer"])),
        choices=_table(_choice_rows([row for row in rows if row["kind"] == "choice"])),
        held=_number(next(row["sharpe_ratio"] for row in rows if row["kind"] == "choice baseline"), ".2f"),
        findings="\n".join(_findings(runs, baselines, [row for row in rows if row["kind"] == "choice"])),
    )


def _verdict(runs: dict[str, Any], summary: dict[str, Any], baselines: dict[str, Any]) -> str:
    better = [agent for agent in AGENTS if summary[agent]["sharpe_gain_low"] > 0.0]
    worse = [agent for agent in AGENTS if summary[agent]["sharpe_gain_high"] < 0.0]
    seeds = [row for found in runs.values() for row in found]
    ahead = sum(row["sharpe_gain"] > 0.0 for row in seeds)
    if better:
        said = f"**{_listed(better)} beat equal weights beyond chance** on these stocks and years."
    else:
        said = "**No agent beat equal weights beyond chance.**"
    said += (
        f" {ahead} of {len(seeds)} runs had a higher Sharpe ratio than equal weights after costs"
        f" ({_number(baselines['equal_weight']['sharpe_ratio'], '.2f')})"
    )
    said += f"; {_listed(worse) if worse else 'none of the agents'} did worse beyond chance."
    return textwrap.fill(said, 124)


def _score_rows(runs: dict[str, Any], baselines: dict[str, Any]) -> list[list[str]]:
    table = [["after costs", *(heading for _, heading, _, _ in FIGURES)]]
    for agent, found in runs.items():
        table.append(
            [agent.upper(), *(_spread([row[name] for row in found], form, good) for name, _, form, good in FIGURES)]
        )
    for name, row in baselines.items():
        table.append([f"*{name.replace('_', ' ')}*", *(_number(row[figure], form) for figure, _, form, _ in FIGURES)])
    return table


def _gain_rows(runs: dict[str, Any], summary: dict[str, Any]) -> list[list[str]]:
    heads = ["mean of the seeds (95% interval)", "seeds [worst, best]", "seeds above / below zero beyond chance"]
    table = [["Sharpe less equal weight's", *heads]]
    for agent, found in runs.items():
        gains = [row["sharpe_gain"] for row in found]
        above, below = (sum(test(row) for row in found) for test in (_is_above, _is_below))
        spread = f"[{_number(min(gains), '+.2f')}, {_number(max(gains), '+.2f')}]"
        table.append([agent.upper(), _interval(summary[agent]), spread, f"{above} / {below} of {len(found)}"])
    return table


def _baseline_gain_rows(baselines: dict[str, Any]) -> list[list[str]]:
    return [
        [f"*{name.replace('_', ' ')}*", _interval(row), "–", f"{int(_is_above(row))} / {int(_is_below(row))} of 1"]
        for name, row in baselines.items()
        if name != "equal_weight"
    ]


def _longer_rows(runs: dict[str, Any], summary: dict[str, Any]) -> list[list[str]]:
    head, *gains = _gain_rows(runs, summary)
    shown = [figure for figure in FIGURES if figure[0] in ("annual_return", "sharpe_ratio", "annual_turnover")]
    table = [["after 200,000 timesteps", *(heading for _, heading, _, _ in shown), *head[1:]]]
    for found, gain in zip(runs.values(), gains, strict=True):
        spreads = [_spread([row[name] for row in found], form, good) for name, _, form, good in shown]
        table.append([gain[0], *spreads, *gain[1:]])
    return table


def _choice_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    settings = sorted({(row["discount"], row["timesteps"]) for row in rows})
    heads = [f"discount {discount}, {timesteps:,} timesteps" for discount, timesteps in settings]
    table = [["Sharpe of 2012 to 2014", *heads]]
    for agent in AGENTS:
        found = {(row["discount"], row["timesteps"]): row["sharpe_ratio"] for row in rows if row["agent"] == agent}
        best = max(found, key=lambda setting: found[setting])
        cells = [_number(found[setting], ".2f") for setting in settings]
        table.append(
            [
                agent.upper(),
                *(f"**{cell}**" if setting == best else cell for setting, cell in zip(settings, cells, strict=True)),
            ]
        )
    return table


def _findings(runs: dict[str, Any], baselines: dict[str, Any], choices: list[dict[str, Any]]) -> list[str]:
    shortest = min(row["timesteps"] for row in choices)
    best = [
        max((row for row in choices if row["agent"] == agent), key=lambda row: row["sharpe_ratio"]) for agent in AGENTS
    ]
    short = sum(row["timesteps"] == shortest for row in best)
    equal, every = baselines["equal_weight"], [row for found in runs.values() for row in found]
    turnover = statistics.median(row["annual_turnover"] for row in every)
    taken = statistics.median((row["annual_turnover"] - equal["annual_turnover"]) * COMMISSION for row in every)
    missing = statistics.median(equal["annual_return"] - row["annual_return"] for row in every)
    own, theirs = _number(turnover, ".1f"), _number(equal["annual_turnover"], ".1f")
    return [
        f"- **What is learned does not carry over**: for {short} of {len(AGENTS)} agents the shortest of the three trainings "
        "was best on\n  2012 to 2014. An untrained network answers near the middle of its range, which comes to equal weights.",
        f"- **Trading is what they pay for**: the median run turns its account over {own} times a year, equal weights {theirs} "
        f"times. That\n  takes {_number(taken, '.1%')} of the account a year, and the median run earns "
        f"{_number(missing, '.1%')} a year less than equal weights.",
    ]


def _is_above(row: dict[str, Any]) -> bool:
    return bool(row["sharpe_gain_low"] > 0.0)


def _is_below(row: dict[str, Any]) -> bool:
    return bool(row["sharpe_gain_high"] < 0.0)


def _spread(values: list[float], form: str, more_is_better: bool | None) -> str:
    ends = (min(values), max(values)) if more_is_better is not False else (max(values), min(values))
    return f"{_number(statistics.median(values), form)} [{', '.join(_number(end, form) for end in ends)}]"


def _interval(entry: dict[str, Any]) -> str:
    gain, low, high = (_number(entry[f"sharpe_gain{end}"], "+.2f") for end in ("", "_low", "_high"))
    return f"{gain} ({low} to {high})"


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "−")


def _listed(agents: list[str]) -> str:
    names = [agent.upper() for agent in agents]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def _figure_html() -> str:
    """Return a page with the accounts: the median of each agent's seeds, thin seeds, and the baselines in grey."""
    import numpy as np
    import pandas as pd

    from ml.tradingbots.training.figure_style import (
        BASELINE_DASHES,
        BASELINE_GREYS,
        PREDICTOR_COLOURS,
        log_equity_axis,
        new_figure,
        transparent,
    )

    table = pd.read_csv(RESULTS / "portfolio_agents.csv", index_col="date", parse_dates=True)
    figure = new_figure("", height=560)
    for agent, colour in zip(AGENTS, PREDICTOR_COLOURS, strict=False):
        seeds = table.filter(regex=f"^{agent} ")
        for name in seeds:
            thin = {"color": transparent(colour, 0.3), "width": 0.8}
            figure.add_scatter(x=table.index, y=seeds[name], mode="lines", line=thin, showlegend=False)
        median = np.median(seeds.to_numpy(), axis=1)
        line = {"color": colour, "width": 2.2}
        figure.add_scatter(x=table.index, y=median, name=f"{agent.upper()}, median of 5", mode="lines", line=line)
    baselines = [name for name in table if not name.startswith(AGENTS)]
    for name, grey, dash in zip(baselines, BASELINE_GREYS, BASELINE_DASHES, strict=True):
        line = {"color": grey, "width": 1.6, "dash": dash}
        figure.add_scatter(x=table.index, y=table[name], name=name.replace("_", " "), mode="lines", line=line)
    log_equity_axis(figure, [table.to_numpy().ravel()])
    figure.update_layout(width=1100, margin={"l": 44, "r": 16, "t": 52, "b": 32})
    drawn = figure.to_html(full_html=False, include_plotlyjs=True, config={"displayModeBar": False})
    return f'<body style="margin:0">{drawn}</body>'


def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / "portfolio_agents.json").read_text(encoding="utf-8"))
    return content


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _content()["rows"]
    return rows


if __name__ == "__main__":
    main()
