"""Microsoft Olive's search, run by the Python of its own environment. Knows nothing of Seatrial.

`olive_search.py FOLDER TO ...`: FOLDER holds `model.onnx`, `calibration.npz` and `held-out.npz` with inputs by name, and
`held-out.labels.npy`. What Olive takes to be best is written to `TO`.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import olive
import torch
from olive.data.registry import Registry
from torch.utils.data import Dataset

SEED = 0
SCORED_AT_ONCE = 64


class Rows(Dataset[tuple[dict[str, Any], int]]):
    """One row each, with its label; 0 where no file has them."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files}
        labels = file.with_suffix(".labels.npy")
        self._labels = np.load(labels) if labels.exists() else np.zeros(len(self), np.int64)

    def __len__(self) -> int:
        return min(len(array) for array in self._arrays.values())

    def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
        return {name: array[index] for name, array in self._arrays.items()}, int(self._labels[index])


@Registry.register_dataset()
def rows_of(*, file: str, **_: Any) -> Rows:
    return Rows(Path(file))


@Registry.register_post_process()
def likeliest(answer: Any, **_: Any) -> Any:
    """From what the model answers to the classes that it says."""
    logits = next(iter(answer.values())) if isinstance(answer, dict) else answer
    return torch.as_tensor(logits).argmax(-1)


def config(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Search over what its quantization leaves open: the fastest whose accuracy is within the budget."""
    passes: dict[str, Any] = {"peephole": {"type": "OnnxPeepholeOptimizer"}}
    if asked.transformer:
        passes["transformer"] = {"type": "OrtTransformersOptimization", "model_type": "bert", "opt_level": 0}
    passes["quantization"] = {"type": "OnnxQuantization", "data_config": "calibration"}
    one_thread = {"session_options": {"intra_op_num_threads": asked.threads, "inter_op_num_threads": 1}}
    return {
        "input_model": {"type": "OnnxModel", "model_path": str(folder / "model.onnx")},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [
            _data("calibration", folder / "calibration.npz", rows=1),
            _data("timing", folder / "calibration.npz", rows=asked.batch),
            _data("held_out", folder / "held-out.npz", rows=SCORED_AT_ONCE),
        ],
        "evaluators": {
            "budget": {
                "type": "OnnxEvaluator",
                "metrics": [
                    {
                        "name": "latency",
                        "type": "latency",
                        "data_config": "timing",
                        "sub_types": [{"name": "p50", "priority": 1}],
                        "user_config": {"inference_settings": {"onnx": one_thread}},
                    },
                    {
                        "name": "accuracy",
                        "type": "accuracy",
                        "data_config": "held_out",
                        "sub_types": [
                            {
                                "name": "accuracy_score",
                                "priority": 2,
                                "metric_config": {"task": "multiclass", "num_classes": asked.classes},
                                "goal": {"type": "max-degradation", "value": asked.drop},
                            }
                        ],
                    },
                ],
            }
        },
        "passes": passes,
        "evaluator": "budget",
        "host": "here",
        "target": "here",
        "search_strategy": {
            "execution_order": "joint",
            "sampler": "tpe",
            "sampler_config": {"seed": SEED},
            "max_time": asked.seconds,
            "output_model_num": 1,
        },
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "found"),
        "log_severity_level": 2,
    }


def _data(name: str, file: Path, *, rows: int) -> dict[str, Any]:
    return {
        "name": name,
        "type": "DataContainer",
        "load_dataset_config": {"type": "rows_of", "file": str(file)},
        "post_process_data_config": {"type": "likeliest"},
        "dataloader_config": {"batch_size": rows},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--drop", type=float, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--transformer", action="store_true")
    asked = parser.parse_args()
    found = olive.run(config(asked.folder, asked)).get_best_candidate()
    if found is None:
        raise SystemExit("Olive found nothing within the budget")
    shutil.copyfile(found.model_path, asked.to)
    print(found.metrics_value)


if __name__ == "__main__":
    main()
