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

An exception that a signal raises (Ctrl-C) may come at the very beginning of an `__exit__`, which then
has done nothing.  A level that was left open so is found by the level around it, or by the next operation,
and rolled back: what a method changed is never joined to what comes later.

One thread at a time: the pool's lock is taken when depth leaves 0, released when it is 0 again.
"""

from __future__ import annotations

import errno
import inspect
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from pmshelve.errors import TransactionError

if TYPE_CHECKING:
    from pmshelve.pmemobj.memory import Memory

__all__ = ["Operation", "Transaction"]

_MAY_PAUSE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


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
    opener
        Frame of the method whose operation is the outermost level; None for a user's transaction.
    refusal
        If set, the exception that every new transaction raises (read-only, failed, closed pool).
    """

    __slots__ = (
        "_aborted",
        "_acquire",
        "_begun",
        "_entered",
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
        "opener",
        "operation",
        "refusal",
    )

    def __init__(
        self, memory: Memory, write: Callable[[], None], lock: threading.RLock | None = None
    ) -> None:
        self.memory: Memory = memory
        self.lock: threading.RLock = lock or threading.RLock()
        self._acquire = self.lock.acquire
        self._release = self.lock.release
        self._write = write
        self._aborted = False
        self._begun: list[int] = []  # depths that `begin` opened
        self._entered: list[tuple[FrameType, int]] = []  # who opened a ``with``, and its depth
        self._marks: list[int] = []  # one for each operation inside of a transaction
        self.depth: int = 0
        self.opener: FrameType | None = None
        self.operation: Operation = Operation(self)
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
        try:
            self._entered.append((sys._getframe(1), self.depth))
        except BaseException:
            self._interrupted(self.depth)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        level = self._pop_entered(sys._getframe(1))
        try:
            while self._begun and self._begun[-1] == self.depth > level:
                # Left open by the block: as with the block itself, only an error undoes them.
                self._begun.pop()
                self._leave(error)
            if self.depth > level:  # an operation that was interrupted before it could end
                self._interrupted(level + 1)
            self._leave(error)
        except BaseException:
            # Else it is the end that a level came to, and by now the pool may be another thread's.
            if self._is_mine() and self.depth >= level:
                self._interrupted(level)
            raise

    def _interrupted(self, level: int) -> None:
        """Roll all back, and end the levels from `level` inwards."""
        self._roll_back_all()
        self._aborted = True
        self._begun[:] = [depth for depth in self._begun if depth < level]
        while self.depth >= level:
            self._end_level()

    def _pop_entered(self, frame: FrameType) -> int:
        """Return the depth of the block that ends, which `frame` opened if it did that itself."""
        entered = self._entered
        at = len(entered) - 1
        while at >= 0 and entered[at][0] is not frame:
            at -= 1
        if at < 0:  # opened and ended through something like an ExitStack
            at = len(entered) - 1
        if at < 0:
            raise TransactionError("a with block ended that did not begin")
        level = entered[at][1]
        del entered[at:]
        return level

    def drop_leftovers(self) -> None:
        """Roll back an outermost operation that was interrupted before it could end.

        Called with the lock held.  Its method has returned then, so it is not among the callers.
        """
        opener = self.opener
        if opener is None or opener.f_code.co_flags & _MAY_PAUSE:
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is opener:
                return
            frame = frame.f_back
        self._roll_back_all()
        self._begun.clear()
        self._entered.clear()
        while self.depth:
            self._end_level()

    def _enter(self) -> None:
        try:
            self._acquire()
            if self.opener is not None:
                self.drop_leftovers()
            self.demand_open()
            if not self.depth:
                self.memory.begin()
        except BaseException:
            self.give_up_lock()
            raise
        self.depth += 1

    def give_up_lock(self) -> None:
        """Undo an `acquire` that was interrupted, and may have got the lock before."""
        with suppress(RuntimeError):  # it has not: nobody waits for a lock that is his own
            self._release()

    def demand_open(self) -> None:
        """Raise unless a level may be opened now."""
        if self._aborted:
            raise TransactionError("the transaction was aborted; leave it first")
        if self.refusal is not None and not self.depth:
            raise self.refusal.with_traceback(None)  # one for all, which would grow with each

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
            self.opener = None
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
            self.opener = None
            self._release()
            raise
        self.depth = 0
        self.opener = None
        try:
            self.after_commit()
        finally:
            self._release()

    def _roll_back_all(self) -> None:
        self.memory.rollback_all()
        self._marks.clear()
        self.after_rollback(0)

    # For operations -----------------------------------------------------------------------------

    def take_back(self, depth: int, count: int) -> None:
        """Be at `depth` and inside of `count` operations again: another was interrupted as it began."""
        self.depth = depth
        if not depth:
            self.opener = None
            self.memory.rollback_all()
            return
        del self._marks[count:]
        self.memory.cut(count)

    def roll_back_operation(self) -> None:
        """Undo what the innermost operation did."""
        self.memory.rollback()
        self.after_rollback(self._marks.pop() if self._marks else 0)


class Operation:
    """Context manager of one call that changes the pool; see the module's text.  Reentrant."""

    __slots__ = ("_acquire", "_memory", "_release", "_transaction")

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._memory = transaction.memory
        self._acquire = transaction.lock.acquire
        self._release = transaction.lock.release

    def __enter__(self) -> None:
        transaction = self._transaction
        depth, count = -1, 0
        try:
            self._acquire()
            if transaction.opener is not None:
                transaction.drop_leftovers()
            if transaction._aborted or transaction.refusal is not None:
                transaction.demand_open()
            depth, count = transaction.depth, len(transaction._marks)
            if depth:
                transaction._marks.append(transaction.mark())
            else:
                transaction.opener = sys._getframe(1)
            transaction.depth = depth + 1
            self._memory.begin()
        except BaseException:
            if depth >= 0:
                transaction.take_back(depth, count)
            transaction.give_up_lock()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        transaction = self._transaction
        if transaction.depth == 1:
            if error is None:
                try:
                    transaction.commit_all()
                except BaseException:
                    # Was it interrupted before it began?  Else the pool may be another thread's.
                    if transaction._is_mine():
                        transaction._roll_back_all()
                        transaction._end_level()
                    raise
                return
            transaction._roll_back_all()
        elif transaction._aborted:  # by something the operation called
            pass
        elif error is None:
            try:
                self._memory.merge()
            except BaseException:
                transaction.roll_back_operation()
                transaction._end_level()
                raise
            transaction._marks.pop()
        else:
            transaction.roll_back_operation()
        transaction._end_level()


def _canceled() -> OSError:
    return OSError(errno.ECANCELED, "the transaction was aborted")


def _nothing(*_: Any) -> None:
    return None
