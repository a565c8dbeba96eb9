"""What the refused updates of a run come to: who is left out, and what devices are told."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from coppice.domain import ClientId
from coppice.protection import Finding, ProtectionSpec
from server.answers import CheckIn
from server.records import NewEvent, RefusalRecord
from server.resources import Resources

#: Of many refusals, a device is told the newest.
_MOST_TOLD = 8


def update_refused(
    run_id: int, round_number: int, client_id: ClientId, finding: Finding
) -> NewEvent:
    """The line of the log for a refused update."""
    text = f"round {round_number}: update of {client_id} refused: {finding.reason}"
    return NewEvent("update_refused", text[:500], run_id, round_number, client_id)


class Verdicts:
    """Of one run."""

    def __init__(self, run_id: int, protection: ProtectionSpec, resources: Resources) -> None:
        self._run_id = run_id
        self._protection = protection
        self._resources = resources
        #: Refused updates that count, by client.
        self._strikes: dict[ClientId, int] = {}

    @property
    def left_out(self) -> set[ClientId]:
        """Who takes part no more."""
        leaves_out = self._protection.leaves_out
        return {name for name, count in self._strikes.items() if leaves_out(count)}

    async def load(self) -> None:
        """Know what the store knows."""
        strikes = partial(self._resources.store.strikes, self._run_id)
        self._strikes = await self._resources.threads.store(strikes)

    async def count(self, round_number: int) -> set[ClientId]:
        """Count anew after a round. Returns, and says in the log, who is left out from now on."""
        before = self.left_out
        await self.load()
        out = self.left_out - before
        if out:
            events = [
                NewEvent(
                    "client_left_out",
                    f"{name} is left out of the run from now on: {self._strikes[name]} of its "
                    "updates were refused",
                    self._run_id,
                    round_number,
                    name,
                )
                for name in sorted(out)
            ]
            await self._resources.write(self._resources.store.append, events=events)
        return out


@dataclass(frozen=True)
class Told:
    """Refusals that a device is told of, and where that leaves it."""

    refusals: list[RefusalRecord]
    strikes: int
    strikes_allowed: int
    left_out: bool


async def untold(resources: Resources, check_in: CheckIn) -> Told | None:
    """What a device has to be told of its refused updates in a run; None when nothing."""
    if not check_in.run_key or check_in.client_id not in resources.refused_clients:
        return None
    return await resources.threads.store(partial(_untold, resources, check_in))


def _untold(resources: Resources, check_in: CheckIn) -> Told | None:
    store, client_id, seen = resources.store, check_in.client_id, check_in.refusal_seen
    run = store.run_of_key(check_in.run_key)
    if run is None:
        return None
    found = store.refusals(run.run_id, seen, _MOST_TOLD, newest=True, client_id=client_id)
    if not found:
        return None
    strikes, protection = store.strikes(run.run_id).get(client_id, 0), run.spec.protection
    return Told(found, strikes, protection.strikes, protection.leaves_out(strikes))
