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


class Stop(Exception):  # noqa: N818 - it says what to do
    """End the command with this sentence on stderr and this code."""

    def __init__(self, sentence: str, code: Exit) -> None:
        super().__init__(sentence)
        self.code = code
