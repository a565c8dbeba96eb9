"""What a device says of its update beside the values: examples and steps, held to what can be."""

from __future__ import annotations

from coppice.protection import Finding


def check_claims(
    num_examples: int, steps: int, most_examples: int | None, most_steps: int | None
) -> Finding | None:
    """Why these claims cannot be; None when they can.

    The number of examples is the update's weight in the mean, and the number of steps is what its
    size is divided by (`coppice.firewall`): who may say anything of them needs no large values.

    Args:
        num_examples: That the update stands for.
        steps: Local steps that it is of.
        most_examples: That the client said it has when it was given the task; None: not known.
        most_steps: That the task takes on so many examples; None: the method does not say.
    """
    if most_examples is not None and num_examples > most_examples:
        return Finding(
            "claims",
            f"it claims {num_examples} examples; the client had {most_examples} when it was given "
            "the task",
            {"num_examples": float(num_examples), "most_examples": float(most_examples)},
        )
    if most_steps is not None and steps > most_steps:
        return Finding(
            "claims",
            f"it claims {steps} local steps; the task has {most_steps}",
            {"steps": float(steps), "most_steps": float(most_steps)},
        )
    return None
