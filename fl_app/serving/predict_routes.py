"""Models over HTTP: which there are, and what they say of an image."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, File, HTTPException, Query, UploadFile
from starlette.concurrency import run_in_threadpool

from fl_app.artifacts import MODEL, RunFolder, read_info
from fl_app.config import ConfigError
from fl_app.serving import images
from fl_app.serving.catalogue import Catalogue
from fl_app.serving.predictor import Batcher, Loaded, Models
from fl_app.serving.schemas import NO_IMAGE, ModelLine, Prediction, RunName, Upload
from fl_app.serving.states import Runs


def router(catalogue: Catalogue, runs: Runs, batcher: Batcher) -> APIRouter:
    """Return the routes /models and /predict."""
    routes = APIRouter(tags=["predict"])
    models = Models()
    large = asyncio.Lock()  # a picture takes up to 120 MB: one at a time

    @routes.get("/models")
    def list_models() -> list[ModelLine]:
        """All runs whose model can predict, the newest first."""
        lines = map(_line, catalogue.all())
        return [line for line in lines if line is not None]

    def loaded(name: str | None) -> Loaded:
        found = runs.named(name) if name else None
        folder = found.folder if found else catalogue.newest_model()
        if folder is None:
            raise HTTPException(404, "no run has a model yet: train one first")
        if found and not (folder.path / MODEL).is_file():
            raise HTTPException(404, found.lacks("model"))
        try:
            return models.get(folder.path / MODEL, folder.name)
        except ConfigError as error:
            raise HTTPException(404, str(error)) from None

    @routes.post("/predict", responses=NO_IMAGE)
    async def predict(
        file: Annotated[UploadFile, File(description="An image.")],
        model: Annotated[
            RunName | None, Query(description="A run; the newest model by default.")
        ] = None,
    ) -> Prediction:
        """What a run's model says of an image."""
        chosen = await run_in_threadpool(loaded, model)
        content = await file.read()
        try:
            if images.is_plain(content):  # a thread would take longer to ask
                levels, received = images.read(content, chosen.info)
            else:
                async with large:
                    levels, received = await run_in_threadpool(
                        images.read, content, chosen.info
                    )
        except images.ImageError as error:
            raise HTTPException(400, str(error)) from None
        chances = (await batcher.predict(chosen, levels)).tolist()
        names = chosen.info.class_names
        best = max(range(len(names)), key=chances.__getitem__)
        return Prediction(
            label=names[best],
            probability=chances[best],
            probabilities=dict(zip(names, chances, strict=True)),
            run=chosen.name,
            model_sha256=chosen.sha256,
            image=Upload(**vars(received)),
        )

    return routes


def _line(folder: RunFolder) -> ModelLine | None:
    """Return what a run's model is; None where it has none that can be used."""
    path = folder.path / MODEL
    if not path.is_file():
        return None
    try:
        info = read_info(path)
    except ConfigError:
        return None
    return ModelLine(
        run=folder.name,
        model=info.model,
        dataset=info.dataset,
        input_shape=info.input_shape,
        class_names=info.class_names,
        test_accuracy=(folder.summary() or {}).get("final_test_accuracy"),
    )
