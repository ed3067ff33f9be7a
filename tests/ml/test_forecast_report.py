"""The page about forecasts: one file, nothing fetched, the numbers of the validation, honest where little is known."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.components.ensemble_predictor import EnsemblePricePredictor
from ml.tradingbots.components.lstm_predictor import LSTMPricePredictor
from ml.tradingbots.components.naive_predictors import RidgePredictor
from ml.tradingbots.data.bars import Bars
from ml.tradingbots.data.splitters import PurgedKFold, WalkForwardValidator
from ml.tradingbots.data.synthetic_patterns import panel_autoregressive
from ml.tradingbots.training.forecast_report import (
    MAX_FANS,
    forecast_report_html,
    write_fan_report,
    write_forecast_report,
)
from ml.tradingbots.training.forecast_validation import validate
from ml.tradingbots.training.forecast_verdict import forecast_verdict

torch.set_num_threads(1)
PRICES = panel_autoregressive(3, 600, phi=0.4, seed=1).prices
BARS = Bars.from_frame(PRICES)
HORIZONS = (1, 5)


def predictor():
    return RidgePredictor(horizons=HORIZONS, window_size=2)


def check(prices=PRICES, factory=None, splitter=None, **settings):
    splitter = splitter or WalkForwardValidator(n_splits=3, purge_size=7)
    return validate(factory or {"short": predictor}, prices, splitter, **{"n_bootstrap": 40} | settings)


@pytest.fixture(scope="module")
def found():
    return check()


@pytest.fixture(scope="module")
def latest():
    return predictor().fit(PRICES).predict_quantiles(PRICES).tail(1)


@pytest.fixture(scope="module")
def page(found, latest):
    facts = {"Costs": "5 basis points", "Command": "tradingbots walk-forward panel"}
    return forecast_report_html(found, title="AR(1) panel", facts=facts, prices=BARS, latest_quantiles=latest)


class Tags(HTMLParser):
    """Collects every tag, and the text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text.append(data)


def words(page):
    return " ".join(Tags(page).text)


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_the_report_is_one_file_that_fetches_nothing(found, latest, tmp_path):
    path = write_forecast_report(
        tmp_path / "runs" / "forecasts.html", found, prices=BARS, latest_quantiles={"short": latest}
    )
    page = path.read_text(encoding="utf-8")
    tags = Tags(page).tags
    assert not [attributes for tag, attributes in tags if "src" in attributes or tag in ("link", "iframe", "base")]
    assert not [attributes for _, attributes in tags if "href" in attributes]
    assert not re.search(r"@import|url\(", page[page.index("<style>") : page.index("</style>")])
    policy = next(attributes["content"] for tag, attributes in tags if tag == "meta" and "content" in attributes)
    assert policy.startswith("default-src 'none';")
    assert list(path.parent.iterdir()) == [path]


def test_the_verdict_comes_before_all_numbers(page, found):
    text = words(page)
    assert text.index(forecast_verdict(found)) < text.index("Scores out of sample")


def test_the_page_holds_the_scores_of_every_model_and_fold(page, found):
    text = words(page)
    for score in ("r2", "ic", "coverage", "sharpe ratio"):
        for cell in found.formatted_table()[score]:
            value, _, interval = cell.partition(" (")
            assert value in text
            assert interval.removesuffix(")").replace("%", "") in text
    for value in found.per_fold["r2"]:
        assert f"{abs(value):.2%}" in text


def test_the_page_says_what_made_the_numbers(page):
    text = words(page)
    for expected in ("AR(1) panel", "5 basis points", "tradingbots walk-forward panel", "Versions", "3 folds", "torch"):
        assert expected in text
    # Purged bars of each of three folds, counted in the prices.
    assert len(re.findall(r"<td>7</td>", page)) == 3


def test_the_same_validation_gives_the_same_page(found, latest):
    pages = [forecast_report_html(found, prices=BARS, latest_quantiles=latest) for _ in range(2)]
    assert pages[0] == pages[1]


def test_every_figure_has_a_name_of_its_own(page):
    names = re.findall(r'<div id="(figure-[^"]*)"', page)
    assert len(names) == len(set(names)) >= 12


def test_names_cannot_smuggle_markup_into_the_page():
    hostile = "<img src=x onerror=alert(1)>"
    prices = PRICES[["A00"]].rename(columns={"A00": hostile})
    validation = check(prices, {hostile: predictor}, n_bootstrap=0)
    quantiles = predictor().fit(prices).predict_quantiles(prices).tail(1)
    history = pd.DataFrame({"train_loss": [2.0, 1.0], "val_loss": [2.0, 1.0]}, index=[1, 2])
    page = forecast_report_html(
        validation,
        title=hostile,
        facts={hostile: hostile},
        prices=Bars.from_frame(prices),
        latest_quantiles={hostile: quantiles},
        histories={hostile: history},
    )
    assert hostile not in page
    assert not [tag for tag, _ in Tags(page).tags if tag == "img"]
    # Nor into a figure, where Plotly reads markup in names: what reaches it is text already.
    assert "\\u003cimg" not in page


def test_a_single_fold_with_a_fit_and_a_forecast_makes_a_page_without_fold_scores():
    network = LSTMPricePredictor(horizons=HORIZONS, window_size=4, hidden_dim=4, max_epochs=2)
    network.fit(PRICES)
    validation = check(
        factory={"lstm": lambda: network},
        splitter=WalkForwardValidator(train_size=400, test_size=190, purge_size=5),
    )
    quantiles = network.predict_quantiles(PRICES, (0.05, 0.25, 0.5, 0.75, 0.95)).tail(1)
    page = forecast_report_html(
        validation, prices=BARS, latest_quantiles=quantiles, histories={"lstm": network.history_}
    )
    assert headings(page) == [
        "Scores out of sample",
        "Forecast",
        "Skill",
        "Calibration",
        "Intervals and outcomes",
        "Trading on the sign of the forecast",
        "Fit",
        "Folds",
        "Facts",
    ]
    assert ", 1 fold, " in words(page)


def test_without_intervals_the_page_claims_none():
    text = words(forecast_report_html(check(n_bootstrap=0)))
    assert "was not estimated" in text
    assert "nothing here can be told apart from luck" in text
    assert "95% interval" not in text
    assert "nan" not in text.split()


def test_training_on_both_sides_of_a_test_is_said():
    validation = check(splitter=PurgedKFold(n_splits=3, purge_size=5), n_bootstrap=0)
    assert "trained on both sides" in words(forecast_report_html(validation, prices=BARS))


def test_fan_charts_need_prices(found, latest):
    with pytest.raises(ValueError, match="latest_quantiles need the closes they start from"):
        forecast_report_html(found, latest_quantiles=latest)


def test_of_many_assets_the_first_fans_are_drawn_and_the_rest_is_counted(found):
    prices = panel_autoregressive(9, 100, seed=1).prices
    quantiles = RidgePredictor().fit(prices).predict_quantiles(prices).tail(1)
    page = forecast_report_html(found, prices=Bars.from_frame(prices), latest_quantiles=quantiles)
    assert len(re.findall(r'<div id="figure-forecast-', page)) == MAX_FANS
    assert "beyond the first 6, 3 more, are not drawn" in words(page)


@pytest.fixture(scope="module")
def fitted_ensemble():
    """A stacked ensemble and the reports of all its fits."""
    reports = []
    networks = {
        name: LSTMPricePredictor(horizons=HORIZONS, window_size=3, hidden_dim=2, max_epochs=epochs)
        for name, epochs in (("brief", 2), ("long_one", 3))
    }
    ensemble = EnsemblePricePredictor(
        {**networks, "ridge": predictor()}, "stacking", splitter=PurgedKFold(n_splits=2, purge_size=5, embargo_size=3)
    )
    ensemble.fit(PRICES.iloc[:150], report=reports.append)
    return ensemble, pd.DataFrame([vars(report) for report in reports]).set_index("epoch")


def test_the_fit_of_an_ensemble_is_that_of_each_member_on_all_bars(found, fitted_ensemble):
    _, history = fitted_ensemble
    assert history.groupby("member")["fit_number"].nunique().tolist() == [3, 3, 3]
    page = forecast_report_html(found, histories={"stack": history})
    names = re.findall(r"<h3>(stack[^<]*)</h3>", page)
    assert names == ["stack, brief", "stack, long one"]  # The ridge has no epochs.
    kept = history[history["fold"].isna()]
    separate = {f"stack, {name}": kept.loc[kept["member"] == name] for name in ("brief", "long_one")}
    alone = forecast_report_html(
        found, histories={name: part.drop(columns="member") for name, part in separate.items()}
    )
    assert drawn(page, "stack, brief") != drawn(page, "stack, long_one")
    for name in separate:
        assert drawn(page, name) == drawn(alone, name)


def drawn(page, name):
    """The data of a figure of a fit, as Plotly is given them."""
    after = page[page.index(f"<h3>{name.replace('_', ' ')}</h3>") :]
    return re.search(r'"data":\s*(\[.*?\]),\s*"layout"|(\[\{.*?\}\]),\s*\{', after, re.DOTALL).group(0)


def test_fits_of_members_in_closed_form_alone_make_no_section(found, fitted_ensemble):
    _, history = fitted_ensemble
    page = forecast_report_html(found, histories={"stack": history[history["member"] == "ridge"]})
    assert "Fit" not in headings(page)


def test_weights_of_an_ensemble_stand_in_a_table(found, fitted_ensemble):
    ensemble, _ = fitted_ensemble
    page = forecast_report_html(found, weights={"stack": ensemble.weights_})
    table = page[page.index("<h2>Weights</h2>") :].split("</section>")[0]
    cells = [float(cell.replace("\u2212", "-")) for cell in re.findall(r"<td>(.*?)</td>", table)]
    np.testing.assert_allclose(cells, ensemble.weights_.to_numpy().ravel(), atol=0.0051)
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["brief", "long one", "ridge"]
    assert "Weights" not in headings(forecast_report_html(found))


def test_a_page_without_calibration_does_not_point_at_one(latest, page, tmp_path):
    alone = words(write_fan_report(tmp_path / "fan.html", BARS, latest).read_text(encoding="utf-8"))
    assert "calibration below" not in alone
    assert "is not judged here" in alone
    assert "calibration below" in words(page)
    assert "is not judged here" not in words(page)
