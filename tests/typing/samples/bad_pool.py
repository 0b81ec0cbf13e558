"""What a type checker has to refuse of a pool."""

from __future__ import annotations

from pmshelve import pmemobj
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObject, PersistentSet

pool = pmemobj.create("a.pool")


class Account(PersistentObject):
    owner: str
    balance: int

    def __init__(self, owner: str, balance: int = 0) -> None:
        self.owner = owner
        self.balance = balance


class Plain:
    pass


pool.new(Account)  # E: type-var | reportCallIssue
pool.new(Account, 1)  # E: call-overload | reportArgumentType
pool.new(Account, "ada", "much")  # E: call-overload | reportArgumentType
pool.new(Account, "ada", name="x")  # E: call-arg | reportCallIssue
pool.new(Plain)  # E: type-var | reportArgumentType reportCallIssue
pool.new(list, [1])  # E: call-overload | reportArgumentType reportCallIssue
pool.new(PersistentList, 3)  # E: call-overload | reportCallIssue
account = pool.new(Account, "ada")
account.balance = "much"  # E: assignment | reportAttributeAccessIssue
account.ownr = "bob"  # E: attr-defined | reportAttributeAccessIssue
print(account.ownr)  # E: attr-defined | reportAttributeAccessIssue
account.owner.real()  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType

numbers = pool.new(PersistentList[int])
numbers.append("text")  # E: arg-type | reportArgumentType
numbers[0] = "text"  # E: call-overload | reportArgumentType reportCallIssue
numbers["a"]  # E: call-overload | reportArgumentType reportCallIssue
numbers.extend(["text"])  # E: list-item | reportArgumentType
numbers.sort(key=str.upper)  # E: arg-type | reportArgumentType reportCallIssue
texts: PersistentList[str] = numbers  # E: assignment | reportAssignmentType
wider: PersistentList[float] = numbers  # E: assignment | reportAssignmentType
plain: list[int] = numbers  # E: assignment | reportAssignmentType

ages = pool.new(PersistentDict[str, int])
ages[1] = 1  # E: index | reportArgumentType
ages["ada"] = "old"  # E: assignment | reportArgumentType
ages["ada"].upper()  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType
ages.update(ada="old")  # E: call-overload | reportArgumentType
print({ages: 1})  # E: - | reportUnhashable

tags = pool.new(PersistentSet, ["red"])
tags.add(1)  # E: arg-type | reportArgumentType
number: int = tags.pop()  # E: assignment | reportAssignmentType

pmemobj.create("a.pool", durability="never")  # E: arg-type | reportArgumentType
pmemobj.open("a.pool", pool_size=3)  # E: call-arg | reportCallIssue
pmemobj.PersistentObjectPool("a.pool", flag="rw")  # E: arg-type | reportArgumentType
pool.filename = 3  # E: assignment | reportAttributeAccessIssue
pool.transaction().commits()  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType
