"""wakeq-bridge: takes messages of channels or of a list, and publishes them to a stream."""
