import numpy as np
import pytest
import torch
from torch import nn

from fl_app import models, resident, task
from fl_app.batches import LAYOUT
from strategies.difference import Difference


def lenet() -> nn.Module:
    model = models.build("lenet", (3, 32, 32), 10, seed=0)
    return model.to(memory_format=LAYOUT)  # type: ignore[call-overload, no-any-return]


def storages(model: nn.Module) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


def disturb(model: nn.Module) -> None:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randint(1, 100, tensor.shape, generator=draws))


def test_a_model_is_moved_into_one_piece_as_it_is() -> None:
    model = lenet()
    before = task.get_arrays(model)
    parameters = list(model.parameters())
    strides = [p.stride() for p in parameters]
    resident.gather(model)
    assert len(storages(model)) == 1
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert [p.stride() for p in parameters] == strides
    assert strides[0] != parameters[0].contiguous().stride()  # channels are last
    after = task.get_arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_gathered_model_is_left_as_it_is() -> None:
    model = lenet()
    resident.gather(model)
    once = storages(model)
    resident.gather(model)
    assert storages(model) == once


def test_tied_tensors_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    resident.gather(model)
    assert model[1].weight is model[0].weight
    kept = resident.Snapshot(model)
    before = task.get_arrays(model)
    with torch.no_grad():
        model[0].weight += 1
    changes = kept.changes()
    assert (changes["1.weight"] == changes["0.weight"]).all()
    assert changes["0.weight"].mean() == pytest.approx(1)
    kept.restore()
    after = task.get_arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_tensors_that_share_memory_go_on_sharing_it() -> None:
    model, memory = nn.Module(), torch.arange(8.0)
    model.a, model.b = nn.Parameter(memory[:4]), nn.Parameter(memory[2:6])
    resident.gather(model)
    with torch.no_grad():
        model.a[3] = 100
    assert model.b.tolist() == [2, 100, 4, 5]


@pytest.mark.parametrize("name", ["lenet", "improved-cnn", "mlp"])
@pytest.mark.parametrize("gathered", [True, False])
def test_changes_are_the_same_in_one_piece_and_in_many(
    name: str, *, gathered: bool
) -> None:
    model = models.build(name, (3, 32, 32), 10, seed=0).to(memory_format=LAYOUT)  # type: ignore[call-overload]
    if gathered:
        resident.gather(model)
    before = task.get_arrays(model)
    kept = resident.Snapshot(model)
    disturb(model)
    disturbed = task.get_arrays(model)
    changes = kept.changes()
    assert list(changes) == list(before)
    for array_name, array in before.items():
        assert np.array_equal(changes[array_name], disturbed[array_name] - array)
        assert changes[array_name].dtype == array.dtype
        assert changes[array_name].flags.c_contiguous
    kept.restore()
    after = task.get_arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def usual(name: str) -> nn.Module:
    """A model in one piece, each tensor in the usual order."""
    model = models.build(name, (3, 32, 32), 10, seed=0)
    resident.gather(model)
    return model


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_changes_of_a_model_in_one_piece_are_not_made_ahead(name: str) -> None:
    model = task.place(models.build(name, (3, 32, 32), 10, seed=0))
    kept = resident.Snapshot(model)
    disturb(model)
    difference = kept.changes()
    assert isinstance(difference, Difference)
    memory = next(model.parameters()).detach().numpy()
    assert np.shares_memory(difference.now, memory)
    assert not np.shares_memory(difference.before, memory)
    assert len(np.unique(difference.now - difference.before)) > 50
    again = kept.changes()
    disturbed, names = dict(difference), list(model.state_dict())
    kept.restore()
    assert list(disturbed) == names
    assert all(disturbed[name].any() and not again[name].any() for name in names)


def test_changes_are_made_at_once_where_tensors_lie_otherwise() -> None:
    channels_last, apart = lenet(), models.build("mlp", (3, 32, 32), 10, seed=0)
    resident.gather(channels_last)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    resident.gather(tied)
    for model in (channels_last, apart, tied, usual("improved-cnn"), nn.Flatten()):
        assert isinstance(resident.Snapshot(model).changes(), dict)


def test_nothing_is_read_from_another_device_ahead() -> None:
    kept = resident.Snapshot(nn.Linear(2, 3, bias=False).to("meta"))
    assert kept._layout is None


def test_a_model_without_numbers_has_no_changes() -> None:
    kept = resident.Snapshot(nn.Flatten())
    kept.restore()
    assert kept.changes() == {}
