"""Several processes: gloo on the CPU, started as users start them."""
