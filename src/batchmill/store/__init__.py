"""The rows: tables, one short function per statement, migrations."""
