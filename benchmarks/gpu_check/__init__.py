"""Correctness and speed of nmcompile on one GPU: ``python -m benchmarks.gpu_check --help``.

cli         options, files, the table at the end
supervise   worker processes, time limits, restarts after a crash
worker      runs cases one after the other and writes events
events      what a case may report; what becomes of it: JSON and CSV
targets     the project's targets and the verdict
figures     what was measured, as targets that the cost model takes
caches      compiled kernels that come from elsewhere
device      all that differs between a GPU and the rehearsal on the CPU
cases       the sections, what decides most first
"""

from __future__ import annotations
