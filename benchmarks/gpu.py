"""How fast PPO walks and learns where environment, agent and rollout all live on the accelerator.

    python benchmarks/gpu.py                                 # without a CUDA device: says so, and is done
    python benchmarks/gpu.py --recipes 16k-accounts --no-compile
    python benchmarks/gpu.py --device cpu                    # the same code at a small size, to see that it works

Checked before anything is timed: accounts on the device must be those on the CPU, and how often collecting waits for the
device, which should be never, is counted. The aim is a million timesteps a second, learning included.

A recipe is a way of learning. One with larger minibatches takes fewer gradient steps per timestep and learns something else
from the same data: it is another recipe, never a speed-up of this one. The table therefore says how many gradient steps a
million timesteps get. Only rows of the same recipe can be compared: with compiled losses and without, here and on another
device.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from ml.tradingbots.components import TradingEnvConfig, TradingVectorEnv
from ml.tradingbots.components.market import Market
from ml.tradingbots.components.rl_agents import PPOConfig, create_rl_agent
from ml.tradingbots.data.synthetic import autoregressive

RESULTS = Path(__file__).parent / "results" / "gpu.json"
AIM = 1_000_000
CONFIG = TradingEnvConfig(commission=0.0005, slippage_rate=0.0002, episode_length=252, random_start=True)
N_BARS = 20_000
# Of the two devices' float64, which round exponentials and sums in another order, over the bars of the check.
PARITY = 1e-9
N_CHECKED_BARS = 120
N_WATCHED_STEPS = 10


@dataclass(frozen=True)
class Recipe:
    """How much is collected and how it is learned from; the rest is PPO's defaults."""

    n_envs: int
    n_steps: int
    batch_size: int
    n_epochs: int

    @property
    def timesteps(self) -> int:
        """Transitions of one rollout."""
        return self.n_envs * self.n_steps

    @property
    def gradient_steps_per_million(self) -> float:
        """Gradient steps for a million timesteps."""
        return self.n_epochs * -(-self.timesteps // self.batch_size) * 1e6 / self.timesteps

    def shrunk(self, divisor: int) -> Recipe:
        """Return the recipe with fewer accounts and minibatches as much smaller."""
        n_envs, batch_size = max(self.n_envs // divisor, 1), max(self.batch_size // divisor, 1)
        return dataclasses.replace(self, n_envs=n_envs, batch_size=batch_size)


RECIPES = {
    # The minibatch of the recipes that `regret.py` uses: what learning costs where nothing is made large for the device.
    "small-minibatches": Recipe(n_envs=4_096, n_steps=8, batch_size=256, n_epochs=5),
    "4k-accounts": Recipe(n_envs=4_096, n_steps=32, batch_size=8_192, n_epochs=4),
    "8k-accounts": Recipe(n_envs=8_192, n_steps=32, batch_size=16_384, n_epochs=4),
    "16k-accounts": Recipe(n_envs=16_384, n_steps=16, batch_size=32_768, n_epochs=4),
    "16k-one-epoch": Recipe(n_envs=16_384, n_steps=32, batch_size=32_768, n_epochs=1),
}


@dataclass(frozen=True)
class Options:
    """What to run."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where everything lives."""
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Names of the recipes."""
    compile: bool = True
    """Whether to measure with compiled losses, too: about a minute more per recipe."""
    seconds: float = 2.0
    """Least time of one measurement."""
    n_repeats: int = 5
    """Measurements per row."""
    shrink: int | None = None
    """What numbers of accounts and minibatch sizes are divided by; None is 1 on an accelerator, 64 on a CPU."""
    save: bool = False
    """Whether to write benchmarks/results/gpu.json; on an accelerator only."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.recipes if name not in RECIPES]
        if unknown:
            raise ValueError(f"unknown recipe {unknown[0]!r}. Available: {', '.join(RECIPES)}")
        if self.n_repeats < 1 or (self.shrink is not None and self.shrink < 1):
            raise ValueError(f"n_repeats and shrink must be at least 1, got {self.n_repeats} and {self.shrink}")
        if self.save and self.device == "cpu":
            raise ValueError("save keeps what an accelerator did: leave it out with device='cpu'")

    @property
    def divisor(self) -> int:
        """What sizes are divided by."""
        return self.shrink or (64 if self.device == "cpu" else 1)


@dataclass(frozen=True)
class Row:
    """What was measured of one thing: timesteps per second, summed over accounts."""

    what: str
    recipe: Recipe
    rates: list[float]
    """Every single measurement."""

    def __str__(self) -> str:
        low, high = min(self.rates), max(self.rates)
        spread = f"[{low:,.0f}, {high:,.0f}]"
        learns = f"{self.recipe.gradient_steps_per_million:>14,.0f}" if "learn" in self.what else f"{'-':>14}"
        return f"  {self.what:32} {learns} {statistics.median(self.rates):>14,.0f}  {spread}"


def check_agreement(market: Market, device: torch.device, n_envs: int = 64) -> float:
    """Walk the same accounts on the CPU and on the device; returns the largest difference of equity, relative.

    Raises:
        SystemExit: they differ by more than rounding.
    """
    config = dataclasses.replace(CONFIG, random_start=False, episode_length=N_CHECKED_BARS // 3)
    here = TradingVectorEnv(market, config, n_envs=n_envs)
    there = TradingVectorEnv(market, config, n_envs=n_envs, device=device, synchronous=False)
    starts = torch.linspace(market.first_bar, market.last_bar - N_CHECKED_BARS, n_envs).long()
    for env in (here, there):
        env.reset(options={"start_bar": starts})
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(N_CHECKED_BARS):
        actions = torch.rand((n_envs, market.n_assets), generator=generator) * 2.0 - 1.0
        observation, *_ = here.step(actions)
        theirs, *_ = there.step(actions.to(device))
        worst = max(worst, float((there.account.equity.cpu() / here.account.equity - 1.0).abs().max()))
        worst = max(worst, float((theirs.cpu() - observation).abs().max()) * 1e-3)  # Observations are float32.
    if not worst <= PARITY:
        raise SystemExit(
            f"the accounts on the device are not those on the CPU, they differ by {worst:.2e}; nothing was timed"
        )
    return worst


def waits_while_collecting(market: Market, device: torch.device) -> list[str]:
    """Return what made the host wait for a CUDA device while a rollout was collected, one entry per time."""
    env = make_environment(market, 64, device)
    steps = make_agent(env, Recipe(64, 2 * N_WATCHED_STEPS, 64, 1)).training_steps(env)
    next(steps)  # The first one resets the environment.
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(N_WATCHED_STEPS):
                next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(warning.message) for warning in caught]


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Time some work, up to when the device is done with it."""
    _finish(device)
    start = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(work: Callable[[int], Any], unit: int, device: torch.device, options: Options) -> list[float]:
    """Return timesteps per second of `work`, which takes a number of timesteps, in multiples of `unit` timesteps."""
    # Twice: optimisers make their state, and losses are compiled, at first.
    work(2 * unit)
    work(unit)
    timesteps = unit * max(1, round(options.seconds / seconds_of(lambda: work(unit), device)))
    return [timesteps / seconds_of(lambda: work(timesteps), device) for _ in range(options.n_repeats)]


def make_environment(market: Market, n_envs: int, device: torch.device) -> TradingVectorEnv:
    """Return accounts that live on the device and never ask it anything."""
    return TradingVectorEnv(market, CONFIG, n_envs=n_envs, device=device, synchronous=False)


def make_agent(env: TradingVectorEnv, recipe: Recipe, **changes: Any) -> Any:
    """Return a PPO agent on the environment's device; `changes` are fields of its config."""
    sizes = {"n_steps": recipe.n_steps, "batch_size": recipe.batch_size, "n_epochs": recipe.n_epochs}
    config = PPOConfig(**{**sizes, **changes})
    agent = create_rl_agent("ppo", env.observation_space_dim, env.action_space_dim, config, device=str(env.device))
    agent.normalizer.fix(*env.observation_statistics())
    agent.bind(env)
    return agent


def walk(env: TradingVectorEnv) -> Callable[[int], None]:
    """Return a walk of all accounts with random actions drawn beforehand."""
    shape = (64, env.num_envs, env.market.n_assets)
    actions = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0).to(env.device).unbind()
    env.reset()

    def work(timesteps: int) -> None:
        for i in range(timesteps // env.num_envs):
            env.step(actions[i & 63])

    return work


def collect(agent: Any, env: TradingVectorEnv) -> Callable[[int], None]:
    """Return a walk of all accounts by an agent that remembers rollouts and never learns from one."""
    steps = agent.training_steps(env)

    def work(timesteps: int) -> None:
        for _ in range(timesteps // env.num_envs):
            next(steps)
            agent.rollouts.position = 0  # Never full.

    return work


def measure_recipe(recipe: Recipe, market: Market, device: torch.device, options: Options) -> list[Row]:
    """Measure the environment alone, collecting alone, and PPO."""
    env = make_environment(market, recipe.n_envs, device)
    rows = [Row("environment, random actions", recipe, measure(walk(env), 16 * env.num_envs, device, options))]
    rates = measure(collect(make_agent(env, recipe), env), 16 * env.num_envs, device, options)
    rows.append(Row("ppo, collect only", recipe, rates))
    for compiled in (False, True) if options.compile else (False,):
        agent = make_agent(env, recipe, compile=compiled)
        rates = measure(lambda n, agent=agent: agent.train(env, n), recipe.timesteps, device, options)  # type: ignore[misc]
        rows.append(Row("ppo, collect and learn" + (", compiled" if compiled else ""), recipe, rates))
    return rows


def about(device: torch.device, options: Options) -> dict[str, Any]:
    """Return where and how it was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    found = {"date": datetime.now(UTC).date().isoformat(), "device": name, "cores": os.cpu_count()}
    found |= {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return found | {"threads": torch.get_num_threads(), "options": asdict(options), "aim": AIM}


def main(options: Options) -> list[Row]:
    """Check, measure every recipe, print one table; returns its rows, none without the device."""
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured. --device cpu runs the same code at a small size.")
        return []
    device = torch.device(options.device)
    # On a CPU small tensors lose more to the hand-over between threads than they gain.
    torch.set_num_threads(1)
    where = about(device, options)
    market = Market(autoregressive(N_BARS, phi=0.3, volatility=0.01, seed=0).prices, CONFIG)
    difference = check_agreement(market, device)
    print(f"{where['device']}, torch {where['torch']}: accounts as on the CPU to {difference:.1e}")
    if device.type == "cuda":
        waits = waits_while_collecting(market, device)
        where["waits_per_step"] = len(waits) / N_WATCHED_STEPS
        print(f"waits for the device in {N_WATCHED_STEPS} steps of collecting: {len(waits)}", *waits[:1])
    if options.divisor > 1:
        print(f"accounts and minibatches divided by {options.divisor}: this tests the script, it is no result")
    print(
        f"  {'timesteps per second':32} {'steps/million':>14} {'median':>14}  [lowest, highest] of {options.n_repeats}"
    )
    rows: list[Row] = []
    for name in options.recipes:
        recipe = RECIPES[name].shrunk(options.divisor)
        print(
            f"{name}: {recipe.n_envs:,} accounts × {recipe.n_steps} steps, "
            f"{recipe.n_epochs} passes in minibatches of {recipe.batch_size:,}",
            flush=True,
        )
        found = measure_recipe(recipe, market, device, options)
        rows += found
        print(*found, sep="\n", flush=True)
    learning = [statistics.median(row.rates) for row in rows if "learn" in row.what]
    print(f"fastest with learning: {max(learning):,.0f} timesteps a second; the aim on an accelerator is {AIM:,}")
    if options.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"about": where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Options))
