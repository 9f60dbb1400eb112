"""``benchmarks.gpu_check`` rehearsed on the CPU: every section, its files, limits and failures.

What a GPU alone can show (events, graphs, the sparse library) is out of reach here.
"""
