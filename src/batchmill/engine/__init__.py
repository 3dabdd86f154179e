"""The loops that move a batch on."""
