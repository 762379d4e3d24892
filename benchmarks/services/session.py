"""The same for every peer: the ONNX file that the variable MODEL names, on one thread."""

import os

import numpy as np
import onnxruntime as ort


def open_session() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    [logits] = session.run(None, {session.get_inputs()[0].name: pixels})
    return logits
