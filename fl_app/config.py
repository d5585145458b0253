"""RunConfig: every option of a run, typed and checked before anything is trained.

Options are declared, with their defaults, in `[tool.flwr.app.config]` of
pyproject.toml. Nothing else reads a run's raw options.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import strategies
from fl_app import models
from fl_app.compression import FEEDBACK

PROJECT_VARIABLE = "FL_APP_PROJECT"
"""Environment variable with the project's folder, set by what `fl-app setup` leaves."""

Partitioner = Literal[
    "auto", "iid", "dirichlet", "shards", "classes", "quantity", "folders", "natural"
]
"""`auto` until a user's own data is read, which may say that it has owners."""
Resize = Literal["crop", "letterbox", "squeeze"]
WHITE = 65535
"""The level of 16-bit images that stands for white where nothing else is known."""


class ConfigError(ValueError):
    """An option that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Recipe:
    """What "auto" stands for: a good start for one data set on one machine."""

    model: str
    num_server_rounds: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    augment: bool
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    learning_rate_decay: float = 1.0
    max_gradient_norm: float = 0.0
    partitioner: str = "dirichlet"
    num_clients: int = 10


RUN_NAME = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$"
_RESERVED = {"comparison", "data", "reference"}
_LARGEST_SIDE = 1024
_ADAM_LEARNING_RATE = 0.001  # Kingma and Ba 2015; recipes are for SGD
_ZERO_IS_AUTO = {
    "num_server_rounds",
    "local_epochs",
    "batch_size",
    "learning_rate",
    "clients_together",
}
"""Options for which 0 has no meaning of its own."""
AUTO = 0
"""Clients that are trained at once, until that is measured."""
_CAN_BE_AUTO = {
    *(name.replace("_", "-") for name in Recipe.__dataclass_fields__),
    *("fraction-evaluate", "error-feedback", "compression-rounding"),
    "clients-together",
}
_IN_SHORT = (
    *("dataset", "num-clients", "partitioner", "model", "strategy"),
    *("num-server-rounds", "local-epochs", "batch-size", "optimizer", "learning-rate"),
)


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def is_auto(option: str, value: object) -> bool:
    """Whether a value stands for one that the data set's recipe or a trial gives."""
    zero = value == 0 and not isinstance(value, bool)
    return value == "auto" or (zero and option in map(_kebab, _ZERO_IS_AUTO))


class RunConfig(BaseModel):
    """Options of one run. Immutable; see pyproject.toml for what each means."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=_kebab,
        validate_by_name=True,
        validate_by_alias=True,
        protected_namespaces=(),
    )

    dataset: str = Field(min_length=1)
    data_dir: str
    partitioner: Partitioner
    dirichlet_alpha: float = Field(gt=0, allow_inf_nan=False)
    classes_per_client: int = Field(ge=1)
    shards_per_client: int = Field(ge=1)
    num_clients: int = Field(ge=0, le=1_000_000)
    synthetic_alpha: float = Field(ge=0, allow_inf_nan=False)
    synthetic_beta: float = Field(ge=0, allow_inf_nan=False)
    validation_fraction: float = Field(ge=0, lt=1)
    test_path: str
    class_names: str
    image_size: int | Literal["auto"]
    """Squares of that side; 0 is "auto" without a limit."""
    resize: Resize
    image_column: str
    label_column: str
    augment: bool

    model: str
    initial_model: str
    normalisation_policy: Literal["average", "pooled"]

    regime: Literal["federated", "central", "local-only"]
    strategy: str
    strategy_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    proximal_mu: float = Field(ge=0, allow_inf_nan=False)
    num_server_rounds: int = Field(ge=1)
    patience: int = Field(ge=0)
    fraction_train: float = Field(gt=0, le=1)
    fraction_evaluate: float = Field(ge=0, le=1)
    evaluate_every: int = Field(ge=1)
    evaluate_training: bool
    min_nodes: int = Field(ge=1)
    node_timeout: float = Field(gt=0, allow_inf_nan=False)
    min_fraction: float = Field(ge=0, le=1)
    max_failed_rounds: int = Field(ge=1)
    max_update_norm: float = Field(ge=0, allow_inf_nan=False)
    max_first_update_norm: float = Field(gt=0, allow_inf_nan=False)
    round_timeout: float = Field(gt=0, allow_inf_nan=False)
    straggler_fraction: float = Field(ge=0, le=1)
    stragglers: Literal["drop", "keep"]

    local_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimizer: Literal["sgd", "adam"]
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    compression: Literal["none", "int8", "int4", "fp16", "topk", "topk-int8"]
    compression_ratio: float = Field(gt=0, le=1)
    compression_rounding: Literal["stochastic", "nearest"]
    error_feedback: bool
    download_compression: Literal["none", "int8", "int4", "fp16"]

    learning_rate_schedule: Literal["exponential", "cosine", "linear"]
    learning_rate_decay: float = Field(gt=0, le=1)
    warmup_rounds: int = Field(ge=0)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0, allow_inf_nan=False)
    max_gradient_norm: float = Field(ge=0, allow_inf_nan=False)
    precision: Literal["float32", "bfloat16"]
    clients_together: int = Field(ge=0, le=1024)
    """`AUTO` until it is measured, where that was asked for: see `at_once`."""
    num_threads: int = Field(ge=1, le=1024)

    seed: int = Field(ge=0, lt=2**53)  # what JSON holds exactly
    run_name: str
    results_dir: str = Field(min_length=1)
    resume: str
    tracking: Literal["none", "tensorboard"]

    @field_validator("image_size")
    @classmethod
    def _image_size_is_a_side(cls, size: int | str) -> int | str:
        if isinstance(size, int) and not 0 <= size <= _LARGEST_SIDE:
            raise ValueError(f'should be 0 to {_LARGEST_SIDE} pixels, or "auto"')
        return size

    @field_validator("strategy")
    @classmethod
    def _strategy_exists(cls, name: str) -> str:
        if name not in strategies.available():
            raise ValueError(f"there are: {', '.join(strategies.available())}")
        return name

    @field_validator("model")
    @classmethod
    def _model_exists(cls, name: str) -> str:
        if name not in models.MODELS:
            raise ValueError(f"there are: {', '.join(sorted(models.MODELS))}")
        return name

    @field_validator("run_name")
    @classmethod
    def _run_name_is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(RUN_NAME, name):
            raise ValueError(
                "should be up to 100 letters, digits, dots, dashes and underscores, "
                "the first a letter or digit"
            )
        if name in _RESERVED:
            raise ValueError("is the name of a folder that holds no run")
        return name

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], recipe_for: Callable[[str], Recipe]
    ) -> "RunConfig":
        """Return the checked configuration of a run.

        Args:
            options: kebab-case keys to values, all of them, as Flower hands them over;
                `<strategy>.<option>` keys belong to that strategy alone.
            recipe_for: the recipe of a data set by name, for "auto" values.

        Raises:
            ConfigError: an option is unknown, missing or not allowed.
        """
        values = {k: v for k, v in options.items() if "." not in k}
        if (
            values.get("partitioner") == "folders"
            and values.get("num-clients") == "auto"
        ):
            values["num-clients"] = 0  # all of them
        recipe = asdict(recipe_for(str(values.get("dataset", ""))))
        if values.get("optimizer") == "adam":
            recipe["learning_rate"] = _ADAM_LEARNING_RATE
        for name, value in recipe.items():
            if is_auto(_kebab(name), values.get(_kebab(name))):
                values[_kebab(name)] = value
        if values.get("fraction-evaluate") == "auto":
            fraction = values.get("fraction-train")
            usable = isinstance(fraction, float | int) and 0 < fraction <= 1
            values["fraction-evaluate"] = fraction if usable else 1.0
        if values.get("clients-together") == "auto":
            values["clients-together"] = AUTO
        if values.get("error-feedback") == "auto":
            values["error-feedback"] = values.get("compression") in FEEDBACK
        if values.get("compression-rounding") == "auto":
            kept = values.get("error-feedback") is True
            values["compression-rounding"] = "nearest" if kept else "stochastic"
        prefix = f"{values.get('strategy')}."
        values["strategy-options"] = {
            key.removeprefix(prefix): value
            for key, value in options.items()
            if key.startswith(prefix)
        }
        return cls.checked(values)

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> "RunConfig":
        """Return the configuration of resolved options, as `options` returns them.

        Raises:
            ConfigError: one is unknown, missing or not allowed.
        """
        try:
            config = cls.model_validate(options)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None
        if config.patience and 0 in (
            config.validation_fraction,
            config.fraction_evaluate,
        ):
            raise ConfigError(
                f"patience = {config.patience} needs validation: validation-fraction "
                "and fraction-evaluate must be above 0"
            )
        if config.error_feedback and config.compression == "none":
            raise ConfigError(
                "error-feedback = true needs a compression that leaves something out: "
                'compression = "int4", or "topk"'
            )
        if config.evaluate_training and config.dataset == "private":
            raise ConfigError(
                "evaluate-training = true is not allowed with dataset = 'private': the "
                "server has none of the clients' examples"
            )
        if config.warmup_rounds >= config.num_server_rounds:
            raise ConfigError(
                f"warmup-rounds = {config.warmup_rounds} must be less than "
                f"num-server-rounds = {config.num_server_rounds}"
            )
        return config

    def options(self) -> dict[str, Any]:
        """Return all options as resolved, kebab-case."""
        return self.model_dump(by_alias=True)

    def in_short(self) -> str:
        """Return what is trained on what, and how, as `-c` takes it."""
        options = self.options()
        return " ".join(
            f"{n}={json.dumps(options[n], ensure_ascii=False)}" for n in _IN_SHORT
        )

    def for_clients(self) -> dict[str, Any]:
        """Return the options as `from_options` takes them, without the server's names.

        What they say does not depend on whether the run was resumed. How many clients
        are trained at once each message says by itself, once it is settled.
        """
        options = self.options() | {"run-name": "", "results-dir": "-", "resume": ""}
        options["clients-together"] = 1
        own = options.pop("strategy-options")
        return options | {f"{self.strategy}.{k}": v for k, v in own.items()}


def meant(key: str, known: Iterable[str]) -> str:
    """Return what may be meant by an option that there is not, as a sentence's end."""
    names = list(known)
    spelt = key.replace("_", "-").lower()
    inside = [name for name in names if name.endswith(f".{spelt}")]
    close = inside or get_close_matches(spelt, names, n=1)
    return (
        f": did you mean {close[0]}?" if close else f"; there are: {', '.join(names)}"
    )


def _one_line(error: ValidationError) -> str:
    """Say what is wrong with each option in one line."""
    lines = []
    for item in error.errors():
        option = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            lines.append(f"option {option} is missing")
        elif item["type"] == "extra_forbidden":
            lines.append(f"option {option} is unknown")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            reason = reason.replace("Input should", "should")
            if item["type"].startswith(("int_", "float_", "finite_")):
                reason += f", {bounds}" if (bounds := _bounds(option)) else ""
            elif " and " in (bounds := _bounds(option)):
                reason += f" (allowed: {bounds})"  # and not the one alone
            elif item["type"].startswith("bool_"):
                reason += ", true or false"
            reason += ', or "auto"' if option in _CAN_BE_AUTO else ""
            lines.append(f"{option} = {item['input']!r} is not allowed: {reason}")
    return "; ".join(lines)


_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _bounds(option: str) -> str:
    """Return where an option's numbers lie; "" for anywhere, or no numbers."""
    field = RunConfig.model_fields.get(option.replace("-", "_"))
    said = [
        f"{words} {getattr(bound, name)}"
        for bound in (field.metadata if field else ())
        for name, words in _BOUNDS.items()
        if hasattr(bound, name)
    ]
    return " and ".join(said)


def project_path(value: str, option: str) -> Path:
    """Return the absolute path that an option names; relative to the project's folder.

    Raises:
        ConfigError: the path is relative and this process was not told the project's
            folder.
    """
    path = Path(value).expanduser()
    if path.is_absolute():
        return path
    project = os.environ.get(PROJECT_VARIABLE)
    if not project:
        raise ConfigError(
            f"{option} = {value!r} is relative, and this process does not know the "
            "project's folder: run `fl-app setup`, or give an absolute path"
        )
    return Path(project) / path
