"""A tiny plain detector to train in a second or two."""

from pathlib import Path
from typing import Any

import yaml

from dataset.scenes import CLASS_NAMES
from dataset.synthetic import SyntheticConfig, write_synthetic
from tests.tiny import DETECTOR


def write_plain(folder: Path, **nodes: dict[str, Any]) -> Path:
    """Write data and a config that nothing is ever detected with, so that the AP is 0.

    Keyword arguments such as `SOLVER={"MAX_ITER": 9}` change its nodes.
    """
    write_synthetic(folder / "data", SyntheticConfig(train=4, val=2, size=64), workers=1)
    head = {**DETECTOR["MODEL"]["RETINANET"], "SCORE_THRESH_TEST": 0.99}
    content: dict[str, Any] = {
        **DETECTOR,
        "MODEL": {**DETECTOR["MODEL"], "RETINANET": {**head, "NUM_CLASSES": len(CLASS_NAMES)}},
        "DATASET": {"FOLDER": str(folder / "data")},
        "DATASETS": {"TRAIN": ["folder_train"], "TEST": ["folder_val"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 2},
        "SEED": 1,
    }
    for node, values in nodes.items():
        content[node] = {**content.get(node, {}), **values}
    path = folder / "plain.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
