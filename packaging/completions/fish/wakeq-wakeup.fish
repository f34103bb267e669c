# Made by scripts/build-man from the programs: change those.
complete -c wakeq-wakeup -f
complete -c wakeq-wakeup -l recheck -d 'look at everything again this often, should a hint be lost (default: 1min)' -x
complete -c wakeq-wakeup -l starts -d 'start at most this many consumers at once (0: two for each CPU) (default: 0)' -x
complete -c wakeq-wakeup -l discover -d 'also wake groups whose name is the path of a socket'
complete -c wakeq-wakeup -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0)' -x
complete -c wakeq-wakeup -l start-timeout -d 'how long to try to reach Redis at the start before giving up with exit code 69 (default: 1min)' -x
complete -c wakeq-wakeup -l log-level -d 'the least level that is logged (default: info)' -x -a 'debug info warning'
complete -c wakeq-wakeup -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-wakeup -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-wakeup -l help -d 'show this and exit'
complete -c wakeq-wakeup -l version -d 'show the version and exit'
