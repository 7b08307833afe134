"""Trains the tiny policy with GRPO on one or two CPU processes; the script of a rank.

Usage: worker.py SETTINGS.json. Lightning starts the second rank with the same arguments. The first
rank writes `OUT/metrics.json` and `OUT/export`.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from helpers.grpo_module import Stepwise, make_loss
from helpers.tiny_lora import lora, make_lora_parts
from helpers.tiny_policy import make_checkpoint, make_parts, make_rollout
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from tvg.core.advantage import group_advantages
from tvg.core.writing import remove_leftovers
from tvg.model.adapters import no_adapter
from tvg.model.exporting import export_checkpoint
from tvg.reward.weighted import WeightedReward
from tvg.rollout.shared_prefix import SharedPrefixEngine
from tvg.training.checkpoint import AtomicCheckpointIO
from tvg.training.datamodule_loaders import Envelope
from tvg.training.fsdp2 import FSDP2Strategy
from tvg.training.grpo import GRPOModule
from tvg.training.preflight import Preflight
from tvg.training.schedule import warmup_schedule

PROMPTS_PER_STEP = 10  # over all ranks
SAVED_AT, NUM_STEPS = 5, 10
METRICS = ("train/loss", "train/policy/kl", "train/grad_norm", "train/reward/total")


def make_strategy(name):
    if name == "single":
        return "auto"
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    if name.startswith("fsdp2"):
        return FSDP2Strategy(
            sync_each_micro_batch=name == "fsdp2_synced", timeout=timedelta(minutes=30)
        )
    from distributed.cpu_zero import CPUDeepSpeedStrategy

    return CPUDeepSpeedStrategy(
        stage=int(name[-1]), exclude_frozen_parameters=True, logging_batch_size_per_gpu=1
    )


class Module(GRPOModule):
    """Draws the same completions of a query on any number of ranks."""

    def step_seed(self, stream=0):
        return self.global_step

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch.batch.to(device)


class Batches(torch.utils.data.Dataset):
    """Each rank's share of the prompts of every step."""

    def __init__(self, parts, rank, num_ranks, first_step):
        self.parts, self.rank, self.size = parts, rank, PROMPTS_PER_STEP // num_ranks
        self.first_step = first_step

    def __len__(self):
        return NUM_STEPS

    def __getitem__(self, step):
        first = PROMPTS_PER_STEP * (self.first_step + step) + self.rank * self.size
        dataset = self.parts.dataset
        items = [dataset[n % len(dataset)] for n in range(first, first + self.size)]
        return Envelope(self.parts.collator(items))


class Notes(Callback):
    def __init__(self, settings):
        self.settings, self.rows, self.num_decodes = settings, [], 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        row = {name: float(trainer.callback_metrics[name]) for name in METRICS}
        decodes = module.num_decodes
        all_decodes = [decodes]
        if trainer.world_size > 1:
            all_decodes = [None] * trainer.world_size
            torch.distributed.all_gather_object(all_decodes, decodes)
        self.rows.append({**row, "decodes": all_decodes})
        if trainer.global_step == SAVED_AT and not self.settings["resume"]:
            trainer.save_checkpoint(Path(self.settings["out"]) / "last.ckpt")


def count_decodes(module):
    module.num_decodes = 0
    decode = module.policy.decode

    def counted(*args, **kwargs):
        module.num_decodes += 1
        return decode(*args, **kwargs)

    module.policy.decode = counted


def make_module(settings):
    folders = Path(settings["checkpoint"]), Path(settings["world"])
    parts = make_lora_parts(*folders) if settings["lora"] else make_parts(*folders)
    if settings["strategy"].startswith("fsdp2"):  # as tvg-train does: no rank has a complete model
        source = make_checkpoint(folders[0])
        source.adapter = lora() if settings["lora"] else no_adapter
        parts = replace(parts, policy=source.empty_policy(parts.processor))
    parts.policy.eos_ids = list(range(0, 640, 4))  # completions of different lengths
    module = Module(
        rollout=make_rollout(SharedPrefixEngine, prompts_per_call=2),
        reward=WeightedReward(rewards={"odd": Stepwise()}, weights={"odd": 1.0}),
        loss=make_loss(kl_coef=0.1),
        group_size=3,
        advantage=functools.partial(
            group_advantages, baseline="group_mean", scale="group_std", eps=1e-4
        ),
        num_updates=1,
        old_logprobs="policy",
        resample_flat_groups=None,
        reference="initial",
        reference_offload=False,
        micro_batch_completions=None,
        scoring_fps=None,
        preflight=Preflight(
            num_prompts=1, num_completions=2, max_abs_diff=1e-3, half_mean_diff=0.1
        ),
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        task=parts.task,
        micro_batch_size=2,
        # Plain SGD: Adam would divide by gradients that are zero except for rounding.
        optimizer=functools.partial(torch.optim.SGD, lr=settings["lr"], momentum=0.9),
        schedule=functools.partial(warmup_schedule, name="linear", warmup_steps=0),
        max_grad_norm=0.5,
        max_skipped_steps=5,
        component_lr={},
        seed=0,
    )
    return module, parts


def die_while_saving(trainer, path):
    """Kills this rank in the middle of writing a checkpoint over an existing one."""
    import tvg.core.writing

    tvg.core.writing.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    trainer.save_checkpoint(path)


def main():
    settings = json.loads(Path(sys.argv[1]).read_text())
    faulthandler.dump_traceback_later(settings["limit_s"], exit=True)  # if the ranks hang
    out = Path(settings["out"])
    torch.manual_seed(0)
    module, parts = make_module(settings)
    notes = Notes(settings)
    trainer = Trainer(
        accelerator="cpu",
        devices=settings["ranks"],
        strategy=make_strategy(settings["strategy"]),
        max_steps=NUM_STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[notes],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=out,
        limit_val_batches=1 if settings["validate"] else 0,
        val_check_interval=NUM_STEPS,
        num_sanity_val_steps=0,
    )
    count_decodes(module)
    rank = trainer.global_rank
    batches = Batches(parts, rank, settings["ranks"], SAVED_AT if settings["resume"] else 0)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    if settings["resume"]:
        remove_leftovers(out)
    trainer.fit(
        module,
        loader,
        val_dataloaders=loader if settings["validate"] else None,
        ckpt_path=out / "last.ckpt" if settings["resume"] else None,
        weights_only=True,
    )
    export_checkpoint(
        parts.policy, parts.processor, out / "export", notes={}, is_writer=trainer.is_global_zero
    )
    if trainer.is_global_zero:
        (out / "metrics.json").write_text(json.dumps(notes.rows))
    if settings["die"]:
        die_while_saving(trainer, out / "last.ckpt")


if __name__ == "__main__":
    main()
