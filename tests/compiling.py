"""How the tests compile: without XLA's optimisation, since they compile far more than they compute.

The compiler then needs a fifth of the time. What tests/train/test_kills.py and
`make test-optimized` run is optimised.
"""

import os

FLAGS = ""
if "M1_TESTS_OPTIMIZED" not in os.environ:
    FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
