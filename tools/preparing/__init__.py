"""What tools/prepare.py is made of: where datasets come from, getting, unpacking, arranging and checking them."""


class PrepareError(ValueError):
    """Something that the person preparing data can mend; the message says how (one line)."""

    one_line = True
