# Made by scripts/build-man from the programs: change those.
complete -c wakeq-consumer -f
function __wakeq_consumers --description 'The consumers of this host'
    set -l config /etc/wakeq
    set -q WAKEQ_CONFIG_DIR; and set config $WAKEQ_CONFIG_DIR
    set -l runtime /run/wakeq
    set -q WAKEQ_RUNTIME_DIR; and set runtime $WAKEQ_RUNTIME_DIR
    for file in $config/consumers/*.toml $runtime/consumer/*.sock
        string replace -r '^.*/(.*)\.(toml|sock)$' '$1' $file | string match -rv '^_'
    end
end
complete -c wakeq-consumer -l stream -d 'the stream to read (default: NAME)' -x
complete -c wakeq-consumer -l group -d 'the consumer group (default: NAME)' -x
complete -c wakeq-consumer -l start -d 'where a new group begins: 0, the oldest message, or $, the next one (default: 0)' -x -a '0 \\$'
complete -c wakeq-consumer -l handler -d 'what to call for each message: package.module:callable or /a/file.py:callable' -x
complete -c wakeq-consumer -l exec -d 'what to run for each message instead: a program with its arguments' -x
complete -c wakeq-consumer -l python -d 'run the handler with this interpreter, of the application\'s own environment' -r -F
complete -c wakeq-consumer -l concurrency -d 'how many messages are handled at once (default: 1)' -x
complete -c wakeq-consumer -l prefetch -d 'at most this many messages in hand for each of them (default: 1000)' -x
complete -c wakeq-consumer -l order -d 'none; key: messages with the same wakeq.key one after another; strict: all messages, by one consumer of the group at a time (default: none)' -x -a 'none key strict'
complete -c wakeq-consumer -l standby -d 'strict order, another consumer is at it: wait for it to leave, or exit (default: wait)' -x -a 'wait exit'
complete -c wakeq-consumer -l lease -d 'strict order, after a crash another consumer takes over after this long (default: 10s)' -x
complete -c wakeq-consumer -l timeout -d 'a message that takes longer has failed (0: no limit) (default: 0s)' -x
complete -c wakeq-consumer -l max-attempts -d 'a message that failed so often is a dead letter (0: never) (default: 10)' -x
complete -c wakeq-consumer -l max-crashes -d 'so is a message whose handler ended the whole process so often (default: 3)' -x
complete -c wakeq-consumer -l backoff -d 'how long to wait at most before another try, each time a random part of it (default: base=1s,factor=2,cap=600s)' -x
complete -c wakeq-consumer -l idle-timeout -d 'exit when nothing came for this long (default: 30s)' -x
complete -c wakeq-consumer -l drain-timeout -d 'at a stop, how long to wait for messages being handled (default: 1min)' -x
complete -c wakeq-consumer -l claim-after -d 'take over messages of a consumer that is gone after this long (default: 1min)' -x
complete -c wakeq-consumer -l scale-lag -d 'wake one more instance for each so many unread messages (default: 1000)' -x
complete -c wakeq-consumer -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0)' -x
complete -c wakeq-consumer -l start-timeout -d 'how long to try to reach Redis at the start before giving up with exit code 69 (default: 1min)' -x
complete -c wakeq-consumer -l log-level -d 'the least level that is logged (default: info)' -x -a 'debug info warning'
complete -c wakeq-consumer -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-consumer -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq)' -x -a '(__fish_complete_directories)'
complete -c wakeq-consumer -l help -d 'show this and exit'
complete -c wakeq-consumer -l version -d 'show the version and exit'
complete -c wakeq-consumer -a '(__wakeq_consumers)'
