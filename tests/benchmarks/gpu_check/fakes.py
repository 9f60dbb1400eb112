"""Workers that start in no time and behave badly."""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def obey(channel: Any, job: dict[str, Any]) -> None:
    """Do as the cases are named."""
    channel.send({"kind": "environment", "data": {"gpu": os.environ.get("FAKE_GPU", "none")}})
    for key in job["keys"]:
        section, case = key.split("/")
        place = {"section": section, "case": case}
        channel.send({"kind": "start", **place, "limit": 1})
        if case == "crashes":
            print("about to crash", file=sys.stderr, flush=True)
            os.abort()
        if case == "tells_caches":
            inductor = ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
            for name in ("TRITON_CACHE_DIR", *inductor):
                value = os.environ.get(name)
                channel.send({"kind": "note", **place, "name": name, "value": value})
        if case == "hangs":
            time.sleep(60)
        if case == "loses":
            channel.send({"kind": "end", **place, "status": "error", "seconds": 0, "error": "lost"})
            sys.exit(3)
        channel.send({"kind": "end", **place, "status": "ok", "seconds": 0, "error": ""})


def refuse(channel: Any, job: dict[str, Any]) -> None:
    raise SystemExit("no GPU")
