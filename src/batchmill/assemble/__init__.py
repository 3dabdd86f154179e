"""The composition root: the only room that names a concrete database, disk, bucket or backend."""
