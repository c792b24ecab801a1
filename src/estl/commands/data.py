"""`estl data prepare | check | show | shard`: get a data set, check it, look at it, pack it."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from estl.commands.flags import ANY_DATA, DEFAULTS, DataFlags, Overrides

app = App(
    name="data",
    help="Fetch a data set, check it, look at it, pack it.",
    default_parameter=DEFAULTS,
    help_format="plaintext",
    version_flags=[],
)


@app.command
def prepare(
    name: str,
    *,
    root: Path,
    download: Annotated[bool, Parameter(negative="--no-download")] = True,
) -> None:
    """Fetch a data set from its public home, verify its checksums, unpack it.

    Args:
        name: nmnist, ncaltech101, cifar10, cifar100, cifar10dvs or dvsgesture.
        root: folder to put the set in; the archives stay there.
        download: whether to fetch what is not in ROOT already.
    """
    from estl.data.download import prepare as run

    run(name, root, download=download)
    print(f"{name} is ready: --dataset {name} --data-path {root}")


@app.command
def check(
    *overrides: Overrides,
    flags: DataFlags = ANY_DATA,
    root: Path | None = None,
    limit: int | None = None,
    near: int = 2,
    all: bool = False,  # as the option is called
) -> int:
    """Look for missing partners, broken files, and anything that is in two splits.

    Exit status: 0 if nothing is wrong, 1 if something is, 2 for unreadable data.

    Args:
        root: the set's folder; without --dataset, its files tell which set it is.
        limit: decode this many items of each split (default: all).
        near: near duplicates differ in at most this many of 64 bits.
        all: list all findings, not just the first five of each kind.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: at least 1")
    if not 0 <= near <= 64:
        raise ValueError(f"--near {near}: from 0 to 64")
    args = list(overrides)
    if root is not None:
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}: give --root FOLDER")
        args.append(f"--data.init_args.root={root}")
        chosen = any(word.split("=")[0] == "--data" for word in args)
        if flags.dataset is None and not flags.config and not chosen:
            flags = replace(flags, dataset=dataset(root))
    from estl.data.check import check as run
    from estl.data.items import missing_partners
    from estl.training.recipe import build_data, parse

    config, given = parse(flags.spell_out(args), ["data"])
    try:
        data = build_data(config, given)
    except FileNotFoundError:
        for recording in missing_partners(root)[0] if root else []:
            print(f"recording without its image: {recording}")
        raise
    report = run(data, root, limit=limit, distance=near)
    print("\n".join(report.lines(None) if all else report.lines()))
    return int(report.wrong)


def dataset(root: Path) -> str:
    """The set whose files lie in `root`; otherwise a folder of images."""
    from estl.data.catalog import recognize
    from estl.data.items import list_nested

    found = recognize(root)
    if found is None and list_nested(root):
        return "recordings"  # which says that they lie too deep
    return found.name if found else "folder"


@app.command
def show(
    path: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    T: Annotated[int, Parameter(name="--T")] = 6,
    rows: int = 6,
) -> None:
    """Draw an image beside its event frames: a pair, a recording, an image, or several of a folder.

    Args:
        path: a recording, an image, or a set's folder.
        output: picture (PNG) to write.
        T: number of frames, all of equal duration.
        rows: draw at most this many of a folder.
    """
    from estl.data.show import show as run

    drawn = run(path, output, steps=T, rows=rows)
    print(f"{output}: {drawn} {'row' if drawn == 1 else 'rows'}")


@app.command
def shard(
    *overrides: Overrides,
    flags: DataFlags = ANY_DATA,
    output_dir: Path,
    shard_size: int = 500,
) -> None:
    """Decode a set once and pack it into tar files, which `estl fit` streams.

    Args:
        output_dir: folder to write the shards to.
        shard_size: samples per shard; a reader holds one shard in memory.
    """
    from estl.data.shards import write_shards
    from estl.training.recipe import build_data, parse

    config, given = parse(flags.spell_out(overrides), ["data"])
    index = write_shards(build_data(config, given), output_dir, shard_size=shard_size)
    for split, shards in index["splits"].items():
        samples = sum(shard["samples"] for shard in shards)
        count = f"{len(shards)} {'shard' if len(shards) == 1 else 'shards'}"
        print(f"{split}: {samples} samples in {count}")
    print(f"shards are ready: --dataset shards --data-path {output_dir}")
