"""Workers on a cluster: placed, started again and scaled by somebody else."""
