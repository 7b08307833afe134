"""DeepSpeed's strategy on CPU processes; Lightning's refuses CPUs. For tests only."""

from __future__ import annotations

import os

import torch
from lightning.pytorch.strategies import DDPStrategy

from tvg.training.zero import DeepSpeedStrategy


class CPUDeepSpeedStrategy(DeepSpeedStrategy):
    @property
    def root_device(self):
        return torch.device("cpu", self.local_rank)

    def setup_environment(self):
        DDPStrategy.setup_environment(self)

    def setup_distributed(self):
        import deepspeed

        self.set_world_ranks()
        environment = self.cluster_environment
        os.environ.update(
            MASTER_ADDR=environment.main_address,
            MASTER_PORT=str(environment.main_port),
            RANK=str(self.global_rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_SIZE=str(self.num_processes),
        )
        deepspeed.init_distributed("gloo", distributed_port=environment.main_port)
