"""`python -m tests.contracts.accept [NAME …]` writes what the programs need now as what is agreed; says what moved."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from m1jax.plan import contracts
from tests.contracts import cases


def main(names):
    for name in names or cases.CASES:
        now = cases.measure(name)
        moved = contracts.differences(contracts.load(cases.path(name)), now) if cases.path(name).exists() else ["new"]
        cases.write(name, now)
        print(f"{name}: {'; '.join(moved) or 'no budget moved'}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
