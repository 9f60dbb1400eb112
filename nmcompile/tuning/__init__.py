"""A policy by measurement: what pruning each product costs the loss, and what it gains."""
