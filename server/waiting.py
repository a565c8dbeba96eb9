"""What a run waits for, for people: who is missing, what each is doing, until when, and then."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from coppice.domain import ClientId
from coppice.protection import needed_updates
from server.records import AwaitedClient, LiveClient, Wait
from server.round_events import Phase
from server.rounds import RoundMachine
from server.selection import cohort_wanted

#: Clients that a sentence names; of more it says how many they are.
_NAMED = 5

Live = Mapping[ClientId, LiveClient]


def waiting(machine: RoundMachine, live: Live, deadline_at: float) -> Wait:
    """What the machine waits for.

    Args:
        live: What is known of the clients.
        deadline_at: When the machine's deadline passes, in seconds since the epoch.
    """
    match machine.phase:
        case Phase.GATHERING if machine.reserved_for is not None:
            (client,) = _awaited(machine, [machine.reserved_for], live)
            text = f"{client.client_id}, the one client that the round is for"
            return Wait(text + _also(client), clients=(client,))
        case Phase.GATHERING:
            return _gathering(machine, live, deadline_at)
        case Phase.REPORTING:
            return _reporting(machine, live, deadline_at)
        case Phase.EVALUATING:
            clients = _awaited(machine, machine.awaited, live, "evaluating")
            total = len(machine.awaited) + len(machine.reported)
            text = f"{len(clients)} of {total}: {_named(clients)}"
            return Wait(text, deadline_at, "then what has come is the evaluation", clients)
        case Phase.RESTING:
            text = "devices that can do a task: in the last round none could"
            return Wait(text, deadline_at, "then the next round begins")
        case Phase.JUDGING:
            return Wait(_evaluations(machine))
        case Phase.CLOSING:
            return Wait(_evaluations(machine), deadline_at, "then the run ends without")
    return Wait()


def _gathering(machine: RoundMachine, live: Live, deadline_at: float) -> Wait:
    cohort = machine.spec.cohort
    wanted = set(cohort_wanted(machine.spec, machine.round_number, machine.known))
    here = len(wanted & machine.present)
    missing = _awaited(machine, wanted - machine.present, live)
    # What is patient waits for a whole cohort, else for those that the fleet has.
    is_patient = not (machine.patience_spent and len(machine.known) >= cohort.needed)
    full = max(cohort.size, len(wanted)) if is_patient else len(wanted)
    count = full - here
    labels = "".join(f" with {key}={value}" for key, value in sorted(cohort.labels.items()))
    text = f"{count} more {_clients(count)}{labels} ({here} of {full} are here)"
    lost = [name for name, client in live.items() if client.presence == "lost"]
    missing += _awaited(machine, set(lost) - wanted, live) if count > len(missing) else ()
    if missing:
        text += f": {_named(missing)}"
    if len(machine.present) < cohort.needed:
        return Wait(text, None, f"a round begins with {cohort.needed} at least", missing)
    return Wait(text, deadline_at, "then the round begins with those that are here", missing)


def _reporting(machine: RoundMachine, live: Live, deadline_at: float) -> Wait:
    cohort, came = machine.spec.cohort, len(machine.reported)
    clients = _awaited(machine, machine.awaited, live, "training")
    total = len(clients) + came
    if total > cohort.size:
        text = f"{cohort.size - came} of {cohort.size}, the first of {len(clients)} at work"
    else:
        text = f"{len(clients)} of {total}"
    needed = needed_updates(cohort.needed, machine.planned, machine.refused)
    if came >= needed:
        then = f"then the round closes with what has come: {needed} are enough"
    else:
        more = needed - came
        come = "has come" if more == 1 else "have come"
        then = f"then the round fails, unless {more} more {come}: it needs {needed}"
    return Wait(f"{text}: {_named(clients)}", deadline_at, then, clients)


def _evaluations(machine: RoundMachine) -> str:
    return f"the evaluation of round {', '.join(map(str, sorted(machine.evaluating)))}"


def _awaited(
    machine: RoundMachine, clients: Iterable[ClientId], live: Live, work: str = ""
) -> tuple[AwaitedClient, ...]:
    """Each with what it is doing; `work` is what the round wants of it."""
    lost_after_seconds = machine.spec.cohort.lost_after_seconds
    return tuple(
        AwaitedClient(
            client_id,
            _doing(live.get(client_id), work, lost_after_seconds),
            live.get(client_id),
        )
        for client_id in sorted(clients)
    )


def _doing(live: LiveClient | None, work: str, lost_after_seconds: float) -> str:
    if live is None:
        return "not heard of since the server started"
    if live.presence == "lost":
        return f"silent for {live.seconds_silent:.0f} s"
    match live.activity:
        case "fetching" if live.share is not None:
            doing = f"{live.share:.0%} downloaded"
        case "uploading" if live.share is not None:
            doing = f"{live.share:.0%} uploaded"
        case "at work":
            steps = f" (step {live.steps_done})" if live.steps_done else ""
            doing = (work or "working at an earlier task") + steps
        case "unheard":
            return "not heard of since the server started"
        case "" if work:
            doing = "has not come for its task"
        case activity:
            doing = activity
    # Per cent as people write it.
    doing = doing.replace("%", " %")
    if live.presence != "suspect":
        return doing
    silent = f"silent for {live.seconds_silent:.0f} s (given up after {lost_after_seconds:.0f} s)"
    return f"{doing}, {silent}" if doing else silent


def _also(client: AwaitedClient) -> str:
    return f": {client.doing}" if client.doing else ""


def _named(clients: Collection[AwaitedClient]) -> str:
    """The first few and what they are doing."""
    shown = [
        f"{client.client_id}, {client.doing}" if client.doing else client.client_id
        for client in list(clients)[:_NAMED]
    ]
    more = len(clients) - len(shown)
    return "; ".join(shown) + (f" and {more} more" if more > 0 else "")


def _clients(count: int) -> str:
    return "client" if count == 1 else "clients"
