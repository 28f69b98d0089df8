"""How the tests compile: without XLA's optimisation, since they compile far more than they compute.

The compiler then needs a fifth of the time. What tests/train/test_kills.py and a part of
`make compat` run is optimised.
"""

import importlib.metadata
import os

FLAGS = ""
if "M1_TESTS_OPTIMIZED" not in os.environ:
    FLAGS = "--xla_backend_optimization_level=0"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
        FLAGS += " --xla_cpu_use_fusion_emitters=false"
