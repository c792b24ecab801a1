"""`estl data prepare | check | show | shard`: get a data set, check it, look at it, pack it."""

import argparse
from pathlib import Path

USAGE = """usage: estl data COMMAND ...

  prepare  fetch, verify and unpack a set   estl data prepare nmnist --root ROOT
  check    partners, broken files, leaks    estl data check --root ROOT [--dataset NAME]
  show     a picture of a file or a set     estl data show FILE_OR_ROOT -o picture.png
  shard    pack a set for streaming         estl data shard --output-dir DIR --dataset NAME

estl data COMMAND --help lists the options of a command."""


def main(words: list[str]) -> int:
    """Run `estl data` with the words that follow; returns the exit status.

    Raises:
        ValueError: no such command, or what the commands raise.
    """
    commands = {"prepare": _prepare, "check": _check, "show": _show, "shard": _shard}
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] not in commands:
        raise ValueError(f"no command {words[0]!r}: choose from {', '.join(commands)}")
    return commands[words[0]](words[1:])


def _prepare(words: list[str]) -> int:
    from estl.data.download import SETS, prepare

    parser = argparse.ArgumentParser(
        prog="estl data prepare",
        description="Fetch a data set from its public home, verify its checksums, unpack it.",
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(SETS)}")
    parser.add_argument(
        "--root", type=Path, required=True, help="becomes the set's folder; archives stay in it"
    )
    parser.add_argument(
        "--no-download", action="store_true", help="take only archives that lie in ROOT already"
    )
    options = parser.parse_args(words)
    prepare(options.name, options.root, download=not options.no_download)
    print(f"{options.name} is ready: --dataset {options.name} --data-path {options.root}")
    return 0


def _check(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="estl data check",
        usage="%(prog)s [-h] [--root ROOT] [--limit N] [--near BITS] [WORDS ...]",
        allow_abbrev=False,
        description="Look for missing partners, broken files, and the same thing in two splits. "
        "WORDS choose the data as in estl fit: --dataset, --config, --data. Exit status: "
        "0 nothing is wrong, 1 something is, 2 the data cannot be looked at.",
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="the set's folder (--data-path of estl fit); without WORDS, what lies there tells "
        "which set it is",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="decode N items of each split (default: all)"
    )
    parser.add_argument(
        "--near",
        type=int,
        default=2,
        metavar="BITS",
        help="near duplicates differ in at most BITS of 64 (default: 2)",
    )
    options, rest = parser.parse_known_args(words)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit {options.limit}: at least 1")
    if not 0 <= options.near <= 64:
        raise ValueError(f"--near {options.near}: from 0 to 64")
    if options.root is not None:
        if not options.root.is_dir():
            raise FileNotFoundError(f"no folder {options.root}: give --root FOLDER")
        rest += ["--data-path", str(options.root)]
        if not any(word.split("=")[0] in ("--dataset", "--data", "--config") for word in rest):
            rest += ["--dataset", dataset(options.root)]
    from estl.data.check import check, missing_partners
    from estl.training.recipe import build_data

    try:
        data = build_data(rest)
    except FileNotFoundError:
        for recording in missing_partners(options.root)[0] if options.root else []:
            print(f"recording without its image: {recording}")
        raise
    report = check(data, options.root, limit=options.limit, distance=options.near)
    print("\n".join(report.lines()))
    return int(report.wrong)


def dataset(root: Path) -> str:
    """The set whose files lie in `root`; otherwise a folder of images."""
    from estl.data.catalog import recognize

    found = recognize(root)
    return found.name if found else "folder"


def _show(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="estl data show",
        description="Draw an image beside its event frames: a pair, a recording alone, an image "
        "with simulated events, or several of a folder.",
    )
    parser.add_argument(
        "path", type=Path, metavar="FILE_OR_ROOT", help="a recording, an image, or a set's folder"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="PNG", help="picture to write"
    )
    parser.add_argument("--T", type=int, default=6, help="frames, of equal time (default: 6)")
    parser.add_argument(
        "--rows", type=int, default=6, metavar="N", help="draw up to N of a folder (default: 6)"
    )
    options = parser.parse_args(words)
    from estl.data.show import show

    rows = show(options.path, options.output, steps=options.T, rows=options.rows)
    print(f"{options.output}: {rows} {'row' if rows == 1 else 'rows'}")
    return 0


def _shard(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="estl data shard",
        usage="%(prog)s [-h] --output-dir DIR [--shard-size N] WORDS ...",
        allow_abbrev=False,
        description="Decode a set once and pack it into tar files, which estl fit streams from a "
        "folder or a web address. WORDS choose the data as in estl fit: --dataset, --data-path, "
        "--T, --config, --data.",
    )
    parser.add_argument(
        "--output-dir", type=Path, required=True, metavar="DIR", help="becomes the folder of shards"
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=500,
        metavar="N",
        help="samples a shard; a reader holds one shard in memory (default: 500)",
    )
    options, rest = parser.parse_known_args(words)
    from estl.data.shards import write_shards
    from estl.training.recipe import build_data

    index = write_shards(build_data(rest), options.output_dir, shard_size=options.shard_size)
    for split, shards in index["splits"].items():
        samples = sum(shard["samples"] for shard in shards)
        count = f"{len(shards)} {'shard' if len(shards) == 1 else 'shards'}"
        print(f"{split}: {samples} samples in {count}")
    print(f"shards are ready: --dataset shards --data-path {options.output_dir}")
    return 0
