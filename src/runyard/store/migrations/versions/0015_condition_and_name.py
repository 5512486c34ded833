"""An index for lists of one condition in the order of names, whose blanks do not count."""

import sqlalchemy as sa
from alembic import op

from runyard.store.lists.texts import fold

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_index(
        "run_list_by_condition_and_name", "run_list", ["org", "condition", "name_key", "number"]
    )
    names = sa.table("run_list", sa.column("number"), sa.column("name_key"))
    connection = op.get_bind()
    changed = [
        {"of_number": number, "name_key": fold(name)}
        for number, name in connection.execute(sa.select(names.c.number, names.c.name_key))
        if fold(name) != name
    ]
    if changed:
        of_number = names.c.number == sa.bindparam("of_number")
        connection.execute(sa.update(names).where(of_number), changed)
