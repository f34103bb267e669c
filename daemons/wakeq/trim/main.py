"""The executable wakeq-trim: wires its parts to the shared runner."""

from wakeq import journal
from wakeq.redis_client import Servers
from wakeq.redis_url import RedisURL
from wakeq.sections import Trim
from wakeq.service import Program, Service, run
from wakeq.trim.finder import Finder
from wakeq.trim.sweeper import Sweeper
from wakeq.trim.trimmer import Trimmer

PROGRAM = Program("wakeq-trim", "Removes what all groups have handled from streams.", Trim)


def main() -> None:
    """Run wakeq-trim."""
    run(PROGRAM, _trim)


def _trim(service: Service) -> int:
    journal.open_log()
    settings = service.config.trim()
    servers = Servers(RedisURL(service.common.redis_url), PROGRAM.name)
    sweeper = Sweeper(service, servers, Finder(servers, settings), Trimmer(servers, settings))
    try:
        return sweeper.run()
    finally:
        service.notifier.stopping()
        servers.close()


if __name__ == "__main__":
    main()
