"""What the watch sees of operators on fake tensors, and that torch refuses what a GPU would."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hunyuan_train.planner.work import Item
from hunyuan_train.rehearsal.answers import RESULTS
from hunyuan_train.rehearsal.devices import have_own_kernels
from hunyuan_train.rehearsal.rank import describe_error, find_leaks, note_rest
from hunyuan_train.rehearsal.watch import Watch

GPU = "cuda"


@pytest.fixture
def watch():
    watching = Watch()
    with FakeTensorMode(allow_non_fake_inputs=True), watching:
        yield watching


def waits(watch: Watch) -> dict[str, int]:
    found: dict[str, int] = {}
    for (_, kind, line), number in watch.waits.items():
        assert "tests/rehearsal/test_watch.py" in line
        found[kind] = found.get(kind, 0) + number
    return found


def test_a_value_that_the_cpu_reads_is_a_wait_with_its_line(watch):
    values = torch.ones(4, device=GPU)
    values.sum().item()
    [(phase, kind, line)] = watch.waits
    assert (phase, kind) == ("between", "item")
    assert line.startswith("tests/rehearsal/test_watch.py:")
    assert line.endswith(" test_a_value_that_the_cpu_reads_is_a_wait_with_its_line")
    torch.ones(4).sum().item()  # of the CPU's own
    assert sum(watch.waits.values()) == 1


def test_shapes_that_depend_on_values_are_waits(watch):
    values = torch.ones(64, device=GPU)
    mask = values > 0
    # As operators: Python's brackets ask for the device's guard, which needs a process of its own.
    assert torch.ops.aten.index.Tensor(values, [mask]).shape == (8,)
    torch.ops.aten.nonzero.default(mask)
    torch.ops.aten.index_put_.default(values, [mask], torch.zeros((), device=GPU))
    assert waits(watch) == {"boolean index": 2, "nonzero": 1}
    assert watch.stood_in["positions in masks: an eighth of their elements"] == 2


def test_every_result_whose_shape_depends_on_values_is_made_up_and_counted(watch):
    numbers, row = (torch.ones(*shape, dtype=torch.int64, device=GPU) for shape in ((4, 16), (16,)))
    # As operators, as above.
    operators = torch.ops.aten
    results = {
        "bincount": operators.bincount.default(row, minlength=7),
        "masked_select": operators.masked_select.default(numbers, numbers > 0),
        "nonzero": operators.nonzero.default(numbers),
        "_unique2": operators._unique2.default(numbers, True, True, True),
        "unique_consecutive": operators.unique_consecutive.default(numbers, True, True),
        "unique_dim": operators.unique_dim.default(numbers, 1, True, True, True),
    }
    forms = {
        name: [tuple(one.shape) for one in (made if isinstance(made, tuple) else (made,))]
        for name, made in results.items()
    }
    assert forms == {
        "bincount": [(7,)],
        "masked_select": [(8,)],
        "nonzero": [(8, 2)],
        "_unique2": [(64,), (4, 16), (64,)],
        "unique_consecutive": [(64,), (4, 16), (64,)],
        "unique_dim": [(4, 16), (16,), (16,)],
    }
    assert RESULTS.keys() == results.keys()
    assert waits(watch) == dict.fromkeys(results, 1)
    weighed = operators.bincount.default(row, torch.ones(16, device=GPU), 3)
    assert weighed.dtype == torch.float32
    assert operators.equal.default(numbers, numbers) is True
    assert sum(watch.stood_in.values()) == 8


def test_copies_wait_unless_they_are_asked_not_to(watch):
    values = torch.ones(256, device=GPU)
    values.cpu()
    values.to("cpu", non_blocking=True)
    torch.ops.aten._to_copy.default(torch.ones(256), device=torch.device(GPU))
    values.to(torch.float64)
    assert waits(watch) == {
        "copy to the host, 1.0 kB": 1,
        "copy to the GPU, from memory that is not pinned, 1.0 kB": 1,
    }


def test_tensors_of_two_devices_are_an_error_that_names_its_line(watch):
    with pytest.raises(RuntimeError) as caught:
        torch.ones(4, device=GPU) * torch.ones(4)
    error = describe_error(caught.value)
    assert error["kind"] == "device"
    assert error["line"].startswith("tests/rehearsal/test_watch.py:")
    torch.ones(4, device=GPU) * torch.tensor(2.0)  # a number of the CPU, which CUDA takes too


def test_bytes_are_those_of_live_storages_rounded_up_as_torch_does(watch):
    whole = torch.empty(1000, device=GPU)
    view = whole.view(10, 100)
    assert watch.device.live == 4096  # 4000 in blocks of 512, and once
    del whole
    assert watch.device.live == 4096
    del view
    assert watch.device.live == 0
    assert watch.device.peaks["between"].num_bytes == 4096
    assert [event.num_bytes for event in watch.device.events] == [4096, -1]
    assert list(watch.device.peaks["between"].by_line) == []  # below what is taken down by line


def test_a_peak_says_which_lines_hold_it(watch):
    kept = torch.empty(2**23, device=GPU)
    with watch.during("forward"):
        kept * 2
    [(line, size)] = [
        pair for pair in watch.device.peaks["forward"].by_line.items() if "kept * 2" not in pair[0]
    ][:1]
    assert size in (2**25, 2**26)
    assert "test_a_peak_says_which_lines_hold_it" in line
    assert watch.device.peaks["forward"].num_bytes == 2**26
    assert watch.device.peaks["forward"].by_purpose == {"between": 2**25, "activations": 2**25}


def test_what_a_step_leaves_behind_is_named_and_what_it_frees_is_not(watch):
    seen = {"after_steps": []}
    kept = []
    for size in (2**20, 2**21):
        torch.empty(2**24, device=GPU)  # freed
        kept.append(torch.empty(size, device=GPU))
        note_rest(watch, seen)
    [(line, size)] = find_leaks(seen).items()
    assert size == 2**23
    assert line.endswith(" test_what_a_step_leaves_behind_is_named_and_what_it_frees_is_not")
    note_rest(watch, seen)
    assert find_leaks(seen) == {}


def test_products_in_float32_are_seen_in_a_16_bit_run(watch):
    wide = torch.ones(1024, 1024, device=GPU)
    wide.bfloat16() @ wide.bfloat16()
    assert not watch.float32_products
    wide @ wide
    [(line, operations)] = watch.float32_products.items()
    assert operations == 2 * 1024**3
    assert "test_products_in_float32" in line
    watch.is_16_bit = False
    wide @ wide
    assert len(watch.float32_products) == 1


def test_what_is_one_kernel_on_a_gpu_is_one_here(watch):
    rows = torch.ones(8, device=GPU)
    kernels = have_own_kernels()
    torch.ops.aten.silu_backward.default(rows, rows)
    assert watch.kernels["between", "aten.silu_backward"] == 1
    del kernels


def test_bytes_are_those_that_a_kernel_reads_and_writes(watch):
    rows = torch.ones(64, 8, device=GPU)
    one = rows.numel() * 4
    work = watch.tally.work

    def moved(operate):
        watch.tally.clear()
        operate()
        return sum(done.num_bytes for done in work.values())

    operators, index = torch.ops.aten, torch.zeros(16, dtype=torch.int64, device=GPU)
    assert moved(lambda: rows + rows) == 3 * one
    assert moved(lambda: rows.add_(1)) == 2 * one
    assert moved(lambda: operators.zeros_like.default(rows)) == one
    assert moved(lambda: operators.copy_.default(rows, rows.detach())) == 0  # torch sees that too
    assert moved(lambda: rows.bfloat16()) == one + one // 2
    # Rows by index: what is taken, not all that there is; and the indices.
    assert moved(lambda: operators.index_select.default(rows, 0, index)) == 2 * one // 4 + 16 * 8
    assert moved(lambda: torch.ones(8, device=GPU).expand(64, 8) + rows) == 2 * one + 32 + 32
    [done] = [done for (_, item), done in work.items() if done.kernels]
    assert done.flops == 0


def test_operations_of_products_are_two_for_each_pair(watch):
    left, right = (torch.ones(4, 8, device=GPU).bfloat16(), torch.ones(8, 2, device=GPU).bfloat16())
    watch.tally.clear()
    left @ right
    [(_, item)] = watch.tally.work
    [done] = watch.tally.work.values()
    assert (item, done.flops) == (Item.DENSE, 2 * 4 * 8 * 2)


def test_views_and_work_of_the_cpu_are_no_kernels(watch):
    values = torch.ones(8, device=GPU).view(2, 4).t()
    torch.ones(8) + 1
    values + 1
    assert {name: number for (_, name), number in watch.kernels.items()} == {
        "aten.ones": 1,
        "aten.add": 1,
    }


class Peak(TorchDispatchMode):
    """Bytes of all results of real operators, for comparison."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.sizes.append((operator.name(), result.untyped_storage().nbytes()))
        return result


def test_fake_tensors_take_the_bytes_that_real_ones_take():
    def work(device):
        left = torch.ones(96, 64, dtype=torch.bfloat16, device=device)
        right = torch.ones(64, 32, dtype=torch.bfloat16, device=device)
        product = (left @ right).float().softmax(dim=-1)
        return torch.cat([product, product.square()]).sum(dim=0)

    with Peak() as real:
        work("cpu")
    with FakeTensorMode(), Peak() as fake:
        work(GPU)
    assert fake.sizes == real.sizes
