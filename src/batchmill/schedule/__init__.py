"""What to send next, pure: order, window, verdicts, share."""
