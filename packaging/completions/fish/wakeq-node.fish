# Made by scripts/build-man from the programs: change those.
complete -c wakeq-node -f
complete -c wakeq-node -l stream -d 'the stream to publish to and to consume (default: NAME)' -x
complete -c wakeq-node -l list -d 'use a list instead of a stream: LPUSH at its left, taken from its right' -x
complete -c wakeq-node -l error-list -d 'the list for messages of a list that failed (default: a key of the node)' -x
complete -c wakeq-node -l group -d 'the consumer group of a stream (default: NAME)' -x
complete -c wakeq-node -l handler -d 'what to call for each message: package.module:callable or /a/file.py:callable' -x
complete -c wakeq-node -l exec -d 'what to run for each message instead: a program with its arguments' -x
complete -c wakeq-node -l python -d 'run handler and generate with this interpreter, of the application\'s own environment' -r -F
complete -c wakeq-node -l workers -d 'how many messages are handled at once (default: 100)' -x
complete -c wakeq-node -l timeout -d 'a message that takes longer has failed (0: no limit) (default: 0s)' -x
complete -c wakeq-node -l max-attempts -d 'a message of a stream that failed so often is a dead letter (0: never) (default: 10)' -x
complete -c wakeq-node -l max-crashes -d 'so is a message whose handler ended the whole process so often (default: 3)' -x
complete -c wakeq-node -l backoff -d 'how long to wait at most before another try, each time a random part of it (default: base=1s,factor=2,cap=600s)' -x
complete -c wakeq-node -l drain-timeout -d 'at a stop, how long to wait for messages being handled (default: 1min)' -x
complete -c wakeq-node -l claim-after -d 'take over messages of a process that is gone after this long (default: 1min)' -x
complete -c wakeq-node -l interval -d 'the leader publishes this often (default: 500ms)' -x
complete -c wakeq-node -l calendar -d 'the leader publishes at these times instead, as in systemd.time(7)' -x
complete -c wakeq-node -l missed -d 'what becomes of times at which nobody published: skip them, make up for them once, or for all (default: skip)' -x -a 'skip once all'
complete -c wakeq-node -l generate -d 'what to call for the messages: package.module:callable or /a/file.py:callable (default: a unique id and the time)' -x
complete -c wakeq-node -l generate-exec -d 'what to run for the messages instead: a program with its arguments' -x
complete -c wakeq-node -l generate-timeout -d 'messages that take longer to make are left out (default: 30s)' -x
complete -c wakeq-node -l leader-consumes -d 'the leader consumes, too'
complete -c wakeq-node -l lease -d 'after a crash another node leads after this long (default: 10s)' -x
complete -c wakeq-node -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0)' -x
complete -c wakeq-node -l start-timeout -d 'how long to try to reach Redis at the start before giving up with exit code 69 (default: 1min)' -x
complete -c wakeq-node -l log-level -d 'the least level that is logged (default: info)' -x -a 'debug info warning'
complete -c wakeq-node -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-node -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-node -l help -d 'show this and exit'
complete -c wakeq-node -l version -d 'show the version and exit'
