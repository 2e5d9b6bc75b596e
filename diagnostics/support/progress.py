"""Bars for long measurements."""

import contextlib
from collections.abc import Callable, Iterator

#: Called with the amount done and the total as far as it is known; both may grow.
Progress = Callable[[int, int], None]


@contextlib.contextmanager
def progress_bar(title: str, *, show: bool) -> Iterator[Progress | None]:
    """A bar on the standard error stream; None unless ``show``."""
    if not show:
        yield None
        return
    from tqdm import tqdm  # imported here: most measurements show no bar

    with tqdm(desc=title, dynamic_ncols=True, leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
