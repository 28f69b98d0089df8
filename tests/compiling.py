"""How the tests compile: without XLA's optimisation, since they compile far more than they compute.

The compiler then needs a fifth of the time. What tests/train/test_kills.py and a part of
`make compat` run is optimised.
"""

import os

FLAGS = "" if "M1_TESTS_OPTIMIZED" in os.environ else "--xla_backend_optimization_level=0"
