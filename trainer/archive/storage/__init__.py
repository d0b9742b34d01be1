"""Where an archive lies: a folder of this host or one that is shared, or a bucket of an object store."""
