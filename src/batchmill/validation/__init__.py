"""Checks an input and plans it, once for the engine that runs a batch and once for the API that quotes one."""
