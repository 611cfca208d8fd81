"""The words behind a verb: positionals and whole numbers."""

from __future__ import annotations

from collections.abc import Mapping

from sfactory.errors import CommandError, Exit


def one_word(positionals: list[str], what: str, optional: bool = False) -> str:
    """The only positional; empty if it is optional and not there."""
    if len(positionals) == 1 or (optional and not positionals):
        return positionals[0] if positionals else ""
    got = "none" if not positionals else " ".join(positionals)
    hint = next((_as_setting(word) for word in positionals if "=" in word), "")
    raise CommandError(Exit.USAGE, f"expected one {what}, got {got}; settings are written --section.field value{hint}")


def _as_setting(word: str) -> str:
    """`lr=3` as other programs take it -> what it is here, if there is such a setting."""
    from sfactory.config.parsing import field_types, flag_name
    from sfactory.errors import did_you_mean

    name, _, value = word.partition("=")
    hint = did_you_mean(flag_name(name), map(flag_name, field_types()))
    return f"{hint.removesuffix('?').replace('mean ', 'mean --')} {value}?" if hint else ""


def no_words(args: list[str]) -> None:
    """For a verb that stands alone."""
    if args:
        raise CommandError(Exit.USAGE, f"{args[0]}: this verb takes no arguments")


def only_own(args: list[str], options: Mapping[str, bool], verb: str) -> tuple[dict[str, list[str]], list[str]]:
    """A verb's own options (name -> takes a value) and its positionals; CommandError for a setting."""
    from sfactory.config.parsing import flag_name
    from sfactory.config.presets import split_flags

    flags, own, positionals = split_flags(args, options)
    if flags:
        raise CommandError(Exit.USAGE, f"{flag_name(next(iter(flags)))}: {verb} has no use for settings; see --help")
    return own, positionals


def numbers(own: Mapping[str, list[str]], defaults: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers of a verb's own options, by flag; SettingError names the one that is none."""
    from sfactory.config.parsing import whole

    return {name: whole(own[name][-1], name.lstrip("-")) if name in own else n for name, n in defaults.items()}
