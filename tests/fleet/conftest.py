"""One Ray cluster for the whole module: three seconds to start, a gigabyte to keep."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def nodes() -> Iterator[object]:
    """A head node of four places on 127.0.0.1, which this process is a driver of."""
    import ray  # noqa: PLC0415 - its tests are skipped where there is none
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - as above

    # Its sockets' names must be short, and its home is not this user's.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
        head = {
            "num_cpus": 4,
            "node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "temp_dir": str(folder),
            "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 2},
        }
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=made.address, log_to_driver=False, logging_level="error")
            made.folder = folder
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
