"""Who is in a round's cohort: pure policies over the clients that are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coppice.domain import ClientId, RunSpec, rank_clients


def ranked(spec: RunSpec, round_number: int, clients: Iterable[ClientId]) -> list[ClientId]:
    """The clients in the order in which this round takes them."""
    return rank_clients(spec.seed, round_number, clients)


def cohort_wanted(
    spec: RunSpec, round_number: int, known: Iterable[ClientId]
) -> tuple[ClientId, ...]:
    """The clients that this round would rather have, over-selection included."""
    return tuple(ranked(spec, round_number, known)[: spec.cohort.planned])


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a client has every label that the run asks for."""
    return all(labels.get(key) == value for key, value in wanted.items())
