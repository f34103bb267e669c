"""wakeq-trim: keeps streams short, without removing what some group still needs."""
