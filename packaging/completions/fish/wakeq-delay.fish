# Made by scripts/build-man from the programs: change those.
complete -c wakeq-delay -f
complete -c wakeq-delay -l recheck -d 'look at everything again this often, should a hint be lost (default: 1min)' -x
complete -c wakeq-delay -l repair -d 'what to call for each failed message before it is delivered again: package.module:callable or /a/file.py:callable' -x
complete -c wakeq-delay -l repair-exec -d 'what to run for each failed message instead: a program, arguments' -x
complete -c wakeq-delay -l repair-timeout -d 'a repair that takes longer has failed (default: 30s)' -x
complete -c wakeq-delay -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0)' -x
complete -c wakeq-delay -l start-timeout -d 'how long to try to reach Redis at the start before giving up with exit code 69 (default: 1min)' -x
complete -c wakeq-delay -l log-level -d 'the least level that is logged (default: info)' -x -a 'debug info warning'
complete -c wakeq-delay -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-delay -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-delay -l help -d 'show this and exit'
complete -c wakeq-delay -l version -d 'show the version and exit'
