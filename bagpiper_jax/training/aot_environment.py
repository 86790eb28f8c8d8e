"""What must be set before JAX is imported, so that libtpu compiles without TPUs."""

from __future__ import annotations

import os


def prepare_environment() -> None:
    """Lets libtpu compile on a machine without TPUs; before JAX is imported."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
