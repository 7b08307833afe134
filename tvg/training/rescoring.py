"""Predicts training examples with the current weights; ranks share the work."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer
from tqdm import tqdm

from tvg.rollout.engine import RolloutEngine
from tvg.task.predictions import Prediction
from tvg.training.datamodule_base import PromptDataModule
from tvg.training.evaluation import PartialPredictions, predict_all
from tvg.training.policy_module import PolicyModule
from tvg.training.ranks import gather_objects
from tvg.training.stopping import RoundsOfAllRanks
from tvg.training.trained_state import fingerprint
from tvg.types import GroundingExample


@dataclass(frozen=True, kw_only=True)
class Rescoring:
    """One prediction pass over some training examples.

    Attributes:
        trainer: its ranks share the work.
        module: the policy under training and its validation sampler.
        data: makes the batches.
        max_new_tokens: limit of a completion; None: the validation sampler's limit.
        folder: each rank stores its predictions so far here.
        name: name of the pass, for the files and the progress bar.
    """

    trainer: Trainer
    module: PolicyModule
    data: PromptDataModule
    max_new_tokens: int | None
    folder: Path
    name: str

    def run(self, examples: Sequence[GroundingExample]) -> dict[str, Prediction]:
        """Returns greedy predictions by query id, equal on every rank; call it on all ranks.

        A pass that was killed continues after its finished batches if weights, examples, sampler
        and number of ranks are the same. The predictions stay on disk until the caller removes
        them.
        """
        examples = list({example.qid: example for example in examples}.values())  # each once
        rollout = self._rollout()

        def on_batch(num_predictions: int) -> None:
            bar.update(num_predictions)
            rounds.end_round()  # the predictions so far are on disk

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = PartialPredictions(self._partial_path(), self._fingerprint(rollout, examples))
        skip = partial.num_batches * self.data.eval_batch_size
        loader = self.data.scoring_loader("train", examples, skip=skip)
        rounds = RoundsOfAllRanks(self.trainer, len(loader))
        share = -(-len(examples) // self.trainer.world_size)
        with (
            self.trainer.precision_plugin.val_step_context(),
            tqdm(
                total=share,
                initial=min(skip, share),
                unit="query",
                desc=self.name,
                disable=not self.trainer.is_global_zero,
                mininterval=0.5 if sys.stderr.isatty() else 30.0,
            ) as bar,
        ):
            done = predict_all(
                task=self.module.task,
                rollout=rollout,
                batches=loader,
                seed=self.module.seed,
                device=self.module.device,
                partial=partial,
                on_batch=on_batch,
            )
        rounds.end()
        return {prediction.qid: prediction for prediction in self._of_all_ranks(done)}

    def _partial_path(self) -> Path:
        return self.folder / f"{self.name}.rank_{self.trainer.global_rank}.partial.jsonl"

    def _rollout(self) -> RolloutEngine:
        rollout = self.module.rollout.greedy()
        return rollout if self.max_new_tokens is None else rollout.limited(self.max_new_tokens)

    def _fingerprint(self, rollout: RolloutEngine, examples: Sequence[GroundingExample]) -> str:
        """Returns a hash of everything that determines the batches and the predictions."""
        told = [
            [
                *(e.qid, e.raw_query or e.query, e.segment),
                *(e.window, e.lead_in, str(e.video_path), sorted(e.extra.items())),
            ]
            for e in examples
        ]
        drawn = rollout.sampling
        sampler = [drawn.max_new_tokens, drawn.temperature, drawn.top_p, drawn.top_k]
        settings = [sampler, self.data.eval_batch_size, self.trainer.world_size, self.module.seed]
        if self.data.eval_batch_tokens is not None:
            settings.append(self.data.eval_batch_tokens)
        decides = hashlib.sha256(json.dumps([settings, told]).encode()).hexdigest()[:16]
        return fingerprint(self.module.policy) + decides

    def _of_all_ranks(self, mine: list[Prediction]) -> list[Prediction]:
        """Returns the predictions of all ranks, in the same order on each; keeps duplicates."""
        return [p for of_rank in gather_objects(self.trainer, mine) for p in of_rank]
