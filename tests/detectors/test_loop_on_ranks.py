"""A step of two real processes, where one of them does something else than the other."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

from detectors import loop
from detectors.launching import launch_job
from tests.detectors.test_launching import arguments, config
from tests.detectors.test_loop import Batch, Model, batches, run


class TwoLayers(Model):
    """A second layer, which rank 1 alone leaves out of its third step."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Linear(3, 2)
        self.steps = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().forward(batch)
        self.steps += 1
        if self.steps != 3 or dist.get_rank() == 0:
            adapted = self.adapter(torch.stack([item["x"] for item in batch]))
            losses["loss_a"] = losses["loss_a"] + adapted.square().mean()
        return losses


def train(cfg: CfgNode, args: argparse.Namespace) -> None:
    loop._PATIENCE = timedelta(seconds=2)
    run(DistributedDataParallel(TwoLayers()), batches(5), 5)


def test_a_rank_that_leaves_out_a_layer_does_not_let_the_other_wait(tmp_path: Path) -> None:
    expected = r"iteration 2, images 20, .* do not depend on adapter\.weight, adapter\.bias, which"
    with pytest.raises(ProcessRaisedException, match=expected):
        launch_job(train, config(), arguments(num_gpus=2, config_file=str(tmp_path / "none")))
