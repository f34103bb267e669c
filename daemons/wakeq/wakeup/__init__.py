"""wakeq-wakeup: wakes the consumers of this host that have work."""
