"""What can be known about the CUDA kernels without a GPU: ``python -m benchmarks.static_check``.

Every kernel is cross-compiled to a cubin and its machine code is read: registers, spills, width of
the global loads and stores, and the instructions of each pipe, from which a time follows.
"""
