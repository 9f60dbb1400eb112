"""What masks do while a model trains: figures of every pruned product, from a step now and then."""

from __future__ import annotations
