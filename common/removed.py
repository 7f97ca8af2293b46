"""Options, settings, keys and commands that an older version had, and what to do instead."""

REMOVED = {
    "merge": "average seeds by the tables of a study; FineTune has WISE_FT, PEFT its own merging",
}


def instead_of(word: object) -> str:
    """`X was removed: what to do instead`, or an empty string for a word that was none. A setting
    may have its group in front, such as `TRAINER.LINEARPROBE.FEATURES_OF`.
    """
    name = str(word)
    remedy = REMOVED.get(name) or REMOVED.get(name.rpartition(".")[2])
    return f"{name} was removed: {remedy}" if remedy else ""
