"""Tests of the timeline pictures of each validation: run folder, MLflow and TensorBoard."""

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tvg.callbacks.timelines import Timelines

NAMES = [f"val_timelines_step_{step:08d}.png" for step in (6, 12)]


def test_every_validation_but_the_sanity_check_has_a_picture(finished_run):
    for folder in (finished_run.run_dir, finished_run.artifacts):
        assert sorted(path.name for path in (folder / "pictures").iterdir()) == NAMES
    with Image.open(finished_run.artifacts / "pictures" / NAMES[0]) as picture:
        assert picture.format == "PNG"


def test_tensorboard_shows_the_pictures(finished_run):
    events = EventAccumulator(str(finished_run.run_dir / "tb"))
    events.Reload()
    images = events.Images("val/timelines")
    assert [image.step for image in images] == [6, 12]
    with Image.open(finished_run.run_dir / "pictures" / NAMES[0]) as picture:
        assert (images[0].width, images[0].height) == picture.size


def test_the_first_queries_are_drawn_without_loggers(fit, tiny_grpo, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "tvg.callbacks.timelines.draw_timelines",
        lambda rows, title: drawn.append((rows, title)),
    )
    monkeypatch.setattr("tvg.callbacks.timelines.save_figure", lambda figure, path: path)
    fit(tiny_grpo(), callbacks=[Timelines(run_dir=tmp_path, num_queries=1)])
    ((rows, title),) = drawn
    assert title == "Validation at step 6"
    assert [(row.query, row.predicted) for row in rows] == [("who opens the door", (2.0, 9.0))]


def test_a_module_without_predictions_has_no_picture(fit, tiny_grpo, tmp_path):
    class Silent(tiny_grpo):
        def validation_step(self, batch, batch_idx):
            del self.__dict__["val_predictions"]

    module = Silent()
    fit(module, callbacks=[Timelines(run_dir=tmp_path, num_queries=1)], limit_val_batches=1)
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_queries_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match=r"timelines\.num_queries must be at least 1: got 0"):
        Timelines(run_dir=tmp_path, num_queries=0)
