import numpy as np
import pytest
import torch
from torch import nn

from fl_app import models, resident, task
from fl_app.batches import LAYOUT


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
    changes = kept.changes().arrays
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
    changes = kept.changes().arrays
    assert list(changes) == list(before)
    for array_name, array in before.items():
        assert np.array_equal(changes[array_name], disturbed[array_name] - array)
        assert changes[array_name].dtype == array.dtype
        assert changes[array_name].flags.c_contiguous
    kept.restore()
    after = task.get_arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_changes_of_a_gathered_model_are_parts_of_one() -> None:
    model = lenet()
    resident.gather(model)
    kept = resident.Snapshot(model)
    disturb(model)
    arrays, whole = kept.changes()
    assert whole is not None
    assert len(np.unique(whole)) > 50
    assert np.array_equal(whole, np.concatenate([a.ravel() for a in arrays.values()]))
    assert all(np.shares_memory(whole, array) for array in arrays.values())


def test_a_model_with_counters_is_not_in_one_piece() -> None:
    model = models.build("improved-cnn", (1, 8, 8), 10, seed=0)
    resident.gather(model)
    assert resident.Snapshot(model).changes().whole is None


def test_a_model_without_numbers_has_no_changes() -> None:
    kept = resident.Snapshot(nn.Flatten())
    kept.restore()
    assert kept.changes().arrays == {}
