"""wakeq-leader: holds a lease, so that what is bound to its target runs on one host at a time."""
