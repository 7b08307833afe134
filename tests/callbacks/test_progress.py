"""Tests of progress output: lines in a log, or a bar on a terminal."""

import io
import re

import lightning.pytorch as pl
import pytest
import torch

from tvg.callbacks.progress import Progress, format_seconds

METRICS = {"reward": "train/reward/total", "loss": "train/loss", "other": "not/logged"}


def lines(**changes) -> Progress:
    return Progress(**({"metrics": METRICS, "every_n_steps": 4, "style": "lines"} | changes))


def test_lines_of_a_complete_run(finished_run):
    printed = finished_run.printed.splitlines()
    assert printed[0] == "training from step 0 to 12"
    steps = [line for line in printed if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/12", "4/12", "8/12", "12/12"]
    for line in steps:
        assert re.fullmatch(
            r"step \d+/12  reward 0\.25  loss [\d.]+  s/step [\d.]+  prompts/s [\d.]+  ETA 0:\d\d",
            line,
        ), line
    assert steps[-1].endswith("ETA 0:00")
    validations = [line for line in printed if line.startswith("validation")]
    assert len(validations) == 2  # the sanity check prints no line
    assert re.fullmatch(r"validation at step 6  val/miou 0\.5  [\d.]+ s", validations[0])
    assert "\r" not in finished_run.printed


def test_a_resumed_run_continues_the_step_count(fit, tiny_grpo, tmp_path, capsys):
    fit(tiny_grpo(), max_steps=3).save_checkpoint(tmp_path / "three.ckpt")
    bar = lines(every_n_steps=2)
    fit(tiny_grpo(), callbacks=[bar], max_epochs=3, max_steps=8, resume=tmp_path / "three.ckpt")
    printed = capsys.readouterr().out.splitlines()
    steps = [line.split()[1] for line in printed if line.startswith("step ")]
    assert printed[0] == "training from step 3 to 8"
    assert steps == ["4/8", "6/8", "8/8"]


def test_accumulated_batches_are_one_step(fit, capsys):
    class TinySFT(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            loss = (self.weight - 1).square().sum()
            self.log("train/loss", loss, on_step=True, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit(TinySFT(), callbacks=[lines(every_n_steps=1)], accumulate_grad_batches=2)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/3", "2/3", "3/3"]
    assert "reward" not in steps[0]
    assert "loss 1 " in steps[0]
    assert "prompts/s" not in steps[0]


def test_style_follows_the_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert lines(style="auto").has_lines
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert not lines(style="auto").has_lines
    assert lines(style="lines").has_lines


def test_the_bar_spans_all_epochs(fit, tiny_grpo, capsys):
    fit(tiny_grpo(), callbacks=[lines(style="bar")], max_epochs=2)
    printed = capsys.readouterr().out
    assert "12/12" in printed
    assert "reward=0.25" in printed
    assert "prompts/s=" in printed
    assert "/6 " not in printed


def test_messages_are_printed_between_lines(fit, tiny_grpo, capsys):
    class Talking(tiny_grpo):
        def on_train_start(self):
            self.print("hello", "there")

    fit(Talking(), callbacks=[lines()], max_steps=1)
    assert "hello there\n" in capsys.readouterr().out


def test_other_ranks_print_nothing(capsys):
    bar = lines()
    bar.disable()
    bar.print("step 1")
    assert capsys.readouterr().out == ""


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match=r"progress\.every_n_steps must be at least 1: got 0"):
        lines(every_n_steps=0)
    with pytest.raises(ValueError, match=r"progress\.style must be auto, bar or lines: got 'rich'"):
        lines(style="rich")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
