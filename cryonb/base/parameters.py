"""Parameters of a notebook as other programs inject them."""

from __future__ import annotations


def true_or_false(value: bool | str) -> bool:
    """Read a switch, also from text: plain papermill's ``-p switch false`` injects "false".

    Raises
    ------
    ValueError
        Anything but true and false.
    """
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise ValueError(f"{value!r} is neither true nor false")
    return found
