"""What a start of `serve` or `worker` does to the rows."""

from pathlib import Path

from sqlalchemy import update

from batchmill.cli.rows import in_rows
from batchmill.cli.serve import begin_anew
from batchmill.settings import load_settings
from batchmill.store.batch import TRIES
from batchmill.store.database import Transaction
from batchmill.store.tables import batch
from store.rows import add_batch, add_organisations, stuck_ids


def test_a_start_beside_others_gives_no_new_tries(tmp_path: Path) -> None:
    """A worker that a scheduler starts again forgets no failure of a batch; who has the rows for itself does."""

    def statements(tx: Transaction) -> list[list[str]]:
        add_organisations(tx)
        add_batch(tx)
        tx.connection.execute(update(batch).values(crashes=TRIES))
        seen: list[list[str]] = []
        for shared in (True, False):
            begin_anew(tx, shared=shared)
            seen.append(list(stuck_ids(tx)))
        return seen

    assert in_rows(load_settings({"data": str(tmp_path)}), statements) == [["batch_1"], []]
