"""What a tutorial does: FastAPI, one picture a request, the model called from the thread pool."""

import io
import os

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

app = FastAPI()
network = torch.jit.load(os.environ["BENCH_SCRIPT"])
side = int(os.environ["BENCH_SIDE"])


@app.get("/readyz")
def readyz() -> dict[str, str]:
    """Answer 200."""
    return {"status": "ready"}


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, list[float]]:
    """Answer with the probabilities of all classes."""
    picture = Image.open(io.BytesIO(file.file.read())).convert("RGB").resize((side, side))
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())[None])
        return {"probabilities": logits.softmax(1)[0].tolist()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["BENCH_PORT"]), log_level="info")
