"""Users: the people of an organization, as its tokens name them, and their places in projects."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.accounts import projects
from tenants.audit import Act, record
from tenants.errors import Conflict, InvalidValue, NotFound
from tenants.secrets import new_id
from tenants.storage import Storage, now_ms, page_of
from tenants.tables import project_users, users
from tenants.types import Page

ORGANIZATION_ROLES = ("owner", "reader")
PROJECT_ROLES = ("owner", "member")


@dataclass(frozen=True, slots=True)
class User:
    """Who is added to an organization. ``id`` is the ``sub`` of the user's tokens, where there are any."""

    id: str
    email: str | None
    name: str | None
    role: str
    added_at: int


class Users:
    """Users of organizations and projects.

    The roles are for people to read: what a credential opens is said by its scopes. A user that is removed
    from the organization is refused at the next request with a token, until it is added again.

    Methods raise `StorageUnavailable`, and `NotFound` for what is not there. ``forget`` is called with an
    organization whose cached tokens are to be checked again.
    """

    def __init__(self, storage: Storage, *, forget: Callable[[str], None]) -> None:
        self._storage = storage
        self._forget = forget
        # One after the other, so no user is added twice under two ids.
        self._adding = asyncio.Lock()

    async def listed(
        self,
        organization_id: str,
        *,
        emails: Sequence[str] = (),
        after: str | None = None,
        limit: int = 20,
    ) -> Page[User]:
        """The organization's users in order of their addition, or those with one of the addresses."""
        of_organization = users.c.organization_id == organization_id
        where: list[ColumnElement[bool]] = [of_organization, users.c.removed_ms.is_(None)]
        if emails:
            where.append(users.c.email.in_(emails))
        async with self._storage.read() as connection:
            return await page_of(
                connection, users, where, _user, after=after, limit=limit, within=of_organization
            )

    async def get(self, organization_id: str, user_id: str) -> User:
        """One user of the organization."""
        async with self._storage.read() as connection:
            return await _fetch(connection, organization_id, user_id)

    async def update(self, organization_id: str, user_id: str, role: str) -> User:
        """Another role. Raises `InvalidValue`."""
        _check_role(role, ORGANIZATION_ROLES)
        async with self._storage.write() as connection:
            await _fetch(connection, organization_id, user_id)
            await connection.execute(update(users).where(_this(organization_id, user_id)).values(role=role))
            details = {"id": user_id, "changes_requested": {"role": role}}
            await record(connection, Act("user.updated", organization_id, user_id, details=details))
            return await _fetch(connection, organization_id, user_id)

    async def remove(self, organization_id: str, user_id: str) -> None:
        """Out of the organization and all its projects; the user's tokens are refused from now on."""

        async def work() -> None:
            try:
                async with self._storage.write() as connection:
                    await _fetch(connection, organization_id, user_id)
                    places = (project_users.c.organization_id == organization_id) & (
                        project_users.c.id == user_id
                    )
                    await connection.execute(delete(project_users).where(places))
                    statement = update(users).where(_this(organization_id, user_id))
                    await connection.execute(statement.values(removed_ms=now_ms()))
                    gone = Act("user.deleted", organization_id, user_id, details={"id": user_id})
                    await record(connection, gone)
            finally:
                self._forget(organization_id)

        await self._storage.to_the_end(work())

    async def add_to_project(
        self, organization_id: str, project_id: str, *, user_id: str | None, email: str | None, role: str
    ) -> User:
        """Give a user a place in the project; who is new to the organization is added to it, as a reader.

        Found by ``user_id``, else by ``email``. Raises `Conflict` for who is in the project already, and
        `InvalidValue`.
        """
        _check_role(role, PROJECT_ROLES)
        if user_id is None and email is None:
            raise InvalidValue("user_id", "Give 'user_id' or 'email'.")

        async def work() -> User:
            try:
                async with self._adding, self._storage.write() as connection:
                    await projects.fetch_active(connection, organization_id, project_id)
                    user = await _found_or_added(connection, organization_id, user_id, email)
                    return await _place(connection, organization_id, project_id, user, role)
            finally:
                self._forget(organization_id)

        return await self._storage.to_the_end(work())

    async def listed_of_project(
        self, organization_id: str, project_id: str, *, after: str | None = None, limit: int = 20
    ) -> Page[User]:
        """The project's users, with the roles and times of their places in it."""
        of_project = project_users.c.project_id == project_id
        async with self._storage.read() as connection:
            await projects.fetch(connection, organization_id, project_id)
            return await page_of(
                connection,
                project_users,
                [of_project],
                _user,
                after=after,
                limit=limit,
                within=of_project,
                statement=_of_project(),
            )

    async def get_of_project(self, organization_id: str, project_id: str, user_id: str) -> User:
        """One user of the project."""
        async with self._storage.read() as connection:
            await projects.fetch(connection, organization_id, project_id)
            return await _fetch_of_project(connection, project_id, user_id)

    async def update_of_project(self, organization_id: str, project_id: str, user_id: str, role: str) -> User:
        """Another role in the project. Raises `InvalidValue`."""
        _check_role(role, PROJECT_ROLES)
        async with self._storage.write() as connection:
            await projects.fetch_active(connection, organization_id, project_id)
            await _fetch_of_project(connection, project_id, user_id)
            membership = (project_users.c.project_id == project_id) & (project_users.c.id == user_id)
            await connection.execute(update(project_users).where(membership).values(role=role))
            details = {"id": user_id, "changes_requested": {"role": role}}
            await record(connection, Act("user.updated", organization_id, user_id, project_id, details))
            return await _fetch_of_project(connection, project_id, user_id)

    async def remove_from_project(self, organization_id: str, project_id: str, user_id: str) -> None:
        """Out of the project; the organization keeps the user."""
        async with self._storage.write() as connection:
            await projects.fetch(connection, organization_id, project_id)
            await _fetch_of_project(connection, project_id, user_id)
            membership = (project_users.c.project_id == project_id) & (project_users.c.id == user_id)
            await connection.execute(delete(project_users).where(membership))
            gone = Act("user.deleted", organization_id, user_id, project_id, {"id": user_id})
            await record(connection, gone)


async def _found_or_added(
    connection: AsyncConnection, organization_id: str, user_id: str | None, email: str | None
) -> User:
    of_organization = users.c.organization_id == organization_id
    which = of_organization & (users.c.id == user_id if user_id is not None else users.c.email == email)
    order = (users.c.removed_ms.is_not(None), users.c.created_ms, users.c.id)
    statement = select(users).where(which).order_by(*order).limit(1)
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is not None and row["removed_ms"] is None:
        return _user(row)
    added_id = (user_id or new_id("user-")) if row is None else row["id"]
    values: dict[str, Any] = {"role": ORGANIZATION_ROLES[1], "created_ms": now_ms(), "removed_ms": None}
    if email is not None:
        values["email"] = email
    if row is None:
        fresh = {"organization_id": organization_id, "id": added_id}
        try:
            await connection.execute(insert(users).values({**fresh, **values}))
        except IntegrityError as error:
            raise Conflict("The user is being added already.") from error
    else:
        await connection.execute(update(users).where(_this(organization_id, added_id)).values(values))
    details = {"id": added_id, "data": {"role": values["role"]}}
    await record(connection, Act("user.added", organization_id, added_id, details=details))
    return await _fetch(connection, organization_id, added_id)


async def _place(
    connection: AsyncConnection, organization_id: str, project_id: str, user: User, role: str
) -> User:
    row = {"project_id": project_id, "id": user.id, "organization_id": organization_id}
    try:
        await connection.execute(insert(project_users).values(**row, role=role, created_ms=now_ms()))
    except IntegrityError as error:
        raise Conflict("The user is in the project already.") from error
    details = {"id": user.id, "data": {"role": role}}
    await record(connection, Act("user.added", organization_id, user.id, project_id, details))
    return await _fetch_of_project(connection, project_id, user.id)


async def _fetch(connection: AsyncConnection, organization_id: str, user_id: str) -> User:
    statement = select(users).where(_this(organization_id, user_id), users.c.removed_ms.is_(None))
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise NotFound("No such user.")
    return _user(row)


async def _fetch_of_project(connection: AsyncConnection, project_id: str, user_id: str) -> User:
    membership = (project_users.c.project_id == project_id) & (project_users.c.id == user_id)
    row = (await connection.execute(_of_project().where(membership))).mappings().one_or_none()
    if row is None:
        raise NotFound("No such user.")
    return _user(row)


def _of_project() -> Any:
    """The user, with the role and the time of the place in the project."""
    same = (users.c.organization_id == project_users.c.organization_id) & (users.c.id == project_users.c.id)
    return select(project_users, users.c.email, users.c.name).join(users, same)


def _this(organization_id: str, user_id: str) -> ColumnElement[bool]:
    return (users.c.organization_id == organization_id) & (users.c.id == user_id)


def _check_role(role: str, roles: Sequence[str]) -> None:
    if role not in roles:
        raise InvalidValue("role", f"'role' must be one of {', '.join(roles)}.")


def _user(row: RowMapping) -> User:
    return User(row["id"], row["email"], row["name"], row["role"], row["created_ms"] // 1000)
