"""Transactions: all of a pool's changes between a begin and a commit, or none.

Two kinds of level nest:

* a *transaction* is the user's, opened by ``with pool.transaction():`` or `begin`.  If anything goes
  wrong in one, at any depth, the whole is rolled back: an inner abort aborts the outermost.
* an *operation* is one call of a method that changes the pool.  Outside of a transaction it is one
  by itself; inside, if it raises, only what it did is undone and the transaction goes on, so that
  catching a KeyError of ``del d[k]`` costs nothing else.

    state       depth   entered by
    idle            0   commit of the outermost level; the end of an aborted one
    working        >0   begin, ``with``, an operation
    aborted        >0   abort, or an exception leaving an inner ``with``; all is rolled back already,
                        and every level but the end refuses

One thread at a time: the pool's lock is taken when depth leaves 0, released when it is 0 again.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from pmshelve.errors import TransactionError

if TYPE_CHECKING:
    from pmshelve.pmemobj.memory import Memory

__all__ = ["Operation", "Transaction"]


class Transaction:
    """The transactions of one pool, one after the other.

    Parameters
    ----------
    memory
        What is changed.
    write
        Called with the pool locked when the outermost level ends: makes `memory.changes` last.
        If it raises, all is rolled back.
    lock
        The pool's.

    Attributes
    ----------
    depth
        Levels open now, transactions and operations.
    operation
        The context manager for methods that change the pool.
    before_commit
        Called before the outermost commit, as part of it.
    after_commit
        Called after it, pool still locked, with no transaction open; may begin one.
    after_rollback
        Called after anything was rolled back, with the number that `mark` gave when what was rolled
        back began: Python-side caches go back to what memory says.
    mark
        Gives a number for the present instant.
    refusal
        If set, the exception that every new transaction raises (read-only, failed, closed pool).
    """

    __slots__ = (
        "_aborted",
        "_acquire",
        "_begun",
        "_marks",
        "_release",
        "_write",
        "after_commit",
        "after_rollback",
        "before_commit",
        "depth",
        "lock",
        "mark",
        "memory",
        "operation",
        "refusal",
    )

    def __init__(
        self, memory: Memory, write: Callable[[], None], lock: threading.RLock | None = None
    ) -> None:
        self.memory = memory
        self.lock = lock or threading.RLock()
        self._acquire = self.lock.acquire
        self._release = self.lock.release
        self._write = write
        self._aborted = False
        self._begun: list[int] = []  # depths that `begin` opened
        self._marks: list[int] = []  # one for each operation inside of a transaction
        self.depth = 0
        self.operation = Operation(self)
        self.before_commit: Callable[[], None] = _nothing
        self.after_commit: Callable[[], None] = _nothing
        self.after_rollback: Callable[[int], None] = _nothing
        self.mark: Callable[[], int] = int
        self.refusal: BaseException | None = None

    # Outside of `with` ------------------------------------------------------------------------

    def begin(self) -> None:
        """Open a level; `commit` or `abort` ends it.

        Raises
        ------
        TransactionError
            The transaction was aborted and has not been left yet.
        """
        self._enter()
        self._begun.append(self.depth)

    def commit(self) -> None:
        """End the level that `begin` opened last; if it is the outermost, make its changes last.

        Raises
        ------
        RuntimeError
            There is none, or a ``with`` inside of it is still open.
        OSError
            The changes could not be written, and were rolled back.
        """
        if not self._is_mine():
            raise TransactionError("commit called outside of transaction")
        if not self._begun or self._begun[-1] != self.depth:
            raise TransactionError("commit called inside of a with block, which commits by itself")
        self._begun.pop()
        self._leave(None)

    def abort(self) -> NoReturn:
        """Roll the whole transaction back.

        Raises
        ------
        OSError
            With errno ECANCELED: always, so that what encloses the call ends too.
        RuntimeError
            There is no transaction.
        """
        if not self._is_mine():
            raise TransactionError("abort called outside of transaction")
        self._roll_back_all()
        self._aborted = True
        while self._begun and self._begun[-1] == self.depth:
            self._begun.pop()
            self._end_level()
        raise _canceled()

    def _is_mine(self) -> bool:
        """Whether a transaction is open, and in this thread."""
        if not self._acquire(False):
            return False
        self._release()
        return self.depth > 0

    # As a context -----------------------------------------------------------------------------

    def __enter__(self) -> Transaction:
        self._enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._begun and self._begun[-1] == self.depth:
            # Left open by the block: as with the block itself, only an error undoes them.
            self._begun.pop()
            self._leave(error)
        self._leave(error)

    def _enter(self) -> None:
        self._acquire()
        if self._aborted or (self.refusal is not None and not self.depth):
            self._release()
            if self._aborted:
                raise TransactionError("the transaction was aborted; leave it first")
            assert self.refusal is not None
            raise self.refusal
        if not self.depth:
            self.memory.begin()
        self.depth += 1

    def _leave(self, error: BaseException | None) -> None:
        """End one level that a user opened."""
        if self._aborted:
            outermost = self._end_level()
            if error is None:
                raise _canceled()
            del outermost
            return
        if error is not None:
            self._roll_back_all()
            self._aborted = True
            self._end_level()
            return
        if self.depth > 1:
            self._end_level()
            return
        self.commit_all()

    def _end_level(self) -> bool:
        self.depth -= 1
        outermost = not self.depth
        if outermost:
            self._aborted = False
        self._release()
        return outermost

    def commit_all(self) -> None:
        """End the outermost level: its changes are the pool's state from now on."""
        try:
            self.before_commit()
            self._write()
        except BaseException:
            self._roll_back_all()
            self.depth = 0
            self._release()
            raise
        self.depth = 0
        try:
            self.after_commit()
        finally:
            self._release()

    def _roll_back_all(self) -> None:
        self.memory.rollback_all()
        self._marks.clear()
        self.after_rollback(0)

    # For operations -----------------------------------------------------------------------------

    def roll_back_operation(self) -> None:
        """Undo what the innermost operation did."""
        self.memory.rollback()
        self.after_rollback(self._marks.pop())


class Operation:
    """Context manager of one call that changes the pool; see the module's text.  Reentrant."""

    __slots__ = ("_acquire", "_memory", "_release", "_transaction")

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._memory = transaction.memory
        self._acquire = transaction.lock.acquire
        self._release = transaction.lock.release

    def __enter__(self) -> None:
        self._acquire()
        transaction = self._transaction
        if transaction._aborted or transaction.refusal is not None:
            self._refuse()
        if transaction.depth:
            transaction._marks.append(transaction.mark())
        self._memory.begin()
        transaction.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        transaction = self._transaction
        if transaction.depth == 1:
            if error is None:
                transaction.commit_all()
                return
            transaction._roll_back_all()
        elif transaction._aborted:  # by something the operation called
            pass
        elif error is None:
            self._memory.merge()
            transaction._marks.pop()
        else:
            transaction.roll_back_operation()
        transaction._end_level()

    def _refuse(self) -> None:
        transaction = self._transaction
        refusal = transaction.refusal
        if refusal is not None and transaction.depth:
            return  # what began before goes on
        self._release()
        if refusal is not None:
            raise refusal
        raise TransactionError("the transaction was aborted; leave it first")


def _canceled() -> OSError:
    return OSError(errno.ECANCELED, "the transaction was aborted")


def _nothing(*_: Any) -> None:
    return None
