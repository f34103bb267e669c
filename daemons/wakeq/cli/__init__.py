"""wakeq, the operator's command: one module for each family of subcommands."""
