# Made by scripts/build-man from the programs: change those.
complete -c wakeq -f
function __wakeq_consumers --description 'The consumers of this host'
    set -l config /etc/wakeq
    set -q WAKEQ_CONFIG_DIR; and set config $WAKEQ_CONFIG_DIR
    set -l runtime /run/wakeq
    set -q WAKEQ_RUNTIME_DIR; and set runtime $WAKEQ_RUNTIME_DIR
    for file in $config/consumers/*.toml $runtime/consumer/*.sock
        string replace -r '^.*/(.*)\.(toml|sock)$' '$1' $file | string match -rv '^_'
    end
end
complete -c wakeq -l help -d 'show this and exit'
complete -c wakeq -l redis-url -d 'the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (default: redis://127.0.0.1:6379/0) [WAKEQ_REDIS_URL]' -x
complete -c wakeq -l config-dir -d 'where wakeq.toml and consumers/ are (default: /etc/wakeq) [WAKEQ_CONFIG_DIR]' -x -a '(__fish_complete_directories)'
complete -c wakeq -l runtime-dir -d 'where consumer/NAME.sock are (default: /run/wakeq) [WAKEQ_RUNTIME_DIR]' -x -a '(__fish_complete_directories)'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -l version -d 'show the version and exit'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a publish -d 'Publish messages to a stream.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a produce -d 'Publish messages as load.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a status -d 'Show streams, groups and consumers; wakes nobody.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a peek -d 'Look at messages of a stream; nothing is changed.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a dead -d 'Look at dead letters, deliver them again or delete them.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a delayed -d 'Look at delayed messages, drop them or deliver them now.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a errors -d 'Print what failed at a node, and remove it.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a room -d 'Look at rooms, send to them and listen.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a pause -d 'Have the messages of a stream wait, for all groups.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a resume -d 'Have the messages of a stream handled again.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a wake -d 'Wake a consumer of this host, and show its answer.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a trim -d 'Remove from streams what every group has handled.'
complete -c wakeq -n 'not __fish_seen_subcommand_from publish produce status peek dead delayed errors room pause resume wake trim check' -a check -d 'Look for what is wrong on this host; wakes nobody.'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and not __fish_seen_subcommand_from list show retry purge' -a list -d 'List dead letters, the oldest first.'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and not __fish_seen_subcommand_from list show retry purge' -a show -d 'Show everything of dead letters.'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and not __fish_seen_subcommand_from list show retry purge' -a retry -d 'Deliver dead letters again to their group.'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and not __fish_seen_subcommand_from list show retry purge' -a purge -d 'Delete dead letters.'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and not __fish_seen_subcommand_from list cancel now' -a list -d 'List delayed messages, the next one that is due first.'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and not __fish_seen_subcommand_from list cancel now' -a cancel -d 'Drop delayed messages.'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and not __fish_seen_subcommand_from list cancel now' -a now -d 'Deliver delayed messages now.'
complete -c wakeq -n '__fish_seen_subcommand_from room; and not __fish_seen_subcommand_from list show send peek listen' -a list -d 'List rooms, with what waits in them.'
complete -c wakeq -n '__fish_seen_subcommand_from room; and not __fish_seen_subcommand_from list show send peek listen' -a show -d 'Show who is in a room, and what goes on.'
complete -c wakeq -n '__fish_seen_subcommand_from room; and not __fish_seen_subcommand_from list show send peek listen' -a send -d 'Send a message to all clients of a room.'
complete -c wakeq -n '__fish_seen_subcommand_from room; and not __fish_seen_subcommand_from list show send peek listen' -a peek -d 'Look at messages that wait in a room.'
complete -c wakeq -n '__fish_seen_subcommand_from room; and not __fish_seen_subcommand_from list show send peek listen' -a listen -d 'Show what is delivered in a room.'
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l field -d 'a field; may be given several times' -x
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l key -d 'messages with one key are handled in order' -x
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l dedup -d 'publish only if no message was with this key, lately' -x
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l dedup-window -d 'how long --dedup is remembered (default: 24h)' -x
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l delay -d 'deliver it so much later' -x
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l at -d 'deliver it then: 2026-11-22 18:00, 18:00, 2026-11-22T18:00Z, @1795370400 or +5min' -x
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l count -d 'publish the same message N times (default: 1)' -x
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l channel -d 'publish to a channel instead, as PUBLISH does' -x
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l lines -d 'each line of stdin is the body of a message'
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l quiet -d 'do not print the ids'
complete -c wakeq -n '__fish_seen_subcommand_from publish' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l count -d 'how many messages, 0 for no end (default: 1000)' -x
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l interval -d 'between two messages of a worker (default: none)' -x
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l rate -d 'messages a second, over all workers' -x
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l workers -d 'how many producers to be (default: 1)' -x
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l payload-keys -d 'fields key_0 ... of 32 characters each (default: 1)' -x
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l size -d 'a body of this size instead' -x
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l words -d 'values are words, not hexadecimal digits'
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l quiet -d 'no progress bar'
complete -c wakeq -n '__fish_seen_subcommand_from produce' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from status' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from peek' -l count -d 'at most so many (default: 10)' -x
complete -c wakeq -n '__fish_seen_subcommand_from peek' -l from -d 'from this id on' -x
complete -c wakeq -n '__fish_seen_subcommand_from peek' -l group -d 'only what this group has not read yet' -x
complete -c wakeq -n '__fish_seen_subcommand_from peek' -l last -d 'the newest messages'
complete -c wakeq -n '__fish_seen_subcommand_from peek' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from list' -l group -d 'whose they are (default: the one that has some)' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from list' -l since -d 'those that failed since then' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from list' -l before -d 'those that failed before then' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from list' -l error -d 'those whose error has this text in it' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from list' -l limit -d 'at most so many, 0 for all (default: 100)' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from list' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from show' -l group -d 'whose they are (default: the one that has some)' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from show' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l group -d 'whose they are (default: the one that has some)' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l all -d 'all of the group, or all that the following leave'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l since -d 'those that failed since then' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l before -d 'those that failed before then' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l error -d 'those whose error has this text in it' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l limit -d 'at most so many' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l rate -d 'so many a second' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l yes -d 'do not ask'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from purge' -l group -d 'whose they are (default: the one that has some)' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from purge' -l all -d 'all of the group, or all that the following leave'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from purge' -l since -d 'those that failed since then' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from purge' -l before -d 'those that failed before then' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from purge' -l error -d 'those whose error has this text in it' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from purge' -l limit -d 'at most so many' -x
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from purge' -l yes -d 'do not ask'
complete -c wakeq -n '__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from purge' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and __fish_seen_subcommand_from list' -l limit -d 'at most so many, 0 for all (default: 100)' -x
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and __fish_seen_subcommand_from list' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and __fish_seen_subcommand_from cancel' -l all -d 'all of the stream'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and __fish_seen_subcommand_from cancel' -l yes -d 'do not ask'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and __fish_seen_subcommand_from cancel' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and __fish_seen_subcommand_from now' -l all -d 'all of the stream'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and __fish_seen_subcommand_from now' -l yes -d 'do not ask'
complete -c wakeq -n '__fish_seen_subcommand_from delayed; and __fish_seen_subcommand_from now' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from errors' -l keep -d 'remove nothing'
complete -c wakeq -n '__fish_seen_subcommand_from errors' -l count -d 'only print how many there are'
complete -c wakeq -n '__fish_seen_subcommand_from errors' -l limit -d 'at most so many' -x
complete -c wakeq -n '__fish_seen_subcommand_from errors' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from list' -l limit -d 'at most so many, 0 for all (default: 100)' -x
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from list' -l by -d 'with most of: backlog, delay, clients, waiting, round_age, rounds, timeouts (default: backlog)' -x
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from list' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from show' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from send' -l producer -d 'who sends it' -x
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from send' -l priority -d 'lower ones are delivered first (default: 0)' -x
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from send' -l oob -d 'out of band: at once, to all who are there now'
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from send' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from peek' -l offset -d 'pass over so many (default: 0)' -x
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from peek' -l limit -d 'at most so many, 0 for all (default: 10)' -x
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from peek' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from listen' -l ack -d 'acknowledge each message'
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from listen' -l by-hand -d 'acknowledge each message when Enter is pressed'
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from listen' -l count -d 'end after so many' -x
complete -c wakeq -n '__fish_seen_subcommand_from room; and __fish_seen_subcommand_from listen' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from pause' -l reason -d 'why, for whoever wonders' -x
complete -c wakeq -n '__fish_seen_subcommand_from pause' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from resume' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from wake' -l wait -d 'stay connected until the consumer has gone to sleep'
complete -c wakeq -n '__fish_seen_subcommand_from wake' -l timeout -d 'how long to wait for its answer (default: 30s)' -x
complete -c wakeq -n '__fish_seen_subcommand_from wake' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from wake' -a '(__wakeq_consumers)'
complete -c wakeq -n '__fish_seen_subcommand_from trim' -l dry-run -d 'only say what would go'
complete -c wakeq -n '__fish_seen_subcommand_from trim' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from check' -l import -d 'import the handlers, too'
complete -c wakeq -n '__fish_seen_subcommand_from check' -l json -d 'print JSON, for programs'
complete -c wakeq -n '__fish_seen_subcommand_from check' -a '(__wakeq_consumers)'
