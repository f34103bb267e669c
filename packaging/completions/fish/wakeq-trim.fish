# Made by scripts/build-man from the programs: change those.
complete -c wakeq-trim -f
complete -c wakeq-trim -l keep -d 'leave at least so many of the newest messages of each stream (default: 1000)' -x
complete -c wakeq-trim -l max-length -d 'LOSES MESSAGES: remove all but so many, even those that a group needs (0: never) (default: 0)' -x
complete -c wakeq-trim -l streams -d 'trim these streams, too, not only those that wakeq has seen' -x
complete -c wakeq-trim -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0)' -x
complete -c wakeq-trim -l start-timeout -d 'how long to try to reach Redis at the start before giving up with exit code 69 (default: 1min)' -x
complete -c wakeq-trim -l log-level -d 'the least level that is logged (default: info)' -x -a 'debug info warning'
complete -c wakeq-trim -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-trim -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-trim -l help -d 'show this and exit'
complete -c wakeq-trim -l version -d 'show the version and exit'
