"""wakeq-delay: moves delayed messages back for delivery when they are due."""
