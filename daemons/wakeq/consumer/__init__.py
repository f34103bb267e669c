"""wakeq-consumer: handle the messages of one stream for one group, then sleep again."""
