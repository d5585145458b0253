"""What is said of a run's data and model before it begins."""

from typing import TYPE_CHECKING

from fl_app.config import RunConfig

if TYPE_CHECKING:
    from fl_app.data.datasets import Dataset

_MUCH_BYTES = 50_000_000
"""Of a model, above which each round's messages deserve a warning."""


def of_data(dataset: "Dataset") -> tuple[list[str], list[str]]:
    """Return what was read, and warnings about it."""
    return [dataset.account] if dataset.account else [], list(dataset.warnings)


def of_model(config: RunConfig, dataset: "Dataset") -> tuple[list[str], list[str]]:
    """Return what is trained, and warnings about it.

    Args:
        config: the run's options.
        dataset: its data; of private nodes, what they agreed upon.
    """
    from fl_app import models

    shape, classes = dataset.input_shape, len(dataset.class_names)
    model = models.build(config.model, shape, classes, seed=0)
    number = sum(parameter.numel() for parameter in model.parameters())
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    pixels = "x".join(map(str, shape))
    compressed = {config.compression, config.download_compression} != {"none"}
    before = ", before compression" if compressed else ""
    said = [
        f"model {config.model!r} on images of {pixels}: {number:,} parameters; a round "
        f"sends {size / 1e6:.1f} MB to a client and {size / 1e6:.1f} MB back{before}"
    ]
    warnings = []
    if size > _MUCH_BYTES:
        warnings.append(
            f"the model takes {size / 1e6:.0f} MB a message{before}: choose a smaller "
            "image-size, or a smaller model such as lenet or resnet"
        )
    return said, warnings
