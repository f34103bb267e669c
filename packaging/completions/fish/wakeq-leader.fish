# Made by scripts/build-man from the programs: change those.
complete -c wakeq-leader -f
complete -c wakeq-leader -l lease -d 'after a crash or a cut of the network another host leads after this long (default: 10s)' -x
complete -c wakeq-leader -l stop-timeout -d 'how long what is bound to the target may take to stop: at least as long as any TimeoutStopSec= of it (default: 2s)' -x
complete -c wakeq-leader -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0)' -x
complete -c wakeq-leader -l start-timeout -d 'how long to try to reach Redis at the start before giving up with exit code 69 (default: 1min)' -x
complete -c wakeq-leader -l log-level -d 'the least level that is logged (default: info)' -x -a 'debug info warning'
complete -c wakeq-leader -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-leader -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-leader -l help -d 'show this and exit'
complete -c wakeq-leader -l version -d 'show the version and exit'
