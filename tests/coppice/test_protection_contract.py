"""What protection asks of every method: honest claims are believed, and each rule can be folded."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from coppice.folding import fold
from coppice.protection import Aggregate, ProtectionSpec
from coppice.tensors import dense_tensors, masks_of
from tests.coppice.fleet import CASES, Fleet

pytestmark = pytest.mark.parametrize("case", CASES)


def test_honest_steps_are_believed(case: str) -> None:
    fleet = Fleet(case)
    for round_number in (1, 2, 3):
        updates = []
        for client_id, task in fleet.plan(round_number).items():
            update = fleet.answer(client_id, task)
            most = fleet.server.most_steps(task, update.num_examples)
            assert most is not None
            assert update.steps <= most < 10**6
            assert fleet.server.unit(fleet.state, update, round_number) > 0
            updates.append(update)
        fleet.fold(updates, round_number)
        for private in fleet.privates.values():
            private.commit()


@pytest.mark.parametrize("aggregate", get_args(Aggregate))
def test_a_round_of_one_update_is_the_same_by_every_rule(case: str, aggregate: Aggregate) -> None:
    """A median, a trimmed mean or the nearest of one is that one."""
    fleet = Fleet(case).rounds(2)
    (update, *_) = fleet.answers(3)
    updates = {update.client_id: update}
    done = fold(
        fleet.server,
        ProtectionSpec(aggregate=aggregate),
        fleet.state,
        list(updates),
        lambda names: (updates[name] for name in names),
        3,
        devices=1,
    )
    fleet.fold([update], 3)
    models, expected = fleet.server.models(done.state), fleet.server.models(fleet.state)
    assert models.keys() == expected.keys()
    for key in models:
        assert masks_of(models[key]) == masks_of(expected[key])
        found, like = dense_tensors(models[key]), dense_tensors(expected[key])
        for name in found:
            torch.testing.assert_close(found[name], like[name], rtol=1e-5, atol=1e-6)
