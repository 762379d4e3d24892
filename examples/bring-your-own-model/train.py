"""Train with whatever you use today and log to MLflow as you do today: a pickle, with its code beside it."""

import mlflow
import numpy as np
import torch
from mlflow.models import infer_signature
from models.net import train
from sklearn.datasets import make_moons

points, labels = make_moons(2000, noise=0.15, random_state=0)
points = points.astype(np.float32)
net = train(torch.from_numpy(points[:1000]), torch.from_numpy(labels[:1000]))

mlflow.set_experiment("moons")
with mlflow.start_run():
    mlflow.pytorch.log_model(
        net,
        name="model",
        registered_model_name="moons",
        code_paths=["models"],
        signature=infer_signature(points[:2], net(torch.from_numpy(points[:2])).detach().numpy()),
        input_example=points[:8],
        serialization_format="pickle",
    )

np.savez("samples.npz", point=points[1000:])  # what the variants are compared on: no labels are needed
