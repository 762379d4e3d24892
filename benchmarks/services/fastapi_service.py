"""Plain FastAPI, with the validation that /v2 asks for. The handler is `async`, since a thread costs more than the model."""

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field, FiniteFloat
from session import open_session, run

app = FastAPI()
session = open_session()


class Input(BaseModel):
    name: Literal["pixels"]
    datatype: Literal["FP32"]
    shape: tuple[Annotated[int, Field(ge=1, le=64)], Literal[1], Literal[8], Literal[8]]
    data: list[FiniteFloat]


class Request(BaseModel):
    id: str = ""
    inputs: Annotated[list[Input], Field(min_length=1, max_length=1)]


@app.post("/v2/models/digits-cnn/infer")
async def infer(request: Request) -> dict[str, Any]:
    [given] = request.inputs
    if len(given.data) != np.prod(given.shape):
        raise HTTPException(400, f"{len(given.data)} numbers for the shape {given.shape}")
    logits = run(session, np.array(given.data, np.float32).reshape(given.shape))
    output = {"name": "logits", "datatype": "FP32", "shape": logits.shape, "data": logits.ravel().tolist()}
    return {"model_name": "digits-cnn", "model_version": "1", "id": request.id, "outputs": [output]}


@app.get("/health")
async def health() -> None:
    """Answers once it can be asked."""
