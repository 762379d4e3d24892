"""Save the model as MLflow does, in the environment, and become its scoring server."""

import os
import shutil
import sys
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

if __name__ == "__main__":
    place = Path(sys.prefix) / "digits-model"
    shutil.rmtree(place, ignore_errors=True)
    mlflow.onnx.save_model(
        onnx.load(os.environ["MODEL"]),
        place,
        signature=ModelSignature(Schema([TensorSpec(np.dtype(np.float32), (-1, 1, 8, 8), "pixels")])),
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )
    where = ["--model-uri", str(place), "--host", "127.0.0.1", "--port", os.environ["HTTP_PORT"]]
    serve = ["-m", "mlflow", "models", "serve", *where, "--workers", "2", "--env-manager", "local"]
    os.execv(sys.executable, [sys.executable, *serve])
