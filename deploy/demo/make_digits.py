"""Makes digits.npz, the demo's data, from scikit-learn's copy of a set of handwritten digits.

The set is the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI
Machine Learning Repository, 1998).
Run it with an interpreter that has scikit-learn; nothing else in the project needs that.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np


def main() -> None:
    """Write x (1797, 1, 8, 8) with values 0 to 16 and y (1797,), both uint8, beside this file."""
    digits = importlib.import_module("sklearn.datasets").load_digits()
    path = Path(__file__).with_name("digits.npz")
    images = digits.images[:, np.newaxis].astype(np.uint8)
    np.savez_compressed(path, x=images, y=digits.target.astype(np.uint8))


if __name__ == "__main__":
    main()
