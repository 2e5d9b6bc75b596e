"""Bars for long measurements."""

import contextlib
from collections.abc import Callable, Iterator

#: Called with how much is done and how much there is to do, as far as known; both may grow.
Progress = Callable[[int, int], None]


@contextlib.contextmanager
def progress_bar(title: str, *, show: bool) -> Iterator[Progress | None]:
    """A bar on the standard error stream, or None."""
    if not show:
        yield None
        return
    from tqdm import tqdm  # here, as most measurements show none

    with tqdm(desc=title, dynamic_ncols=True, leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
