# Made by scripts/build-man from the programs: change those.
complete -c wakeq-bridge -f
complete -c wakeq-bridge -l channel -d 'take the messages published to this channel' -x
complete -c wakeq-bridge -l pattern -d 'or to all channels whose names match, as in news.*' -x
complete -c wakeq-bridge -l shard-channels -d 'or to so many channels, log:0..7 for eight, by SPUBLISH or PUBLISH' -x
complete -c wakeq-bridge -l list -d 'or take the elements of this list' -x
complete -c wakeq-bridge -l list-end -d 'the end of the list that they are taken from: right, what LPUSH has put there first, or left (default: right)' -x -a 'right left'
complete -c wakeq-bridge -l stream -d 'the stream to publish to (default: messages:processed)' -x
complete -c wakeq-bridge -l workers -d 'how many processes handle messages (default: 1)' -x
complete -c wakeq-bridge -l transform -d 'what to call for each message: package.module:callable or /a/file.py:callable (default: its JSON object becomes the fields)' -x
complete -c wakeq-bridge -l exec -d 'what to run for each message instead: a program with its arguments' -x
complete -c wakeq-bridge -l timeout -d 'a message that takes longer has failed (0: no limit) (default: 0s)' -x
complete -c wakeq-bridge -l max-crashes -d 'so has a message that ended its whole worker so often (default: 3)' -x
complete -c wakeq-bridge -l memory-mib -d 'have at most this much in memory that was received and not published (default: 256)' -x
complete -c wakeq-bridge -l ids -d 'the list of the ids of all workers that live (default: consumer:ids)' -x
complete -c wakeq-bridge -l lease -d 'after a cut of the network another instance takes over after this long (default: 5s)' -x
complete -c wakeq-bridge -l drain-timeout -d 'at a stop, how long to wait for what was received to be published (default: 1min)' -x
complete -c wakeq-bridge -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0)' -x
complete -c wakeq-bridge -l start-timeout -d 'how long to try to reach Redis at the start before giving up with exit code 69 (default: 1min)' -x
complete -c wakeq-bridge -l log-level -d 'the least level that is logged (default: info)' -x -a 'debug info warning'
complete -c wakeq-bridge -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-bridge -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-bridge -l help -d 'show this and exit'
complete -c wakeq-bridge -l version -d 'show the version and exit'
