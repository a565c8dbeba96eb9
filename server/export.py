"""The models of a run that ends, saved where people find them."""

from __future__ import annotations

from functools import partial

from coppice.domain import BlobRef
from server.records import RunRecord
from server.resources import Resources
from server.run_work import RunWork


async def export_models(
    resources: Resources,
    work: RunWork,
    run: RunRecord,
    best: tuple[int, float, BlobRef] | None,
    newest: BlobRef,
) -> None:
    """Save the models of the best round's state, or else those of the newest."""
    store, read = resources.store, resources.threads.store
    record = await read(partial(store.run, run.run_id))
    round_number, _, state = best or (record.round_number, None, newest)
    evaluations = {
        item.where: item
        for item in await read(partial(store.evaluations, run.run_id))
        if item.round_number == round_number
    }
    path = partial(resources.model_path, run.run_id, run.spec.name)
    await resources.threads.compute(partial(work.export, state, path, round_number, evaluations))
