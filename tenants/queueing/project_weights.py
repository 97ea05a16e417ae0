"""How large a share of a model each project has, while others want it too."""

import math

from sqlalchemy import Select, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.audit import Act, record
from tenants.errors import InvalidValue, NotFound
from tenants.storage import Storage
from tenants.tables import project_weights, projects

STANDARD_WEIGHT = 1.0
LEAST_WEIGHT = 0.01
MOST_WEIGHT = 100.0


class ProjectWeights:
    """Weights of projects, all in memory: the admission of a request needs no database.

    Made by `open_weights`. Methods that touch the database raise `StorageUnavailable`.
    """

    def __init__(self, storage: Storage, weights: dict[str, float]) -> None:
        self._storage = storage
        self._weights = weights

    def of(self, project_id: str) -> float:
        """The project's weight, as it was set last."""
        return self._weights.get(project_id, STANDARD_WEIGHT)

    async def get(self, project_id: str, organization_id: str | None) -> float:
        """Return a project's weight. Raises `NotFound`, for a project of another organization as well.

        An ``organization_id`` of None stands for any organization.
        """
        async with self._storage.read() as connection:
            if await connection.scalar(_known(project_id, organization_id)) is None:
                raise NotFound("No such project.")
        return self.of(project_id)

    async def set(
        self, project_id: str, weight: float, organization_id: str | None, *, most: float = MOST_WEIGHT
    ) -> float:
        """The next request of the project has it. Raises `NotFound` as `get` does, and `InvalidValue`."""
        if not math.isfinite(weight) or not LEAST_WEIGHT <= weight <= most:
            raise InvalidValue("weight", f"'weight' must be between {LEAST_WEIGHT:g} and {most:g}.")

        async def work() -> None:
            async with self._storage.write() as connection:
                owner = await connection.scalar(_known(project_id, organization_id))
                if owner is None:
                    raise NotFound("No such project.")
                row = project_weights.c.project_id == project_id
                await connection.execute(delete(project_weights).where(row))
                await connection.execute(insert(project_weights).values(project_id=project_id, weight=weight))
                kind = "torpor.project.weight.updated"
                await record(connection, Act(kind, owner, project_id, project_id, {"weight": weight}))
            self._weights[project_id] = weight

        await self._storage.to_the_end(work())
        return weight


def _known(project_id: str, organization_id: str | None) -> Select[str]:
    """The organization of the project, where it is one of that organization."""
    statement = select(projects.c.organization_id).where(projects.c.id == project_id)
    if organization_id is None:
        return statement
    return statement.where(projects.c.organization_id == organization_id)


async def open_weights(database: AsyncEngine) -> ProjectWeights:
    """The weights in the database. Raises `StorageUnavailable`."""
    storage = Storage(database)
    async with storage.read() as connection:
        rows = (await connection.execute(select(project_weights))).all()
    return ProjectWeights(storage, {row.project_id: row.weight for row in rows})
