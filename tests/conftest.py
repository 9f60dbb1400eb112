"""Every test starts with an empty Dynamo cache, a fixed seed and no report.

Each test process has an Inductor cache of its own and compiles in one thread, so that several
processes share a small machine without waiting for each other. The contract of every pass is
checked. Tests compile all the time, so what Python and Inductor do on the side is done seldom.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator

_CACHE = tempfile.TemporaryDirectory(prefix="nmcompile-tests-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _CACHE.name
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
# What /proc/cpuinfo says is believed: else each process with an empty cache compiles and loads a
# program for every vector instruction set first, in 5 seconds.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
os.environ["NMCOMPILE_CHECK_PASSES"] = "1"
os.environ["COLUMNS"] = "150"  # a printed report is as wide as the terminal

import pytest
import torch

from nmcompile.undisturbed import RARELY

torch.set_num_threads(1)
# As where nmcompile compiles: a sixth of the time of a test goes into walks over all objects.
gc.set_threshold(*RARELY)
# A shell starts what it runs in the background with Ctrl-C ignored, and so would the processes be
# that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
