# Made by scripts/build-man from the programs: change those.
complete -c wakeq-fanout -f
complete -c wakeq-fanout -l timeout -d 'clients of a gateway that was killed are timed out after this long (default: 30s)' -x
complete -c wakeq-fanout -l queue-limit -d 'a send to a room where so many messages wait is refused (0: no limit) (default: 0)' -x
complete -c wakeq-fanout -l connections -d 'at most so many connections; more wait until one ends (default: 10000)' -x
complete -c wakeq-fanout -l line-kib -d 'the longest request, in KiB (default: 1024)' -x
complete -c wakeq-fanout -l unread-kib -d 'how much may wait for a client that reads slowly, in KiB (default: 4096)' -x
complete -c wakeq-fanout -l slow-timeout -d 'a client that leaves half of that unread for so long is ejected (default: 10s)' -x
complete -c wakeq-fanout -l idle-timeout -d 'exit when nobody was connected for this long (default: 30s)' -x
complete -c wakeq-fanout -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0)' -x
complete -c wakeq-fanout -l start-timeout -d 'how long to try to reach Redis at the start before giving up with exit code 69 (default: 1min)' -x
complete -c wakeq-fanout -l log-level -d 'the least level that is logged (default: info)' -x -a 'debug info warning'
complete -c wakeq-fanout -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-fanout -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-fanout -l help -d 'show this and exit'
complete -c wakeq-fanout -l version -d 'show the version and exit'
