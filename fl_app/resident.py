"""The state of a model that stays in a process: kept, put back, compared.

For clients of a few examples that takes as long as a step if it is done tensor by
tensor, so a model's tensors are moved into one piece of memory.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strategies.difference import Difference, Layout

_Array = np.ndarray[Any, Any]


def gather(model: nn.Module) -> None:
    """Move the float32 tensors of the model's state into one, as they lie.

    They stay the objects they are. A model is left alone whose tensors share memory or
    lie on several devices.
    """
    state = model.state_dict(keep_vars=True).values()
    tensors = [tensor for tensor in state if _is_part(tensor)]
    memories = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    devices = {tensor.device for tensor in tensors}
    if len(memories) < len(tensors) or len(devices) != 1:
        return
    sizes = [tensor.numel() for tensor in tensors]
    whole = torch.empty(sum(sizes), device=devices.pop())
    for tensor, part in zip(tensors, torch.split(whole, sizes), strict=True):
        moved = part.as_strided(tensor.shape, tensor.stride())
        tensor.data = moved.copy_(tensor.detach())


def _is_part(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and (
        tensor.is_contiguous() or _is_channels_last(tensor)
    )


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _whole(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the tensor (n,) that these are the parts of, in its order, if one is."""
    first, end, memory = None, 0, 0
    for tensor in tensors:
        if first is None:
            first, memory = tensor, tensor.untyped_storage().data_ptr()
            end = int(tensor.storage_offset())
        start = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        if start != (memory, end) or tensor.device != first.device:
            return None
        end += tensor.numel()
    if first is None:
        return None
    offset = first.storage_offset()
    return first.as_strided((end - offset,), (1,), offset)


class Snapshot:
    """A model's state as it is now, to go back to before each client trains.

    It holds while the model's tensors are changed in place, as training does.
    """

    def __init__(self, model: nn.Module) -> None:
        state = model.state_dict()
        self._names = list(state)
        parts = {name: t for name, t in state.items() if _is_part(t)}
        self._whole = _whole(parts.values())
        if self._whole is None:
            parts = {}
        self._kept_whole = None if self._whole is None else self._whole.clone()
        self._parts = list(_places(parts))
        rest = {name: t for name, t in state.items() if name not in parts}
        self._rest = list(rest)
        self._tensors = list(rest.values())
        self._kept = [tensor.clone() for tensor in self._tensors]
        self._layout = self._layout_of_all()

    def _layout_of_all(self) -> Layout | None:
        """Return how all tensors lie in one; None unless they do so, as arrays do."""
        whole = self._whole
        if whole is None or self._tensors or whole.device.type != "cpu":
            return None
        if any(channels_last for *_, channels_last in self._parts):
            return None
        return Layout({name: shape for name, _, shape, _ in self._parts})

    @torch.no_grad()
    def restore(self) -> None:
        """Put the model back."""
        if self._whole is not None and self._kept_whole is not None:
            self._whole.copy_(self._kept_whole)
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._kept)

    def changes(self) -> MutableMapping[str, _Array]:
        """Return the model's present state less the kept one.

        Where all of the model's tensors lie in one on the CPU, each in the usual order,
        that is a `Difference`, which must be used before the model changes again.
        """
        if self._layout is None or self._whole is None or self._kept_whole is None:
            return self._taken()
        return Difference(self._whole.numpy(), self._kept_whole.numpy(), self._layout)

    @torch.no_grad()
    def _taken(self) -> dict[str, _Array]:
        """Return the changes as new arrays."""
        found: dict[str, _Array] = {}
        if self._whole is not None and self._kept_whole is not None:
            found = self._divided((self._whole - self._kept_whole).cpu().numpy())
        changes = torch._foreach_sub(self._tensors, self._kept) if self._tensors else ()
        for name, change in zip(self._rest, changes, strict=True):
            found[name] = change.cpu().contiguous().numpy()
        return {name: found[name] for name in self._names}

    def _divided(self, whole: _Array) -> dict[str, _Array]:
        """Return the parts of an array (n,) by name, each in the usual order."""
        found = {}
        for name, place, shape, channels_last in self._parts:
            part = whole[place]
            if channels_last:
                outputs, channels, *sides = shape
                as_it_lies = part.reshape(outputs, *sides, channels)
                part[:] = as_it_lies.transpose(0, 3, 1, 2).ravel()
            found[name] = part.reshape(shape)
        return found


def _places(
    parts: Mapping[str, Tensor],
) -> Iterator[tuple[str, slice, tuple[int, ...], bool]]:
    """Yield each part's name, place and shape, and whether its channels lie last."""
    start = 0
    for name, tensor in parts.items():
        end = start + tensor.numel()
        yield name, slice(start, end), tuple(tensor.shape), not tensor.is_contiguous()
        start = end
