"""What the service answers, as OpenAPI describes it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

import strategies
from fl_app.models import MODELS
from fl_app.serving.catalogue import Status
from fl_app.serving.request_schema import known_datasets

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Health(BaseModel):
    """The service answers."""

    status: str = "ok"


class Choices(BaseModel):
    """What some options can be."""

    dataset: list[str]
    model: list[str]
    strategy: list[str]
    defaults: dict[str, Any]
    """Of all options, as declared."""

    @classmethod
    def of(cls, declared: Mapping[str, Any], *, real_nodes: bool) -> "Choices":
        """Return those of a project that declares these options."""
        return cls(
            dataset=known_datasets(real_nodes=real_nodes),
            model=sorted(MODELS),
            strategy=strategies.available(),
            defaults=dict(declared),
        )


class Started(BaseModel):
    """A training that was asked for."""

    id: str
    """Name of its run."""
    status: Status


class RunLine(BaseModel):
    """A run in short."""

    id: str
    status: Status
    dataset: str
    model: str
    strategy: str
    regime: str
    """`federated`; or a baseline: `central`, `local-only`."""
    seed: int
    rounds: int
    """Done so far."""
    test_accuracy: float | None
    """Of the newest round in which it was measured."""


class RunDetail(RunLine):
    """A run in full."""

    options: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None
    error: dict[str, Any] | None


class ModelLine(BaseModel):
    """A model that can predict."""

    run: str
    model: str
    dataset: str
    input_shape: tuple[int, int, int]
    class_names: list[str]
    test_accuracy: float | None


class Upload(BaseModel):
    """What an uploaded image was, and what was done to it for the model."""

    format: str
    mode: str
    width: int
    height: int
    converted: list[str]


class Prediction(BaseModel):
    """What a model says of an image."""

    label: str
    """Name of the likeliest class."""
    probability: float
    """Of that class."""
    probabilities: dict[str, float]
    """Of every class, by name."""
    run: str
    """Whose model it was."""
    model_sha256: str
    image: Upload


class Fault(BaseModel):
    """What is wrong with one part of a request."""

    loc: list[str | int]
    msg: str
    type: str


class HTTPValidationError(BaseModel):
    """A request that is not as described."""

    detail: list[Fault]


class Reason(BaseModel):
    """Why a request was not answered."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    403: {"model": Reason, "description": "A page of another site asks."},
    421: {"model": Reason, "description": "The service goes by another name."},
    401: {"model": Reason, "description": "No token, or another."},
    404: {"model": Reason, "description": "There is no such run, or it has none."},
    408: {"model": Reason, "description": "The request did not arrive in time."},
    413: {"model": Reason, "description": "The request is too large."},
    429: {"model": Reason, "description": "Too much is sent, or asked for, at once."},
}
NO_IMAGE: dict[int | str, dict[str, Any]] = {
    400: {"model": Reason, "description": "The file is no such image."}
}

UNUSABLE: dict[int | str, dict[str, Any]] = {
    400: {"model": Reason, "description": "The body is no JSON."},
    422: {
        "model": Reason | HTTPValidationError,
        "description": "An option is not allowed.",
    },
}
FULL: dict[int | str, dict[str, Any]] = {
    429: {"model": Reason, "description": "As many wait as may."}
}
CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": Reason, "description": "It is not going on."}
}
UNREACHABLE: dict[int | str, dict[str, Any]] = {
    503: {
        "model": Reason,
        "description": "Flower's SuperLink, or another service of the folder, does not "
        "answer.",
    }
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Events, one a round."},
    429: {"model": Reason, "description": "As many streams are open as may."},
}
