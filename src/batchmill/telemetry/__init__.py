"""What the processes say: logs, numbers for Prometheus, and traces for who asks for them."""

from batchmill.telemetry.logs import set_up_logs
from batchmill.telemetry.metrics import Metrics
from batchmill.telemetry.traces import UNTRACED, Span, Traces

__all__ = ["UNTRACED", "Metrics", "Span", "Traces", "set_up_logs"]
