"""Writes the completions for bash, zsh and fish: generate.py [--check].

They are files that need no program at the time of completing: a shell starts Python for each
press of the key otherwise. What they offer comes from the parsers; only the names of consumers
are looked up, in /etc/wakeq/consumers and among the sockets in /run/wakeq/consumer.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "man"))

import commands  # noqa: E402  (beside the manual pages, which are made from it too)
from commands import Command, Option  # noqa: E402

_HEADER = "# Made by scripts/build-man from the programs: change those.\n"
# Where consumers' names come from: their files, or for what can be woken their sockets too.
_FILES, _SOCKETS = "${WAKEQ_CONFIG_DIR:-/etc/wakeq}/consumers", "${WAKEQ_RUNTIME_DIR:-/run/wakeq}"


def files() -> dict[Path, str]:
    """Return what the completion files are to contain."""
    made = {}
    for program in commands.programs():
        made[HERE / "bash" / program.name] = _bash(program)
        made[HERE / "zsh" / f"_{program.name}"] = _zsh(program)
        made[HERE / "fish" / f"{program.name}.fish"] = _fish(program)
    return made


def _choices(option: Option) -> list[str]:
    return option.metavar.split(" | ") if " | " in option.metavar else []


def _is_path(option: Option) -> bool:
    return option.metavar in ("DIR", "FILE")


def _names_consumers(command: Command) -> bool:
    # The other names are in no file: what is led is whatever the hosts agree on.
    takes_name = any(argument.name == "NAME" for argument in command.arguments)
    return takes_name and command.name not in ("wakeq-bridge", "wakeq-leader", "wakeq-node")


def _any_names_consumers(program: Command) -> bool:
    return any(map(_names_consumers, (program, *program.all_commands)))


def _families(program: Command) -> list[Command]:
    return [command for command in program.commands if command.commands]


def _action(command: Command) -> str:
    """Return the last word of a subcommand."""
    return command.name.split()[-1]


def _with_value(options: list[Option]) -> list[str]:
    return [option.name for option in options if option.metavar]


# -- bash ------------------------------------------------------------------------------------


def _bash(program: Command) -> str:
    function = "_" + program.name.replace("-", "_")
    every = (program, *program.commands, *program.all_commands)
    # Of one name, the one that takes a value.
    given = sorted((o for c in every for o in c.options), key=lambda option: bool(option.metavar))
    everything = {option.name: option for option in given}.values()
    lines = [_HEADER + f"# bash completion of {program.name}", f"{function}() {{"]
    lines += [_BASH_WORDS.rstrip("\n")]
    lines += ["    case $previous in"]
    for option in everything:
        if option.metavar:
            lines += [f"        {option.name}) {_bash_value(option)}; return ;;"]
    lines += ["    esac"]
    if program.commands:
        lines += [_bash_command(program, _with_value(list(everything)))]
        lines += ["    case $command in"]
        for command in (*program.all_commands, *_families(program)):
            line = f"        {_bash_pattern(command)}) options='{_bash_names(command)}'"
            if command.commands:
                line += f" names=({' '.join(map(_action, command.commands))})"
            lines += [f"{line} ;;"]
        names = " ".join(command.name for command in program.commands)
        lines += [f"        '') options='{_bash_names(program)}' names=({names}) ;;", "    esac"]
        named = "|".join(map(_bash_pattern, filter(_names_consumers, program.all_commands)))
        lines += [f"    case $command in {named}) _wakeq_names ;; esac"]
    else:
        lines += [f"    options='{_bash_names(program)}'"]
        if _names_consumers(program):
            lines += ["    _wakeq_names"]
    lines += [_BASH_END.rstrip("\n"), "}", f"complete -F {function} {program.name}", ""]
    if _any_names_consumers(program):
        lines.insert(1, _BASH_CONSUMERS.format(files=_FILES, sockets=_SOCKETS).rstrip("\n"))
    return "\n".join(lines)


_BASH_CONSUMERS = """\
# Adds the consumers of this host to names.
_wakeq_names() {{
    local file
    for file in "{files}"/[!._]*.toml "{sockets}"/consumer/*.sock; do
        [ -e "$file" ] || continue
        file=${{file##*/}} file=${{file%.toml}}
        names+=("${{file%.sock}}")
    done
}}
"""
# bash takes --option=value and orders:2 for several words.
_BASH_WORDS = """\
    local word previous name options='' line=${COMP_LINE:0:COMP_POINT}
    local -a words names=()
    read -ra words <<<"$line"
    [[ $line != *[[:space:]] ]] || words+=('')
    word=${words[-1]} previous=${words[-2]-}
    if [[ $word == --*=* ]]; then
        previous=${word%%=*} word=${word#*=}
    fi
    COMPREPLY=()
"""
_BASH_COMMAND = """\
    local index command=''
    for ((index = 1; index < ${{#words[@]}} - 1; index++)); do
        case ${{words[index]}} in
            {values}) ((index++)) ;;
            -*) ;;
            *) command+=${{command:+ }}${{words[index]}}; {stop} ;;
        esac
    done
"""
_BASH_END = """\
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
        # An option with a value is followed by it, not by a space.
        [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace
    else
        # What bash has taken for a word of its own, up to a colon, stays as it is.
        local before=''
        [[ $COMP_WORDBREAKS != *:* ]] || before=${word%"${word##*:}"}
        for name in "${names[@]}"; do
            [[ $name != "$word"* ]] || COMPREPLY+=("${name#"$before"}")
        done
    fi
"""


def _bash_command(program: Command, with_value: list[str]) -> str:
    families = "|".join(family.name for family in _families(program))
    # Of a family's subcommand the second word is needed, too.
    stop = f"case $command in {families}) ;; *) break ;; esac" if families else "break"
    return _BASH_COMMAND.format(values="|".join(with_value), stop=stop).rstrip("\n")


def _bash_pattern(command: Command) -> str:
    return f"'{command.name}'" if " " in command.name else command.name


def _bash_names(command: Command) -> str:
    return " ".join(o.name + ("=" if o.metavar else "") for o in command.options)


def _bash_value(option: Option) -> str:
    if choices := _choices(option):
        return f"mapfile -t COMPREPLY < <(compgen -W '{' '.join(choices)}' -- \"$word\")"
    if _is_path(option):
        kind = "-d" if option.metavar == "DIR" else "-f"
        return f'compopt -o filenames; mapfile -t COMPREPLY < <(compgen {kind} -- "$word")'
    return ":"


# -- zsh -------------------------------------------------------------------------------------


def _zsh(program: Command) -> str:
    lines = [f"#compdef {program.name}", _HEADER.rstrip("\n")]
    if _any_names_consumers(program):
        lines += [_ZSH_CONSUMERS.format(files=_FILES, sockets=_SOCKETS).rstrip("\n")]
    for command in (*_families(program), program):
        lines += [*_zsh_function(command), ""]
    return "\n".join([*lines[:-1], f'{_zsh_name(program)} "$@"', ""])


def _zsh_name(command: Command) -> str:
    return "_" + command.name.replace("-", "_")


def _zsh_function(program: Command) -> list[str]:
    """Return what completes a program, or a family as if it were one."""
    lines = [f"{_zsh_name(program)}() {{"]
    if not program.commands:
        return [*lines, "    _arguments -s \\", *_zsh_arguments(program, "        "), "}"]
    lines += ["    local context state state_descr line", "    typeset -A opt_args"]
    lines += ["    _arguments -C -A '-*' \\"]
    lines += [f"        {_zsh_option(option)} \\" for option in program.options]
    lines += ["        '1: :->command' '*:: :->argument'", "    case $state in", "    command)"]
    lines += ["        local -a commands=("]
    lines += [f"            {_zsh_quoted(f'{_action(c)}:{c.summary}')}" for c in program.commands]
    lines += ["        )", "        _describe command commands ;;", "    argument)"]
    lines += ["        case $line[1] in"]
    for command in program.commands:
        if command.commands:
            lines += [f"        {command.name}) {_zsh_name(command)} ;;"]
            continue
        lines += [f"        {_action(command)})", "            _arguments \\"]
        lines += [*_zsh_arguments(command, "                ")]
        lines += ["            ;;"]
    return [*lines, "        esac ;;", "    esac", "}"]


_ZSH_CONSUMERS = """\
_wakeq_consumers() {{
    local -a names
    names=("{files}"/[^._]*.toml(N:t:r) "{sockets}"/consumer/*.sock(N:t:r))
    compadd -a names
}}
"""


def _zsh_arguments(command: Command, indent: str) -> list[str]:
    words = [_zsh_option(option) for option in command.options]
    for argument in command.arguments:
        optional = ":" if argument.form.startswith("[") else ""
        place = "*" if argument.form.endswith("...") else ""
        # Not " ", which shows what is wanted, but then completes no option in its place.
        action = "_wakeq_consumers" if _names_consumers(command) else "( )"
        place = f"{place}:" if place else f":{optional}"
        words.append(_zsh_quoted(f"{place}{argument.name}:{action}"))
    return [f"{indent}{word} \\" for word in words[:-1]] + [indent + words[-1]]


def _zsh_option(option: Option) -> str:
    help_line = option.help.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    if not option.metavar:
        return _zsh_quoted(f"{option.name}[{help_line}]")
    # No colon in what is said of the value: it would end there.
    value, action = option.metavar.replace(":", ""), " "
    if choices := _choices(option):
        value, action = "value", f"({' '.join(choices)})"
    elif _is_path(option):
        action = "_files -/" if option.metavar == "DIR" else "_files"
    several = "*" if "several times" in option.help else ""
    return _zsh_quoted(f"{several}{option.name}=[{help_line}]:{value}:{action}")


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- fish ------------------------------------------------------------------------------------


def _fish(program: Command) -> str:
    start = f"complete -c {program.name}"
    lines = [_HEADER + f"{start} -f"]
    if _any_names_consumers(program):
        lines += [_FISH_CONSUMERS.rstrip("\n")]
    if not program.commands:
        lines += [_fish_option(start, option) for option in program.options]
        lines += _fish_arguments(start, program)
    else:
        names = " ".join(command.name for command in program.commands)
        first = f"{start} -n 'not {_FISH_SEEN} {names}'"
        shared = {option.name for option in program.options}
        for option in program.options:
            inside = any(option in command.options for command in program.all_commands)
            lines += [_fish_option(start if inside else first, option)]
        for command in program.commands:
            lines += [f"{first} -a {command.name} -d {_fish_quoted(command.summary)}"]
        for family in _families(program):
            actions = " ".join(map(_action, family.commands))
            inside_family = f"{_FISH_SEEN} {family.name}; and not {_FISH_SEEN} {actions}"
            lines += [
                f"{start} -n '{inside_family}' -a {_action(c)} -d {_fish_quoted(c.summary)}"
                for c in family.commands
            ]
        for command in program.all_commands:
            seen = "; and ".join(f"{_FISH_SEEN} {word}" for word in command.name.split())
            within = f"{start} -n '{seen}'"
            own = [option for option in command.options if option.name not in shared]
            lines += [_fish_option(within, option) for option in own]
            lines += _fish_arguments(within, command)
    return "\n".join([*lines, ""])


_FISH_SEEN = "__fish_seen_subcommand_from"
_FISH_CONSUMERS = """\
function __wakeq_consumers --description 'The consumers of this host'
    set -l config /etc/wakeq
    set -q WAKEQ_CONFIG_DIR; and set config $WAKEQ_CONFIG_DIR
    set -l runtime /run/wakeq
    set -q WAKEQ_RUNTIME_DIR; and set runtime $WAKEQ_RUNTIME_DIR
    for file in $config/consumers/*.toml $runtime/consumer/*.sock
        string replace -r '^.*/(.*)\\.(toml|sock)$' '$1' $file | string match -rv '^_'
    end
end
"""


def _fish_arguments(start: str, command: Command) -> list[str]:
    return [f"{start} -a '(__wakeq_consumers)'"] if _names_consumers(command) else []


def _fish_option(start: str, option: Option) -> str:
    words = [start, f"-l {option.name.removeprefix('--')}", f"-d {_fish_quoted(option.help)}"]
    if choices := _choices(option):
        # What -a has is expanded like words on a command line.
        words.append("-x -a " + _fish_quoted(" ".join(choices).replace("$", "\\$")))
    elif option.metavar == "DIR":
        words.append("-x -a '(__fish_complete_directories)'")
    elif option.metavar:
        words.append("-r -F" if _is_path(option) else "-x")
    return " ".join(words)


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def main() -> int:
    """Write the files anew; with --check, only say which are not up to date."""
    check = sys.argv[1:] == ["--check"]
    code = 0
    for path, text in files().items():
        if path.is_file() and path.read_text() == text:
            continue
        if check:
            print(f"{path.relative_to(HERE)} is not up to date: run scripts/build-man")
            code = 1
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
