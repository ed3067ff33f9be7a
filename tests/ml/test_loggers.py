"""Rows that survive crashes, growth and resumption."""

import importlib.util
import math

import numpy as np
import pandas as pd
import pytest
import torch

from ml.tradingbots.training.loggers import (
    CSVLogger,
    LoggerList,
    MemoryLogger,
    TensorBoardLogger,
    read_history,
    write_atomically,
)


def test_rows_are_in_the_file_before_the_logger_is_closed(tmp_path):
    logger = CSVLogger(tmp_path / "run" / "metrics.csv")
    logger.write({"num_timesteps": 10, "critic_loss": 0.5})
    assert (tmp_path / "run" / "metrics.csv").read_text() == "num_timesteps,critic_loss\n10,0.5\n"
    logger.close()


def test_a_new_column_leaves_earlier_rows_empty_there(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.write({"num_timesteps": 1, "a": 1.5})
    logger.write({"num_timesteps": 2, "b": 2.5})
    logger.write({"num_timesteps": 3, "a": 3.5})
    logger.close()
    assert (tmp_path / "metrics.csv").read_text() == "num_timesteps,a,b\n1,1.5,\n2,,2.5\n3,3.5,\n"


def test_a_diverged_loss_differs_from_one_that_was_not_logged(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.write({"num_timesteps": 1, "loss": math.nan})
    logger.close()
    assert (tmp_path / "metrics.csv").read_text() == "num_timesteps,loss\n1,nan\n"


def test_numbers_of_numpy_and_torch_and_text_with_commas_are_read_back(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.write({"num_timesteps": np.int64(7), "x": np.float64(0.1), "y": torch.tensor(0.25), "note": 'a, "b"\nc'})
    logger.close()
    history = read_history(tmp_path / "metrics.csv")
    assert history.to_dict("records") == [{"num_timesteps": 7, "x": 0.1, "y": 0.25, "note": 'a, "b" c'}]


def test_a_second_logger_continues_the_file(tmp_path):
    path = tmp_path / "metrics.csv"
    for step in (1, 2):
        logger = CSVLogger(path)
        logger.write({"num_timesteps": step, "loss": float(step)})
        logger.close()
    assert path.read_text() == "num_timesteps,loss\n1,1.0\n2,2.0\n"


@pytest.mark.parametrize("torn", ["3,0.", "3", "\0\0\0\0"])
def test_a_last_line_cut_short_by_a_crash_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.csv"
    path.write_text("num_timesteps,loss\n1,1.0\n2,2.0\n" + torn)
    logger = CSVLogger(path)
    logger.write({"num_timesteps": 3, "loss": 3.0})
    logger.close()
    assert path.read_text() == "num_timesteps,loss\n1,1.0\n2,2.0\n3,3.0\n"


def test_a_header_cut_short_by_a_crash_is_written_anew(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("num_time")
    logger = CSVLogger(path)
    logger.write({"num_timesteps": 3})
    logger.close()
    assert path.read_text() == "num_timesteps\n3\n"


def test_resuming_drops_what_was_written_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = CSVLogger(path)
    for step in (100, 200, 300):
        logger.write({"num_timesteps": step, "loss": step / 100})
    logger.write({"note": "no timestep, but later than 300"})
    logger.truncate_after(200)
    logger.write({"num_timesteps": 250, "loss": 9.0})
    logger.close()
    assert read_history(path)["num_timesteps"].tolist() == [100, 200, 250]


def test_truncating_an_empty_file_is_fine(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.truncate_after(100)
    logger.write({"num_timesteps": 1})
    logger.close()
    assert read_history(tmp_path / "metrics.csv")["num_timesteps"].tolist() == [1]


def test_nothing_written_reads_as_an_empty_history(tmp_path):
    CSVLogger(tmp_path / "metrics.csv").close()
    assert read_history(tmp_path / "metrics.csv").empty


def test_writing_after_closing_is_refused(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.close()
    logger.close()
    with pytest.raises(ValueError, match="is closed"):
        logger.write({"num_timesteps": 1})


def test_growth_leaves_no_temporary_file_behind(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.write({"num_timesteps": 1})
    logger.write({"num_timesteps": 2, "loss": 1.0})
    logger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_failed_replacement_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.html"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text is not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_memory_logger_gives_a_sparse_table():
    logger = MemoryLogger()
    row = {"num_timesteps": 1, "loss": torch.tensor(0.5)}
    logger.write(row)
    row["loss"] = 99.0
    logger.write({"num_timesteps": 2, "eval_sharpe": 1.5})
    logger.close()
    expected = pd.DataFrame({"num_timesteps": [1, 2], "loss": [0.5, np.nan], "eval_sharpe": [np.nan, 1.5]})
    pd.testing.assert_frame_equal(logger.history, expected)


def test_a_list_of_loggers_writes_to_each_and_closes_each(tmp_path):
    memory, table = MemoryLogger(), CSVLogger(tmp_path / "metrics.csv")
    loggers = LoggerList([memory, table])
    loggers.write({"num_timesteps": 5})
    loggers.close()
    assert memory.history["num_timesteps"].tolist() == [5]
    with pytest.raises(ValueError, match="is closed"):
        table.write({"num_timesteps": 6})


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_a_missing_tensorboard_names_the_extra(tmp_path):
    with pytest.raises(ImportError, match=r"pip install 'tradingbots\[tensorboard\]'"):
        TensorBoardLogger(tmp_path)


def test_tensorboard_gets_the_numbers_and_not_the_text(tmp_path):
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(tmp_path)
    logger.write({"num_timesteps": 5, "loss": 0.5, "note": "text"})
    logger.close()
    assert [path.name.split(".")[2] for path in tmp_path.iterdir()] == ["tfevents"]
