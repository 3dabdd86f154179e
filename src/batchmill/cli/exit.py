"""How a command ends when it cannot do its work: one sentence, one exit code."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; scripts rely on them."""

    FAULT = 1  # a fault of ours, with a traceback in the log; of `verify` and `backup`: damage was found
    USAGE = 2  # a wrong option or setting
    DATA_UNUSABLE = 3  # the data directory cannot be made, written or trusted
    DATA_IN_USE = 4  # another Batchmill works on it
    PORT_TAKEN = 5  # or the host is not an address of this machine
    NO_BUILTIN_MODEL = 6  # the built-in engine or its weights cannot be had


class RunExit(IntEnum):
    """Exit codes of `run` and `check`, which speak of the data: 1 and 3 mean something else than in `Exit`.

    What is 3 there, a folder that cannot be used, is 2 here; a fault of ours is 70 (EX_SOFTWARE).
    """

    GOOD = 0  # every line succeeded (check: every line is good)
    BAD_DATA = 1  # some line of the input breaks a rule: nothing was sent
    USAGE = 2  # a wrong option or setting; the input or the output is not what it must be
    LINES_FAILED = 3  # all lines are done, and some of them failed
    IN_USE = 4  # another `run` works on this output
    NO_BUILTIN_MODEL = 6
    FAULT = 70  # a fault of ours, with a traceback in the log
    INTERRUPTED = 130  # Ctrl-C or SIGTERM: the same command goes on


class ClientExit(IntEnum):
    """Exit codes of the commands that ask a server; `watch` and `submit --watch` end with what became of the batch."""

    GOOD = 0  # done; of a batch: completed, and every line succeeded
    REFUSED = 1  # the server refuses the call, or the input holds bad lines
    USAGE = 2  # a wrong option; an input or an output that cannot be read or written
    LINES_FAILED = 3  # the batch is completed, and some lines failed
    BATCH_FAILED = 4  # the batch failed: its input breaks a rule
    EXPIRED = 5  # the batch's window closed before all lines were done
    CANCELLED = 6  # the batch was cancelled
    UNREACHABLE = 7  # the server is away, or is none
    INTERRUPTED = 130  # Ctrl-C or SIGTERM; the batch goes on


BATCH_EXIT = {
    "completed": ClientExit.GOOD,
    "failed": ClientExit.BATCH_FAILED,
    "expired": ClientExit.EXPIRED,
    "cancelled": ClientExit.CANCELLED,
}


class Stop(Exception):  # noqa: N818 - it says what to do
    """End the command with this sentence on stderr and this code."""

    def __init__(self, sentence: str, code: Exit | RunExit | ClientExit) -> None:
        super().__init__(sentence)
        self.code = code
