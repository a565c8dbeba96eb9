"""What a device does that has no memory for whole batches."""

from __future__ import annotations

from dataclasses import replace

from coppice.batch_parts import BatchMemory
from coppice.device_cost import DeviceCost, MemoryCost
from coppice.methods.prunefl.terms import cost_from_tensors
from coppice.tensors import dense_group
from tests.coppice.costs import BASE_BYTES
from tests.coppice.methods.prunefl.own_masks import Run, cost
from tests.coppice.methods.prunefl.small import Small, settings

#: Weights of the two layers.
SIZES = (32, 24)


def of_batches(cost: DeviceCost, bytes_per_example: float) -> DeviceCost:
    """A cost that tells what each of the 4 examples of a batch takes."""
    batch = BatchMemory(examples=4, bytes_per_example=bytes_per_example)
    step = replace(cost.memory.training, batch=batch)
    return replace(cost, memory=MemoryCost(training=step))


def test_a_device_without_memory_for_whole_batches_chooses_by_what_parts_leave() -> None:
    room = 22 * 20.0
    run = Run({"well": cost(), "small": of_batches(cost(room=room - 1000), 500.0)})
    chosen = run.choices()["small"]
    # What the same device would keep if it had those 1000 bytes, reports apart.
    same = Run({"well": cost(), "small": cost(room=room)}).choices()["small"]
    assert sum(chosen["kept"].values()) > 8 + 3
    assert {**chosen, "report_every": 0} == {**same, "report_every": 0}


def test_a_device_that_lacks_memory_even_for_parts_says_how_much() -> None:
    tiny = of_batches(cost(room=-1000.0), 400.0)
    choice = Run({"tiny": tiny}).choices()["tiny"]
    assert choice["declined"] == "memory"
    assert choice["parts"] == 2
    assert choice["needed_bytes"] == BASE_BYTES + 22 * 11 - 800


def test_a_report_holds_the_gradients_of_all_layers_where_batches_are_split() -> None:
    whole = Run({"any": cost()}).choices()["any"]
    weights = 22 * sum(whole["kept"].values())
    for parts, gradients in ((1, max(SIZES)), (2, sum(SIZES))):
        needed = 1.1 * 4 * (2 * sum(SIZES) + gradients)
        for more, is_whole in ((1e-3, True), (-1, False)):
            device = cost(room=weights + needed + more)
            if parts > 1:
                batch = BatchMemory(examples=4, parts=parts)
                step = replace(device.memory.training, batch=batch)
                device = replace(device, memory=MemoryCost(training=step))
            choice = Run({"any": device}).choices()["any"]
            assert choice["kept"] == whole["kept"]
            assert (choice["report_every"] == 1) is is_whole


def test_a_device_reports_what_rounds_cost_it_in_the_parts_that_it_trains_in() -> None:
    run = Run({"small": of_batches(cost(), 500.0)})
    (task,) = run.plan().values()
    device = replace(run.local("small"), parts=2)
    told = cost_from_tensors(dense_group(run.clients["small"].run(task, device).payload, "cost"))
    assert told is not None
    assert told.memory.training.base_bytes == BASE_BYTES - 1000


def test_initial_pruning_sees_no_more_than_a_part_at_a_time() -> None:
    run = Small(settings(initial_passes=2, initial_interval=2, initial_batches=2))
    (task,) = run.plan().values()
    device = replace(run.local("a"), parts=2)
    sizes: list[int] = []
    model = run.client.receive(task, device)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    update = run.client.run(task, device)
    assert "accuracy" in update.metrics
    assert set(sizes) == {2}
