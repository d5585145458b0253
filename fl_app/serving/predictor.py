"""Predictions of a run's model; requests that come together are computed together."""

import asyncio
import gc
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_app import artifacts
from fl_app.artifacts import ModelInfo

if TYPE_CHECKING:
    from torch import nn

    from fl_app.task import Normalisation

Array = np.ndarray[Any, Any]

_BATCH = 64
_MODELS = 4  # kept in memory


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    name: str
    """Of its run."""
    sha256: str
    info: ModelInfo
    model: "nn.Module"
    normalise: "Normalisation"

    def chances(self, images: Array) -> Array:
        """Return the probability of each class, (N, classes), of images (N, C, H, W).

        Each row is computed as if it were alone, up to float32 rounding.
        """
        import torch

        with torch.inference_mode():
            inputs = self.normalise(torch.from_numpy(images))
            return np.asarray(self.model(inputs).softmax(dim=1).numpy())


def load(path: Path, name: str) -> Loaded:
    """Return the model in a safetensors file.

    Raises:
        ConfigError: it is none that a run has written.
    """
    from fl_app import models, task

    arrays, info = artifacts.read_model(path)
    model = models.build(info.model, info.input_shape, len(info.class_names), seed=0)
    task.set_arrays(model, arrays)
    model.eval()
    normalise = task.Normalisation(info.mean, info.std, info.full_scale)
    return Loaded(name, artifacts.model_sha256(arrays), info, model, normalise)


class Models:
    """The models last asked for; a file that has changed is read anew."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[Path, int, int], Loaded] = OrderedDict()

    def get(self, path: Path, name: str) -> Loaded:
        """Return a model; see `load`."""
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        found = self._loaded.pop(key, None)
        if found is None:
            found = load(path, name)
            # What PyTorch's modules are made of stays: to look through all of it again
            # and again for garbage holds every request up for a tenth of a second.
            gc.collect()
            gc.freeze()
        self._loaded[key] = found
        while len(self._loaded) > _MODELS:
            self._loaded.popitem(last=False)
        return found


class Batcher:
    """Gathers what waits while the processor is busy into one forward pass.

    Nothing is delayed for company: a request that finds the processor idle is computed
    at once.
    """

    def __init__(self, on_batch: Callable[[int], None] = lambda size: None) -> None:
        """Call `on_batch` with the size of each pass."""
        self._on_batch = on_batch
        self._waiting: list[tuple[Loaded, Array, asyncio.Future[Array]]] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._task: asyncio.Task[None] | None = None

    async def predict(self, loaded: Loaded, image: Array) -> Array:
        """Return the probability of each class, (classes,), of one image."""
        future: asyncio.Future[Array] = asyncio.get_running_loop().create_future()
        self._waiting.append((loaded, image, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            first = self._waiting[0][0]
            batch = [item for item in self._waiting if item[0] is first][:_BATCH]
            taken = {id(item) for item in batch}
            self._waiting = [i for i in self._waiting if id(i) not in taken]
            images = np.stack([image for _, image, _ in batch])
            self._on_batch(len(batch))
            try:
                found = await loop.run_in_executor(self._worker, first.chances, images)
            except Exception as error:  # each of those that wait is told
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), row in zip(batch, found, strict=True):
                if not future.done():  # else its client has gone
                    future.set_result(row)

    def close(self) -> None:
        """End the worker."""
        self._worker.shutdown(wait=False, cancel_futures=True)
