"""Tests that MLflow records how a run ended."""

import pytest
from lightning.pytorch.loggers import CSVLogger

from tvg.core.interruption import Interrupted
from tvg.tracking.mlflow_logger import make_mlflow_logger
from tvg.tracking.run_status import ending_runs


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted(15), "KILLED"), (RuntimeError("full"), "FAILED")]
)
def test_an_early_end_sets_the_run_status(store, tmp_path, error, status):
    logger = make_mlflow_logger(
        tracking_uri=store, experiment_name="ends", run_name="early", run_dir=tmp_path
    )
    with pytest.raises(type(error)), ending_runs([CSVLogger(tmp_path), logger]):
        raise error
    assert logger.experiment.get_run(logger.run_id).info.status == status


def test_a_missing_store_does_not_hide_the_error(store, tmp_path, monkeypatch, caplog):
    logger = make_mlflow_logger(
        tracking_uri=store, experiment_name="ends", run_name="gone", run_dir=tmp_path
    )

    def fail(*_):
        raise OSError("no such server")

    monkeypatch.setattr(type(logger.experiment), "set_terminated", fail)
    with pytest.raises(Interrupted), ending_runs([logger]):
        raise Interrupted(2)
    assert "could not be ended as KILLED: no such server" in caplog.text
