"""wakeq-node: consumes, stands for election, and publishes when it leads."""
